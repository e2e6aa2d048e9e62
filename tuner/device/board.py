"""A board as a device: inputs go there once, outputs come back and are compared here."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from tilewright.errors import DeviceLostError
from tilewright.runtime.remote import Address, Board, Outcome
from tilewright.runtime.remote import Entry as BoardEntry
from tilewright.tuner.device.runner import board_runner
from tilewright.tuner.timing import Entry
from tilewright.tuner.worker.compare import difference

_REFERENCE_TIMEOUT_S = 300.0
# Of inputs and libraries on the board; then all are dropped, and sent again when needed.
_HELD_BYTES = 128 << 20


class BoardDevice:
    """A board reached through ssh, or a program on this machine that emulates one.

    Args:
        address: where it is.
        architecture: of the target, see `Target.architecture`.
        threads: that a kernel may use.
        ssh: command and options of ssh.
        patience_s: beyond the time of a kernel, after which a silent board is lost.
    """

    def __init__(
        self,
        address: Address,
        architecture: str,
        threads: int = 1,
        ssh: Sequence[str] = ("ssh",),
        patience_s: float = 30.0,
    ) -> None:
        self.name = address.text
        self._address, self._architecture, self._threads = address, architecture, threads
        self._ssh, self._patience_s = ssh, patience_s
        self._board: Board | None = None
        self._there: set[str] = set()

    def connect(self) -> Mapping[str, Any]:
        """Start the runner there; return facts for the log.

        Raises:
            DeviceLostError: it does not answer.
        """
        self.close()
        program = board_runner(self._architecture)
        self._board = Board(self._address, program, self._ssh, self._patience_s)
        return {"processor": self._board.greeting.processor}

    def close(self) -> None:
        """End the runner there."""
        if self._board is not None:
            self._board.close()
        self._board, self._there = None, set()

    def reference(self, made: Mapping[str, Any]) -> dict[str, Any]:
        """Run the unscheduled kernel once and write what it computes to the paths in "results"."""
        outcome = self._measure([made], timeout_s=_REFERENCE_TIMEOUT_S, rounds=1, limit_s=1e-9)
        if outcome.error:
            return {"error": outcome.error}
        for path, array in zip(made["results"], _arrays(outcome, made), strict=True):
            np.save(path, array)
        return {"seconds": min(outcome.seconds[0])}

    def check(self, entry: Entry, tolerance: float, timeout_s: float) -> dict[str, Any]:
        """Run a candidate for the first times and compare its outputs."""
        # Slower than no time at all: it is not timed further here, but in a race.
        outcome = self._measure([entry], timeout_s=timeout_s, rounds=1, limit_s=1e-9)
        if outcome.error:
            return {"error": outcome.error, "timeout": outcome.timeout}
        wanted = [np.load(path) for path in sorted(Path(entry["folder"]).glob("out*.npy"))]
        for index, (got, want) in enumerate(zip(_arrays(outcome, entry), wanted, strict=True)):
            reason = difference(got, want, tolerance)
            if reason:
                return {"wrong": f"output {index}: {reason}"}
        return {"seconds": outcome.seconds[0]}

    def race(
        self, entries: Sequence[Entry], rounds: int, budget_s: float, timeout_s: float
    ) -> dict[str, Any]:
        """Time candidates in turns."""
        outcome = self._measure(
            entries, timeout_s=timeout_s, rounds=rounds, budget_s=budget_s, want_outputs=False
        )
        if outcome.error:
            return {"error": outcome.error}
        return {"seconds": outcome.seconds, "peaks": outcome.peaks}

    def _measure(
        self, entries: Sequence[Entry], want_outputs: bool = True, **options: Any
    ) -> Outcome:
        if self._board is None:
            raise DeviceLostError(f"{self.name}: not connected")
        if self._board.held_bytes > _HELD_BYTES:
            self._board.drop()
            self._there.clear()
        kernels = [self._send(entry) for entry in entries]
        return self._board.measure(
            kernels, threads=self._threads, want_outputs=want_outputs, **options
        )

    def _send(self, entry: Entry) -> BoardEntry:
        """Send what is not there yet: the library, and the inputs of its layouts."""
        inputs = []
        for path in sorted(Path(entry["folder"]).glob("in*.npy")):
            name = _name(path)
            if name not in self._there:
                self._put(name, np.ascontiguousarray(np.load(path)).tobytes())
            inputs.append(name)
        library = _name(Path(entry["library"]))
        if library not in self._there:
            self._put(library, Path(entry["library"]).read_bytes())
        sizes = [_nbytes(shape, dtype) for shape, dtype in entry["outputs"]]
        return BoardEntry(library, (*inputs, *sizes))

    def _put(self, name: str, content: bytes) -> None:
        assert self._board is not None
        self._board.put(name, content)
        self._there.add(name)


def _name(path: Path) -> str:
    """Return a name for the content of a path, which is written once only."""
    return hashlib.sha256(str(path).encode()).hexdigest()[:24]


def _nbytes(shape: Sequence[int], dtype: str) -> int:
    return int(np.prod(shape, dtype=np.int64)) * np.dtype(dtype).itemsize


def _arrays(outcome: Outcome, entry: Mapping[str, Any]) -> list[np.ndarray]:
    return [
        np.frombuffer(content, dtype).reshape(shape)
        for content, (shape, dtype) in zip(outcome.outputs, entry["outputs"], strict=True)
    ]
