"""Tune all tasks of a model under one budget, logging every measurement as it comes.

While one batch of candidates is timed the next ones are built: of other tasks first, so that a task
is asked again when its last batch is known.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from tilewright.compiler.targets import Target
from tilewright.compiler.tasks import Task
from tilewright.errors import LogError, MeasureError
from tilewright.tuner.budget import Progress, next_task
from tilewright.tuner.candidate import Candidate
from tilewright.tuner.cost_model import PRETRAINED, CostModel, RankingModel
from tilewright.tuner.log import Log
from tilewright.tuner.measure import Batch, Measurement, Measurer
from tilewright.tuner.records import (
    Record,
    is_outgrown,
    kernels_version,
    now,
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
from tilewright.tuner.session import Session, TaskState, TuneOptions
from tilewright.tuner.space import TaskSpace, parse_schedule, task_space
from tilewright.tuner.timing import Timer
from tilewright.tuner.workload import describe, moved_bytes

_FINALISTS = 3
# A finalist must beat the incumbent by this much in the final race: less is noise.
_LEAST_WIN = 0.01
# Of a budget in seconds, kept for the final race of each task.
_FINAL_RACE_S = 0.3
_MOST_FOR_RACES = 0.2
_BANDWIDTH_BYTES_S = 100e9
_JOINT_SHARE = 0.4
# Batches that are built ahead. Where others may hold the timing processor for long, more.
_AHEAD = 2
_AHEAD_SHARED = 24
# For which the timing processor is held, where others wait for it.
_LONGEST_TURN_S = 60.0

Callback = Callable[[Session], None]


def tune_tasks(
    tasks: Sequence[tuple[Task, int]],
    target: Target,
    log: Log | None = None,
    options: TuneOptions | None = None,
    callback: Callback = lambda _session: None,
    model: CostModel | None = None,
    timer: Timer | None = None,
) -> Session:
    """Tune tasks until the budget is spent; Ctrl-C ends it early and keeps what was found.

    Args:
        tasks: with their number of calls; see `compiler.tasks.extract_tasks`.
        target: what they were extracted for; its cores are the threads that a kernel may use.
        log: where records go, and where earlier ones are taken from.
        options: budget and method.
        callback: called after every batch.
        model: ranks candidates; by default the pretrained one.
        timer: where candidates run; by default this machine. It is closed at the end.
    """
    options = options or TuneOptions()
    states = [_state(task, weight) for task, weight in tasks]
    states.sort(key=lambda state: -state.weight * state.progress.bound_s)
    session = Session(states, options, time.monotonic())
    with Measurer(target, options.measure, timer) as measurer:
        loop = _Loop(session, measurer, target, log, model)
        try:
            loop.run(callback)
        except KeyboardInterrupt:
            session.stopped = "interrupted"
        session.peak_flops = measurer.peak_flops
        session.unwritten = len(loop.pending)
        session.warnings += measurer.warnings
        callback(session)
    return session


def _state(task: Task, weight: int) -> TaskState:
    flops = 2.0 * describe(task)["macs"]
    peak = 2 * 2 * task.target.lanes("float32") * 4e9 * task.target.cores
    bound = max(flops / peak, moved_bytes(task.operator) / _BANDWIDTH_BYTES_S)
    return TaskState(task, weight, flops, Progress(weight, bound))


@dataclass(frozen=True)
class _Flight:
    """A batch that is being built."""

    state: TaskState
    batch: Batch


class _Loop:
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
        self.flights: deque[_Flight] = deque()
        self.versions = versions()

    def run(self, callback: Callback) -> None:
        """Spend the budget, then let the best of each task race the incumbent."""
        session = self.session
        try:
            while True:
                self._fill()
                if not self.flights:
                    break
                self._collect_ready(callback)
        finally:
            self._flush()
        session.stopped = self._spent() or "nothing left to try"
        for state in session.states:
            self._final(state)
            callback(session)

    def _collect_ready(self, callback: Callback) -> None:
        """Take in the next batch; where the device is shared, all that are ready in one turn."""
        self.flights[0].batch.wait()
        shared = self.options.measure.lock is not None
        until = time.monotonic() + (_LONGEST_TURN_S if shared else 0.0)
        with self.measurer.turn():
            while self.flights and self.flights[0].batch.ready:
                self._collect(self.flights.popleft())
                self.session.peak_flops = self.measurer.peak_flops
                callback(self.session)
                if time.monotonic() >= until:
                    return

    @property
    def _in_flight(self) -> int:
        return sum(len(flight.batch.candidates) for flight in self.flights)

    def _spent(self) -> str:
        options, session = self.options, self.session
        trials = session.trials + self._in_flight
        if options.trials is not None and trials >= options.trials:
            return f"{trials} trials"
        if options.time_s is not None:
            started = sum(state.tuner is not None for state in session.states)
            races_s = min(started * _FINAL_RACE_S, _MOST_FOR_RACES * options.time_s)
            if session.elapsed_s >= options.time_s - races_s:
                return "the time is over"
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
            if not same_target(record.target, self.target) or is_outgrown(record):
                continue  # what older kernels took says nothing of today's
            if record.hardware.get("measure") != self.measurer.facts.get("measure"):
                continue  # cycles of a model and times of a device are not compared
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

    def _fill(self) -> None:
        """Have batches built until enough are under way or the budget is spent."""
        states = self.session.states
        ahead = _AHEAD if self.options.measure.lock is None else _AHEAD_SHARED
        while len(self.flights) < ahead and not self._spent():
            busy = [sum(flight.state is state for flight in self.flights) for state in states]
            position = next_task([state.progress for state in states], busy)
            if position is None:
                return
            self._submit(states[position])

    def _submit(self, state: TaskState) -> None:
        """Ask for candidates of a task and have them built."""
        try:
            if state.tuner is None:
                self._start(state)
            tuner = state.tuner
            assert tuner is not None
            count = self.options.batch
            if self.options.trials is not None:
                left = self.options.trials - self.session.trials - self._in_flight
                count = max(0, min(count, left))
            candidates = tuner.ask(count)
            if not candidates:
                state.progress.exhausted = True
                return
            batch = self.measurer.submit(state.task, candidates, tuner.space.defaults)
            self.flights.append(_Flight(state, batch))
        except MeasureError as error:
            self._give_up(state, str(error))

    def _collect(self, flight: _Flight) -> None:
        """Time a batch, log it, and learn from it."""
        state, tuner = flight.state, flight.state.tuner
        assert tuner is not None
        try:
            results = self.measurer.collect(flight.batch, state.best_s)
        except MeasureError as error:
            self._give_up(state, str(error))
            return
        self._log(state, results)
        tuner.tell(results)
        state.failures += sum(not result.ok for result in results)
        if state.best_s is not None:
            state.progress.best_s.append(state.best_s)
        elif tuner.history.trials >= 3 * self.options.batch:
            self._give_up(state, f"no candidate works: {results[-1].error}")

    def _give_up(self, state: TaskState, problem: str) -> None:
        state.problem = problem
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
            **self.measurer.facts,
            "threads": self.options.measure.threads,
            "cold": self.options.measure.cold,
            **(extra or {}),
        }
        task, tuner = state.task, state.tuner
        assert tuner is not None
        description = describe(task)
        for index, result in enumerate(results):
            facts = hardware if index != winner else {**hardware, "winner": True}
            if result.candidate in tuner.space.defaults:
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
                    versions={**self.versions, **kernels_version(result.candidate)},
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
