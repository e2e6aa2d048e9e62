"""How long candidates take on a GPU: measured there, or, by name, only estimated.

A candidate that fails costs itself only: the process that ran it is replaced.
"""

from __future__ import annotations

import json
import os
import select
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from pathlib import Path
from typing import Protocol

import numpy as np

from tilewright.compiler.cuda.estimate import estimate_seconds
from tilewright.compiler.cuda.package import package_for_cuda
from tilewright.compiler.cuda.targets import CudaTarget
from tilewright.compiler.cuda.tile import GemmTile
from tilewright.compiler.layout.operator import Operator
from tilewright.compiler.layout.primitives import Layout
from tilewright.errors import MeasureError, TilewrightError
from tilewright.runtime.module import Module
from tilewright.tuner.candidate import Candidate
from tilewright.tuner.cuda.program import build_reference, lower_candidate, random_array
from tilewright.tuner.cuda.search import Result
from tilewright.tuner.cuda.space import CudaSpace

# Of the largest value: what the precision of the factors leaves.
TOLERANCES = {"fp32": 1e-4, "tf32": 1e-2, "fp16": 1e-2, "bf16": 6e-2, "int8": 0.0}
_TIMEOUT_S = 60.0
_ROUNDS = 3


class Timer(Protocol):
    """Gives candidates their times; `kind` is what a log says they are."""

    kind: str

    def time(self, candidates: Sequence[Candidate]) -> list[Result]:
        """Return one result for each candidate."""


class EstimateTimer:
    """Takes the analytical estimate for a time: no device is asked, and logs say so."""

    kind = "estimate"

    def __init__(self, space: CudaSpace) -> None:
        self.space = space

    def time(self, candidates: Sequence[Candidate]) -> list[Result]:
        """Return the estimates."""
        found = []
        for candidate in candidates:
            assert candidate.schedule is not None
            tile = GemmTile.from_json(candidate.schedule)
            product = self.space.option_of(candidate).product
            seconds = estimate_seconds(tile, product, self.space.precision, self.space.target)
            found.append(Result(candidate, seconds))
        return found


class DeviceProcess:
    """A process that runs modules on the GPU; another one starts where it failed.

    Attributes:
        starts: processes so far.
    """

    def __init__(self) -> None:
        self._worker: subprocess.Popen[str] | None = None
        self.starts = 0

    def ask(self, request: dict[str, object]) -> dict:
        """Return the answer of `worker.measure`, or its error and its status.

        Raises:
            MeasureError: there is no driver or no GPU that fits.
        """
        answer = self._answer(request)
        message = str(answer.get("error", ""))
        if "no NVIDIA driver" in message or "no CUDA GPU" in message or "compiled for" in message:
            raise MeasureError(f"candidates cannot be measured: {message}")
        return answer

    def _answer(self, request: dict[str, object]) -> dict:
        worker = self._running()
        assert worker.stdin is not None
        assert worker.stdout is not None
        try:
            worker.stdin.write(json.dumps(request) + "\n")
            worker.stdin.flush()
            ready, _, _ = select.select([worker.stdout], [], [], _TIMEOUT_S)
            line = worker.stdout.readline() if ready else ""
        except (BrokenPipeError, OSError):
            line = ""
            ready = [worker.stdout]
        if not line:
            self.stop()
            if not ready:
                return {"error": f"no answer within {_TIMEOUT_S:.0f} s", "status": "timeout"}
            return {"error": "the process that ran it ended", "status": "run_error"}
        answer = json.loads(line)
        if answer.get("status") == "run_error":
            self.stop()  # nothing else works in that process
        return answer

    def _running(self) -> subprocess.Popen[str]:
        if self._worker is None or self._worker.poll() is not None:
            self.stop()
            self.starts += 1
            self._worker = subprocess.Popen(
                [sys.executable, "-m", "tilewright.tuner.cuda.worker"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
            )
        return self._worker

    def stop(self) -> None:
        """End the process, if one runs."""
        if self._worker is None:
            return
        self._worker.kill()
        self._worker.communicate()
        self._worker = None


class DeviceTimer:
    """Builds candidates here and runs them in a process of its own on the GPU of this machine."""

    kind = "device"

    def __init__(self, operator: Operator, target: CudaTarget, precision: str) -> None:
        self.operator, self.target, self.precision = operator, target, precision
        self._folder = tempfile.TemporaryDirectory(prefix="tilewright-")
        self.process = DeviceProcess()
        self._arrays: dict[tuple[Layout, ...], Path] = {}
        self._built = 0

    def time(self, candidates: Sequence[Candidate]) -> list[Result]:
        """Build the candidates, as many at once as there are processors; then run each alone.

        Raises:
            MeasureError: there is no driver or no GPU that fits.
        """
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            building = [self._start(candidate, pool) for candidate in candidates]
        return [self._time(*pair) for pair in zip(candidates, building, strict=True)]

    def close(self) -> None:
        """End the process and remove what was built."""
        self.process.stop()
        self._folder.cleanup()

    def _start(self, candidate: Candidate, pool: Executor) -> Future[Path]:
        """Lower a candidate here, which is quick, and leave nvcc's part to the pool."""
        self._built += 1
        path = Path(self._folder.name, f"candidate{self._built}.so")
        built: Future[Path] = Future()
        try:
            lowered = lower_candidate(self.operator, candidate, self.target, self.precision)
        except TilewrightError as error:
            built.set_exception(error)
            return built

        def write() -> Path:
            package_for_cuda(lowered, self.target, self.precision, path)
            return path

        return pool.submit(write)

    def _time(self, candidate: Candidate, building: Future[Path]) -> Result:
        try:
            path, arrays = building.result(), self._arrays_for(candidate.layouts)
        except TilewrightError as error:
            return Result(candidate, None, f"build_error: {error}")
        request = {
            "module": str(path),
            "arrays": str(arrays),
            "tolerance": TOLERANCES[self.precision],
            "rounds": _ROUNDS,
        }
        answer = self.process.ask(request)
        path.unlink(missing_ok=True)
        if "seconds" in answer:
            return Result(candidate, min(answer["seconds"]))
        return Result(candidate, None, f"{answer['status']}: {answer['error']}")

    def _arrays_for(self, layouts: tuple[Layout, ...]) -> Path:
        """Return inputs and expected results in these layouts, made by this processor."""
        if layouts not in self._arrays:
            number = len(self._arrays)
            module_path = Path(self._folder.name, f"reference{number}.so")
            build_reference(self.operator, layouts, module_path)
            reference = Module(module_path)
            rng = np.random.default_rng(1)
            feed = {s.name: random_array(s.shape, s.dtype, rng) for s in reference.inputs}
            results = reference.run(feed)
            path = Path(self._folder.name, f"arrays{number}.npz")
            expected = {f"expected.{name}": array for name, array in results.items()}
            np.savez(path, **feed, **expected)  # type: ignore[arg-type]
            self._arrays[layouts] = path
        return self._arrays[layouts]
