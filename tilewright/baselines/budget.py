"""What a tuner may spend, and what it spent: notes beside its log, one line of JSON a round."""

from __future__ import annotations

import json
import os
import resource
import time
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tilewright.errors import MeasureError

Curve = list[tuple[float | None, float]]
"""Seconds of a call that each trial led to (None: there is none yet) and its processor seconds."""

_TICKS = os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True, slots=True)
class Budget:
    """What each tuner may spend.

    Attributes:
        trials: candidates to measure, those in its log included; 0 for no limit.
        time_s: processor seconds, those of its workers included; 0 for no limit. On a machine of
            its own that is the time on one core; on a shared one it leaves out what others took.
    """

    trials: int = 0
    time_s: float = 0.0

    def __post_init__(self) -> None:
        if self.trials < 0 or self.time_s < 0:
            raise MeasureError(
                f"trials is {self.trials}, time {self.time_s} s; neither can be below 0"
            )

    @property
    def spends(self) -> bool:
        """Whether there is anything to spend; else tuners use their logs as they are."""
        return self.trials > 0 or self.time_s > 0

    def left(self, trials: int, spent_s: float, least: int = 1) -> int:
        """Return how many more trials to measure after `trials`, up to a round of `least`."""
        if not self.spends or (self.time_s and spent_s >= self.time_s):
            return 0
        return min(least, self.trials - trials) if self.trials else least

    def within(self, curve: Sequence[tuple[float | None, float]]) -> int:
        """Return how many trials of a log belong to this budget."""
        count = min(len(curve), self.trials or len(curve))
        if not self.time_s:
            return count
        spent = 0.0
        for index, (_, cost) in enumerate(curve[:count]):
            spent += cost
            if spent > self.time_s:
                return index
        return count


def spent_path(log: Path) -> Path:
    """Return where the notes on a log are."""
    return log.with_name(f"{log.stem}.spent.jsonl")


def note_round(log: Path, trials: int, wall_s: float, processor_s: float) -> None:
    """Note what a round cost, the search for its candidates included."""
    line = {"trials": trials, "wall_s": round(wall_s, 2), "processor_s": round(processor_s, 2)}
    with spent_path(log).open("a") as file:
        file.write(json.dumps(line) + "\n")


def trial_costs(log: Path) -> list[float]:
    """Return the processor seconds of every trial that was noted: its share of its round."""
    try:
        lines = spent_path(log).read_text().splitlines()
    except FileNotFoundError:
        return []
    costs: list[float] = []
    for line in lines:
        entry: Mapping[str, Any] = json.loads(line)
        costs += [entry["processor_s"] / max(1, entry["trials"])] * entry["trials"]
    return costs


def priced(curve: Sequence[tuple[float | None, float]], log: Path) -> Curve:
    """Return a curve with the noted cost of each trial in place of the one it came with."""
    costs = trial_costs(log)
    return [
        (seconds, costs[index] if index < len(costs) else own)
        for index, (seconds, own) in enumerate(curve)
    ]


def best_sums(trials: Sequence[tuple[Hashable, float | None]]) -> list[float | None]:
    """Return the best time of all tasks together after each trial, None until each has one.

    Args:
        trials: of each: what task it is of, and its seconds, None where it failed. Tasks all of
            whose trials failed do not count.
    """
    tasks = {task for task, seconds in trials if seconds is not None}
    best: dict[Hashable, float] = {}
    sums: list[float | None] = []
    for task, seconds in trials:
        if seconds is not None:
            best[task] = min(best.get(task, seconds), seconds)
        sums.append(sum(best.values()) if best and len(best) == len(tasks) else None)
    return sums


class Meter:
    """Notes the rounds of a tuner that works in this process and in processes started by it."""

    def __init__(self, log: Path, count: Callable[[], int]) -> None:
        self._log, self._count = log, count
        self._before = (count(), time.monotonic(), processor_seconds())

    def note(self) -> None:
        """Note what has happened since the last call, unless nothing was measured."""
        now = (self._count(), time.monotonic(), processor_seconds())
        trials, wall_s, processor_s = (b - a for a, b in zip(self._before, now, strict=True))
        if trials > 0:
            note_round(self._log, int(trials), wall_s, processor_s)
            self._before = now


def processor_seconds() -> float:
    """Return what this process and all that it started have computed so far."""
    usages = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    own = sum(usage.ru_utime + usage.ru_stime for usage in usages)
    return own + sum(descendants(os.getpid()).values()) / _TICKS


def descendants(root: int) -> dict[int, int]:
    """Return the living descendants of a process: clock ticks that each and its ended children had.

    Fields of /proc/PID/stat, see proc(5).
    """
    parents, ticks = {}, {}
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = path.read_text().rpartition(")")[2].split()
        except OSError:  # it has ended meanwhile
            continue
        process = int(path.parent.name)
        parents[process] = int(fields[1])
        ticks[process] = sum(map(int, fields[11:15]))  # utime, stime, cutime, cstime
    found, last = {root}, 0
    while len(found) > last:
        last = len(found)
        found |= {process for process, parent in parents.items() if parent in found}
    return {process: ticks[process] for process in found - {root}}
