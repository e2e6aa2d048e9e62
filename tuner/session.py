"""Tune all tasks of a model under one budget, logging every measurement as it comes."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np

from tilewright.compiler.targets import Target
from tilewright.compiler.tasks import Task
from tilewright.errors import LogError, MeasureError
from tilewright.tuner.budget import Progress, next_task
from tilewright.tuner.candidate import Candidate
from tilewright.tuner.cost_model import PRETRAINED, CostModel, RankingModel
from tilewright.tuner.log import Log
from tilewright.tuner.measure import Measurement, MeasureOptions, Measurer
from tilewright.tuner.records import (
    Record,
    now,
    processor_name,
    same_target,
    target_data,
    versions,
)
from tilewright.tuner.search import (
    CrossExploration,
    Evolutionary,
    Explorer,
    RandomSearch,
    Strategy,
    Tuner,
)
from tilewright.tuner.space import TaskSpace, parse_schedule, task_space
from tilewright.tuner.workload import describe, moved_bytes

StrategyName = Literal["cross", "evolutionary", "random"]
STRATEGIES: tuple[StrategyName, ...] = ("cross", "evolutionary", "random")

_BATCH = 8
_FINALISTS = 3
# A finalist must beat the incumbent by this much in the final race: less is noise.
_LEAST_WIN = 0.01
_BANDWIDTH_BYTES_S = 100e9
_JOINT_SHARE = 0.4


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
    """

    trials: int | None = None
    time_s: float | None = None
    strategy: StrategyName = "cross"
    seed: int = 0
    batch: int = _BATCH
    cost_model: bool = True
    fixed_layouts: bool = False
    measure: MeasureOptions = field(default_factory=MeasureOptions)


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
    """

    states: list[TaskState]
    options: TuneOptions
    started: float
    peak_flops: float = 0.0
    warnings: list[str] = field(default_factory=list)
    stopped: str = ""

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


Callback = Callable[[Session], None]


def tune_tasks(
    tasks: Sequence[tuple[Task, int]],
    target: Target,
    log: Log | None = None,
    options: TuneOptions | None = None,
    callback: Callback = lambda _session: None,
    model: CostModel | None = None,
) -> Session:
    """Tune tasks until the budget is spent; Ctrl-C ends it early and keeps what was found.

    Args:
        tasks: with their number of calls; see `compiler.tasks.extract_tasks`.
        target: what they were extracted for; its cores are the threads that a kernel may use.
        log: where records go, and where earlier ones are taken from.
        options: budget and method.
        callback: called after every batch.
        model: ranks candidates; by default the pretrained one.
    """
    options = options or TuneOptions()
    states = [_state(task, weight) for task, weight in tasks]
    states.sort(key=lambda state: -state.weight * state.progress.bound_s)
    session = Session(states, options, time.monotonic())
    with Measurer(target, options.measure) as measurer:
        runner = _Runner(session, measurer, target, log, model)
        try:
            runner.run(callback)
        except KeyboardInterrupt:
            session.stopped = "interrupted"
        session.peak_flops = measurer.peak_flops
        callback(session)
    return session


def _state(task: Task, weight: int) -> TaskState:
    flops = 2.0 * describe(task)["macs"]
    peak = 2 * 2 * task.target.lanes("float32") * 4e9 * task.target.cores
    bound = max(flops / peak, moved_bytes(task.operator) / _BANDWIDTH_BYTES_S)
    return TaskState(task, weight, flops, Progress(weight, bound))


class _Runner:
    def __init__(
        self,
        session: Session,
        measurer: Measurer,
        target: Target,
        log: Log | None,
        model: CostModel | None,
    ) -> None:
        self.session, self.measurer, self.target, self.log = session, measurer, target, log
        self.options = session.options
        self.rng = np.random.default_rng(self.options.seed)
        if model is None and self.options.cost_model:
            model = RankingModel(PRETRAINED)
        self.model = model
        self.earlier = self._read_log()
        for state in self.session.states:
            known = self.earlier.get(state.task.key, {})
            state.resumed = len(known)
            state.logged_s = min((r.seconds for r in known.values() if r.ok), default=None)
        self.pending: list[Record] = []
        self.versions, self.processor = versions(), processor_name()

    def run(self, callback: Callback) -> None:
        """Spend the budget, then let the best of each task race the incumbent."""
        session = self.session
        session.stopped = self._spent()
        try:
            while not session.stopped:
                position = next_task([state.progress for state in session.states])
                if position is None:
                    session.stopped = "nothing left to try"
                    break
                self._round(session.states[position])
                session.peak_flops = self.measurer.peak_flops
                session.stopped = self._spent()
                callback(session)
        finally:
            self._flush()
        for state in session.states:
            self._final(state)
            callback(session)

    def _spent(self) -> str:
        options, session = self.options, self.session
        if options.trials is not None and session.trials >= options.trials:
            return f"{session.trials} trials"
        if options.time_s is not None and session.elapsed_s >= options.time_s:
            return f"{session.elapsed_s:.0f} s"
        return ""

    def _read_log(self) -> dict[str, dict[Candidate, Record]]:
        """Return the best record of each candidate by task."""
        found: dict[str, dict[Candidate, Record]] = {}
        if self.log is None:
            return found
        contents = self.log.read()
        warning = contents.warning(self.log.path)
        if warning:
            self.session.warnings.append(warning)
        for record in contents.records:
            if not same_target(record.target, self.target):
                continue
            known = found.setdefault(record.task_key, {})
            before = known.get(record.candidate)
            if before is None or not before.ok or (record.ok and record.seconds < before.seconds):
                known[record.candidate] = record
        return found

    def _start(self, state: TaskState) -> None:
        space = task_space(self.measurer.choices(state.task), self.target)
        if not space.choices:
            raise MeasureError("no layout of it can be scheduled")
        if self.options.fixed_layouts:
            space = TaskSpace((min(space.choices, key=lambda choice: choice.estimate_s),))
        explorer = Explorer(self.target, self.model)
        state.tuner = Tuner(space, self._strategy(explorer), explorer, self.rng, state.task.key)
        known = self.earlier.get(state.task.key, {})
        state.tuner.tell(
            [
                Measurement(r.candidate, r.status, r.error, r.run_times_s, r.build_time_s)
                for r in known.values()
            ]
        )
        if state.best_s is not None:
            state.progress.best_s += [state.best_s] * (len(known) // self.options.batch)

    def _strategy(self, explorer: Explorer) -> Strategy:
        if self.options.strategy == "random":
            return RandomSearch(explorer)
        if self.options.strategy == "evolutionary":
            return Evolutionary(explorer)
        share = (self.options.trials or 0) / max(1, len(self.session.states))
        return CrossExploration(explorer, max(24, int(share * _JOINT_SHARE)))

    def _round(self, state: TaskState) -> None:
        try:
            if state.tuner is None:
                self._start(state)
            tuner = state.tuner
            assert tuner is not None
            count = self.options.batch
            if self.options.trials is not None:
                count = max(0, min(count, self.options.trials - self.session.trials))
            candidates = tuner.ask(count)
            if not candidates:
                state.progress.exhausted = True
                return
            results = self.measurer.measure(state.task, candidates, state.best_s)
        except MeasureError as error:
            state.problem = str(error)
            state.progress.exhausted = True
            return
        self._log(state, results)
        tuner.tell(results)
        state.failures += sum(not result.ok for result in results)
        if state.best_s is not None:
            state.progress.best_s.append(state.best_s)
        elif tuner.history.trials >= 3 * self.options.batch:
            state.problem = f"no candidate works: {results[-1].error}"
            state.progress.exhausted = True

    def _final(self, state: TaskState) -> None:
        """Measure the best of a task again, in turns with the incumbent; log what came out."""
        tuner = state.tuner
        if tuner is None or state.trials == state.resumed or state.best_s is None:
            return
        best = [result.candidate for result in tuner.history.ok()[:_FINALISTS]]
        if state.incumbent_s is not None and tuner.incumbent not in best:
            best.append(tuner.incumbent)
        try:
            times = self.measurer.race(state.task, best)
        except MeasureError as error:
            self.session.warnings.append(f"{state.task.name}: {error}")
            return
        least = [min(mine) for mine in times]
        winner = least.index(min(least))
        if tuner.incumbent in best:
            at = best.index(tuner.incumbent)
            if least[winner] > least[at] * (1 - _LEAST_WIN):
                winner = at
            state.final_s = (least[winner], least[at])
        results = [
            Measurement(candidate, "ok", "", tuple(mine))
            for candidate, mine in zip(best, times, strict=True)
        ]
        self._log(state, results, {"raced": True}, winner)

    def _log(
        self,
        state: TaskState,
        results: Sequence[Measurement],
        extra: Mapping[str, Any] | None = None,
        winner: int | None = None,
    ) -> None:
        if self.log is None:
            return
        hardware = {
            "processor": self.processor,
            "threads": self.options.measure.threads,
            "cold": self.options.measure.cold,
            **(extra or {}),
        }
        task, tuner = state.task, state.tuner
        assert tuner is not None
        description = describe(task)
        defaults = {
            choice.candidate(choice.loops.genome_of_default()) for choice in tuner.space.choices
        }
        for index, result in enumerate(results):
            facts = hardware if index != winner else {**hardware, "winner": True}
            if result.candidate in defaults:
                facts = {**facts, "default": True}
            choice = tuner.space.choice_of(result.candidate)
            if choice is not None:
                facts = {**facts, "tasks": choice.loops.tasks(parse_schedule(result.candidate))}
            self.pending.append(
                Record(
                    task_key=task.key,
                    task=description,
                    target=target_data(self.target),
                    candidate=result.candidate,
                    status=result.status,
                    error=result.error,
                    run_times_s=result.run_times_s,
                    build_time_s=result.build_time_s,
                    hardware=facts,
                    seed=self.options.measure.seed,
                    versions=self.versions,
                    created_at=now(),
                )
            )
        self._flush()

    def _flush(self) -> None:
        """Write what waits; where the disk refuses, it waits on and the search goes on."""
        if self.log is None or not self.pending:
            return
        try:
            self.log.append(self.pending)
        except LogError as error:
            text = f"{error}; tuning goes on, records are kept in memory until it can be written"
            if text not in self.session.warnings:
                self.session.warnings.append(text)
            return
        self.pending.clear()
