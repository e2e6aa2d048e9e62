"""Build, check and time candidates in worker processes.

Building goes on in the background, on processors that no timing uses; see `processors`. A candidate
that crashes, hangs, takes all memory or computes something wrong costs itself only.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Collection, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from tilewright.compiler.targets import Target
from tilewright.compiler.tasks import Task
from tilewright.compiler.toolchain import is_foreign
from tilewright.errors import MeasureError, TargetError
from tilewright.tuner.build_pool import Answer, BuildPool
from tilewright.tuner.candidate import Candidate, layouts_key
from tilewright.tuner.processors import place
from tilewright.tuner.records import Status
from tilewright.tuner.timing import LocalTimer, Timer
from tilewright.tuner.worker.harness import build_harness
from tilewright.tuner.worker.process import WorkerDied, WorkerTimeout
from tilewright.tuner.worker.run import MAX_ARGUMENTS
from tilewright.tuner.workload import task_request

_GIB = 1 << 30
_SETUP_TIMEOUT_S = 300.0
# Of the fastest of each task, libraries stay for the last race.
_KEPT_LIBRARIES = 5


@dataclass(frozen=True)
class MeasureOptions:
    """How candidates are measured.

    Attributes:
        threads: that a kernel may use.
        builders: building processes, at most; None: one for each processor.
        cold: rotate buffers beyond the last-level cache; else caches stay warm.
        budget_s: about how long the repeats of one candidate take together.
        repeats: of one candidate, at most; those of a batch are taken in turns.
        hopeless: a candidate whose first runs take this many times the best is not timed further.
        build_timeout_s, run_timeout_s: after which a candidate's process is killed.
        memory_bytes: address space of a process; a candidate that wants more fails.
        tolerance: of floating point results, see `worker.compare.difference`.
        cpu: processor to time kernels of one thread on; None: the last that may be used.
        lock: file to lock while candidates run, so that tuners that share it take turns; then
            nothing builds on the timing processor.
        seed: of the random inputs.
        build_module: module of the building processes' commands.
    """

    threads: int = 1
    builders: int | None = None
    cold: bool = False
    budget_s: float = 0.03
    repeats: int = 10
    hopeless: float = 2.0
    build_timeout_s: float = 20.0
    run_timeout_s: float = 10.0
    memory_bytes: int = 12 * _GIB
    tolerance: float = 2e-4
    cpu: int | None = None
    lock: Path | None = None
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


@dataclass(frozen=True)
class Batch:
    """Candidates of one task that are being built; `Measurer.collect` checks and times them."""

    task: Task
    candidates: tuple[Candidate, ...]
    built: tuple[Answer, ...]
    packed: tuple[Answer, ...]

    @property
    def ready(self) -> bool:
        """Whether all is built."""
        return all(answer.done() for answer in [*self.built, *self.packed])

    def wait(self) -> None:
        """Wait until all is built."""
        for answer in [*self.built, *self.packed]:
            answer.result()


@dataclass
class _Prepared:
    """What is known of one task: answers, to come or there, of the building processes.

    Attributes:
        request: the task as plain data.
        packed: by layouts, inputs and expected outputs.
        reference: whether the expected outputs have been computed.
        kept: seconds, candidate and built library of the fastest, and of the first.
    """

    request: dict[str, Any]
    packed: dict[str, Answer] = field(default_factory=dict)
    reference: bool = False
    kept: list[tuple[float, Candidate, dict[str, Any]]] = field(default_factory=list)


class Measurer:
    """Worker processes and their files; a context manager, to be closed.

    Args:
        target: what to build for.
        options: how to measure.
        timer: where candidates run; by default a process of this machine.

    Attributes:
        peak_flops: most multiply-add operations a second seen beside the measurements, 1 thread.
        round_peaks: the same before each round of the last race.
    """

    def __init__(
        self, target: Target, options: MeasureOptions | None = None, timer: Timer | None = None
    ) -> None:
        self.target = target
        self.options = options = options or MeasureOptions()
        placement = place(
            options.threads, options.builders, options.cpu, exclusive=options.lock is not None
        )
        shared = Path("/dev/shm")
        base = shared if shared.is_dir() else None
        self._folder = Path(tempfile.mkdtemp(prefix="tilewright-tune-", dir=base))
        self._target_json = target.to_json()
        environment = {"TVM_NUM_THREADS": "1", "TVM_BIND_THREADS": "0", "OMP_NUM_THREADS": "1"}
        config = {"folder": str(self._folder)}
        self._pool = BuildPool(
            options.build_module, config, options.memory_bytes, environment, placement
        )
        self._prepared: dict[str, _Prepared] = {}
        self._count = 0
        self.peak_flops = 0.0
        self.round_peaks: list[float] = []
        try:
            self._timer = timer or self._local_timer(placement.timing, environment)
        except BaseException:
            self._pool.close()
            shutil.rmtree(self._folder, ignore_errors=True)
            raise

    def _local_timer(self, cpu: int | None, environment: dict[str, str]) -> LocalTimer:
        options = self.options
        if is_foreign(self.target.architecture):
            raise TargetError(
                f"code for {self.target.name} does not run on this machine; name a device "
                "(--device ssh://user@board), a tracker (--tracker), or --measure mca"
            )
        config = {
            "harness": str(build_harness(self._folder, self.target)),
            "threads": options.threads,
            "cpu": cpu,
            "rotate_bytes": 2 * self.target.l3_bytes if options.cold else 0,
        }
        return LocalTimer(config, options.memory_bytes, environment, options.lock)

    @property
    def facts(self) -> dict[str, Any]:
        """What the log says of the device."""
        return self._timer.facts

    @property
    def warnings(self) -> list[str]:
        """What happened to devices, in words."""
        return self._timer.warnings

    def __enter__(self) -> Measurer:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """End all processes and remove their files."""
        self._pool.close()
        self._timer.close()
        shutil.rmtree(self._folder, ignore_errors=True)

    def choices(self, task: Task) -> list[dict[str, Any]]:
        """Return the task's layout choices as plain data, see `worker.build.Builder.choices`.

        Raises:
            MeasureError: the task cannot be tuned; says why.
        """
        request = {"task": self._task(task).request, "target": self._target_json}
        return _result(task, self._setup("choices", request))["choices"]

    def submit(
        self, task: Task, candidates: Sequence[Candidate], trusted: Collection[Candidate] = ()
    ) -> Batch:
        """Begin to build candidates of one task; `collect` goes on with them.

        Args:
            task: what they compute.
            candidates: any number.
            trusted: those of them that are timed whatever their code looks like.

        Raises:
            MeasureError: the task's reference cannot be computed; no candidate is to blame.
        """
        self._reference(task)
        packed = tuple(self._pack(task, candidate) for candidate in candidates)
        built = tuple(self._build(task, c, c in trusted) for c in candidates)
        return Batch(task, tuple(candidates), built, packed)

    def collect(self, batch: Batch, best_s: float | None = None) -> list[Measurement]:
        """Check and time a batch; results come in the order of its candidates.

        Args:
            batch: from `submit`.
            best_s: time of the best so far; much slower candidates are not timed further.

        Raises:
            MeasureError: inputs cannot be brought into a candidate's layouts.
        """
        task = batch.task
        batch.wait()
        built = [answer.result() for answer in batch.built]
        entries = [
            self._entry(task, answer, library)
            for answer, library in zip(batch.packed, built, strict=True)
        ]
        with self._quiet():
            found = self._check_all(batch.candidates, built, entries)
            quick = [m.seconds for m in found if m.ok] + ([best_s] if best_s else [])
            limit = self.options.hopeless * min(quick, default=0.0)
            racers = [i for i, m in enumerate(found) if m.ok and m.seconds <= limit]
            times = self._race([entries[index] for index in racers])
        for index, seconds in zip(racers, times, strict=False):
            found[index] = replace(found[index], run_times_s=tuple(seconds))
        self._keep(task, found, built)
        return found

    def measure(
        self, task: Task, candidates: Sequence[Candidate], best_s: float | None = None
    ) -> list[Measurement]:
        """Build, check and time candidates of one task: `submit` and `collect`."""
        return self.collect(self.submit(task, candidates), best_s)

    def race(
        self, task: Task, candidates: Sequence[Candidate], rounds: int = 15
    ) -> list[list[float]]:
        """Time good candidates in turns; return the seconds of each in each round.

        Raises:
            MeasureError: one of them failed now.
        """
        self._reference(task)
        packed = [self._pack(task, candidate) for candidate in candidates]
        known = {candidate: library for _, candidate, library in self._task(task).kept}
        building = {c: self._build(task, c, True) for c in candidates if c not in known}
        built = known | {candidate: answer.result() for candidate, answer in building.items()}
        failed = [built[c]["error"] for c in candidates if "library" not in built[c]]
        if failed:
            raise MeasureError(f"a good candidate failed to build again: {failed[0]}")
        entries = [
            self._entry(task, answer, built[candidate])
            for answer, candidate in zip(packed, candidates, strict=True)
        ]
        with self._quiet():
            answer = self._timer.race(entries, rounds, 2 * self.options.budget_s, _SETUP_TIMEOUT_S)
        for candidate in building:
            Path(built[candidate]["library"]).unlink(missing_ok=True)
        if "error" in answer:
            raise MeasureError(f"measuring the best again failed: {answer['error']}")
        self.round_peaks = answer["peaks"]
        self.peak_flops = max(self.peak_flops, *answer["peaks"])
        return answer["seconds"]

    def turn(self) -> AbstractContextManager[None]:
        """Return a context that keeps the device over several batches."""
        return self._timer.turn()

    def _quiet(self) -> _Quiet:
        return _Quiet(self._pool, self._timer)

    def _race(self, entries: Sequence[dict[str, Any]]) -> list[list[float]]:
        """Time the candidates of a batch in turns; where that fails their first times stand."""
        if not entries:
            return []
        options = self.options
        timeout_s = options.run_timeout_s * len(entries)
        try:
            answer = self._timer.race(entries, options.repeats, options.budget_s, timeout_s)
        except MeasureError:
            return []
        if "error" in answer:
            return []
        self.peak_flops = max(self.peak_flops, *answer["peaks"])
        return answer["seconds"]

    def _keep(
        self, task: Task, found: Sequence[Measurement], built: Sequence[dict[str, Any]]
    ) -> None:
        """Keep the libraries of the fastest, and of the task's first; remove the others."""
        prepared = self._task(task)
        first = prepared.kept[:1]
        good = [
            (result.seconds, result.candidate, library)
            for result, library in zip(found, built, strict=True)
            if result.ok
        ]
        first = first or good[:1]
        ranked = sorted([*prepared.kept, *good], key=lambda entry: entry[0])
        rest = [entry for entry in ranked if entry[1] != first[0][1]] if first else []
        prepared.kept = [*first, *rest[:_KEPT_LIBRARIES]]
        kept = {library["library"] for _, _, library in prepared.kept}
        for library in [*built, *(entry[2] for entry in rest[_KEPT_LIBRARIES:])]:
            if "library" in library and library["library"] not in kept:
                Path(library["library"]).unlink(missing_ok=True)

    def _task(self, task: Task) -> _Prepared:
        if task.key not in self._prepared:
            self._prepared[task.key] = _Prepared(task_request(task))
        return self._prepared[task.key]

    def _setup(self, command: str, request: dict[str, Any]) -> Answer:
        return self._pool.submit(command, _SETUP_TIMEOUT_S, request, urgent=True)

    def _reference(self, task: Task) -> None:
        """Compute what is right, once, by the unscheduled kernel."""
        prepared = self._task(task)
        if prepared.reference:
            return
        if len(task.operator.func.params) > MAX_ARGUMENTS:
            raise MeasureError(
                f"'{task.name}' has {len(task.operator.func.params)} parameters, at most "
                f"{MAX_ARGUMENTS} can be measured"
            )
        request = {"task": prepared.request, "target": self._target_json, "seed": self.options.seed}
        made = _result(task, self._setup("prepare", request))
        try:
            with self._quiet():
                answer = self._timer.reference(made)
        except MeasureError as error:
            raise MeasureError(f"the reference of '{task.name}' failed: {error}") from error
        if "error" in answer:
            raise MeasureError(f"the reference of '{task.name}' failed: {answer['error']}")
        prepared.reference = True

    def _pack(self, task: Task, candidate: Candidate) -> Answer:
        """Bring inputs and expected outputs into the candidate's layouts, once for each."""
        prepared = self._task(task)
        name = layouts_key(candidate.layouts)
        if name not in prepared.packed:
            layouts = candidate.to_json()["layouts"]
            request = {
                "task": prepared.request,
                "target": self._target_json,
                "layouts": layouts,
                "name": name,
            }
            prepared.packed[name] = self._setup("pack", request)
        return prepared.packed[name]

    def _build(self, task: Task, candidate: Candidate, trusted: bool) -> Answer:
        data = candidate.to_json()
        self._count += 1
        request = {
            "task": self._task(task).request,
            "target": self._target_json,
            "layouts": data["layouts"],
            "schedule_json": data["schedule"],
            "out": str(self._folder / f"candidate{self._count}.so"),
            "trusted": trusted,
        }
        return self._pool.submit("build", self.options.build_timeout_s, request)

    def _entry(self, task: Task, packed: Answer, built: dict[str, Any]) -> dict[str, Any]:
        where = _result(task, packed)
        return {
            "library": built.get("library", ""),
            "folder": where["folder"],
            "outputs": where["outputs"],
        }

    def _check_all(
        self,
        candidates: Sequence[Candidate],
        built: Sequence[dict[str, Any]],
        entries: Sequence[dict[str, Any]],
    ) -> list[Measurement]:
        """Check candidates: one after the other, or on as many devices as there are."""
        if self._timer.parallel == 1:
            return list(map(self._check, candidates, built, entries))
        with ThreadPoolExecutor(self._timer.parallel) as threads:
            return list(threads.map(self._check, candidates, built, entries))

    def _check(
        self, candidate: Candidate, built: dict[str, Any], entry: dict[str, Any]
    ) -> Measurement:
        """Run a candidate for the first time, and compare what it computes."""
        if "library" not in built:
            status: Status = "timeout" if built.get("timeout") else "build_error"
            return Measurement(candidate, status, built["error"])
        options, seconds = self.options, built["seconds"]
        if built["rejected"]:
            return Measurement(candidate, "rejected", built["rejected"], (), seconds)
        try:
            answer = self._timer.check(entry, options.tolerance, options.run_timeout_s)
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


class _Quiet:
    """While it is held, candidates run and nothing disturbs them."""

    def __init__(self, pool: BuildPool, timer: Timer) -> None:
        self._pool, self._turn = pool, timer.turn()

    def __enter__(self) -> None:
        self._turn.__enter__()
        self._pool.pause()

    def __exit__(self, *details: Any) -> None:
        self._pool.resume()
        self._turn.__exit__(*details)


def _result(task: Task, answer: Answer) -> dict[str, Any]:
    """Wait for what a task needs before its candidates."""
    found = answer.result()
    if "error" in found:
        raise MeasureError(f"cannot prepare '{task.name}': {found['error']}")
    return found
