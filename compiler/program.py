"""The compiled graph as plain data: tensors, a flat list of kernel calls, and the kernels.

A `Program` is what the graph passes hand to packaging. Shapes are physical (after layout choice)
and static; every call names one scheduled PrimFunc. Nothing here refers to memory addresses:
`tilewright.compiler.memory` places the intermediates, `tilewright.compiler.package` writes the
deployable module.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
from tvm.tirx import PrimFunc

from tilewright.errors import CompileError

TensorKind = Literal["input", "output", "constant", "intermediate"]

_KINDS = ("input", "output", "constant", "intermediate")
_C_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*\Z")
_ITEM_BYTES = {
    "bool": 1,
    "int8": 1,
    "uint8": 1,
    "int16": 2,
    "uint16": 2,
    "float16": 2,
    "bfloat16": 2,
    "int32": 4,
    "uint32": 4,
    "float32": 4,
    "int64": 8,
    "uint64": 8,
    "float64": 8,
}

REGION_ATTRIBUTE = "tilewright.region"
"""Marks the empty PrimFunc that stands for control flow; the frontend sets it."""

# Types without arithmetic: kernels see their bits, one element per byte.
_BITS_DTYPE = "uint8"
_STORED_AS_BITS = frozenset(
    [
        *("int2", "uint2", "int4", "uint4", "float4_e2m1fn", "float6_e2m3fn", "float6_e3m2fn"),
        *("float8_e4m3fn", "float8_e4m3fnuz", "float8_e5m2", "float8_e5m2fnuz", "float8_e8m0fnu"),
    ]
)
_ITEM_BYTES |= dict.fromkeys(sorted(_STORED_AS_BITS), 1)


def storage_dtype(dtype: str) -> str:
    """Return the dtype by which kernels read and write what a caller sees as `dtype`."""
    return _BITS_DTYPE if dtype in _STORED_AS_BITS else dtype


def item_bytes(dtype: str) -> int:
    """Return the size in bytes of one element of `dtype` (a numpy dtype name).

    Raises:
        CompileError: the dtype has no place in a deployable module.
    """
    try:
        return _ITEM_BYTES[dtype]
    except KeyError:
        accepted = ", ".join(_ITEM_BYTES)
        raise CompileError(f"dtype '{dtype}' cannot be stored; accepted are {accepted}") from None


@dataclass(frozen=True, slots=True)
class TensorSpec:
    """One input or output as the caller sees it: name, logical shape, numpy dtype name."""

    name: str
    shape: tuple[int, ...]
    dtype: str


@dataclass(frozen=True, slots=True, eq=False)
class Tensor:
    """One buffer of the program.

    Attributes:
        name: for messages; need not be unique.
        shape: physical shape, outermost dimension first.
        dtype: numpy dtype name.
        kind: who owns the bytes: the caller (input, output), the payload (constant), the arena
            (intermediate). Whether an output's bytes are written in place follows from
            `Program.outputs`, so "output" and "intermediate" mean the same to packaging.
        data: the bytes of a constant, C-contiguous, of the physical shape; None otherwise. The same
            array object used by several tensors is stored once.
        alias_of: id of a tensor whose storage this one shares from its first byte (a reshape);
            kinds agree (output and intermediate count as one), a constant alias has no data.
    """

    name: str
    shape: tuple[int, ...]
    dtype: str
    kind: TensorKind
    data: np.ndarray | None = None
    alias_of: int | None = None

    @property
    def size_bytes(self) -> int:
        """Return the bytes that the elements occupy, without padding."""
        return math.prod(self.shape) * item_bytes(self.dtype)


@dataclass(frozen=True, slots=True)
class Call:
    """One kernel call.

    Attributes:
        kernel: key in `Program.kernels`.
        args: tensor ids in PrimFunc parameter order; the last `n_outputs` of them are written.
        label: what a profile shows, for instance the name of the ONNX node.
        n_outputs: how many of the last arguments the kernel writes.
    """

    kernel: str
    args: tuple[int, ...]
    label: str
    n_outputs: int = 1

    @property
    def reads(self) -> tuple[int, ...]:
        """Return the ids of the tensors that the call reads."""
        return self.args[: len(self.args) - self.n_outputs]

    @property
    def writes(self) -> tuple[int, ...]:
        """Return the ids of the tensors that the call writes."""
        return self.args[len(self.args) - self.n_outputs :]


@dataclass(frozen=True, slots=True, eq=False)
class Region:
    """Control flow in the place of a kernel; the frontend's `Region` says what the arguments are.

    Attributes:
        kind: "if" runs one of two bodies by a condition, "loop" repeats one.
        bodies: programs whose kernels have names that are unique in the module.
        carried: number of tensors that a loop hands from one iteration to the next.
        takes: for "if", per body the arguments that it takes, counted after the condition.
    """

    kind: Literal["if", "loop"]
    bodies: tuple[Program, ...]
    carried: int = 0
    takes: tuple[tuple[int, ...], ...] = ()


@dataclass(frozen=True, slots=True, eq=False)
class Program:
    """A whole model: calls run in order, each kernel once per call.

    Attributes:
        tensors: all buffers; a tensor id is a position in this tuple.
        calls: in execution order.
        inputs: tensor ids of the inputs, in the model's order.
        outputs: tensor ids of the outputs, in the model's order. An id may be a constant, an input
            or an intermediate, and may repeat: packaging copies it to the caller's buffer.
        kernels: name -> scheduled PrimFunc; a name is a C identifier.
        input_specs: names, logical shapes and dtypes, parallel to `inputs`.
        output_specs: the same for `outputs`.
        regions: control flow by the name of the kernel that stands for it; that one is empty.
    """

    tensors: tuple[Tensor, ...]
    calls: tuple[Call, ...]
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]
    kernels: Mapping[str, PrimFunc]
    input_specs: tuple[TensorSpec, ...]
    output_specs: tuple[TensorSpec, ...]
    regions: Mapping[str, Region] = field(default_factory=dict)

    def __post_init__(self) -> None:
        _check_tensors(self)
        _check_interface(self)
        _check_calls(self)

    def used_kernels(self) -> dict[str, PrimFunc]:
        """Return the kernels that are called, those of the bodies of regions among them."""
        used = {call.kernel for call in self.calls}
        found = {name: self.kernels[name] for name in used - set(self.regions)}
        for name in used & set(self.regions):
            for body in self.regions[name].bodies:
                found |= body.used_kernels()
        return found

    def storage_of(self, tensor_id: int) -> int:
        """Return the id of the tensor that owns the storage, following aliases."""
        alias_of = self.tensors[tensor_id].alias_of
        while alias_of is not None:
            tensor_id = alias_of
            alias_of = self.tensors[tensor_id].alias_of
        return tensor_id


def _check_tensors(program: Program) -> None:
    for index, tensor in enumerate(program.tensors):
        where = f"tensor {index} ('{tensor.name}')"
        if tensor.kind not in _KINDS:
            raise CompileError(f"{where} has kind '{tensor.kind}'; accepted are {_KINDS}")
        if any(extent < 0 for extent in tensor.shape):
            raise CompileError(f"{where} has a negative extent in {tensor.shape}")
        if tensor.alias_of is not None:
            _check_alias(program, index, tensor.alias_of, where)
        if (tensor.data is not None) != (tensor.kind == "constant" and tensor.alias_of is None):
            raise CompileError(f"{where}: constants have data, and no other tensor does")
        if tensor.data is not None:
            _check_data(tensor, tensor.data, where)


def _check_alias(program: Program, index: int, alias_of: int, where: str) -> None:
    tensor = program.tensors[index]
    if not 0 <= alias_of < index:
        raise CompileError(f"{where} is an alias of {alias_of}, which is not before it")
    owner = program.tensors[alias_of]
    kinds = {owner.kind, tensor.kind}
    if (
        len(kinds) > 1 and kinds != {"output", "intermediate"}
    ) or owner.size_bytes < tensor.size_bytes:
        raise CompileError(
            f"{where} of kind {tensor.kind} and {tensor.size_bytes} bytes cannot be an alias of "
            f"'{owner.name}' of kind {owner.kind} and {owner.size_bytes} bytes"
        )


def _check_data(tensor: Tensor, data: np.ndarray, where: str) -> None:
    if tuple(data.shape) != tuple(tensor.shape) or data.dtype.name != tensor.dtype:
        raise CompileError(
            f"{where} is {tensor.dtype} {list(tensor.shape)}, but its data is "
            f"{data.dtype.name} {list(data.shape)}"
        )
    if not data.flags.c_contiguous:
        raise CompileError(f"{where} has data that is not C-contiguous")


def _check_interface(program: Program) -> None:
    for what, ids, specs in (
        ("input", program.inputs, program.input_specs),
        ("output", program.outputs, program.output_specs),
    ):
        if len(ids) != len(specs):
            raise CompileError(f"{len(ids)} {what}s, but {len(specs)} {what} specs")
        names = [spec.name for spec in specs]
        if len(set(names)) != len(names):
            raise CompileError(f"{what} names are not unique: {names}")
        for tensor_id, spec in zip(ids, specs, strict=True):
            if not 0 <= tensor_id < len(program.tensors):
                raise CompileError(
                    f"{what} '{spec.name}' is tensor {tensor_id}, which is not there"
                )
            tensor = program.tensors[tensor_id]
            if what == "input" and tensor.kind != "input":
                raise CompileError(f"input '{spec.name}' is a tensor of kind {tensor.kind}")
            spec_bytes = math.prod(spec.shape) * item_bytes(spec.dtype)
            if tensor.dtype != storage_dtype(spec.dtype) or tensor.size_bytes != spec_bytes:
                raise CompileError(
                    f"{what} '{spec.name}' is {spec.dtype} {list(spec.shape)} for the caller, but "
                    f"{tensor.dtype} {list(tensor.shape)} in the program; convert it by a kernel"
                )


def _check_calls(program: Program) -> None:
    for name in program.kernels:
        if not _C_NAME.match(name):
            raise CompileError(f"kernel name '{name}' is not a C identifier")
    known = {
        index
        for index, tensor in enumerate(program.tensors)
        if program.tensors[program.storage_of(index)].kind in ("input", "constant")
    }
    for call in program.calls:
        where = f"call '{call.label}' of kernel '{call.kernel}'"
        if call.kernel not in program.kernels:
            raise CompileError(f"{where}: the program has no such kernel")
        if not 1 <= call.n_outputs <= len(call.args):
            raise CompileError(f"{where} has {len(call.args)} arguments, {call.n_outputs} written")
        _check_arguments(program, call, where)
        written = {program.storage_of(index) for index in call.writes}
        for index in call.reads:
            storage = program.storage_of(index)
            if storage not in known:
                raise CompileError(
                    f"{where} reads '{program.tensors[index].name}' before it is set"
                )
        for index in written:
            if program.tensors[index].kind in ("input", "constant"):
                raise CompileError(f"{where} writes '{program.tensors[index].name}'")
        known |= written
    for index, spec in zip(program.outputs, program.output_specs, strict=True):
        if program.storage_of(index) not in known:
            raise CompileError(f"output '{spec.name}' is never written")


def _check_arguments(program: Program, call: Call, where: str) -> None:
    """Compare the arguments of `call` with the parameters of its PrimFunc."""
    params = program.kernels[call.kernel].params
    if len(params) != len(call.args):
        raise CompileError(f"{where} has {len(call.args)} arguments for {len(params)} parameters")
    for param, index in zip(params, call.args, strict=True):
        if not 0 <= index < len(program.tensors):
            raise CompileError(f"{where} has argument {index}, which is not a tensor")
        tensor = program.tensors[index]
        shape = tuple(int(extent) for extent in param.shape)
        if shape != tuple(tensor.shape) or str(param.dtype) != tensor.dtype:
            raise CompileError(
                f"{where}: parameter '{param.name}' is {param.dtype} {list(shape)}, but tensor "
                f"'{tensor.name}' is {tensor.dtype} {list(tensor.shape)}"
            )
