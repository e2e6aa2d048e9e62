"""The whole compile, readable as one page.

Relax module -> canonical Relax -> fused PrimFuncs -> layouts -> schedules -> program
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import tvm
from tvm.tirx import PrimFunc

from tilewright.compiler.layout.propagation import (
    Conversion,
    LayoutPlan,
    apply_layouts,
    choose_layouts,
)
from tilewright.compiler.lower import legalize_and_fuse, read_program
from tilewright.compiler.passes.canonicalize import CanonicalizeOps
from tilewright.compiler.passes.fold_batch_norm import FoldBatchNorm
from tilewright.compiler.passes.lower_conv_transpose import LowerConvTranspose
from tilewright.compiler.program import Program, TensorSpec
from tilewright.compiler.schedule import schedule
from tilewright.compiler.targets import Target
from tilewright.errors import CompileError, TilewrightError

Progress = Callable[[str], None]


@dataclass(frozen=True)
class Lowered:
    """A program ready for packaging, and how it came to be.

    Attributes:
        program: scheduled kernels on physical shapes.
        plan: the layout choice of every operator.
        conversions: layout conversions that are executed.
    """

    program: Program
    plan: LayoutPlan
    conversions: tuple[Conversion, ...]


def graph_passes() -> list[tvm.ir.transform.Pass]:
    """Return the passes on Relax, in order."""
    return [
        CanonicalizeOps(),
        FoldBatchNorm(),
        LowerConvTranspose(),
        CanonicalizeOps(),
    ]


def lower(
    mod: tvm.IRModule,
    inputs: Sequence[TensorSpec],
    outputs: Sequence[TensorSpec],
    target: Target,
    *,
    dump_ir: Path | None = None,
    progress: Progress = lambda _stage: None,
) -> Lowered:
    """Turn an imported Relax module into a program with scheduled kernels.

    Args:
        mod: one function "main" on static shapes, with constants inline.
        inputs, outputs: what the caller passes and gets, parallel to main's.
        target: the processor to build for.
        dump_ir: folder for the numbered stages as text, made where it is missing.
        progress: called with the name of each stage.

    Raises:
        CompileError: an operator cannot be lowered; the message names it.
    """
    dump = _Dumper(dump_ir)
    progress("graph passes")
    dump("imported", mod)
    for graph_pass in graph_passes():
        mod = graph_pass(mod)
        dump(str(graph_pass.info.name), mod)
    mod = legalize_and_fuse(mod)
    dump("fused", mod)
    program = read_program(mod, inputs, outputs)

    progress("layouts")
    plan = choose_layouts(program, target)
    program, conversions = apply_layouts(program, plan)
    dump("layouts", tvm.IRModule(_named(program.kernels)))

    progress("schedules")
    program = replace(program, kernels=schedule_kernels(program.kernels, target))
    dump("scheduled", tvm.IRModule(_named(program.kernels)))
    return Lowered(program, plan, conversions)


def schedule_kernels(kernels: Mapping[str, PrimFunc], target: Target) -> dict[str, PrimFunc]:
    """Schedule every kernel with its default decisions."""
    scheduled = {}
    for name, func in kernels.items():
        try:
            scheduled[name] = schedule(func, target)
        except TilewrightError as error:
            raise CompileError(f"kernel '{name}' cannot be scheduled: {error}") from error
    return scheduled


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
