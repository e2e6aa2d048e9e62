"""Builds the Relax function: variables, constants and names."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import tvm
from tvm import relax

from tilewright.errors import UnsupportedModelError
from tilewright.frontends.onnx.values import (
    SMALL_DTYPES,
    STORAGE_DTYPE,
    Value,
    constant,
    is_small,
    numpy_dtype,
)

TVM_DTYPES = frozenset(
    [
        "bool",
        "int8",
        "int16",
        "int32",
        "int64",
        "uint8",
        "uint16",
        "uint32",
        "uint64",
        "float16",
        "float32",
        "float64",
        "bfloat16",
    ]
)


_SHARED_DTYPES = frozenset(("float32", "float64", "float16", "int64", "int32", "int8", "uint8"))


class GraphBuilder:
    """A Relax block builder that hands out :class:`Value` with static shapes."""

    def __init__(self, regions: list[Any] | None = None) -> None:
        self.block = relax.BlockBuilder()
        # Shared with the builders of bodies: see `regions.Region`.
        self.regions: list[Any] = [] if regions is None else regions
        # Results of NonZero by the id of its input, which is kept alive beside it.
        self.nonzero_of: dict[int, tuple[Value, Value]] = {}
        # Tensor -> why integer weights in blocks were decoded when compiling.
        self.decoded: dict[str, str] = {}
        self._used: dict[str, int] = {}

    def parameter(self, name: str, shape: Sequence[int], dtype: str) -> tuple[relax.Var, Value]:
        """Make a parameter of the main function for a graph input."""
        check_dtype(dtype, f"input {name!r}")
        stored = STORAGE_DTYPE if is_small(dtype) else dtype
        var = relax.Var(self.unique(name), relax.TensorType(list(shape), stored))
        return var, Value(tuple(shape), dtype, expr=var)

    def expr(self, value: Value) -> relax.Expr:
        """Return the Relax expression of a value; a constant is made when first used.

        That of a small type holds its bits, as uint8.
        """
        if value.expr is None:
            if value.data is None:
                raise ValueError("a value has neither data nor an expression")
            check_dtype(value.dtype, "a constant")
            array = np.ascontiguousarray(value.data).reshape(value.shape)
            if is_small(value.dtype):
                array = array.view(STORAGE_DTYPE)
            # As a TVM tensor: relax.const narrows 64-bit arrays to 32 bits.
            tensor = tvm.runtime.tensor(array)
            value.expr = relax.const(tensor)
            if value.dtype in _SHARED_DTYPES:
                # Drop the copy of the weight: from here on, numpy looks at TVM's.
                value.data = np.from_dlpack(tensor)
        return value.expr

    def emit(self, expr: relax.Expr, hint: str) -> Value:
        """Bind an expression to a variable and return its value."""
        return _value(self.block.emit(expr, name_hint=self.unique(hint)))

    def emit_tuple(self, expr: relax.Expr, hint: str) -> list[Value]:
        """Bind an expression that yields a tuple, and return its fields."""
        var = self.block.emit(expr, name_hint=self.unique(hint))
        fields = range(len(var.ty.fields))
        return [self.emit(relax.TupleGetItem(var, index), hint) for index in fields]

    def emit_te(
        self, function: Callable[..., Any], args: Sequence[Any], name: str, hint: str
    ) -> Value:
        """Bind a call to a PrimFunc made from a tensor expression."""
        return self.emit(self.block.call_te(function, *args, primfunc_name_hint=name), hint)

    def emit_te_tuple(
        self, function: Callable[..., Any], args: Sequence[Any], name: str, hint: str
    ) -> list[Value]:
        """Bind a call to a PrimFunc with several outputs."""
        return self.emit_tuple(self.block.call_te(function, *args, primfunc_name_hint=name), hint)

    def sizes_vector(self, value: Value) -> Value:
        """Return the run-time sizes of a value of at least one dimension as int64 [rank]."""
        sizes = [
            constant(np.array([extent], np.int64)) if size is None else size
            for extent, size in zip(value.shape, value.sizes or (), strict=True)
        ]
        if len(sizes) == 1:
            return sizes[0]
        return self.emit(relax.op.concat([self.expr(size) for size in sizes], 0), "sizes")

    def unique(self, name: str) -> str:
        """Turn an ONNX name into an identifier that is not used yet."""
        stem = re.sub(r"\W", "_", name, flags=re.ASCII).strip("_") or "v"
        stem = f"v_{stem}" if stem[0].isdigit() else stem
        unique = stem
        while unique in self._used:
            self._used[stem] += 1
            unique = f"{stem}_{self._used[stem]}"
        self._used[unique] = 0
        return unique


def check_dtype(dtype: str, what: str) -> None:
    """Raise unless tensors of this element type can be computed with."""
    if dtype not in TVM_DTYPES and dtype not in SMALL_DTYPES:
        name = "string" if dtype == "object" else dtype
        raise UnsupportedModelError(
            f"{what} has element type {name}, which cannot be compiled; supported are "
            f"{', '.join(sorted(TVM_DTYPES | SMALL_DTYPES))}"
        )


def _value(var: relax.Var) -> Value:
    """Read shape and dtype of a variable from its type."""
    shape = tuple(int(extent) for extent in var.ty.shape)
    dtype = str(var.ty.dtype)
    if 0 in shape:
        # Nothing to compute; the binding is dead, and what follows may fold.
        return Value(shape, dtype, data=np.zeros(shape, numpy_dtype(dtype)))
    return Value(shape, dtype, expr=var)
