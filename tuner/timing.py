"""Where candidates run: checked and timed by a process of this machine, or by another device.

A `Timer` is all that the measurer knows of a device. Libraries, inputs and expected outputs are
files that the building processes wrote; a timer for another device sends them there.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from tilewright.errors import MeasureError
from tilewright.tuner.records import processor_name
from tilewright.tuner.worker.process import WorkerProcess

_SETUP_TIMEOUT_S = 300.0

Entry = Mapping[str, Any]
"""library: path of a shared object; folder: its inputs and expected outputs as .npy files;
outputs: shape and dtype of each output."""


class Timer(Protocol):
    """Runs candidates on a device, or on one of several.

    Attributes:
        parallel: candidates that may be checked at once.
        facts: of the device, for the log.
        warnings: what a person should know, as it happens.

    An answer is plain data, see `worker.run.Runner`: what is wrong with a candidate is in it under
    "wrong" or "error". `WorkerTimeout` and other `MeasureError`s mean that it did not answer.
    """

    parallel: int
    facts: dict[str, Any]
    warnings: list[str]

    def turn(self) -> contextlib.AbstractContextManager[None]:
        """Return a context for the time in which nothing may disturb the device."""

    def reference(self, made: Entry) -> dict[str, Any]:
        """Run the unscheduled kernel `made` and write its outputs to the paths in "results"."""

    def check(self, entry: Entry, tolerance: float, timeout_s: float) -> dict[str, Any]:
        """Run a candidate for the first times and compare its outputs: {"seconds": [..]}."""

    def race(
        self, entries: Sequence[Entry], rounds: int, budget_s: float, timeout_s: float
    ) -> dict[str, Any]:
        """Time candidates in turns: {"seconds": a list for each, "peaks": one for each round}."""

    def close(self) -> None:
        """Let the device go."""


@contextlib.contextmanager
def exclusive(lock: Path | None) -> Iterator[None]:
    """Hold the lock of a file, where one is named.

    Raises:
        MeasureError: it cannot be opened.
    """
    if lock is None:
        yield
        return
    try:
        descriptor = os.open(lock, os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o666)
    except OSError as error:
        raise MeasureError(f"cannot lock {lock}: {error.strerror}") from error
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


class LocalTimer:
    """The timing process of this machine.

    Args:
        config: of `worker.run.handlers`.
        memory_bytes: limit of its address space.
        environment: variables to set for it.
        lock: file that is locked while candidates run, so that tuners that share it take turns.
    """

    def __init__(
        self,
        config: Mapping[str, Any],
        memory_bytes: int,
        environment: Mapping[str, str],
        lock: Path | None = None,
    ) -> None:
        self._process = WorkerProcess(
            "tilewright.tuner.worker.run", config, memory_bytes, environment
        )
        self._process.start()
        self._lock = lock
        self.parallel = 1
        self.facts: dict[str, Any] = {"processor": processor_name()}
        self.warnings: list[str] = []
        self._held = False

    @contextlib.contextmanager
    def turn(self) -> Iterator[None]:
        """Hold the lock; turns may be nested.

        Raises:
            MeasureError: it cannot be opened.
        """
        if self._held:
            yield
            return
        with exclusive(self._lock):
            self._held = True
            try:
                yield
            finally:
                self._held = False

    def reference(self, made: Entry) -> dict[str, Any]:
        """Run the unscheduled kernel once."""
        return self._process.call("reference", _SETUP_TIMEOUT_S, **made)

    def check(self, entry: Entry, tolerance: float, timeout_s: float) -> dict[str, Any]:
        """Run a candidate for the first time."""
        return self._process.call("check", timeout_s, tolerance=tolerance, **entry)

    def race(
        self, entries: Sequence[Entry], rounds: int, budget_s: float, timeout_s: float
    ) -> dict[str, Any]:
        """Time candidates in turns."""
        return self._process.call(
            "race", timeout_s, entries=entries, rounds=rounds, budget_s=budget_s
        )

    def close(self) -> None:
        """End the process."""
        self._process.close()
