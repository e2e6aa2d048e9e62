"""Measure alone on a machine that others use: take a lock that they share, and one processor."""

from __future__ import annotations

import contextlib
import fcntl
import os
from collections.abc import Iterator
from pathlib import Path

from tilewright.baselines.budget import descendants
from tilewright.errors import MeasureError

# Above every ordinary process, in whatever session: "nice" counts only within one (sched(7)).
_REAL_TIME = (os.SCHED_RR, 1)
_ORDINARY = (os.SCHED_OTHER, 0)


@contextlib.contextmanager
def alone(lock: Path | None, cpu: int | None) -> Iterator[None]:
    """Hold a lock, and keep this process and all that it started on one processor meanwhile.

    Whoever shares the lock does not measure at the same time. The scheduling class is real-time
    where the user may have that. Without a lock and a processor nothing is changed.

    Raises:
        MeasureError: the lock cannot be opened, or there is no such processor.
    """
    with contextlib.ExitStack() as stack:
        if lock is not None:
            try:
                file = stack.enter_context(lock.open("a"))
            except OSError as error:
                raise MeasureError(f"cannot lock {lock}: {error.strerror or error}") from error
            fcntl.flock(file, fcntl.LOCK_EX)
        if cpu is not None:
            stack.enter_context(_pinned(cpu))
        yield


@contextlib.contextmanager
def _pinned(cpu: int) -> Iterator[None]:
    before = os.sched_getaffinity(0)
    try:
        os.sched_setaffinity(0, {cpu})
    except OSError as error:
        raise MeasureError(f"cannot measure on processor {cpu}: {error.strerror}") from error
    _apply({cpu}, _REAL_TIME)
    try:
        yield
    finally:
        _apply(before, _ORDINARY)


def _apply(cpus: set[int], scheduling: tuple[int, int]) -> None:
    """Set the processors and the class of every thread of this process and its descendants."""
    policy, priority = scheduling
    for process in (os.getpid(), *descendants(os.getpid())):
        for thread in Path(f"/proc/{process}/task").glob("*"):
            with contextlib.suppress(OSError):  # it has ended, or may not be hurried
                os.sched_setaffinity(int(thread.name), cpus)
                os.sched_setscheduler(int(thread.name), policy, os.sched_param(priority))
