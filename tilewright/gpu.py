"""Compiling for a GPU: what `tilewright.compile` does with a CUDA target."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from tilewright.errors import CompileError, LogError, TargetError
from tilewright.inspection import describe_layouts

if TYPE_CHECKING:
    from tilewright.api import CompiledModule, Shapes
    from tilewright.compiler.cuda.lower import Choices
    from tilewright.compiler.cuda.targets import CudaTarget


@dataclass(frozen=True, slots=True)
class CudaOptions:
    """Options of a compile for a GPU; see `tilewright.compile` for what each means."""

    target: str
    precision: str = "fp32"
    logs: Sequence[str | os.PathLike[str]] | None = None
    require_tuned: float | None = None
    integer_only: bool = False
    dump_ir: str | os.PathLike[str] | None = None
    form: str = "so"


def compile_for_gpu(
    model: str | os.PathLike[str] | Any,
    options: CudaOptions,
    shapes: Shapes | None = None,
    constants: Mapping[str, np.ndarray] | None = None,
    progress: Callable[[str], None] = lambda _stage: None,
) -> CompiledModule:
    """Compile a model for a GPU.

    Raises:
        TargetError: the target or the precision is unknown, an option is for processors only, or
            there is no nvcc.
        LogError: a log that was named is missing.
        ModelError, CompileError: as for `tilewright.compile`.
    """
    from tilewright.api import CompiledModule, lower_by
    from tilewright.compiler.cuda.lower import lower_for_cuda
    from tilewright.compiler.cuda.nvcc import find_nvcc
    from tilewright.compiler.cuda.package import package_for_cuda
    from tilewright.compiler.cuda.targets import check_precision, parse_cuda_target
    from tilewright.compiler.work import describe_work
    from tilewright.tuning import check_required, describe_tuning

    target = parse_cuda_target(options.target)
    check_precision(options.precision)
    _check_options(options)
    find_nvcc()  # before the work, not after
    found = _tuned_choices(options, target)
    lowering = partial(lower_for_cuda, target=target, precision=options.precision, choices_of=found)
    lowered, digest = lower_by(lowering, model, shapes, constants, progress)
    tuning = describe_tuning(lowered.operators, None)
    check_required(tuning, options.require_tuned)
    progress("code generation")
    folder = tempfile.TemporaryDirectory(prefix="tilewright-")
    path = Path(folder.name) / "model.so"
    report = {
        **describe_layouts(lowered.operators),
        "tuning": tuning,
        "schedules": {label: list(names) for label, names in lowered.schedules.items()},
    }
    work = describe_work(lowered.program, lowered.operators.operations)
    meta = {"model_digest": digest, "work": work}
    package_for_cuda(lowered, target, options.precision, path, meta)
    return CompiledModule(path, folder, report)


def _tuned_choices(options: CudaOptions, target: CudaTarget) -> Choices:
    """Return who gives operators their layouts and tiles: the logs, where there are any.

    Raises:
        LogError: a log that was named is missing.
    """
    from tilewright.compiler.cuda.layouts import cuda_choices
    from tilewright.tuner.cuda.log import CudaLookup, read_records, user_cuda_log

    paths = [user_cuda_log()] if options.logs is None else [Path(log) for log in options.logs]
    records = []
    for path in paths:
        if options.logs is not None and not path.exists():
            raise LogError(f"cannot read {path}: no such file")
        records += read_records(path)[0]
    return CudaLookup(records, target, options.precision) if records else cuda_choices


def _check_options(options: CudaOptions) -> None:
    if options.form != "so":
        raise CompileError(f"format '{options.form}' is for processors; CUDA targets write 'so'")
    for name, given in (
        ("--integer-only", options.integer_only),
        ("--dump-ir", options.dump_ir is not None),
    ):
        if given:
            raise TargetError(f"{name} is for processors; {options.target} does not have it")
