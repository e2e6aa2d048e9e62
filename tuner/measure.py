"""Measure candidates in processes of their own: built by some, checked and timed by another.

Building and timing take turns: a batch is built by all building processes at once, then timed
while they rest, because on few processors anything beside a measurement disturbs it. A candidate
that crashes, hangs, takes all memory or computes something wrong costs itself only.
"""

from __future__ import annotations

import shutil
import tempfile
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from multiprocessing.connection import wait
from pathlib import Path
from typing import Any

from tilewright.compiler.targets import Target
from tilewright.compiler.tasks import Task
from tilewright.errors import MeasureError
from tilewright.tuner.candidate import Candidate, layouts_key
from tilewright.tuner.records import Status
from tilewright.tuner.worker.harness import MAX_ARGUMENTS, build_harness
from tilewright.tuner.worker.process import WorkerDied, WorkerProcess, WorkerTimeout
from tilewright.tuner.workload import task_request

_GIB = 1 << 30
_SETUP_TIMEOUT_S = 300.0


@dataclass(frozen=True)
class MeasureOptions:
    """How candidates are measured.

    Attributes:
        threads: that a kernel may use.
        builders: building processes.
        cold: rotate buffers beyond the last-level cache; else caches stay warm.
        budget_s: about how long the repeats of one candidate take together.
        repeats: of one candidate, at most; those of a batch are taken in turns.
        hopeless: a candidate whose first runs take this many times the best is not timed further.
        build_timeout_s, run_timeout_s: after which a candidate's process is killed.
        memory_bytes: address space of a process; a candidate that wants more fails.
        tolerance: of floating point results, see `worker.compare.difference`.
        cpu: processor that timing is pinned to, or None.
        seed: of the random inputs.
        build_module: module of the building processes' commands.
    """

    threads: int = 1
    builders: int = 2
    cold: bool = False
    budget_s: float = 0.03
    repeats: int = 10
    hopeless: float = 2.0
    build_timeout_s: float = 20.0
    run_timeout_s: float = 10.0
    memory_bytes: int = 12 * _GIB
    tolerance: float = 2e-4
    cpu: int | None = None
    seed: int = 0
    build_module: str = "tilewright.tuner.worker.build"


@dataclass(frozen=True, slots=True)
class Measurement:
    """What came out of one candidate."""

    candidate: Candidate
    status: Status
    error: str = ""
    run_times_s: tuple[float, ...] = ()
    build_time_s: float = 0.0

    @property
    def ok(self) -> bool:
        """Whether it ran and computed the right values."""
        return self.status == "ok"

    @property
    def seconds(self) -> float:
        """The least of the repeats."""
        return min(self.run_times_s)


@dataclass
class _Prepared:
    """What is on disk for one task."""

    request: dict[str, Any]
    packed: dict[str, dict[str, Any]] = field(default_factory=dict)


class Measurer:
    """Worker processes and their files; a context manager, to be closed.

    Args:
        target: what to build for.
        options: how to measure.

    Attributes:
        peak_flops: most multiply-add operations a second seen beside the measurements, 1 thread.
        round_peaks: the same before each round of the last race.
    """

    def __init__(self, target: Target, options: MeasureOptions | None = None) -> None:
        self.target = target
        self.options = options = options or MeasureOptions()
        shared = Path("/dev/shm")
        base = shared if shared.is_dir() else None
        self._folder = Path(tempfile.mkdtemp(prefix="tilewright-tune-", dir=base))
        self._target_json = target.to_json()
        environment = {"TVM_NUM_THREADS": "1", "TVM_BIND_THREADS": "0", "OMP_NUM_THREADS": "1"}
        build_config = {"folder": str(self._folder)}
        self._builders = [
            WorkerProcess(options.build_module, build_config, options.memory_bytes, environment)
            for _ in range(max(1, options.builders))
        ]
        for builder in self._builders:
            builder.start()
        run_config = {
            "harness": str(build_harness(self._folder, target)),
            "threads": options.threads,
            "cpu": options.cpu,
            "rotate_bytes": 2 * target.l3_bytes if options.cold else 0,
        }
        self._runner = WorkerProcess(
            "tilewright.tuner.worker.run", run_config, options.memory_bytes, environment
        )
        self._runner.start()
        self._prepared: dict[str, _Prepared] = {}
        self._count = 0
        self.peak_flops = 0.0
        self.round_peaks: list[float] = []

    def __enter__(self) -> Measurer:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """End all processes and remove their files."""
        for worker in [*self._builders, self._runner]:
            worker.close()
        shutil.rmtree(self._folder, ignore_errors=True)

    def choices(self, task: Task) -> list[dict[str, Any]]:
        """Return the task's layout choices as plain data, see `worker.build.Builder.choices`.

        Raises:
            MeasureError: the task cannot be tuned; says why.
        """
        request = self._task(task).request
        answer = self._ask_builder(
            "choices", task, {"task": request, "target": self._target_json}, _SETUP_TIMEOUT_S
        )
        return answer["choices"]

    def measure(
        self, task: Task, candidates: Sequence[Candidate], best_s: float | None = None
    ) -> list[Measurement]:
        """Build, check and time candidates of one task.

        Args:
            task: what they compute.
            candidates: any number; results come in the same order.
            best_s: time of the best so far; much slower candidates are not timed further.

        Raises:
            MeasureError: the task's reference cannot be computed; no candidate is to blame.
        """
        self._reference(task)
        built = self._build(task, candidates)
        found = [
            self._check(task, candidate, result)
            for candidate, result in zip(candidates, built, strict=True)
        ]
        quick = [m.seconds for m in found if m.ok] + ([best_s] if best_s else [])
        limit = self.options.hopeless * min(quick, default=0.0)
        racers = [i for i, m in enumerate(found) if m.ok and m.seconds <= limit]
        for index, times in zip(racers, self._race(task, racers, found, built), strict=True):
            found[index] = replace(found[index], run_times_s=times)
        for result in built:
            if "library" in result:
                Path(result["library"]).unlink(missing_ok=True)
        return found

    def race(
        self, task: Task, candidates: Sequence[Candidate], rounds: int = 15
    ) -> list[list[float]]:
        """Time good candidates in turns; return the seconds of each in each round.

        Raises:
            MeasureError: one of them failed now.
        """
        self._reference(task)
        built = self._build(task, candidates)
        failed = [result["error"] for result in built if "library" not in result]
        if failed:
            raise MeasureError(f"a good candidate failed to build again: {failed[0]}")
        entries = [
            self._entry(task, candidate, result)
            for candidate, result in zip(candidates, built, strict=True)
        ]
        budget_s = 2 * self.options.budget_s
        answer = self._runner.call(
            "race", _SETUP_TIMEOUT_S, entries=entries, rounds=rounds, budget_s=budget_s
        )
        for result in built:
            Path(result["library"]).unlink(missing_ok=True)
        if "error" in answer:
            raise MeasureError(f"measuring the best again failed: {answer['error']}")
        self.round_peaks = answer["peaks"]
        self.peak_flops = max(self.peak_flops, *answer["peaks"])
        return answer["seconds"]

    def _race(
        self,
        task: Task,
        racers: Sequence[int],
        found: Sequence[Measurement],
        built: Sequence[dict[str, Any]],
    ) -> list[tuple[float, ...]]:
        """Time the candidates of a batch in turns; where that fails their first times stand."""
        if not racers:
            return []
        entries = [self._entry(task, found[index].candidate, built[index]) for index in racers]
        options = self.options
        try:
            answer = self._runner.call(
                "race",
                options.run_timeout_s * len(racers),
                entries=entries,
                rounds=options.repeats,
                budget_s=options.budget_s,
            )
        except MeasureError:
            answer = {"error": "died"}
        if "error" in answer:
            return [found[index].run_times_s for index in racers]
        self.peak_flops = max(self.peak_flops, *answer["peaks"])
        return [tuple(times) for times in answer["seconds"]]

    def _entry(self, task: Task, candidate: Candidate, built: dict[str, Any]) -> dict[str, Any]:
        packed = self._packed(task, candidate)
        return {
            "library": built["library"],
            "folder": packed["folder"],
            "outputs": packed["outputs"],
        }

    def _task(self, task: Task) -> _Prepared:
        if task.key not in self._prepared:
            self._prepared[task.key] = _Prepared(task_request(task))
        return self._prepared[task.key]

    def _reference(self, task: Task) -> None:
        """Compute what is right, once, by the unscheduled kernel."""
        prepared = self._task(task)
        if "reference" in prepared.packed:
            return
        if len(task.operator.func.params) > MAX_ARGUMENTS:
            raise MeasureError(
                f"'{task.name}' has {len(task.operator.func.params)} parameters, at most "
                f"{MAX_ARGUMENTS} can be measured"
            )
        made = self._ask_builder(
            "prepare",
            task,
            {
                "task": prepared.request,
                "target": self._target_json,
                "seed": self.options.seed,
            },
            _SETUP_TIMEOUT_S,
        )
        try:
            answer = self._runner.call("reference", _SETUP_TIMEOUT_S, **made)
        except MeasureError as error:
            raise MeasureError(f"the reference of '{task.name}' failed: {error}") from error
        if "error" in answer:
            raise MeasureError(f"the reference of '{task.name}' failed: {answer['error']}")
        prepared.packed["reference"] = made

    def _packed(self, task: Task, candidate: Candidate) -> dict[str, Any]:
        """Return where inputs and expected outputs lie in the candidate's layouts."""
        prepared = self._task(task)
        name = layouts_key(candidate.layouts)
        if name not in prepared.packed:
            layouts = candidate.to_json()["layouts"]
            request = {"task": prepared.request, "layouts": layouts, "name": name}
            prepared.packed[name] = self._ask_builder("pack", task, request, _SETUP_TIMEOUT_S)
        return prepared.packed[name]

    def _ask_builder(
        self, command: str, task: Task, request: dict[str, Any], timeout_s: float
    ) -> dict[str, Any]:
        try:
            answer = self._builders[0].call(command, timeout_s, **request)
        except MeasureError as error:
            raise MeasureError(f"cannot prepare '{task.name}': {error}") from error
        if "error" in answer:
            raise MeasureError(f"cannot prepare '{task.name}': {answer['error']}")
        return answer

    def _build(self, task: Task, candidates: Sequence[Candidate]) -> list[dict[str, Any]]:
        """Build all candidates, each process one at a time; failures are results too."""
        prepared = self._task(task)
        results: list[dict[str, Any]] = [{} for _ in candidates]
        waiting = deque(range(len(candidates)))
        busy: dict[WorkerProcess, tuple[int, float]] = {}
        idle = list(self._builders)

        def finish(worker: WorkerProcess, index: int, timeout_s: float) -> None:
            try:
                results[index] = worker.receive(timeout_s)
            except WorkerTimeout:
                limit = self.options.build_timeout_s
                results[index] = {"error": f"took over {limit:g} s to build", "timeout": True}
            except WorkerDied as error:
                results[index] = {"error": f"building failed: {error}"}
            worker.start()  # a new process loads while the others go on
            idle.append(worker)

        while waiting or busy:
            while waiting and idle:
                index, worker = waiting.popleft(), idle.pop()
                data = candidates[index].to_json()
                self._count += 1
                worker.send(
                    "build",
                    task=prepared.request,
                    target=self._target_json,
                    layouts=data["layouts"],
                    schedule_json=data["schedule"],
                    out=str(self._folder / f"candidate{self._count}.so"),
                )
                busy[worker] = (index, time.monotonic() + self.options.build_timeout_s)
            until = min(deadline for _, deadline in busy.values())
            sockets = {worker.socket: worker for worker in busy}
            ready = wait(list(sockets), max(0.0, until - time.monotonic()))
            now = time.monotonic()
            done = [sockets[socket] for socket in ready]  # type: ignore[index]
            late = [w for w, (_, deadline) in busy.items() if deadline <= now and w not in done]
            for worker in [*done, *late]:
                finish(worker, busy.pop(worker)[0], 0.0 if worker in late else 5.0)
        return results

    def _check(self, task: Task, candidate: Candidate, built: dict[str, Any]) -> Measurement:
        """Run a candidate for the first time, and compare what it computes."""
        if "library" not in built:
            status: Status = "timeout" if built.get("timeout") else "build_error"
            return Measurement(candidate, status, built["error"])
        options, seconds = self.options, built["seconds"]
        entry = self._entry(task, candidate, built)
        try:
            answer = self._runner.call(
                "check", options.run_timeout_s, tolerance=options.tolerance, **entry
            )
        except WorkerTimeout:
            error = f"took over {options.run_timeout_s:g} s to run"
            return Measurement(candidate, "timeout", error, (), seconds)
        except WorkerDied as error:
            return Measurement(candidate, "run_error", str(error), (), seconds)
        if "wrong" in answer:
            return Measurement(candidate, "wrong_output", answer["wrong"], (), seconds)
        if "error" in answer:
            return Measurement(candidate, "run_error", answer["error"], (), seconds)
        return Measurement(candidate, "ok", "", tuple(answer["seconds"]), seconds)
