"""Several devices as one timer: what a lost device leaves undone, another one does."""

from __future__ import annotations

import contextlib
import logging
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import CancelledError, ThreadPoolExecutor
from typing import Any, Protocol

from tilewright.errors import DeviceLostError, MeasureError
from tilewright.tuner.timing import Entry
from tilewright.tuner.worker.process import WorkerTimeout

_LOGGER = logging.getLogger("tilewright")
# A candidate on which so many devices are lost is taken for the reason.
_MOST_LOSSES = 3
_FIRST_PAUSE_S = 1.0
_LONGEST_PAUSE_S = 30.0


class Device(Protocol):
    """What a pool knows of a device; all but `close` raise `DeviceLostError`."""

    name: str

    def connect(self) -> Mapping[str, Any]:
        """Begin, or begin again; return facts for the log, such as the name of its processor."""

    def reference(self, made: Mapping[str, Any]) -> dict[str, Any]:
        """See `timing.Timer`."""

    def check(self, entry: Entry, tolerance: float, timeout_s: float) -> dict[str, Any]:
        """See `timing.Timer`; "timeout" is set where the candidate took too long."""

    def race(
        self, entries: Sequence[Entry], rounds: int, budget_s: float, timeout_s: float
    ) -> dict[str, Any]:
        """See `timing.Timer`."""

    def close(self) -> None:
        """Let it go."""


class _Member:
    """A device and the thread that alone deals with it.

    One thread for good: what a thread starts may end with it (PR_SET_PDEATHSIG of workers).
    """

    def __init__(self, device: Device) -> None:
        self.device = device
        self.state = "busy"  # or "idle", "lost"
        self.reason = ""
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="tilewright-device")

    def do(self, action: Callable[[Device], Mapping[str, Any]]) -> Mapping[str, Any]:
        """Do something with the device in its thread, and wait for it."""
        return self._thread.submit(action, self.device).result()

    def close(self) -> None:
        """Let the device go."""
        self.device.close()
        self._thread.shutdown(wait=False, cancel_futures=True)


class DevicePool:
    """A timer over several devices of one kind.

    A device that is lost is connected again in the background for as long as the pool lives: a
    board that restarts comes back by itself.

    Args:
        devices: connected here, all at once.
        patience_s: how long all devices may be lost before measuring fails.

    Attributes:
        parallel: candidates that may be checked at once.
        facts: of the devices, for the log.
        warnings: what happened to devices, in words.

    Raises:
        MeasureError: no device answers.
    """

    def __init__(self, devices: Sequence[Device], patience_s: float = 120.0) -> None:
        self._members = [_Member(device) for device in devices]
        self._changed = threading.Condition()
        self._closed = threading.Event()
        self._patience_s = patience_s
        self.parallel = len(devices)
        self.facts: dict[str, Any] = {"devices": [device.name for device in devices]}
        self.warnings: list[str] = []
        threads = [threading.Thread(target=self._begin, args=(m,)) for m in self._members]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        if all(member.state == "lost" for member in self._members):
            reasons = "; ".join(member.reason for member in self._members)
            self.close()
            raise MeasureError(f"no device answers: {reasons}")

    def turn(self) -> contextlib.AbstractContextManager[None]:
        """Return a context that does nothing: building here disturbs no device."""
        return contextlib.nullcontext()

    def reference(self, made: Mapping[str, Any]) -> dict[str, Any]:
        """Run the unscheduled kernel on one of the devices."""
        return self._use(lambda device: device.reference(made))

    def check(self, entry: Entry, tolerance: float, timeout_s: float) -> dict[str, Any]:
        """Run a candidate for the first time, on any device.

        Raises:
            WorkerTimeout: it took too long.
            MeasureError: no device answers.
        """
        answer = self._use(lambda device: device.check(entry, tolerance, timeout_s))
        if answer.get("timeout"):
            raise WorkerTimeout(answer["error"])
        return answer

    def race(
        self, entries: Sequence[Entry], rounds: int, budget_s: float, timeout_s: float
    ) -> dict[str, Any]:
        """Time candidates in turns, all on one device."""
        return self._use(lambda device: device.race(entries, rounds, budget_s, timeout_s))

    def close(self) -> None:
        """Let all devices go."""
        self._closed.set()
        with self._changed:
            self._changed.notify_all()
        for member in self._members:
            member.close()

    def _use(self, action: Callable[[Device], dict[str, Any]]) -> dict[str, Any]:
        """Do something on any device; where it is lost meanwhile, on another."""
        tried: list[_Member] = []
        while True:
            member = self._take(tried)
            try:
                answer = dict(member.do(action))
            except DeviceLostError as error:
                tried.append(member)
                self._lose(member, str(error))
                if len(tried) == _MOST_LOSSES:
                    return {"error": f"{_MOST_LOSSES} devices were lost on it, the last: {error}"}
                continue
            except BaseException:
                self._set(member, "idle")
                raise
            self._set(member, "idle")
            return answer

    def _take(self, tried: Sequence[_Member]) -> _Member:
        """Wait for a device, rather one that has not been tried."""
        with self._changed:
            alive_at = time.monotonic()
            while not self._closed.is_set():
                idle = [m for m in self._members if m.state == "idle"]
                if idle:
                    fresh = [member for member in idle if member not in tried]
                    chosen = (fresh or idle)[0]
                    chosen.state = "busy"
                    return chosen
                if any(member.state == "busy" for member in self._members):
                    alive_at = time.monotonic()
                left = alive_at + self._patience_s - time.monotonic()
                if left <= 0:
                    break
                self._changed.wait(min(left, 1.0))
        reasons = "; ".join(member.reason for member in self._members)
        raise MeasureError(f"no device has answered for {self._patience_s:g} s: {reasons}")

    def _set(self, member: _Member, state: str) -> None:
        with self._changed:
            member.state = state
            self._changed.notify_all()

    def _say(self, text: str) -> None:
        _LOGGER.warning(text)
        self.warnings.append(text)

    def _begin(self, member: _Member) -> None:
        try:
            self.facts.update(member.do(_connect))
            self._set(member, "idle")
        except DeviceLostError as error:
            self._lose(member, str(error))

    def _lose(self, member: _Member, reason: str) -> None:
        member.reason = reason
        self._say(f"device lost: {reason}")
        self._set(member, "lost")
        threading.Thread(target=self._revive, args=(member,), daemon=True).start()

    def _revive(self, member: _Member) -> None:
        """Connect again until it works, at longer and longer intervals."""
        pause_s = _FIRST_PAUSE_S
        while not self._closed.wait(pause_s):
            pause_s = min(2 * pause_s, _LONGEST_PAUSE_S)
            try:
                member.do(_connect)
            except DeviceLostError as error:
                member.reason = str(error)
                continue
            except (CancelledError, RuntimeError):  # the pool was closed meanwhile
                return
            if self._closed.is_set():
                member.close()
                return
            self._say(f"device back: {member.device.name}")
            self._set(member, "idle")
            return


def _connect(device: Device) -> Mapping[str, Any]:
    return device.connect()
