"""The whole compile, readable as one page.

Relax module -> canonical Relax -> fused PrimFuncs -> layouts -> schedules -> program
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import tvm
from tvm.tirx import PrimFunc

from tilewright.compiler.algorithms import Chooser
from tilewright.compiler.layout.choices import operator_choices
from tilewright.compiler.layout.propagation import (
    DECISIONS_ATTRIBUTE,
    Conversion,
    LayoutPlan,
    apply_layouts,
    choose_layouts,
)
from tilewright.compiler.layout.strategies import Strategy, assign_globally
from tilewright.compiler.lower import legalize_and_fuse, read_program
from tilewright.compiler.passes.canonicalize import CanonicalizeOps
from tilewright.compiler.passes.fold_batch_norm import FoldBatchNorm
from tilewright.compiler.passes.join_winograd import join_winograd
from tilewright.compiler.passes.lower_conv_transpose import LowerConvTranspose
from tilewright.compiler.passes.lower_phases import LowerPhases
from tilewright.compiler.passes.lower_winograd import LowerWinograd
from tilewright.compiler.passes.pack_bits import pack_bits
from tilewright.compiler.passes.pack_weights import PackWeights
from tilewright.compiler.program import Program, TensorSpec
from tilewright.compiler.quantize.explain import Explained, explain_quantized
from tilewright.compiler.quantize.qdq import QuantizedOperators, check_integer_only
from tilewright.compiler.regions import RegionSource, lower_region, region_of
from tilewright.compiler.schedule import decisions_from_json, schedule
from tilewright.compiler.schedule.dot_groups import is_widened
from tilewright.compiler.targets import Target
from tilewright.compiler.tasks import Tuned, as_lookup, tuned_choices
from tilewright.compiler.work import operations_by_label, scattered_labels
from tilewright.errors import CompileError, InvalidScheduleError, TilewrightError

Progress = Callable[[str], None]


@dataclass(frozen=True)
class Lowered:
    """A program ready for packaging, and how it came to be.

    Attributes:
        program: scheduled kernels on physical shapes.
        plan: the layout choice of every operator.
        conversions: layout conversions that are executed.
        stale: kernels whose tuned decisions no longer fit; they got the default ones.
        operations: of each call, by its label; see `compiler.work`.
        scattered: labels of calls that read where other data says.
        quantized: of a quantized model, which operators run on integers, and why others do not.
    """

    program: Program
    plan: LayoutPlan
    conversions: tuple[Conversion, ...]
    stale: tuple[str, ...] = ()
    operations: Mapping[str, int] = field(default_factory=dict)
    scattered: frozenset[str] = frozenset()
    quantized: tuple[Explained, ...] = ()


# Vectors of at least as many floats compute a curve of bytes, shorter ones look it up:
# EfficientNet-B0 in int8 on Zen 3 (8 floats) 20.1 ms computed, 10.8 ms looked up.
_CURVE_LANES = 16


def graph_passes(
    target: Target, winograd: bool | Chooser = True, integer_only: bool = False
) -> list[tvm.ir.transform.Pass]:
    """Return the passes on Relax, in order; `winograd` is as for `lower`."""
    choose = None if isinstance(winograd, bool) else winograd
    return [
        QuantizedOperators(
            integer_only,
            tables=target.lanes("float32") < _CURVE_LANES,
            winograd=bool(winograd) and is_widened(target),
        ),
        PackWeights(target),
        CanonicalizeOps(),
        FoldBatchNorm(),
        LowerPhases(target),
        LowerConvTranspose(),
        *([LowerWinograd(target, choose)] if winograd else []),
        CanonicalizeOps(),
    ]


def lower(
    mod: tvm.IRModule,
    inputs: Sequence[TensorSpec],
    outputs: Sequence[TensorSpec],
    target: Target,
    *,
    tuned: Tuned | None = None,
    winograd: bool | Chooser = True,
    strategy: Strategy = assign_globally,
    integer_only: bool = False,
    regions: Sequence[RegionSource] = (),
    dump_ir: Path | None = None,
    progress: Progress = lambda _stage: None,
) -> Lowered:
    """Turn an imported Relax module into a program with scheduled kernels.

    Args:
        mod: one function "main" on static shapes, with constants inline.
        inputs, outputs: what the caller passes and gets, parallel to main's.
        target: the processor to build for.
        tuned: decisions by key of the task, or a function that finds them.
        winograd: let convolutions use Winograd's algorithm where it is estimated faster; or says
            itself which of them use it.
        strategy: how layouts are chosen; others than the default are for comparison.
        integer_only: no floats between the first quantize and the last dequantize operator.
        regions: control flow that the module refers to.
        dump_ir: folder for the numbered stages as text, made where it is missing.
        progress: called with the name of each stage.

    Raises:
        CompileError: an operator cannot be lowered, or not in integers only; the message names it.
    """
    dump = _Dumper(dump_ir)
    quantized = explain_quantized(mod)
    program = fuse(mod, inputs, outputs, target, winograd, dump, progress, integer_only)

    progress("layouts")
    choices_of = operator_choices
    if tuned is not None:
        choices_of = partial(tuned_choices, lookup=as_lookup(tuned))
    plan = choose_layouts(program, target, choices_of, strategy)
    program, conversions = apply_layouts(program, plan)
    dump("layouts", tvm.IRModule(_named(program.kernels)))

    progress("schedules")
    operations, scattered = operations_by_label(program), scattered_labels(program)
    joined = join_winograd(program, plan, target)
    for label, parts in joined.parts.items():
        operations[label] = sum(operations[part] for part in parts)
    program, plan = joined.program, joined.plan
    marks = {name: region_of(func) for name, func in program.kernels.items()}
    places = {name: mark for name, mark in marks.items() if mark is not None}
    apart = {
        name: func
        for name, func in program.kernels.items()
        if name not in joined.kernels and name not in places
    }
    kernels, stale = _schedule(apart, target)
    empty = {name: program.kernels[name] for name in places}
    inner = partial(
        lower,
        target=target,
        tuned=tuned,
        winograd=winograd,
        strategy=strategy,
        integer_only=integer_only,
        regions=regions,
    )
    lowered = {name: lower_region(regions[mark], mark, inner) for name, mark in places.items()}
    program = pack_bits(program, kernels | joined.kernels | empty, lowered)
    dump("scheduled", tvm.IRModule(_named(program.kernels)))
    return Lowered(program, plan, conversions, stale, operations, scattered, quantized)


def fuse(
    mod: tvm.IRModule,
    inputs: Sequence[TensorSpec],
    outputs: Sequence[TensorSpec],
    target: Target,
    winograd: bool | Chooser = True,
    dump: Callable[[str, tvm.IRModule], None] = lambda _stage, _mod: None,
    progress: Progress = lambda _stage: None,
    integer_only: bool = False,
) -> Program:
    """Return the program of fused operators on logical shapes, not scheduled yet."""
    progress("graph passes")
    dump("imported", mod)
    for graph_pass in graph_passes(target, winograd, integer_only):
        mod = graph_pass(mod)
        check_integer_only(mod)
        dump(str(graph_pass.info.name), mod)
    mod = legalize_and_fuse(mod)
    dump("fused", mod)
    return read_program(mod, inputs, outputs)


def schedule_kernels(kernels: Mapping[str, PrimFunc], target: Target) -> dict[str, PrimFunc]:
    """Schedule every kernel by the decisions that it carries, else by the default ones."""
    return _schedule(kernels, target)[0]


def _schedule(
    kernels: Mapping[str, PrimFunc], target: Target
) -> tuple[dict[str, PrimFunc], tuple[str, ...]]:
    """Schedule every kernel.

    Returns:
        The scheduled kernels, and the names of those whose decisions do not fit them any more
        (measured with another release); they got the default ones.
    """
    scheduled, stale = {}, []
    for name, func in kernels.items():
        text = func.attrs.get(DECISIONS_ATTRIBUTE) if func.attrs else None
        try:
            if text is not None:
                try:
                    scheduled[name] = schedule(func, target, decisions_from_json(str(text)))
                    continue
                except InvalidScheduleError:
                    stale.append(name)
            scheduled[name] = schedule(func, target)
        except TilewrightError as error:
            raise CompileError(f"kernel '{name}' cannot be scheduled: {error}") from error
    return scheduled, tuple(stale)


def _named(kernels: Mapping[str, PrimFunc]) -> dict[str, PrimFunc]:
    return {name: func.with_attr("global_symbol", name) for name, func in kernels.items()}


class _Dumper:
    """Writes the stages of a compile as numbered text files."""

    def __init__(self, folder: Path | None) -> None:
        self.folder, self.count = folder, 0
        if folder is not None:
            try:
                folder.mkdir(parents=True, exist_ok=True)
            except OSError as error:
                raise CompileError(f"cannot write the IR to {folder}: {error.strerror}") from error

    def __call__(self, stage: str, mod: tvm.IRModule) -> None:
        if self.folder is None:
            return
        path = self.folder / f"{self.count:02d}_{stage}.py"
        path.write_text(mod.script(show_meta=False))
        self.count += 1
