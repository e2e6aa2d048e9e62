"""Boards that are not there: modules for ARM run under qemu-user, inputs and outputs as files."""

from __future__ import annotations

import functools
import os
import shutil
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx

import tilewright
from tilewright.compiler.toolchain import find_c_compiler
from tilewright.runtime.library import read_description

_ROOT = Path(__file__).parents[1]
RUNNER = _ROOT / "examples" / "c" / "run_model.c"
HEADERS = _ROOT / "runtime" / "c"
_TOOLS = {
    "aarch64": ("qemu-aarch64", "aarch64-linux-gnu-gcc", "/usr/aarch64-linux-gnu"),
    "armv7": ("qemu-arm", "arm-linux-gnueabihf-gcc", "/usr/arm-linux-gnueabihf"),
}


@dataclass(frozen=True)
class Board:
    """A processor under qemu.

    Attributes:
        architecture: "aarch64" or "armv7".
        cpu: qemu's name of the processor.
    """

    architecture: str
    cpu: str

    def missing(self) -> str | None:
        """Return what has to be installed for this board, or None."""
        qemu, gcc, _ = _TOOLS[self.architecture]
        lacking = [name for name in (qemu, gcc) if shutil.which(name) is None]
        return f"needs {' and '.join(lacking)}" if lacking else None

    def execute(self, arguments: Sequence[str | Path], folder: Path, **variables: str):
        """Run a program for this board in a folder; return the completed process."""
        qemu, _, system = _TOOLS[self.architecture]
        environment = {**os.environ, "QEMU_LD_PREFIX": system, **variables}
        return subprocess.run(
            [qemu, "-cpu", self.cpu, *map(str, arguments)],
            cwd=folder,
            env=environment,
            capture_output=True,
            text=True,
            check=False,
        )

    def try_run(self, module: Path, inputs: Sequence[np.ndarray], folder: Path):
        """Start the C runner on a module; return the completed process."""
        paths = []
        for number, array in enumerate(inputs):
            paths.append(folder / f"input{number}.bin")
            np.ascontiguousarray(array).tofile(paths[-1])
        return self.execute([runner(self.architecture), module, *paths], folder)

    def run(
        self, module: Path, inputs: Sequence[np.ndarray] | Mapping[str, np.ndarray]
    ) -> list[np.ndarray]:
        """Run a module once; return its outputs in order."""
        entry = read_description(module)["entries"][0]
        if isinstance(inputs, Mapping):
            inputs = [inputs[spec["name"]] for spec in entry["inputs"]]
        with tempfile.TemporaryDirectory(prefix="tilewright-board-") as name:
            folder = Path(name)
            done = self.try_run(module, inputs, folder)
            if done.returncode:
                raise RuntimeError(f"status {done.returncode}: {done.stderr[-2000:]}")
            return [
                np.fromfile(folder / f"output{i}.bin", spec["dtype"]).reshape(spec["shape"])
                for i, spec in enumerate(entry["outputs"])
            ]


PI4 = Board("aarch64", "cortex-a72")
PI5 = Board("aarch64", "cortex-a76")
NEWEST = Board("aarch64", "max")
CORTEX_A7 = Board("armv7", "cortex-a7")
# The board on which each target's modules are tested.
BOARDS = {
    "aarch64": PI4,
    "aarch64:cortex-a72": PI4,
    "aarch64:cortex-a76": PI5,
    "aarch64:neoverse-n1": Board("aarch64", "neoverse-n1"),
    "aarch64:neoverse-v1": NEWEST,
    "armv7:cortex-a7": CORTEX_A7,
}


def compute(
    model: Path | onnx.ModelProto, feed: Mapping[str, np.ndarray], target: str
) -> dict[str, np.ndarray]:
    """Compile a model for a target, untuned, and run it once on that target's board.

    Args:
        feed: input name -> array; may hold more than the model reads.
    """
    with tempfile.TemporaryDirectory(prefix="tilewright-board-") as folder:
        path = Path(folder, "model.so")
        tilewright.compile(model, target, logs=()).save(path)
        outputs = BOARDS[target].run(path, feed)
        names = [spec["name"] for spec in read_description(path)["entries"][0]["outputs"]]
    return dict(zip(names, outputs, strict=True))


@functools.cache
def runner(architecture: str) -> Path:
    """Compile examples/c/run_model.c for a family of processors, once per process."""
    folder = Path(tempfile.mkdtemp(prefix="tilewright-runner-"))
    program = folder / "run_model"
    subprocess.run(
        [
            *find_c_compiler(architecture),
            *("-std=c11", "-O1", "-D_GNU_SOURCE", f"-I{HEADERS}", RUNNER),
            *("-o", program, "-ldl", "-pthread"),
        ],
        check=True,
    )
    return program
