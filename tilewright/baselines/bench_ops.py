"""Measure the operator suite in tilewright and its peers."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import onnx

from tilewright.baselines.engine import CLOCKS, Contender, largest_error
from tilewright.baselines.machine import Probes, describe
from tilewright.baselines.peers import OURS, PEERS, Case, start_tilewright
from tilewright.baselines.rounds import take_turns
from tilewright.baselines.suite import Operator, build_model
from tilewright.errors import MeasureError
from tilewright.runtime.benchmark import compare, summarize

SCHEMA_VERSION = 1
_ERROR_LIMIT = 1e-3  # largest difference over the standard deviation of the peer's output
_SEED = 0


@dataclass(frozen=True, slots=True)
class OperatorOptions:
    """How the suite is measured.

    Attributes:
        against: names from `PEERS`.
        trials: for tuners, each layout; 0 uses their logs as they are.
        threads: of every engine.
        rounds: samples of each contender.
        clock: "wall", or "cpu" for one thread on a machine that others use too.
        logs: folder of the tuning logs.
    """

    against: tuple[str, ...] = ("onnxruntime",)
    trials: int = 0
    threads: int = 1
    rounds: int = 20
    clock: str = "wall"
    logs: Path = Path("tuning_logs")

    def __post_init__(self) -> None:
        for name in self.against:
            if name not in PEERS:
                raise MeasureError(f"unknown peer '{name}'; known are {', '.join(PEERS)}")
        if self.threads < 1 or self.rounds < 1 or self.trials < 0:
            raise MeasureError(
                f"threads is {self.threads}, rounds {self.rounds}, trials {self.trials}; the first "
                "two must be at least 1, trials at least 0"
            )
        if self.clock not in CLOCKS:
            raise MeasureError(f"unknown clock '{self.clock}'; known are {', '.join(CLOCKS)}")
        if self.clock == "cpu" and self.threads > 1:
            raise MeasureError("the cpu clock adds up threads: use it with one thread only")


def bench_operators(
    operators: Sequence[Operator],
    options: OperatorOptions | None = None,
    progress: Callable[[str], None] = lambda _stage: None,
    finished: Callable[[dict[str, Any]], None] = lambda _result: None,
) -> dict[str, Any]:
    """Measure operators in tilewright and its peers, which take turns in one process.

    Ansor answers from a process of its own, in the same turns.

    Args:
        operators: rows of the suite.
        options: peers and method.
        progress: called with what is going on.
        finished: called with the result so far after every row.

    Returns:
        The result as plain data: "machine", "settings", "peers" (what each is), "left_out" (peer ->
        why), and "rows"; a row has "engines" (times, and for peers the ratio of their time to ours
        round by round), "failed" (engine -> why), and what the machine gave meanwhile.
    """
    options = options or OperatorOptions()
    left_out = {}
    for name in options.against:
        reason = PEERS[name].missing()
        if reason is not None:
            left_out[name] = reason
    present = [name for name in options.against if name not in left_out]
    probes = Probes()
    result: dict[str, Any] = {
        "kind": "operators",
        "schema_version": SCHEMA_VERSION,
        "machine": describe(),
        "settings": {
            "threads": options.threads,
            "rounds": options.rounds,
            "clock": options.clock,
            "trials": options.trials,
        },
        "peers": {name: PEERS[name].about for name in present},
        "left_out": left_out,
        "rows": [],
    }
    for operator in operators:
        progress(operator.name)
        result["rows"].append(_measure(operator, present, options, probes, progress))
        finished(result)
    return result


def _measure(
    operator: Operator,
    peers: Sequence[str],
    options: OperatorOptions,
    probes: Probes,
    progress: Callable[[str], None],
) -> dict[str, Any]:
    row: dict[str, Any] = {
        "operator": operator.to_json(),
        "name": operator.name,
        "flops": operator.flops,
        "engines": {},
        "failed": {},
        "largest_error": {},
        "notes": {},
        "measured_at": datetime.now(timezone.utc).isoformat(timespec="seconds"),
    }
    contenders: dict[str, Contender] = {}
    with tempfile.TemporaryDirectory(prefix="tilewright-") as folder:
        model = Path(folder) / f"{operator.name}.onnx"
        onnx.save(build_model(operator), model)
        rng = np.random.default_rng(_SEED)
        feed = {"data": rng.standard_normal(operator.data_shape, np.float32)}
        case = Case(
            model, feed, options.threads, operator, options.trials, options.logs,
            lambda stage: progress(f"{operator.name}: {stage}"),
        )  # fmt: skip
        try:
            for name in (OURS, *peers):
                progress(f"{operator.name}: {name}")
                _start(name, case, contenders, row)
            if contenders:
                _time(contenders, options, probes, row)
        finally:
            for contender in contenders.values():
                contender.close()
    return row


def _start(name: str, case: Case, contenders: dict[str, Contender], row: dict[str, Any]) -> None:
    """Put an engine in place; one that fails or computes something else is named, not timed."""
    start = start_tilewright if name == OURS else PEERS[name].start
    try:
        contender = start(case)
    except Exception as error:  # engines raise what they like
        first = (str(error).strip().splitlines() or [type(error).__name__])[0]
        row["failed"][name] = first[:300]
        return
    reference = contenders.get(OURS) or next(iter(contenders.values()), None)
    if reference is not None:
        error_size = _difference(contender, reference)
        row["largest_error"][name] = error_size
        if not error_size <= _ERROR_LIMIT:
            row["failed"][name] = f"its output differs by {error_size:.1e} standard deviations"
            contender.close()
            return
    contenders[name] = contender
    if contender.notes:
        row["notes"][name] = dict(contender.notes)


def _difference(contender: Contender, reference: Contender) -> float:
    shapes = {name: array.shape for name, array in contender.outputs.items()}
    if shapes != {name: array.shape for name, array in reference.outputs.items()}:
        return float("inf")
    return largest_error(contender.outputs, reference.outputs)


def _time(
    contenders: dict[str, Contender],
    options: OperatorOptions,
    probes: Probes,
    row: dict[str, Any],
) -> None:
    found: dict[str, list[float]] = {"peak_gflops": [], "int8_gops": [], "read_gb_s": []}

    def between() -> None:
        for name, values in found.items():
            values.append(getattr(probes, name)())

    samplers = {name: contender.sample for name, contender in contenders.items()}
    times = take_turns(samplers, options.rounds, options.clock, between=between)
    row["machine_now"] = {name: median(values) for name, values in found.items()}
    row["machine_now"]["load"] = os.getloadavg()[0]
    for name, samples in times.items():
        timing = summarize(samples)
        gflops = row["flops"] / timing.median_s / 1e9
        row["engines"][name] = {
            "median_s": timing.median_s,
            "quartiles_s": [timing.lower_quartile_s, timing.upper_quartile_s],
            "min_s": float(samples.min()),
            "gflops": gflops,
            "peak_share": gflops / options.threads / row["machine_now"]["peak_gflops"],
        }
        if name != OURS and OURS in times:
            ratio = compare(samples, times[OURS])
            row["engines"][name] |= {"ratio": ratio.median, "interval": [ratio.low, ratio.high]}
