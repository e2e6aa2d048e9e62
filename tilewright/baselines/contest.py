"""One row of a comparison: every engine on the same case, checked, then timed in turns."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timezone
from pathlib import Path
from statistics import median
from typing import Any

from tilewright.baselines import ours
from tilewright.baselines.alone import alone
from tilewright.baselines.budget import Budget
from tilewright.baselines.case import Case
from tilewright.baselines.engine import CLOCKS, Contender, largest_error
from tilewright.baselines.machine import Probes, describe
from tilewright.baselines.peers import OURS, PEERS
from tilewright.baselines.rounds import settle_seconds, take_turns
from tilewright.errors import MeasureError
from tilewright.runtime.benchmark import compare, summarize

SCHEMA_VERSION = 2
ERROR_LIMIT = 1e-3  # largest difference over the standard deviation of the peer's output


@dataclass(frozen=True, slots=True)
class Options:
    """How engines are compared.

    Attributes:
        against: names from `PEERS`.
        budget: what each tuner may spend, ours too; with an empty one tuners use their logs as
            they are, and tilewright compiles as for any user.
        threads: of every engine.
        rounds: samples of each contender.
        clock: "wall", or "cpu" for one thread on a machine that others use too.
        logs: folder of the tuning logs.
        target: what tilewright compiles for.
        lock: file that is locked while engines are timed; all who share it take turns.
        cpu: processor to time on, for one thread; None for any.
    """

    against: tuple[str, ...] = ("onnxruntime",)
    budget: Budget = field(default_factory=Budget)
    threads: int = 1
    rounds: int = 20
    clock: str = "wall"
    logs: Path = Path("tuning_logs")
    target: str = "native"
    lock: Path | None = None
    cpu: int | None = None

    def __post_init__(self) -> None:
        for name in self.against:
            if name not in PEERS:
                raise MeasureError(f"unknown peer '{name}'; known are {', '.join(PEERS)}")
        if self.threads < 1 or self.rounds < 1:
            raise MeasureError(
                f"threads is {self.threads}, rounds {self.rounds}; both must be at least 1"
            )
        if self.clock not in CLOCKS:
            raise MeasureError(f"unknown clock '{self.clock}'; known are {', '.join(CLOCKS)}")
        if self.clock == "cpu" and self.threads > 1:
            raise MeasureError("the cpu clock adds up threads: use it with one thread only")
        if self.cpu is not None and self.threads > 1:
            raise MeasureError("one processor is for one thread: leave the processor to the system")


@dataclass
class Entry:
    """A row before it is timed: what is known of it, and the engines that compute it."""

    row: dict[str, Any]
    contenders: dict[str, Contender]
    flops: int | None


class Contest:
    """Compares engines row by row: `enter` puts them in place and checks them, `time` times them.

    Attributes:
        result: what was found so far, as plain data: "kind", "machine", "settings", "peers" (what
            each is), "left_out" (peer -> why) and "rows".
    """

    def __init__(self, kind: str, options: Options) -> None:
        self.options = options
        reasons = {name: PEERS[name].missing() for name in options.against}
        left_out = {name: reason for name, reason in reasons.items() if reason is not None}
        self.present = [name for name in options.against if name not in left_out]
        self._probes = Probes()
        settings = {
            "threads": options.threads,
            "rounds": options.rounds,
            "clock": options.clock,
            "trials": options.budget.trials,
            "time_s": options.budget.time_s,
            "target": options.target,
        }
        self.result: dict[str, Any] = {
            "kind": kind,
            "schema_version": SCHEMA_VERSION,
            "machine": describe(),
            "settings": settings,
            "peers": {name: PEERS[name].about for name in self.present},
            "left_out": left_out,
            "rows": [],
        }

    def enter(self, case: Case, about: dict[str, Any], flops: int | None = None) -> Entry:
        """Put every engine in place; one that fails or computes something else is named.

        Args:
            case: what is computed.
            about: "name", and whatever else says what the row is.
            flops: operations of one call, where they are known.
        """
        row: dict[str, Any] = {
            **about,
            "engines": {},
            "failed": {},
            "largest_error": {},
            "notes": {},
            "commit": self.result["machine"]["commit"],
        }
        contenders: dict[str, Contender] = {}
        try:
            for name in (OURS, *self.present):
                case.progress(name)
                _enter(name, case, contenders, row)
        except BaseException:
            close(contenders)
            raise
        return Entry(row, contenders, flops)

    def time(self, entries: Sequence[Entry]) -> None:
        """Time what was entered, alone where the options say how; append the rows to the result."""
        try:
            with alone(self.options.lock, self.options.cpu):
                for entry in entries:
                    entry.row["measured_at"] = datetime.now(timezone.utc).isoformat(
                        timespec="seconds"
                    )
                    if entry.contenders:
                        self._time(entry.contenders, entry.row, entry.flops)
                    self.result["rows"].append(entry.row)
        finally:
            for entry in entries:
                close(entry.contenders)

    def _time(
        self, contenders: dict[str, Contender], row: dict[str, Any], flops: int | None
    ) -> None:
        threads = self.options.threads
        samples: dict[str, list[float]] = {}

        def between() -> None:
            for name, value in self._probes.sample(threads).items():
                samples.setdefault(name, []).append(value)

        samplers = {name: contender.sample for name, contender in contenders.items()}
        times = take_turns(
            samplers,
            self.options.rounds,
            self.options.clock,
            settle_s=settle_seconds(threads),
            between=between,
        )
        now = {name: median(values) for name, values in samples.items()}
        row["machine_now"] = {**now, "load": os.getloadavg()[0]}
        for name, seconds in times.items():
            timing = summarize(seconds)
            figure = {
                "median_s": timing.median_s,
                "quartiles_s": [timing.lower_quartile_s, timing.upper_quartile_s],
                "min_s": float(seconds.min()),
            }
            if flops is not None:
                gflops = flops / timing.median_s / 1e9
                peak = now.get("peak_threads_gflops", now["peak_gflops"])
                figure |= {"gflops": gflops, "peak_share": gflops / peak}
            if name != OURS and OURS in times:
                ratio = compare(seconds, times[OURS])
                figure |= {"ratio": ratio.median, "interval": [ratio.low, ratio.high]}
            row["engines"][name] = figure


def close(contenders: Mapping[str, Contender]) -> None:
    """Give back what engines hold."""
    for contender in contenders.values():
        contender.close()


def _enter(name: str, case: Case, contenders: dict[str, Contender], row: dict[str, Any]) -> None:
    """Put an engine in place; one that fails or computes something else is named, not timed."""
    start: Callable[[Case], Contender] = ours.start if name == OURS else PEERS[name].start
    try:
        contender = start(case)
    except Exception as error:  # engines raise what they like
        first = (str(error).strip().splitlines() or [type(error).__name__])[0]
        row["failed"][name] = first[:300]
        return
    reference = contenders.get(OURS) or next(iter(contenders.values()), None)
    if reference is not None:
        difference = _difference(contender, reference)
        row["largest_error"][name] = difference
        if not difference <= ERROR_LIMIT:
            row["failed"][name] = f"its output differs by {difference:.1e} standard deviations"
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
