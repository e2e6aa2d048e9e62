"""Time a model in tilewright beside its peers, measured in turns on the same inputs."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from tilewright.baselines.engine import Contender, largest_error, local
from tilewright.baselines.peers import OURS, PEERS, Case
from tilewright.baselines.rounds import take_turns
from tilewright.errors import MeasureError
from tilewright.inputs import random_inputs
from tilewright.runtime.benchmark import compare, summarize

__all__ = ["PEERS", "bench", "largest_error"]


def bench(
    model: str | os.PathLike[str],
    against: Sequence[str] = ("onnxruntime",),
    threads: int = 1,
    rounds: int = 30,
    *,
    target: str = "native",
    shapes: Mapping[str, Sequence[int]] | None = None,
    trials: int = 0,
    logs: str | os.PathLike[str] = "tuning_logs",
    seed: int = 0,
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
        trials: for peers that tune; 0 takes their logs as they are.
        logs: folder of the peers' tuning logs.
        seed: of the input.
        progress: called with the name of each stage.

    Returns:
        "model", "target", "threads", "rounds"; "engines": name, median_s, min_s and ratio (time
        over tilewright's, median over rounds, ratio_low and ratio_high its 95% interval) of each;
        "largest_error": per peer the largest difference of an output over the standard deviation
        of the peer's; "left_out": peer -> why.

    Raises:
        MeasureError: a peer is unknown, or cannot run the model.
        TilewrightError: the model cannot be compiled.
    """
    from tilewright.api import compile as compile_model
    from tilewright.api import load

    for name in against:
        if name not in PEERS:
            raise MeasureError(f"unknown peer '{name}'; known are {', '.join(PEERS)}")
    if threads < 1 or rounds < 1:
        raise MeasureError(f"threads is {threads}, rounds {rounds}; both must be at least 1")
    path = Path(model)
    reasons = {name: PEERS[name].missing() for name in against}
    left_out = {name: reason for name, reason in reasons.items() if reason is not None}
    compiled = compile_model(path, target, shapes, progress=progress)
    module = load(compiled.path, threads)
    feed = random_inputs(module.inputs, seed)
    case = Case(path, feed, threads, trials=trials, logs=Path(logs), progress=progress)
    contenders = {OURS: local(module.run, feed)}
    try:
        for name in against:
            if name not in left_out:
                progress(name)
                contenders[name] = _start(name, case)
        errors = {
            name: largest_error(contender.outputs, contenders[OURS].outputs)
            for name, contender in contenders.items()
            if name != OURS
        }
        progress("measuring")
        samplers = {name: contender.sample for name, contender in contenders.items()}
        times = take_turns(samplers, rounds)
    finally:
        for contender in contenders.values():
            contender.close()
    return {
        "model": str(path),
        "target": target,
        "threads": threads,
        "rounds": rounds,
        "engines": [_row(name, found, times[OURS]) for name, found in times.items()],
        "largest_error": errors,
        "left_out": left_out,
    }


def _start(name: str, case: Case) -> Contender:
    """Put a peer in place; its own errors have no common class."""
    try:
        return PEERS[name].start(case)
    except Exception as error:
        first_line = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise MeasureError(f"{name} cannot run {case.model}: {first_line}") from error


def _row(name: str, samples: np.ndarray, ours: np.ndarray) -> dict[str, Any]:
    ratio = compare(samples, ours)
    return {
        "name": name,
        "median_s": summarize(samples).median_s,
        "min_s": float(samples.min()),
        "ratio": ratio.median,
        "ratio_low": ratio.low,
        "ratio_high": ratio.high,
    }
