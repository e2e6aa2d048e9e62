"""Time whole models in tilewright beside its peers, measured in turns on the same inputs."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tilewright.baselines.budget import Budget
from tilewright.baselines.case import Case
from tilewright.baselines.contest import Contest, Entry, Options
from tilewright.baselines.engine import Feed
from tilewright.baselines.peers import OURS
from tilewright.errors import MeasureError


@dataclass(frozen=True)
class Model:
    """One model of a comparison.

    Attributes:
        name: of the row, and of its tuning logs.
        path: the ONNX file.
        feed: inputs by name.
    """

    name: str
    path: Path
    feed: Feed


def bench_models(
    models: Sequence[Model],
    options: Options | None = None,
    progress: Callable[[str], None] = lambda _stage: None,
    finished: Callable[[dict[str, Any]], None] = lambda _result: None,
) -> dict[str, Any]:
    """Measure models in tilewright and its peers, which take turns; arguments as bench_operators.

    Returns:
        The result as plain data, see `contest.Contest`; a row has "model" and "inputs" (shapes).
    """
    options = options or Options()
    contest = Contest("models", options)
    for model in models:
        contest.time([_enter(contest, model, progress)])
        finished(contest.result)
    return contest.result


def _enter(contest: Contest, model: Model, progress: Callable[[str], None]) -> Entry:
    options = contest.options
    case = Case(
        model.path,
        model.feed,
        options.threads,
        None,
        options.budget,
        options.logs,
        options.target,
        lambda stage: progress(f"{model.name}: {stage}"),
        model.name,
    )
    shapes = {name: list(array.shape) for name, array in model.feed.items()}
    return contest.enter(case, {"name": model.name, "model": model.path.name, "inputs": shapes})


def bench(
    model: str | os.PathLike[str],
    against: Sequence[str] = ("onnxruntime",),
    threads: int = 1,
    rounds: int = 30,
    *,
    target: str = "native",
    shapes: Mapping[str, Sequence[int]] | None = None,
    trials: int = 0,
    time_s: float = 0.0,
    logs: str | os.PathLike[str] = "tuning_logs",
    seed: int = 0,
    lock: Path | None = None,
    cpu: int | None = None,
    progress: Callable[[str], None] = lambda _stage: None,
) -> dict[str, Any]:
    """Compile a model and time it beside its peers on one random input.

    The engines take turns, so that a change of the machine's speed hits all of them.

    Args:
        model: path of an ONNX file.
        against: names from `PEERS`; those not installed are left out and named.
        threads: threads of each engine.
        rounds: measured runs of each engine, after one that is not.
        target: as for `compile`.
        shapes: as for `compile`.
        trials: for each tuner, ours too, all operators together.
        time_s: the same in processor seconds; without both, tuners take their logs as they are.
        logs: folder of the tuning logs.
        seed: of the input.
        lock, cpu: as in `Options`.
        progress: called with the name of each stage.

    Returns:
        As `bench_models`, with one row.

    Raises:
        MeasureError: a peer is unknown, or an option means nothing.
        TilewrightError: the model cannot be compiled.
    """
    from tilewright.frontends.onnx import import_onnx
    from tilewright.inputs import random_inputs

    budget = Budget(trials, time_s)
    options = Options(
        tuple(against), budget, threads, rounds, "wall", Path(logs), target, lock, cpu
    )
    path = Path(model)
    feed = random_inputs(import_onnx(path, shapes=shapes).inputs, seed)
    result = bench_models([Model(path.stem, path, feed)], options, progress)
    (row,) = result["rows"]
    if OURS in row["failed"]:
        raise MeasureError(f"tilewright cannot run {path}: {row['failed'][OURS]}")
    return result
