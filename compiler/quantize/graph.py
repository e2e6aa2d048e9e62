"""What the rewrite to integers must know of a Relax function: who makes and who uses each value."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import tvm
from tvm import relax

from tilewright.compiler.quantize.affine import Affine, evaluate, read_affine
from tilewright.compiler.relax_utils import (
    bindings,
    constant_array,
    is_constant,
    op_name,
    static_shape,
    variables,
)


@dataclass(frozen=True, eq=False)
class QuantizedConstant:
    """Constant integers with their scales.

    Attributes:
        integers: the data.
        affine: how they are dequantized; its axis is that of `integers`.
    """

    integers: np.ndarray
    affine: Affine


class Graph:
    """Definitions, uses and order of the variables of a function."""

    def __init__(self, mod: tvm.IRModule) -> None:
        self.mod = mod
        self.main = mod["main"]
        self.bindings = bindings(self.main)
        self.value = {binding.var: binding.value for binding in self.bindings}
        self.index = {binding.var: number for number, binding in enumerate(self.bindings)}
        self.users: dict[relax.Var, list[relax.Var | None]] = {}
        for binding in self.bindings:
            for var in variables(binding.value):
                self.users.setdefault(var, []).append(binding.var)
        for var in variables(self.main.body.body):
            self.users.setdefault(var, []).append(None)

    @cached_property
    def affines(self) -> dict[relax.Var, Affine]:
        """Return the quantize and dequantize operators by their variable."""
        found = {}
        for var, value in self.value.items():
            affine = read_affine(self.mod, value)
            if affine is not None:
                found[var] = affine
        return found

    @cached_property
    def _dtypes(self) -> dict[relax.Expr, str]:
        return {a.source: a.dtype for a in self.affines.values() if a.kind == "dequantize"}

    def dtype_read(self, expr: relax.Expr) -> str | None:
        """Return the integer type that a dequantize operator reads an expression as, if any does.

        Integers below a byte are stored as uint8, whose type does not tell.
        """
        return self._dtypes.get(expr)

    def of_kind(self, expr: relax.Expr, kind: str) -> Affine | None:
        """Return the conversion that makes a variable, if it is of a kind."""
        affine = self.affines.get(expr) if isinstance(expr, relax.Var) else None
        return affine if affine is not None and affine.kind == kind else None

    def made_by(self, expr: relax.Expr) -> relax.Call | None:
        """Return the call that makes a variable."""
        value = self.value.get(expr) if isinstance(expr, relax.Var) else None
        return value if isinstance(value, relax.Call) else None

    def quantized_constant(self, expr: relax.Expr) -> QuantizedConstant | None:
        """Return constant integers behind a dequantize, and behind transpositions of it."""
        affine = self.of_kind(expr, "dequantize")
        if affine is not None:
            if not is_constant(affine.source):
                return None
            return QuantizedConstant(constant_array(affine.source), affine)
        call = self.made_by(expr)
        if call is None or op_name(call) != "relax.permute_dims":
            return None
        inner = self.quantized_constant(call.args[0])
        if inner is None:
            return None
        rank = inner.integers.ndim
        axes = [int(a) % rank for a in call.attrs.axes or reversed(range(rank))]
        old = inner.affine
        axis = axes.index(old.axis) if not old.is_uniform else 0
        moved = Affine(old.kind, old.source, old.dtype, old.scale, old.zero, axis)
        return QuantizedConstant(np.ascontiguousarray(inner.integers.transpose(axes)), moved)

    def constant(self, expr: relax.Expr) -> np.ndarray | None:
        """Return the float data of a constant, dequantized where need be."""
        if is_constant(expr):
            return constant_array(expr)
        quantized = self.quantized_constant(expr)
        return None if quantized is None else evaluate(quantized.affine, quantized.integers)

    def before(self, var: relax.Var) -> set[relax.Var]:
        """Return a variable and all that it is computed from."""
        found: set[relax.Var] = set()
        left = [var]
        while left:
            one = left.pop()
            if one not in found:
                found.add(one)
                left += variables(self.value[one]) if one in self.value else []
        return found

    def follows_bytes(self, var: relax.Var) -> bool:
        """Say whether a variable is computed from what another quantize operator made."""
        return any(self.of_kind(one, "quantize") for one in self.before(var) if one is not var)

    def shape(self, expr: relax.Expr) -> tuple[int, ...]:
        """Return the static shape of a tensor."""
        return static_shape(expr)
