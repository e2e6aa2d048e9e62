"""Processes that build candidates in the background, while others are timed."""

from __future__ import annotations

import signal
import threading
import time
from collections import deque
from collections.abc import Mapping
from concurrent.futures import Future
from dataclasses import dataclass
from multiprocessing import Pipe
from multiprocessing.connection import wait
from typing import Any, TypeAlias

from tilewright.errors import MeasureError
from tilewright.tuner.processors import Placement
from tilewright.tuner.worker.process import WorkerProcess, WorkerTimeout

Answer: TypeAlias = "Future[dict[str, Any]]"

_MOST_FAILED_STARTS = 3


@dataclass(frozen=True, slots=True)
class _Job:
    command: str
    request: Mapping[str, Any]
    timeout_s: float
    answer: Answer


@dataclass(eq=False)
class _Worker:
    """One building process.

    Attributes:
        process: its parent's side.
        shared: whether it is stopped while candidates are timed.
        job: what it works on, or None.
        deadline: clock after which it is given up.
        failed_starts: in a row.
    """

    process: WorkerProcess
    shared: bool
    job: _Job | None = None
    deadline: float = 0.0
    failed_starts: int = 0


class BuildPool:
    """Building processes and the thread that hands out jobs to them.

    A job whose process dies or takes too long gets an answer with "error" (and "timeout"); the
    process is started anew.

    Args:
        module, config, memory_bytes, environment: see `WorkerProcess`.
        placement: where they run.
    """

    def __init__(
        self,
        module: str,
        config: Mapping[str, Any],
        memory_bytes: int,
        environment: Mapping[str, str],
        placement: Placement,
    ) -> None:
        processors = [(cpu, False) for cpu in placement.free]
        processors += [(cpu, True) for cpu in placement.shared]  # type: ignore[misc]
        self._workers = [
            _Worker(WorkerProcess(module, config, memory_bytes, environment, cpu), shared)
            for cpu, shared in processors
        ]
        self._jobs: deque[_Job] = deque()
        self._guard = threading.Lock()
        self._wake, self._woken = Pipe()
        self._paused_at: float | None = None
        self._closed = False
        for worker in self._workers:
            worker.process.start()
        self._thread = threading.Thread(target=self._run, name="build pool", daemon=True)
        self._thread.start()

    def submit(
        self, command: str, timeout_s: float, request: Mapping[str, Any], urgent: bool = False
    ) -> Answer:
        """Queue a job and return its answer to come; it never raises, see the class.

        Args:
            command: of the building processes.
            timeout_s: after which its process is killed.
            request: its arguments.
            urgent: goes before the jobs that wait.
        """
        job = _Job(command, request, timeout_s, Future())
        with self._guard:
            if urgent:
                self._jobs.appendleft(job)
            else:
                self._jobs.append(job)
        self._notify()
        return job.answer

    def pause(self) -> None:
        """Stop the processes that would disturb a timing."""
        with self._guard:
            if self._paused_at is None:
                self._paused_at = time.monotonic()
                self._signal(signal.SIGSTOP)

    def resume(self) -> None:
        """Let all processes go on."""
        with self._guard:
            if self._paused_at is not None:
                stopped_s = time.monotonic() - self._paused_at
                self._paused_at = None
                for worker in self._workers:
                    if worker.shared:
                        worker.deadline += stopped_s
                self._signal(signal.SIGCONT)
        self._notify()

    def close(self) -> None:
        """End all processes; jobs that wait are answered with an error. May be called twice."""
        with self._guard:
            if self._closed:
                return
            self._closed = True
            for worker in self._workers:
                worker.process.signal(signal.SIGKILL)
        self._notify()
        self._thread.join()
        for worker in self._workers:
            worker.process.close()
        self._wake.close()
        self._woken.close()

    def _signal(self, number: int) -> None:
        for worker in self._workers:
            if worker.shared:
                worker.process.signal(number)

    def _notify(self) -> None:
        self._wake.send_bytes(b".")

    def _run(self) -> None:
        while True:
            with self._guard:
                if self._closed:
                    break
                self._hand_out()
                sockets = {
                    w.process.socket: w for w in self._workers if w.job or not self._ready(w)
                }
                running = [w for w in self._workers if w.job and not self._stopped(w)]
                until = min((w.deadline for w in running), default=time.monotonic() + 60.0)
            ready = wait([*sockets, self._woken], max(0.0, until - time.monotonic()))
            while self._woken.poll():
                self._woken.recv_bytes()
            with self._guard:
                if self._closed:
                    break
                now = time.monotonic()
                for worker in sockets.values():
                    late = worker in running and worker.deadline <= now
                    if worker.job and (worker.process.socket in ready or late):
                        self._finish(worker)
        waiting = [*self._jobs, *(w.job for w in self._workers if w.job)]
        for job in waiting:
            job.answer.set_result({"error": "the tuner was closed"})

    def _hand_out(self) -> None:
        for worker in self._workers:
            if not self._jobs or worker.job or self._stopped(worker) or not self._ready(worker):
                continue
            job = self._jobs.popleft()
            worker.job, worker.deadline = job, time.monotonic() + job.timeout_s
            try:
                worker.process.send(job.command, **job.request)
            except MeasureError as error:
                self._give_up(worker, error)

    def _stopped(self, worker: _Worker) -> bool:
        return worker.shared and self._paused_at is not None

    def _ready(self, worker: _Worker) -> bool:
        try:
            ready = worker.process.ready
        except MeasureError as error:
            self._give_up(worker, error)
            return False
        if ready:
            worker.failed_starts = 0
        return ready

    def _finish(self, worker: _Worker) -> None:
        """Take the answer of a process, or what became of it."""
        assert worker.job is not None
        job = worker.job
        try:
            # A process that is late is given no more time; one that answers has written it all.
            answer = worker.process.receive(0.0 if worker.deadline <= time.monotonic() else 5.0)
        except WorkerTimeout:
            answer = {"error": f"took over {job.timeout_s:g} s to {job.command}", "timeout": True}
        except MeasureError as error:
            answer = {"error": f"building failed: {error}"}
        worker.job = None
        worker.process.start()  # does nothing where it still runs
        job.answer.set_result(answer)

    def _give_up(self, worker: _Worker, error: MeasureError) -> None:
        """A process did not start: try again, but not for ever."""
        worker.failed_starts += 1
        waiting = [worker.job] if worker.job else []
        worker.job = None
        if worker.failed_starts >= _MOST_FAILED_STARTS:
            waiting += self._jobs
            self._jobs.clear()
        for job in waiting:
            job.answer.set_result({"error": f"building failed: {error}"})
        worker.process.start()
