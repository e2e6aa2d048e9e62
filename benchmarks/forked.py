"""Runs jobs in forked worker processes: a crash or a hang costs the job that caused it only."""

from __future__ import annotations

import multiprocessing
import multiprocessing.connection
import os
import resource
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

Job = Callable[[str], Any]


@dataclass(frozen=True)
class Lost:
    """Stands for the result of a job whose process died ("crash") or was silent ("timeout")."""

    status: str
    reason: str


def run_forked(
    names: Sequence[str],
    job: Job,
    *,
    workers: int = 1,
    timeout_seconds: float = 300.0,
    memory_bytes: int | None = None,
    on_result: Callable[[str, Any], None] = lambda _name, _result: None,
) -> dict[str, Any]:
    """Run `job(name)` for each name in forked processes; return the results in order.

    Args:
        names: the jobs.
        job: returns what can be pickled; what it prints is dropped.
        workers: processes at once.
        timeout_seconds: limit per job.
        memory_bytes: address space that a process may take beyond what it inherits.
        on_result: called as each job ends.
    """
    queues = [iter(names[start::workers]) for start in range(workers)]
    running: dict[Any, _Worker] = {}
    results: dict[str, Any] = {}
    for worker in [_Worker(job, queue, memory_bytes) for queue in queues]:
        if worker.start():
            running[worker.pipe] = worker
    while running:
        limit = min(worker.started for worker in running.values()) + timeout_seconds
        ready = multiprocessing.connection.wait(list(running), max(0.0, limit - time.monotonic()))
        late = [
            pipe for pipe, worker in running.items() if worker.started + timeout_seconds <= limit
        ]
        for pipe in ready or late:
            worker = running.pop(pipe)
            name, result = worker.finish(timed_out=not ready)
            results[name] = result
            on_result(name, result)
            if worker.start():
                running[worker.pipe] = worker
    return {name: results[name] for name in names}


class _Worker:
    """One forked process that runs jobs one after the other, and is replaced if it dies."""

    def __init__(self, job: Job, queue: Iterator[str], memory_bytes: int | None) -> None:
        self.job, self.queue, self.memory_bytes = job, queue, memory_bytes
        self.process: Any = None
        self.pipe: Any = None
        self.current = ""
        self.started = 0.0

    def start(self) -> bool:
        """Begin the next job; False when there is none left."""
        self.current = next(self.queue, "")
        if not self.current:
            if self.process is not None:
                self.pipe.send("")
                self.process.join()
            return False
        if self.process is None:
            context = multiprocessing.get_context("fork")
            self.pipe, other = context.Pipe()
            self.process = context.Process(
                target=_serve, args=(other, self.job, self.memory_bytes), daemon=True
            )
            self.process.start()
            other.close()
        self.pipe.send(self.current)
        self.started = time.monotonic()
        return True

    def finish(self, timed_out: bool) -> tuple[str, Any]:
        """Take the result of the current job; a dead or silent process is given up."""
        if not timed_out:
            try:
                return self.current, self.pipe.recv()
            except EOFError:
                pass
        self.process.kill()
        self.process.join()
        code, self.process = self.process.exitcode, None
        if timed_out:
            return self.current, Lost("timeout", "no result in time")
        return self.current, Lost("crash", f"the process ended with status {code}")


def _serve(pipe: Any, job: Job, memory_bytes: int | None) -> None:
    """Run the jobs that are asked for; a job may print, which must not reach the terminal."""
    silent = os.open(os.devnull, os.O_WRONLY)
    os.dup2(silent, 1)
    os.dup2(silent, 2)
    if memory_bytes is not None:
        limit = _address_space_bytes() + memory_bytes
        resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    while name := pipe.recv():
        pipe.send(job(name))


def _address_space_bytes() -> int:
    """Return the size of this process's address space."""
    with open("/proc/self/statm") as file:
        return int(file.read().split()[0]) * os.sysconf("SC_PAGE_SIZE")
