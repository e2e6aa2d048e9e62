"""The parent's side of one worker process: start it, ask it, end it."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Mapping
from multiprocessing.connection import Connection
from typing import Any

from tilewright.errors import MeasureError

_START_TIMEOUT_S = 300.0


class WorkerDied(MeasureError):
    """The process ended instead of answering."""


class WorkerTimeout(MeasureError):
    """The process did not answer in time and was killed."""


class WorkerProcess:
    """A process that answers one request at a time; started when first needed.

    Args:
        module: module whose `handlers(config)` gives a function for each command.
        config: plain data for it.
        memory_bytes: limit of its address space; 0 for none.
        environment: variables to set.
        cpu: processor to keep it on, or None.
    """

    def __init__(
        self,
        module: str,
        config: Mapping[str, Any],
        memory_bytes: int = 0,
        environment: Mapping[str, str] | None = None,
        cpu: int | None = None,
    ) -> None:
        self._arguments = (module, memory_bytes, json.dumps(config))
        self._cpu = cpu
        self._environment = dict(environment or {})
        self._process: subprocess.Popen[bytes] | None = None
        self._socket: Connection | None = None
        self._ready = False
        self.starts = 0

    def start(self) -> None:
        """Start the process unless it runs; does not wait until it is ready."""
        if self._process is not None:
            return
        ours, theirs = socket.socketpair()
        module, memory_bytes, config = self._arguments
        with theirs:
            os.set_inheritable(theirs.fileno(), True)
            self._process = subprocess.Popen(
                [
                    *(sys.executable, "-m", "tilewright.tuner.worker", module),
                    *(str(theirs.fileno()), str(memory_bytes), config),
                ],
                pass_fds=(theirs.fileno(),),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                env={**os.environ, **self._environment},
            )
        if self._cpu is not None:
            os.sched_setaffinity(self._process.pid, {self._cpu})
        self._socket = Connection(ours.detach())
        self._ready = False
        self.starts += 1

    def send(self, command: str, **request: Any) -> None:
        """Send a request; `receive` gets the answer.

        Raises:
            WorkerDied: the process ended before.
        """
        self.start()
        if not self._ready:
            self._receive(_START_TIMEOUT_S)
            self._ready = True
        assert self._socket is not None
        try:
            self._socket.send_bytes(json.dumps({"command": command, **request}).encode())
        except OSError:
            self._died()

    def receive(self, timeout_s: float) -> dict[str, Any]:
        """Return the answer; a failure of the handler is under "error".

        Raises:
            WorkerDied: the process ended.
            WorkerTimeout: it did not answer in time; it has been killed.
        """
        return self._receive(timeout_s)

    def call(self, command: str, timeout_s: float, **request: Any) -> dict[str, Any]:
        """Send a request and return the answer."""
        self.send(command, **request)
        return self.receive(timeout_s)

    @property
    def ready(self) -> bool:
        """Whether the process has loaded what it needs; does not wait.

        Raises:
            WorkerDied: it ended instead.
        """
        assert self._socket is not None
        if not self._ready and self._socket.poll(0):
            self._receive(0)
            self._ready = True
        return self._ready

    def signal(self, number: int) -> None:
        """Send a signal to the process, if it runs."""
        if self._process is not None:
            self._process.send_signal(number)

    @property
    def socket(self) -> Connection:
        """What to wait on for an answer."""
        assert self._socket is not None
        return self._socket

    def close(self) -> None:
        """End the process now."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
        if self._socket is not None:
            self._socket.close()
        self._process = self._socket = None

    def _receive(self, timeout_s: float) -> dict[str, Any]:
        assert self._socket is not None
        try:
            if not self._socket.poll(timeout_s):
                self.close()
                raise WorkerTimeout(f"no answer within {timeout_s:g} s")
            return json.loads(self._socket.recv_bytes())
        except (EOFError, OSError):
            self._died()
            raise AssertionError("unreachable") from None

    def _died(self) -> None:
        assert self._process is not None
        status = self._process.wait()
        self.close()
        raise WorkerDied(_cause(status))


def _cause(status: int) -> str:
    if status >= 0:
        return f"the process ended with status {status}"
    try:
        return f"the process was ended by {signal.Signals(-status).name}"
    except ValueError:
        return f"the process was ended by signal {-status}"
