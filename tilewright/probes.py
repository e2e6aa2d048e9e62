"""What the processor gives at the moment: multiply-add peak and read bandwidth.

Both are small kernels compiled like any other, for the processor and the number of threads of the
module that is judged by them. On a shared machine they swing like everything else: measure them in
the same minute.
"""

from __future__ import annotations

import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

from tilewright.runtime.module import Module

_TASKS = 16
_STEPS = 20_000
# The first call after another kernel finds its code and its result out of the caches: 10% less on
# Zen 3, so that operators came out at 108% of the peak.
_REPEATS = 3
# Well above the last cache level that one virtual machine gets.
_READ_BYTES = 64 << 20
_READ_ROWS = 64


class Probes:
    """Measures peak and bandwidth again and again."""

    def __init__(self, target: str, threads: int) -> None:
        """Compile the probes.

        Args:
            target: name of a target that runs on this machine.
            threads: threads that work at once.
        """
        self._folder = tempfile.TemporaryDirectory(prefix="tilewright-")
        path = Path(self._folder.name)
        self._operations = _build_peak(target, path / "peak.so")
        _build_read(target, path / "read.so")
        self._peak = Module(path / "peak.so", threads)
        self._read = Module(path / "read.so", threads)
        self._one = np.full(1, 0.5, np.float32)
        self._data = _aligned_ones(_READ_ROWS, _READ_BYTES // 4 // _READ_ROWS)
        self.measure()  # pages, threads

    def measure(self) -> tuple[float, float]:
        """Return (operations per second, bytes read per second)."""
        peak = min(_seconds(lambda: self._peak(self._one)) for _ in range(_REPEATS))
        read = _seconds(lambda: self._read(self._data))
        return self._operations / peak, _READ_BYTES / read


def _aligned_ones(rows: int, columns: int) -> np.ndarray:
    """Return an array that a module reads in place: at a multiple of 64 bytes."""
    raw = np.ones(rows * columns + 16, np.float32)
    first = -raw.ctypes.data % 64 // 4
    return raw[first : first + rows * columns].reshape(rows, columns)


def _seconds(function: Any) -> float:
    start = time.perf_counter()
    function()
    return time.perf_counter() - start


def _build_peak(target_name: str, path: Path) -> int:
    """Build multiply-adds on as many accumulators as hide their latency; return how many."""
    from tvm import tirx

    from tilewright.compiler.package import package
    from tilewright.compiler.program import Call, Program, Tensor, TensorSpec
    from tilewright.compiler.schedule.micro_kernel import constant_like, local_buffer, sequence
    from tilewright.compiler.targets import parse_target

    target = parse_target(target_name)
    lanes = target.lanes("float32")
    count = target.vector_registers * 3 // 4
    size = count * lanes
    source = tirx.decl_buffer((1,), "float32", "source", layout=None)
    result = tirx.decl_buffer((_TASKS * size,), "float32", "result", layout=None)
    totals = local_buffer("totals", size, "float32")
    task, step = tirx.Var("task", "int32"), tirx.Var("step", "int32")

    def vector(base: Any) -> Any:
        return tirx.Ramp(base, tirx.const(1, "int32"), lanes) if lanes > 1 else base

    def cell(number: int) -> Any:
        return vector(tirx.const(number * lanes, "int32"))

    def wide(value: Any) -> Any:
        return tirx.Broadcast(value, lanes) if lanes > 1 else value

    factor = wide(tirx.BufferLoad(source, [tirx.const(0, "int32")]))
    numbers = range(count)
    fill = [
        tirx.BufferStore(totals, factor * wide(tirx.const(float(n), "float32")), [cell(n)])
        for n in numbers
    ]
    update = [
        tirx.BufferStore(totals, tirx.BufferLoad(totals, [cell(n)]) * factor + factor, [cell(n)])
        for n in numbers
    ]
    store = [
        tirx.BufferStore(
            result,
            tirx.BufferLoad(totals, [cell(n)]),
            [vector(task * size + tirx.const(n * lanes, "int32"))],
        )
        for n in numbers
    ]
    zero = tirx.const(0, "int32")
    loop = tirx.For(step, zero, constant_like(_STEPS, zero), tirx.ForKind.SERIAL, sequence(update))
    body = sequence([tirx.AllocBuffer(totals), *fill, loop, *store])
    tasks = tirx.For(task, zero, constant_like(_TASKS, zero), tirx.ForKind.PARALLEL, body)
    program = Program(
        (
            Tensor("source", (1,), "float32", "input"),
            Tensor("result", (_TASKS * size,), "float32", "output"),
        ),
        (Call("peak", (0, 1), "peak"),),
        (0,),
        (1,),
        {"peak": tirx.PrimFunc([source, result], tasks)},
        (TensorSpec("source", (1,), "float32"),),
        (TensorSpec("result", (_TASKS * size,), "float32"),),
    )
    package(program, target, path)
    return 2 * _TASKS * _STEPS * size


def _build_read(target_name: str, path: Path) -> None:
    """Build the sums of long rows."""
    from tvm import te

    from tilewright.compiler.package import package
    from tilewright.compiler.program import Call, Program, Tensor, TensorSpec
    from tilewright.compiler.schedule import schedule
    from tilewright.compiler.targets import parse_target

    target = parse_target(target_name)
    shape = (_READ_ROWS, _READ_BYTES // 4 // _READ_ROWS)
    data = te.placeholder(shape, name="data")
    k = te.reduce_axis((0, shape[1]), "k")
    total = te.compute(shape[:1], lambda i: te.sum(data[i, k], axis=k), name="total")
    func = schedule(te.create_prim_func([data, total]), target)
    program = Program(
        (
            Tensor("data", shape, "float32", "input"),
            Tensor("total", shape[:1], "float32", "output"),
        ),
        (Call("read", (0, 1), "read"),),
        (0,),
        (1,),
        {"read": func},
        (TensorSpec("data", shape, "float32"),),
        (TensorSpec("total", shape[:1], "float32"),),
    )
    package(program, target, path)
