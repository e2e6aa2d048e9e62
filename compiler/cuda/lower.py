"""From an imported model to a program of kernel launches for a GPU.

    Relax -> canonical Relax -> fused PrimFuncs -> layouts -> launches

The graph passes, the fusion and the assignment of layouts are those of processors; what differs is
which layouts an operator can have, and how it becomes code.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import tvm
from tvm import tirx

from tilewright.compiler.codegen import KERNEL_PREFIX
from tilewright.compiler.cuda.attention import Attention, Step, find_attention, unread_copies
from tilewright.compiler.cuda.attention_kernel import (
    AttentionTile,
    attention_kernel,
    choose_attention_tile,
)
from tilewright.compiler.cuda.build import Launches, build_launches
from tilewright.compiler.cuda.kernel import Kernel
from tilewright.compiler.cuda.layouts import cuda_choices
from tilewright.compiler.cuda.parts import is_split, split
from tilewright.compiler.cuda.selection import count_places
from tilewright.compiler.cuda.storage import STORED_AS, restore, store_in_16_bits
from tilewright.compiler.cuda.targets import CudaTarget, check_precision
from tilewright.compiler.cuda.tile import GemmTile
from tilewright.compiler.cuda.together import run_together
from tilewright.compiler.layout.operator import Choice, Operator
from tilewright.compiler.layout.propagation import (
    DECISIONS_ATTRIBUTE,
    LayoutPlan,
    apply_layouts,
    choose_layouts,
)
from tilewright.compiler.passes.pack_weights import PackWeights
from tilewright.compiler.pipeline import Lowered, fuse
from tilewright.compiler.program import Call, Program, Tensor, TensorSpec
from tilewright.compiler.regions import RegionSource
from tilewright.compiler.schedule.expressions import shape_of
from tilewright.compiler.targets import Target, parse_target
from tilewright.compiler.work import operations_by_label
from tilewright.errors import CompileError, InvalidScheduleError, TilewrightError

HOST = "x86-64-v3"
"""The processor that starts the kernels; also the one whose image formats are used."""

Choices = Callable[[Operator, Target], tuple[Choice, ...]]
"""Gives the layouts that an operator can work in, maybe with decisions for its product."""


@dataclass(frozen=True)
class CudaLowered:
    """A program for a GPU.

    Attributes:
        program: one call per launch; its PrimFuncs are empty and only say the parameters.
        kernels: by the name that calls give.
        schedules: of each operator, by its label: what its launches are.
        operators: the program before it was cut into launches, and its layouts.
    """

    program: Program
    kernels: Mapping[str, Kernel]
    schedules: Mapping[str, tuple[str, ...]]
    operators: Lowered


def lower_for_cuda(
    mod: tvm.IRModule,
    inputs: Sequence[TensorSpec],
    outputs: Sequence[TensorSpec],
    target: CudaTarget,
    precision: str = "fp32",
    *,
    regions: Sequence[RegionSource] = (),
    choices_of: Choices = cuda_choices,
    progress: Callable[[str], None] = lambda _stage: None,
) -> CudaLowered:
    """Turn an imported Relax module into launches.

    Args:
        mod, inputs, outputs: as for `compiler.pipeline.lower`.
        target: the GPU.
        precision: of products of floats.
        regions: control flow of the module, which GPUs do not run.
        choices_of: layouts of operators with their estimated or measured seconds.
        progress: called with the name of each stage.

    Raises:
        CompileError: an operator has no schedule for GPUs; the message names it.
    """
    check_precision(precision)
    if regions:
        raise CompileError(
            "the model has If or Loop with a condition that depends on data, which CUDA targets "
            "do not run; fix the condition with --constant, or compile for a processor"
        )
    host = parse_target(HOST)
    mod = tvm.ir.transform.Sequential([PackWeights(None)])(mod)
    program = fuse(mod, inputs, outputs, host, winograd=False, progress=progress)
    _check_quantized(program, precision)
    progress("layouts")
    plan = choose_layouts(program, host, choices_of)
    program, conversions = apply_layouts(program, plan)
    program = replace(program, kernels=count_places(program.kernels))
    operators = Lowered(program, plan, conversions, (), operations_by_label(program))
    progress("schedules")
    return launch(operators, target, precision)


def launch(operators: Lowered, target: CudaTarget, precision: str) -> CudaLowered:
    """Cut the operators of a program with chosen layouts into launches.

    Raises:
        CompileError: an operator has no schedule for GPUs; the message names it.
    """
    builder = _Builder(operators.program, target, precision)
    program, kernels = run_together(builder.program(), builder.kernels, target)
    return CudaLowered(program, kernels, builder.schedules, operators)


def calls_in_attention(program: Program, target: CudaTarget, precision: str) -> frozenset[int]:
    """Return the positions of the calls that have no kernel of their own, as attention has one."""
    builder = _Builder(program, target, precision)
    return frozenset(builder.in_attention) | builder.unused


def without_layouts(program: Program) -> Lowered:
    """Return a program whose functions have their layouts already, as `launch` takes it."""
    return Lowered(program, LayoutPlan((), 0.0, False), ())


def _check_quantized(program: Program, precision: str) -> None:
    """int8 is not a way to compute floats: the model must say its scales."""
    if precision != "int8":
        return
    bytes_used = any(tensor.dtype in ("int8", "uint8") for tensor in program.tensors)
    if not bytes_used:
        raise CompileError(
            "precision int8 needs a quantized model, and this one has no 8-bit tensor; write one "
            "with: tilewright quantize"
        )


class _Builder:
    def __init__(self, program: Program, target: CudaTarget, precision: str) -> None:
        self.source, self.target, self.precision = program, target, precision
        tensors = program.tensors
        if precision in STORED_AS:
            others = {name for name, func in program.kernels.items() if not is_split(func)}
            tensors = store_in_16_bits(program, STORED_AS[precision], others)
        self.tensors = list(tensors)
        self.calls: list[Call] = []
        self.kernels: dict[str, Kernel] = {}
        self.signatures: dict[str, tirx.PrimFunc] = {}
        self.schedules: dict[str, tuple[str, ...]] = {}
        self.attentions: dict[tuple[str, tuple[Any, ...]], str] = {}
        self.built: dict[tuple[str, tuple[tuple[int, str], ...]], Launches] = {}
        self.fused = self._attention()
        found = [attention for attention, _ in self.fused.values()]
        self.in_attention = {number for attention in found for number in attention.calls}
        self.unused = unread_copies(program, found)

    def program(self) -> Program:
        for number, call in enumerate(self.source.calls):
            if number in self.fused:
                self._attend(*self.fused[number])
            elif number not in self.in_attention and number not in self.unused:
                self._call(call)
        return replace(
            self.source,
            tensors=tuple(self.tensors),
            calls=tuple(self.calls),
            kernels=self.signatures,
        )

    def _attention(self) -> dict[int, tuple[Attention, AttentionTile]]:
        """Return the attention that one kernel computes, by the position of its last call."""
        found = {}
        for attention in find_attention(self.source, self.tensors, self._step):
            tile = choose_attention_tile(attention, self.precision, self.target)
            if tile is not None:
                found[attention.calls[-1]] = attention, tile
        return found

    def _step(self, number: int) -> Step | None:
        """Return a call as one launch on buffers of its own, or None where it is several."""
        call = self.source.calls[number]
        func = self.source.kernels[call.kernel]
        try:
            dtypes = {place: self.tensors[index].dtype for place, index in enumerate(call.args)}
            parts, params = restore(split(func), func, dtypes)
        except CompileError:  # `_call` says so
            return None
        if len(parts) != 1 or call.n_outputs != 1:
            return None
        return Step(number, parts[0], dict(zip(params, call.args, strict=True)), call.args[-1])

    def _attend(self, attention: Attention, tile: AttentionTile) -> None:
        labels = [self.source.calls[number].label for number in attention.calls]
        name = f"{KERNEL_PREFIX}attention{len(self.attentions)}"
        kernel, part = attention_kernel(attention, tile, name)
        buffers = (*part.reads, *part.writes)
        shapes = tuple((shape_of(buffer), str(buffer.dtype)) for buffer in buffers)
        # Layers that are alike have one kernel.
        name = self.attentions.setdefault((kernel.source.replace(name, ""), shapes), name)
        if name == kernel.name:
            self.kernels[name] = kernel
            self.signatures[name] = signature_of(buffers)
        arguments = tuple(attention.tensors[buffer] for buffer in buffers)
        self.calls.append(Call(name, arguments, f"attention#{attention.calls[-1]}"))
        self.schedules |= dict.fromkeys(labels, (kernel.schedule,))

    def _call(self, call: Call) -> None:
        func = self.source.kernels[call.kernel]
        storage = {
            position: self.tensors[index].dtype
            for position, (param, index) in enumerate(zip(func.params, call.args, strict=True))
            if str(param.dtype) != self.tensors[index].dtype
        }
        key = (call.kernel, tuple(sorted(storage.items())))
        if key not in self.built:
            variants = sum(1 for name, _ in self.built if name == call.kernel)
            name = f"{call.kernel}_s{variants}" if variants else call.kernel
            self.built[key] = self._build(name, call, func, storage)
        launches = self.built[key]
        self.calls += calls_of(launches, call, self.tensors)
        self.schedules[call.label] = tuple(x.kernel.schedule for x in launches.launches)

    def _build(
        self, name: str, call: Call, func: tirx.PrimFunc, storage: Mapping[int, str]
    ) -> Launches:
        try:
            text = func.attrs.get(DECISIONS_ATTRIBUTE) if func.attrs else None
            tile = None if text is None else GemmTile.from_json(str(text))
            launches = build_launches(func, name, self.target, self.precision, tile, storage)
        except InvalidScheduleError as error:
            raise CompileError(f"operator '{call.label}': {error}") from error
        except TilewrightError as error:
            raise CompileError(
                f"operator '{call.label}' (kernel '{call.kernel}') has no schedule for "
                f"{self.target.name}: {error}"
            ) from error
        for launch in launches.launches:
            self.kernels[launch.kernel.name] = launch.kernel
            self.signatures[launch.kernel.name] = signature_of(launch.buffers)
        return launches


def calls_of(launches: Launches, call: Call, tensors: list[Tensor]) -> list[Call]:
    """Return the calls of the launches that stand for a call; append their temporaries."""
    places: list[tuple[Any, int]] = list(zip(launches.params, call.args, strict=True))
    for buffer in launches.temporaries:
        shape, dtype = shape_of(buffer), str(buffer.dtype)
        tensors.append(Tensor(f"{call.label}.{buffer.name}", shape, dtype, "intermediate"))
        places.append((buffer, len(tensors) - 1))
    calls = []
    for number, launch in enumerate(launches.launches):
        arguments = tuple(
            next(index for known, index in places if known.same_as(buffer))
            for buffer in launch.buffers
        )
        label = call.label if number == 0 else f"{call.label}.{number}"
        calls.append(Call(launch.kernel.name, arguments, label, launch.n_outputs))
    return calls


def signature_of(buffers: Sequence[Any]) -> tirx.PrimFunc:
    """Return a function without a body that has the parameters of a launch."""
    params = [tirx.decl_buffer(shape_of(b), str(b.dtype), b.name) for b in buffers]
    return tirx.PrimFunc(params, tirx.Evaluate(tirx.IntImm("int32", 0)))
