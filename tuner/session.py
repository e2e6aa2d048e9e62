"""A tuning session as others see it: its options, and how far each task has come."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import Literal

from tilewright.compiler.tasks import Task
from tilewright.tuner.budget import Progress
from tilewright.tuner.device.choose import DeviceOptions
from tilewright.tuner.measure import MeasureOptions
from tilewright.tuner.search import Tuner

StrategyName = Literal["cross", "evolutionary", "random"]
STRATEGIES: tuple[StrategyName, ...] = ("cross", "evolutionary", "random")

_BATCH = 8


@dataclass(frozen=True)
class TuneOptions:
    """How a model is tuned.

    Attributes:
        trials: candidates to measure in all, those in the log included; None for no limit.
        time_s: seconds to spend; None for no limit.
        strategy: how candidates are proposed.
        seed: of all randomness.
        batch: candidates that are built and timed together.
        cost_model: whether a ranking model picks; else the analytical estimate does.
        fixed_layouts: tune loops only, in the layouts that the compiler estimates to be best.
        measure: how candidates are measured.
        devices: where, other than on this machine.
    """

    trials: int | None = None
    time_s: float | None = None
    strategy: StrategyName = "cross"
    seed: int = 0
    batch: int = _BATCH
    cost_model: bool = True
    fixed_layouts: bool = False
    measure: MeasureOptions = field(default_factory=MeasureOptions)
    devices: DeviceOptions = field(default_factory=DeviceOptions)


@dataclass
class TaskState:
    """One task's search, for the budget and for people.

    Attributes:
        task: what is tuned.
        weight: its calls in the model.
        tuner: None until its first round, or where it cannot be tuned.
        progress: for the budget.
        problem: why it cannot be tuned, or "".
        resumed: trials that came from the log.
        logged_s: best time in the log, or None.
        final_s: time of the winner in the last race, and of the incumbent.
    """

    task: Task
    weight: int
    flops: float
    progress: Progress
    tuner: Tuner | None = None
    problem: str = ""
    resumed: int = 0
    logged_s: float | None = None
    failures: int = 0
    final_s: tuple[float, float] | None = None

    @property
    def trials(self) -> int:
        """Measured candidates, failures and those of the log included."""
        return self.resumed if self.tuner is None else self.tuner.history.trials

    @property
    def best_s(self) -> float | None:
        """Best time so far."""
        if self.tuner is None:
            return self.logged_s
        best = self.tuner.best()
        return None if best is None else best.seconds

    @property
    def incumbent_s(self) -> float | None:
        """Time of the compiler's own choice."""
        if self.tuner is None:
            return None
        result = self.tuner.history.results.get(self.tuner.incumbent)
        return result.seconds if result is not None and result.ok else None


@dataclass
class Session:
    """Tuning of a model in progress, and its outcome.

    Attributes:
        states: one for each task, heaviest first.
        options: how.
        started: clock when it began.
        peak_flops: multiply-add operations a second of one thread, as measured beside.
        warnings: what a person should know, such as skipped lines of the log.
        stopped: why it ended, or "" while it runs.
        unwritten: records that could not be written to the log.
    """

    states: list[TaskState]
    options: TuneOptions
    started: float
    peak_flops: float = 0.0
    warnings: list[str] = field(default_factory=list)
    stopped: str = ""
    unwritten: int = 0

    @property
    def trials(self) -> int:
        """Measured candidates of all tasks."""
        return sum(state.trials for state in self.states)

    @property
    def measured(self) -> int:
        """Candidates measured now, without those from the log."""
        return self.trials - sum(state.resumed for state in self.states)

    @property
    def elapsed_s(self) -> float:
        """Seconds since the start."""
        return time.monotonic() - self.started

    def total_s(self) -> tuple[float, float]:
        """Return the time of one run of all tasks: with the incumbents, and with the best."""
        known = [s for s in self.states if s.best_s is not None]
        before = sum(s.weight * (s.incumbent_s or s.best_s or 0.0) for s in known)
        return before, sum(s.weight * (s.best_s or 0.0) for s in known)
