"""Devices of a farm: TVM's own RPC servers, most often chosen by TVM's tracker."""

from __future__ import annotations

import socket
from collections.abc import Mapping, Sequence
from typing import Any

from tilewright.errors import DeviceLostError, MeasureError, MissingExtraError, TargetError
from tilewright.tuner.timing import Entry
from tilewright.tuner.worker.process import WorkerProcess

BUILD_MODULE = "tilewright.tuner.device.rpc_build"

_CONNECT_TIMEOUT_S = 120.0
_REFERENCE_TIMEOUT_S = 300.0
_PATIENCE_S = 30.0
_ANSWER_TIMEOUT_S = 10.0


def parse_host_port(text: str, option: str) -> tuple[str, int]:
    """Read host:port.

    Raises:
        TargetError: it is something else.
    """
    host, _, port = text.rpartition(":")
    if not host or not port.isdigit() or not 0 < int(port) < 1 << 16:
        raise TargetError(f"{option} {text}: expected host:port, as in 127.0.0.1:9190")
    return host, int(port)


def ask(host: str, port: int) -> None:
    """Fail at once where nothing listens: TVM's client would try for a minute.

    Raises:
        OSError: nothing listens there.
    """
    with socket.create_connection((host, port), timeout=_ANSWER_TIMEOUT_S):
        pass


def count_servers(host: str, port: int, key: str) -> int:
    """Return how many servers with a key a tracker knows.

    Raises:
        MeasureError: the tracker does not answer, or knows none.
        MissingExtraError: what TVM's tracker needs is not installed.
    """
    try:
        ask(host, port)
        from tvm import rpc

        summary = rpc.connect_tracker(host, port).summary()
    except ImportError as error:
        raise MissingExtraError(f"{error}; run: pip install 'tilewright[farm]'") from error
    except (OSError, RuntimeError) as error:
        raise MeasureError(f"the tracker at {host}:{port} does not answer: {error}") from error
    found = sum(server["key"] == f"server:{key}" for server in summary["server_info"])
    if not found:
        known = sorted({server["key"].partition(":")[2] for server in summary["server_info"]})
        raise MeasureError(
            f"the tracker at {host}:{port} knows no server with the key '{key}'; it knows "
            f"{', '.join(known) or 'none at all'}"
        )
    return found


class RpcDevice:
    """A session with one RPC server; after a loss, with whatever server the tracker gives.

    Args:
        host, port: of the tracker, or of a server where there is no key.
        key: kind of device.
        number: tells sessions with one tracker apart.
    """

    def __init__(self, host: str, port: int, key: str = "", number: int = 0) -> None:
        self.name = f"{host}:{port}" + (f" {key} {number}" if key else "")
        self._process = WorkerProcess(
            "tilewright.tuner.device.rpc_worker", {"host": host, "port": port, "key": key}
        )

    def connect(self) -> Mapping[str, Any]:
        """Get a session.

        Raises:
            DeviceLostError: the tracker or the server does not answer.
        """
        self._process.close()
        return self._call("connect", _CONNECT_TIMEOUT_S)["facts"]

    def close(self) -> None:
        """End the session."""
        self._process.close()

    def reference(self, made: Mapping[str, Any]) -> dict[str, Any]:
        """Run the unscheduled kernel once and write what it computes to the paths in "results"."""
        return self._call("reference", _REFERENCE_TIMEOUT_S, **made)

    def check(self, entry: Entry, tolerance: float, timeout_s: float) -> dict[str, Any]:
        """Run a candidate for the first times and compare its outputs."""
        return self._call("check", timeout_s + _PATIENCE_S, tolerance=tolerance, **entry)

    def race(
        self, entries: Sequence[Entry], rounds: int, budget_s: float, timeout_s: float
    ) -> dict[str, Any]:
        """Time candidates in turns."""
        plain = [dict(entry) for entry in entries]
        return self._call(
            "race", timeout_s + _PATIENCE_S, entries=plain, rounds=rounds, budget_s=budget_s
        )

    def _call(self, command: str, timeout_s: float, **request: Any) -> dict[str, Any]:
        """Ask the process that holds the session; its end, too, is a lost device."""
        try:
            answer = self._process.call(command, timeout_s, **request)
        except DeviceLostError:
            raise
        except MeasureError as error:
            raise DeviceLostError(f"{self.name}: {error}") from error
        if "lost" in answer:
            self._process.close()
            raise DeviceLostError(f"{self.name}: {answer['lost']}")
        return answer
