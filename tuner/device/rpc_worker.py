"""The process that talks to one of TVM's RPC servers: it may hang and be ended with its session."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import tvm
from tvm import rpc

from tilewright.tuner.device.rpc import ask
from tilewright.tuner.worker.build import KERNEL
from tilewright.tuner.worker.compare import difference

_QUICK_RUNS = 3
_SESSION_S = 3600
# What a call over a broken connection raises, and what a kernel that fails raises there.
_FAILURES = (tvm.error.InternalError, RuntimeError, OSError, ValueError, TypeError)


def handlers(config: Mapping[str, Any]) -> dict[str, Callable[..., dict[str, Any]]]:
    """Return the commands of this process."""
    client = _Client(**config)
    return {
        "connect": client.connect,
        "reference": client.reference,
        "check": client.check,
        "race": client.race,
    }


class _Client:
    """A session with a server that a tracker chose, or with one named directly.

    Args:
        host, port: of the tracker or server.
        key: kind of device to ask the tracker for; "" for a server without a tracker.
    """

    def __init__(self, host: str, port: int, key: str) -> None:
        self.host, self.port, self.key = host, port, key
        self.session: Any = None
        self.modules: dict[str, Any] = {}
        self.inputs: dict[str, list[Any]] = {}

    def connect(self) -> dict[str, Any]:
        """Get a session."""
        try:
            ask(self.host, self.port)
            if self.key:
                tracker = rpc.connect_tracker(self.host, self.port)
                self.session = tracker.request(self.key, session_timeout=_SESSION_S)
            else:
                self.session = rpc.connect(self.host, self.port, session_timeout=_SESSION_S)
            self.device = self.session.cpu()
        except _FAILURES as error:
            return {"lost": _first_line(error)}
        return {"facts": {"processor": f"RPC server {self.key}".strip()}}

    def reference(
        self, library: str, folder: str, outputs: list[Any], results: list[str]
    ) -> dict[str, Any]:
        """Run the unscheduled kernel once and write what it computes to the paths in `results`."""

        def run() -> dict[str, Any]:
            module, arguments, empty = self._load(library, folder, outputs)
            module[KERNEL](*arguments, *empty)
            for path, output in zip(results, empty, strict=True):
                np.save(path, output.numpy())
            return {"seconds": 0.0}

        return self._guarded(run)

    def check(
        self, library: str, folder: str, outputs: list[Any], tolerance: float
    ) -> dict[str, Any]:
        """Run a candidate for the first times and compare its outputs."""

        def run() -> dict[str, Any]:
            module, arguments, empty = self._load(library, folder, outputs)
            module[KERNEL](*arguments, *empty)
            expected = [np.load(path) for path in sorted(Path(folder).glob("out*.npy"))]
            for index, (got, want) in enumerate(zip(empty, expected, strict=True)):
                reason = difference(got.numpy(), want, tolerance)
                if reason:
                    return {"wrong": f"output {index}: {reason}"}
            return {"seconds": self._times(module, [*arguments, *empty], 1, _QUICK_RUNS)}

        return self._guarded(run)

    def race(
        self, entries: Sequence[Mapping[str, Any]], rounds: int, budget_s: float
    ) -> dict[str, Any]:
        """Time candidates in turns."""

        def run() -> dict[str, Any]:
            loaded = []
            for entry in entries:
                module, arguments, empty = self._load(**entry)
                everything = [*arguments, *empty]
                quick = min(self._times(module, everything, 1, 2))
                loaded.append((module, everything, max(1, int(budget_s / rounds / quick))))
            times: list[list[float]] = [[] for _ in loaded]
            for _ in range(rounds):
                for mine, (module, everything, number) in zip(times, loaded, strict=True):
                    mine += self._times(module, everything, number, 1)
            # A server has no measure of its processor's peak.
            return {"seconds": times, "peaks": [0.0]}

        return self._guarded(run)

    def _guarded(self, run: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        """Tell a kernel that fails from a server that is gone."""
        try:
            return run()
        except _FAILURES as error:
            try:
                self.session.get_function("runtime.GetDeviceAttr")
            except _FAILURES:
                return {"lost": _first_line(error)}
            return {"error": _first_line(error)}

    def _load(
        self, library: str, folder: str, outputs: list[Any]
    ) -> tuple[Any, list[Any], list[Any]]:
        """Send a library and its arguments; return the module, inputs and outputs there."""
        if library not in self.modules:
            # Never the same name twice: the server would write into a library that it has loaded.
            name = f"{len(self.modules)}{Path(library).suffix}"
            self.session.upload(library, target=name)
            self.modules[library] = self.session.load_module(name)
        if folder not in self.inputs:
            self.inputs.clear()  # of the task before
            paths = sorted(Path(folder).glob("in*.npy"))
            self.inputs[folder] = [tvm.runtime.tensor(np.load(p), self.device) for p in paths]
        empty = [tvm.runtime.empty(tuple(shape), dtype, self.device) for shape, dtype in outputs]
        return self.modules[library], self.inputs[folder], empty

    def _times(self, module: Any, arguments: list[Any], number: int, repeat: int) -> list[float]:
        """Return seconds of a call, as TVM's own evaluator measures them on the server."""
        evaluator = module.time_evaluator(KERNEL, self.device, number=number, repeat=repeat)
        return [max(float(seconds), 1e-9) for seconds in evaluator(*arguments).results]


def _first_line(error: BaseException) -> str:
    text = str(error).strip().splitlines()
    return f"{type(error).__name__}: {text[-1] if text else ''}"[:300]
