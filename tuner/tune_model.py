"""Tune a model: the function behind `tilewright tune`."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from tilewright.compiler.algorithms import Chooser
from tilewright.compiler.pipeline import fuse
from tilewright.compiler.program import TensorSpec
from tilewright.compiler.targets import Target, parse_target
from tilewright.compiler.tasks import Task, extract_tasks
from tilewright.compiler.toolchain import is_foreign
from tilewright.errors import LogError
from tilewright.frontends.onnx import ImportedModel, import_onnx
from tilewright.tuner.algorithms import find_convolutions, measure_algorithms
from tilewright.tuner.device.choose import open_timer
from tilewright.tuner.log import Log
from tilewright.tuner.lookup import Lookup, user_log
from tilewright.tuner.loop import tune_tasks
from tilewright.tuner.measure import MeasureOptions
from tilewright.tuner.session import Session, TuneOptions

_DEFAULT_TRIALS_PER_TASK = 32


@dataclass(frozen=True, slots=True)
class TaskResult:
    """What tuning found for one task: times of one call in seconds, None where unknown.

    `space` is the number of candidates that there are, 0 where the task was not begun.
    """

    name: str
    calls: int
    trials: int
    failures: int
    space: int
    incumbent_s: float | None
    best_s: float | None
    gflops: float | None
    problem: str


@dataclass(frozen=True)
class TuneResult:
    """What tuning a model found.

    Attributes:
        log: where the records are.
        tasks: heaviest first.
        before_s, after_s: one run of all tasks, untuned and tuned, without layout conversions.
        trials: candidates measured now.
        elapsed_s: time taken.
        stopped: why it ended.
        warnings: what a person should know.
        measure: "time", or "mca": then seconds are modelled cycles over `costs.CLOCK_HZ`.
        unwritten: records that the log lacks, as it could not be written.
    """

    log: Path
    tasks: tuple[TaskResult, ...]
    before_s: float
    after_s: float
    trials: int
    elapsed_s: float
    stopped: str
    warnings: tuple[str, ...]
    measure: str = "time"
    unwritten: int = 0


def tune(
    model: str | os.PathLike[str] | Any,
    target: str = "native",
    shapes: Mapping[str, Sequence[int]] | None = None,
    constants: Mapping[str, np.ndarray] | None = None,
    *,
    trials: int | None = None,
    time_s: float | None = None,
    log: str | os.PathLike[str] | None = None,
    threads: int = 1,
    seed: int = 0,
    options: TuneOptions | None = None,
    winograd: bool = True,
    callback: Callable[[Session], None] = lambda _session: None,
) -> TuneResult:
    """Tune the operators of an ONNX model; `compile` finds the log by itself.

    Candidates run on this machine, or on `options.devices`.

    Running it again goes on from the log. Ctrl-C ends it early and keeps what was found.

    Args:
        model: path of an ONNX file, or an `onnx.ModelProto`.
        target: what the device is built for: "native", or a name from `targets()`.
        shapes, constants: as for `compile`.
        trials: candidates to measure in all, those in the log included; without `trials` and
            `time_s` 32 for each task.
        time_s: seconds to spend.
        log: file of records; default: the user's log, see `lookup.user_log`.
        threads: that kernels may use.
        seed: of the search and of the random inputs.
        options: everything else; `trials`, `time_s`, `seed` and `threads` are set in it.
        winograd: let convolutions use Winograd's algorithm where that is measured, or else
            estimated, to be faster.
        callback: called with the session after every batch.

    Raises:
        ModelError: the model cannot be imported.
        TargetError: the target is unknown, or there is no C compiler.
        LogError: the log cannot be read.
        MeasureError: no device answers.
    """
    description = replace(parse_target(target), cores=threads)
    path = user_log() if log is None else Path(log)
    start = time.monotonic()
    options = options or TuneOptions()
    measure = replace(options.measure, threads=threads, seed=seed)
    imported = import_onnx(model, shapes=shapes, constants=constants)
    timer, build_module = open_timer(options.devices, description, threads)
    choose: bool | Chooser = winograd
    here = timer is None and not is_foreign(description.architecture)
    if winograd and here and threads == 1:
        choose = _choose_algorithms(imported, description, path, measure)
    tasks = _tasks(imported, description, choose)
    if trials is None and time_s is None:
        trials = _DEFAULT_TRIALS_PER_TASK * len(tasks)
    if time_s is not None:
        time_s = max(1.0, time_s - (time.monotonic() - start))
    if build_module is not None:
        measure = replace(measure, build_module=build_module)
    options = replace(options, trials=trials, time_s=time_s, seed=seed, measure=measure)
    session = tune_tasks(tasks, description, Log(path), options, callback, timer=timer)
    return summarize(session, path)


def model_tasks(
    model: str | os.PathLike[str] | Any,
    target: Target,
    shapes: Mapping[str, Sequence[int]] | None = None,
    constants: Mapping[str, np.ndarray] | None = None,
    winograd: bool | Chooser = True,
) -> list[tuple[Task, int]]:
    """Return the tasks of an ONNX model, with their number of calls.

    Its algorithms are the estimated ones, or what `winograd` chooses.
    """
    return _tasks(import_onnx(model, shapes=shapes, constants=constants), target, winograd)


def _choose_algorithms(
    imported: ImportedModel, target: Target, log: Path, measure: MeasureOptions
) -> Chooser:
    """Measure the algorithms of convolutions that the log does not know; return who chooses."""
    lookup = Lookup([log], target)
    unknown = [
        convolution
        for convolution in find_convolutions(imported.module, target)
        if not lookup.knows_algorithm(convolution)
    ]
    for records in measure_algorithms(unknown, target, lookup, measure):
        lookup.add(records)
        with contextlib.suppress(LogError):  # tuning goes on, and says so at its first record
            Log(log).append(records)
    return lookup.algorithm


def _tasks(
    imported: ImportedModel, target: Target, winograd: bool | Chooser
) -> list[tuple[Task, int]]:
    program = fuse(
        imported.module,
        [TensorSpec(s.name, s.shape, s.dtype) for s in imported.inputs],
        [TensorSpec(s.name, s.shape, s.dtype) for s in imported.outputs],
        target,
        winograd,
    )
    return extract_tasks(program, target)


def summarize(session: Session, log: Path) -> TuneResult:
    """Return the outcome of a session as plain data."""
    before, after = session.total_s()
    rows = []
    for state in session.states:
        best = state.best_s
        gflops = state.flops / best / 1e9 if best and state.flops else None
        rows.append(
            TaskResult(
                state.task.name,
                state.weight,
                state.trials,
                state.failures,
                0 if state.tuner is None else state.tuner.space.size,
                state.incumbent_s,
                best,
                gflops,
                state.problem,
            )
        )
    return TuneResult(
        log,
        tuple(rows),
        before,
        after,
        session.measured,
        session.elapsed_s,
        session.stopped,
        tuple(session.warnings),
        session.options.devices.measure,
        session.unwritten,
    )


__all__ = ["MeasureOptions", "TaskResult", "TuneOptions", "TuneResult", "model_tasks", "tune"]
