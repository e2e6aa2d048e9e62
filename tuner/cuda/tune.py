"""Tune the products of a model for a GPU, logging every candidate as it comes."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from tilewright.compiler.cuda.lower import HOST, calls_in_attention
from tilewright.compiler.cuda.targets import check_precision, parse_cuda_target
from tilewright.compiler.targets import parse_target
from tilewright.compiler.tasks import extract_tasks
from tilewright.errors import MeasureError
from tilewright.tuner.cuda.log import CudaRecord, append_records, user_cuda_log
from tilewright.tuner.cuda.measure import DeviceTimer, EstimateTimer, Timer
from tilewright.tuner.cuda.program import fused_program
from tilewright.tuner.cuda.search import CudaTuner, Result
from tilewright.tuner.cuda.space import CudaSpace, cuda_space
from tilewright.tuner.records import now, versions

# Built at once; the same on all machines, so that a seed gives the same search.
_BATCH = 16
MEASURES = ("device", "estimate")


@dataclass(frozen=True)
class CudaTaskResult:
    """One operator's tuning.

    Attributes:
        name: of the operator.
        calls: in the model.
        trials: candidates that were timed or failed.
        default_s: of the compiler's own choice; None where it failed.
        best: the fastest result, or None.
        rejected: candidates refused before building, by reason.
    """

    name: str
    calls: int
    trials: int
    default_s: float | None
    best: Result | None
    rejected: Mapping[str, int]


def tune_for_gpu(
    model: str | os.PathLike[str] | Any,
    target: str,
    precision: str = "fp32",
    shapes: Mapping[str, Sequence[int]] | None = None,
    *,
    trials: int = 32,
    measure: str = "device",
    log: str | os.PathLike[str] | None = None,
    seed: int = 0,
    callback: Callable[[CudaTaskResult], None] = lambda _result: None,
) -> list[CudaTaskResult]:
    """Tune every product of a model but those inside attention, whose kernel has no choices.

    Args:
        model: path of an ONNX file, or an `onnx.ModelProto`.
        target: a CUDA target by name.
        precision: as for `compile`.
        shapes: as for `compile`.
        trials: candidates of each operator.
        measure: "device" runs them on the GPU of this machine; "estimate" takes the analytical
            estimate instead, which the log says and a compile does not use.
        log: file of records; default: the user's.
        seed: of the search.
        callback: called after each operator.

    Raises:
        MeasureError: no such way to measure, or no GPU here.
        TilewrightError: the model cannot be imported or lowered.
    """
    gpu, host = parse_cuda_target(target), parse_target(HOST)
    check_precision(precision)
    if measure not in MEASURES:
        raise MeasureError(f"unknown measure '{measure}'; known are {', '.join(MEASURES)}")
    path = user_cuda_log() if log is None else Path(log)
    program = fused_program(model, shapes)
    fused = calls_in_attention(program, gpu, precision)
    results = []
    for task, count in extract_tasks(program, host, fused):
        space = cuda_space(task.operator, host, gpu, precision)
        if not space.options:
            continue
        timer: Timer = EstimateTimer(space)
        if measure == "device":
            timer = DeviceTimer(task.operator, gpu, precision)
        found = _tune(space, timer, trials, seed)
        stamp, made_by = now(), versions()
        append_records(
            path,
            (
                CudaRecord(
                    task.key,
                    task.name,
                    target,
                    precision,
                    timer.kind,
                    result.candidate,
                    result.seconds,
                    result.error,
                    made_by,
                    stamp,
                )
                for result in found.results.values()
            ),
        )
        first = next(iter(found.results.values()))
        results.append(
            CudaTaskResult(
                task.name,
                count,
                len(found.results),
                first.seconds,
                found.best(),
                dict(space.rejected),
            )
        )
        callback(results[-1])
    return results


def _tune(space: CudaSpace, timer: Timer, trials: int, seed: int) -> CudaTuner:
    """Search one operator; the first candidate is the one that the estimate likes best."""
    tuner = CudaTuner(space, trials, np.random.default_rng(seed))
    while len(tuner.results) < trials:
        candidates = tuner.ask(min(_BATCH, trials - len(tuner.results)))
        if not candidates:
            break
        tuner.tell(timer.time(candidates))
    if isinstance(timer, DeviceTimer):
        timer.close()
    return tuner
