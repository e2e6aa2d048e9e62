"""Load a compiled module and run it on numpy arrays: ctypes and numpy, no TVM."""

from __future__ import annotations

import ctypes
import os
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from tilewright.errors import ModuleError
from tilewright.runtime.buffers import ReusedBuffer
from tilewright.runtime.dlpack import DeviceArray, as_device_array, is_on_gpu
from tilewright.runtime.library import Context, Library, read_description

THREADS_VARIABLE = "TILEWRIGHT_NUM_THREADS"


@dataclass(frozen=True, slots=True)
class TensorSpec:
    """One input or output: name, shape, numpy dtype name."""

    name: str
    shape: tuple[int, ...]
    dtype: str

    def __str__(self) -> str:
        return f"{self.name}: {self.dtype} {list(self.shape)}"


@dataclass(frozen=True, slots=True)
class CallTime:
    """Time of one operator call: its label, its kernel, median seconds over the rounds."""

    label: str
    kernel: str
    seconds: float


def default_threads() -> int:
    """Return TILEWRIGHT_NUM_THREADS, or the number of processors this process may use.

    Raises:
        ModuleError: the variable is not a positive number.
    """
    text = os.environ.get(THREADS_VARIABLE, "").strip()
    if not text:
        return len(os.sched_getaffinity(0))
    if not text.isdigit() or int(text) < 1:
        raise ModuleError(f"{THREADS_VARIABLE} is '{text}', but must be a number from 1 up")
    return int(text)


@dataclass(frozen=True, slots=True)
class _Thread:
    """What a module keeps for one calling thread."""

    context: Context
    outputs: tuple[ReusedBuffer, ...]


class Module:
    """A compiled model, ready to run.

    Any number of threads may call one Module at once: each gets its own working memory and its own
    `threads` worker threads, made at its first call and released when the thread ends.

    Attributes:
        path: the file.
        threads: threads per call, the caller's included.
        inputs: what to pass, in order.
        outputs: what comes back, in order; the shape of one whose size depends on data is an upper
            bound.
        description: the module's description: target, CPU features, versions, digest, ...
    """

    def __init__(
        self, path: str | Path, threads: int | None = None, verify_weights: bool | None = None
    ) -> None:
        """Load a module.

        Args:
            path: a file that tilewright compiled.
            threads: threads per call; None takes TILEWRIGHT_NUM_THREADS, else all processors.
            verify_weights: check the checksum of the weights; None does so below 64 MiB.

        Raises:
            ModuleError: not a module, damaged, or this CPU lacks a feature that it needs.
        """
        self.path = Path(path)
        self.threads = default_threads() if threads is None else threads
        if self.threads < 1:
            raise ModuleError(f"threads is {threads}, but must be at least 1")
        self.description = read_description(path, verify_weights)
        entry = self.description["entries"][0]
        self.inputs = tuple(_spec(item) for item in entry["inputs"])
        self._results = tuple(_spec(item) for item in entry["outputs"])
        # The actual size of an output that has an upper bound comes as a further result.
        self._extents_of = {f"{n}.extents": n for n in entry.get("bounded_outputs", ())}
        self.outputs = tuple(s for s in self._results if s.name not in self._extents_of)
        self._input_dtypes = {spec.name: _dtype(spec.dtype) for spec in self.inputs}
        self._calls = entry["calls"]
        self._library = Library(path)
        self._local = threading.local()

    def run(self, inputs: Mapping[str, Any]) -> dict[str, np.ndarray]:
        """Run once.

        Args:
            inputs: name -> array of the shape and dtype that `self.inputs` states. An array that
                is C-contiguous and 16-byte aligned, as numpy allocates them, is used in place; any
                other is copied.

        Returns:
            name -> new array, one for each of `self.outputs`.

        Raises:
            ModuleError: an input is missing, unknown, or has the wrong shape or dtype.
        """
        arrays = self._check_names(inputs)
        results = self._run(arrays)
        return {spec.name: array for spec, array in zip(self.outputs, results, strict=True)}

    def __call__(self, *arrays: Any) -> np.ndarray | tuple[np.ndarray, ...]:
        """Run once on arrays in the order of `self.inputs`; one output comes as it is."""
        if len(arrays) != len(self.inputs):
            raise ModuleError(f"{len(arrays)} inputs given; {self._accepted()}")
        results = self._run(list(arrays))
        return results[0] if len(results) == 1 else tuple(results)

    def run_into(self, inputs: Mapping[str, Any], outputs: Mapping[str, Any]) -> None:
        """Run once, and write the results to tensors of the caller.

        Args:
            inputs: as for `run`.
            outputs: name -> C-contiguous array of the shape and dtype that `self.outputs` states;
                for a module for a GPU also a tensor on it, which is then written in place.

        Raises:
            ModuleError: as for `run`; an output is missing, unknown, of another shape or type, or
                its size depends on data.
        """
        if self._extents_of:
            raise ModuleError("run_into needs outputs of a known size; use run")
        arrays = self._check_names(inputs)
        checked = [self._check_array(*pair) for pair in self._paired(arrays)]
        names = [spec.name for spec in self.outputs]
        if set(outputs) != set(names):
            raise ModuleError(f"outputs {sorted(outputs)} given; the module has {sorted(names)}")
        results = [self._check_output(spec, outputs[spec.name]) for spec in self.outputs]
        self._thread().context.run(_addresses(checked), _addresses(results))

    def profile(self, inputs: Mapping[str, Any], rounds: int = 10) -> list[CallTime]:
        """Time every operator call, in order: the median over `rounds` runs after one warm-up."""
        arrays = [self._check_array(*pair) for pair in self._paired(self._check_names(inputs))]
        thread = self._thread()
        results = [buffer.take() for buffer in thread.outputs]
        clock = (ctypes.c_double * (len(self._calls) + 1))()
        times = []
        for _ in range(rounds + 1):
            thread.context.run(_addresses(arrays), _addresses(results), clock)
            times.append(np.diff(np.array(clock)))
        medians = np.median(times[1:], axis=0)
        return [
            CallTime(call["label"], call["kernel"], float(seconds))
            for call, seconds in zip(self._calls, medians, strict=True)
        ]

    def _run(self, arrays: list[Any]) -> list[np.ndarray]:
        checked = [self._check_array(*pair) for pair in self._paired(arrays)]
        thread = self._thread()
        results = [buffer.take() for buffer in thread.outputs]
        thread.context.run(_addresses(checked), _addresses(results))
        return self._cut(results) if self._extents_of else results

    def _cut(self, results: list[np.ndarray]) -> list[np.ndarray]:
        """Cut the outputs whose size depends on data to what was computed."""
        by_name = {spec.name: array for spec, array in zip(self._results, results, strict=True)}
        for extents, name in self._extents_of.items():
            actual = tuple(slice(int(size)) for size in by_name.pop(extents))
            by_name[name] = np.ascontiguousarray(by_name[name][actual])
        return [by_name[spec.name] for spec in self.outputs]

    def _thread(self) -> _Thread:
        thread = getattr(self._local, "thread", None)
        if thread is None:
            thread = self._local.thread = _Thread(
                Context(self._library, self.threads),
                tuple(ReusedBuffer(spec.shape, _dtype(spec.dtype)) for spec in self._results),
            )
        return thread

    def _paired(self, arrays: list[Any]) -> zip[tuple[TensorSpec, Any]]:
        return zip(self.inputs, arrays, strict=True)

    def _check_names(self, inputs: Mapping[str, Any]) -> list[Any]:
        names = [spec.name for spec in self.inputs]
        unknown = [name for name in inputs if name not in names]
        missing = [name for name in names if name not in inputs]
        if unknown or missing:
            found = [f"unknown input '{name}'" for name in unknown]
            found += [f"missing input '{name}'" for name in missing]
            raise ModuleError(f"{', '.join(found)}; {self._accepted()}")
        return [inputs[name] for name in names]

    @property
    def on_gpu(self) -> bool:
        """Whether the module runs on a GPU."""
        return str(self.description["target"]["name"]).startswith("cuda:")

    def _check_output(self, spec: TensorSpec, value: Any) -> np.ndarray | DeviceArray:
        array = self._device_array(spec, value) if is_on_gpu(value) else value
        compact = isinstance(array, DeviceArray) or (
            isinstance(array, np.ndarray) and array.flags.c_contiguous and array.flags.writeable
        )
        found = f"{array.dtype} {list(array.shape)}" if hasattr(array, "shape") else repr(array)
        if not compact or found != f"{spec.dtype} {list(spec.shape)}":
            raise ModuleError(
                f"output '{spec.name}' is {found}, but the module writes {spec.dtype} "
                f"{list(spec.shape)}, compact and writeable"
            )
        return array

    def _device_array(self, spec: TensorSpec, value: Any) -> DeviceArray:
        if not self.on_gpu:
            raise ModuleError(
                f"'{spec.name}' is on a GPU, but the module runs on the processor; copy it there"
            )
        array = as_device_array(value, spec.name)
        if (array.dtype, array.shape) != (spec.dtype, spec.shape):
            raise ModuleError(
                f"'{spec.name}' is {array.dtype} {list(array.shape)}, but the module has "
                f"{spec.dtype} {list(spec.shape)}"
            )
        return array

    def _check_array(self, spec: TensorSpec, value: Any) -> np.ndarray | DeviceArray:
        if not isinstance(value, np.ndarray) and is_on_gpu(value):
            return self._device_array(spec, value)
        array = np.asarray(value)
        if (
            array.dtype == self._input_dtypes[spec.name]
            and array.shape == spec.shape
            and array.flags.c_contiguous
        ):
            return array
        if array.shape != spec.shape or array.dtype.name != spec.dtype:
            raise ModuleError(
                f"input '{spec.name}' is {array.dtype.name} {list(array.shape)}, but the module "
                f"accepts {spec.dtype} {list(spec.shape)}; convert it, or compile the model for "
                "that shape"
            )
        native = array.astype(array.dtype.newbyteorder("="), copy=False)
        return np.ascontiguousarray(native).reshape(spec.shape)

    def _accepted(self) -> str:
        return "the module accepts " + (", ".join(map(str, self.inputs)) or "no inputs")


def _spec(item: dict[str, Any]) -> TensorSpec:
    return TensorSpec(item["name"], tuple(item["shape"]), item["dtype"])


def _dtype(name: str) -> np.dtype:
    try:
        return np.dtype(name)
    except TypeError:
        # numpy learns bfloat16 and its like from ml_dtypes.
        try:
            import ml_dtypes
        except ImportError:
            raise ModuleError(
                f"the module uses {name}, which needs: pip install ml_dtypes"
            ) from None
        return np.dtype(getattr(ml_dtypes, name))


def _addresses(arrays: Sequence[np.ndarray | DeviceArray]) -> list[int]:
    return [
        array.address if isinstance(array, DeviceArray) else array.ctypes.data for array in arrays
    ]
