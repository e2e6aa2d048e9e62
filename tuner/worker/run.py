"""The timing process: loads candidates, checks what they compute, times them. Knows no TVM."""

from __future__ import annotations

import contextlib
import ctypes
import os
from collections import OrderedDict
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from tilewright.tuner.worker.compare import difference

MAX_ARGUMENTS = 24
"""Most parameters of a kernel that can be timed."""

_ALIGNMENT = 64
# Bytes on both sides of every output that a kernel must not touch.
_GUARD = 4096
_GUARD_BYTE = 0xA5
_HELD_BYTES = 1 << 30
_SLOTS = (
    "__TVMBackendParallelLaunch",
    "__TVMBackendAllocWorkspace",
    "__TVMBackendFreeWorkspace",
)
_MAX_SETS = 64
# A candidate that takes longer is run once to be checked, others a few times more.
_SLOW_S = 0.3
_QUICK_RUNS = 3


def handlers(config: Mapping[str, Any]) -> dict[str, Callable[..., dict[str, Any]]]:
    """Return the commands of this process."""
    runner = Runner(config)
    return {"reference": runner.reference, "check": runner.check, "race": runner.race}


def _aligned(nbytes: int, guard: int = 0) -> np.ndarray:
    """Return bytes [guard + nbytes + guard] whose middle starts at an aligned address."""
    raw = np.empty(nbytes + 2 * guard + _ALIGNMENT, np.uint8)
    start = -(raw.ctypes.data + guard) % _ALIGNMENT
    return raw[start : start + nbytes + 2 * guard]


def claim_processor(config: Mapping[str, Any]) -> None:
    """Stay on the processor "cpu", and above all that others run there, as far as one may."""
    cpu = config.get("cpu")
    if cpu is not None:
        os.sched_setaffinity(0, {cpu})
    with contextlib.suppress(PermissionError):  # only root may
        os.setpriority(os.PRIO_PROCESS, 0, -20)
        if cpu is not None and int(config["threads"]) == 1:
            # Linux shares a processor out between sessions whatever their priorities are
            # (autogroup): only the real-time class keeps other programs away from a timing.
            os.sched_setscheduler(0, os.SCHED_RR, os.sched_param(1))


class Arguments:
    """Buffers of one kernel call: inputs from files, outputs full of garbage between guards."""

    def __init__(self, folder: Path, outputs: list[tuple[list[int], str]]) -> None:
        self.inputs = [_copy(np.load(path)) for path in sorted(folder.glob("in*.npy"))]
        paths = sorted(folder.glob("out*.npy"))
        self.expected = [np.load(path) for path in paths]
        self.regions: list[np.ndarray] = []
        self.outputs: list[np.ndarray] = []
        for shape, dtype in outputs:
            nbytes = int(np.prod(shape, dtype=np.int64)) * np.dtype(dtype).itemsize
            region = _aligned(nbytes, _GUARD)
            self.regions.append(region)
            middle = region[_GUARD : _GUARD + nbytes]
            self.outputs.append(middle.view(dtype).reshape(shape))
        self.nbytes = sum(a.nbytes for a in [*self.inputs, *self.regions])

    def spoil(self) -> None:
        """Fill the outputs with garbage: what a kernel leaves out shall be seen."""
        for region, output in zip(self.regions, self.outputs, strict=True):
            region.fill(_GUARD_BYTE)
            if output.dtype == np.bool_:
                output.view(np.uint8).fill(1)

    def check(self, tolerance: float) -> str:
        """Return what is wrong with the outputs, or ""."""
        for index, region in enumerate(self.regions):
            edges = (region[:_GUARD], region[-_GUARD:])
            if any((edge != _GUARD_BYTE).any() for edge in edges):
                return f"output {index} was written outside its bounds"
        for index, (got, want) in enumerate(zip(self.outputs, self.expected, strict=True)):
            reason = difference(got, want, tolerance)
            if reason:
                return f"output {index}: {reason}"
        return ""

    def addresses(self, sets: int) -> tuple[ctypes.Array, list[np.ndarray]]:
        """Return pointers for `sets` calls, and the copies that all but the first point to."""
        table = (ctypes.c_void_p * (MAX_ARGUMENTS * sets))()
        copies: list[np.ndarray] = []
        for number in range(sets):
            arrays = [*self.inputs, *self.outputs]
            if number:
                arrays = [_copy(array) for array in arrays]
                copies += arrays
            for position, array in enumerate(arrays):
                table[number * MAX_ARGUMENTS + position] = array.ctypes.data
        return table, copies


def _copy(array: np.ndarray) -> np.ndarray:
    held = _aligned(array.nbytes).view(array.dtype).reshape(array.shape)
    held[...] = array
    return held


class Runner:
    """State of the timing process: the harness and the buffers of recent tasks."""

    def __init__(self, config: Mapping[str, Any]) -> None:
        claim_processor(config)
        self.harness = ctypes.CDLL(config["harness"])
        self.harness.harness_error.restype = ctypes.c_char_p
        self.harness.harness_peak.restype = ctypes.c_double
        if self.harness.harness_start(int(config["threads"])) != 0:
            raise OSError(self.harness.harness_error().decode())
        self.flush = np.zeros(int(config.get("flush_bytes", 0)), np.uint8)
        self.rotate_bytes = int(config.get("rotate_bytes", 0))
        self.held: OrderedDict[str, Arguments] = OrderedDict()

    def reference(self, library: str, folder: str, outputs: list, results: list) -> dict[str, Any]:
        """Run the unscheduled kernel once and keep what it computes."""
        arguments = Arguments(Path(folder), outputs)
        arguments.spoil()
        table, _ = arguments.addresses(1)
        seconds = self._call(self._kernel(library), table, 1, 1, 1)
        for path, output in zip(results, arguments.outputs, strict=True):
            np.save(path, output)
        return {"seconds": seconds[0]}

    def check(self, library: str, folder: str, outputs: list, tolerance: float) -> dict[str, Any]:
        """Run one candidate a few times; say what is wrong, or how fast it was.

        Args:
            library: shared object with the kernel.
            folder: where its inputs and expected outputs are.
            outputs: shape and dtype of each output.
            tolerance: of floating point outputs, see `compare.difference`.
        """
        arguments = self._arguments(folder, outputs)
        arguments.spoil()
        table, _ = arguments.addresses(1)
        kernel = self._kernel(library)
        seconds = self._call(kernel, table, 1, 1, 1)
        wrong = arguments.check(tolerance)
        if wrong:
            return {"wrong": wrong}
        if seconds[0] < _SLOW_S:
            seconds += self._call(kernel, table, 1, 1, _QUICK_RUNS)
        return {"seconds": seconds}

    def race(self, entries: list[dict[str, Any]], rounds: int, budget_s: float) -> dict[str, Any]:
        """Time several candidates in turns, so that what disturbs one disturbs all.

        Args:
            entries: library, folder and outputs of each, as for `check`.
            rounds: at most; at least 3 are run.
            budget_s: about how long all rounds of one candidate may take.
        """
        prepared = []
        slowest = 0.0
        for entry in entries:
            arguments = self._arguments(entry["folder"], entry["outputs"])
            sets = self._sets(arguments)
            table, copies = arguments.addresses(sets)
            kernel = self._kernel(entry["library"])
            quick = min(self._call(kernel, table, sets, 1, 2))
            inner = max(1, int(budget_s / rounds / quick))
            slowest = max(slowest, quick)
            prepared.append((kernel, table, sets, inner, copies))
        rounds = max(3, min(rounds, int(budget_s / slowest)))
        times: list[list[float]] = [[] for _ in prepared]
        peaks = []
        for _ in range(rounds):
            peaks.append(self.harness.harness_peak())
            for mine, (kernel, table, sets, inner, _copies) in zip(times, prepared, strict=True):
                mine += self._call(kernel, table, sets, inner, 1)
        return {"seconds": times, "peaks": peaks}

    def _sets(self, arguments: Arguments) -> int:
        wanted = -(-self.rotate_bytes // max(1, arguments.nbytes))
        return max(1, min(_MAX_SETS, wanted))

    def _arguments(self, folder: str, outputs: list) -> Arguments:
        if folder in self.held:
            self.held.move_to_end(folder)
            return self.held[folder]
        arguments = Arguments(Path(folder), outputs)
        self.held[folder] = arguments
        while len(self.held) > 1 and sum(a.nbytes for a in self.held.values()) > _HELD_BYTES:
            self.held.popitem(last=False)
        return arguments

    def _kernel(self, library: str) -> ctypes.c_void_p:
        """Load a candidate and connect it to the harness's threads and memory."""
        loaded = ctypes.CDLL(library)
        for slot in _SLOTS:
            if hasattr(loaded, slot):
                ours = ctypes.c_void_p.in_dll(self.harness, slot)
                ctypes.c_void_p.in_dll(loaded, slot).value = ours.value
        return ctypes.cast(loaded.tw_kernel_candidate, ctypes.c_void_p)

    def _call(
        self, kernel: ctypes.c_void_p, table: ctypes.Array, sets: int, inner: int, repeats: int
    ) -> list[float]:
        seconds = (ctypes.c_double * repeats)()
        status = self.harness.harness_time(
            kernel,
            table,
            ctypes.c_long(sets),
            ctypes.c_long(inner),
            ctypes.c_long(repeats),
            ctypes.c_void_p(self.flush.ctypes.data),
            ctypes.c_size_t(self.flush.nbytes),
            seconds,
        )
        if status != 0:
            raise OSError(f"the kernel failed: {self.harness.harness_error().decode()}")
        return [max(value, 1e-9) for value in seconds]
