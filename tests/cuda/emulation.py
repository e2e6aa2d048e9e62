"""Compile the text of generated kernels for the CPU, and run it thread by thread."""

from __future__ import annotations

import ctypes
import subprocess
import tempfile
import weakref
from collections.abc import Sequence
from functools import cache
from pathlib import Path

import numpy as np

from tilewright.compiler.cuda.build import source_of
from tilewright.compiler.cuda.kernel import Kernel

_HERE = Path(__file__).parent
_FLAGS = ("-std=c++17", "-O1", "-fPIC", "-w", "-fwrapv")


def compile_for_cpu(kernels: Sequence[Kernel], folder: Path, *macros: str) -> Path:
    """Return a shared object of the kernels, the very text that nvcc gets, for this processor."""
    source = folder / "kernels.cpp"
    # How many pointers each takes, for the driver shim.
    counts = [
        f'extern "C" {{ int {kernel.name}_arguments = {_arguments(kernel)}; }}'
        for kernel in kernels
    ]
    source.write_text("\n".join([source_of(kernels), *counts]))
    library = folder / "kernels.so"
    defined = [f"-D{macro}" for macro in macros]
    _compile(["-DTW_EMULATE", *defined, f"-I{_HERE}", source, _threads(), "-o", library])
    return library


def _arguments(kernel: Kernel) -> int:
    """Return how many pointers a kernel takes."""
    return kernel.source[kernel.source.rindex("TW_GLOBAL(") :].split(") {")[0].count("__restrict__")


@cache
def _threads() -> Path:
    """Return the object file of what runs threads; compiled once."""
    folder = tempfile.TemporaryDirectory()
    weakref.finalize(_threads, folder.cleanup)
    path = Path(folder.name, "tw_emulate.o")
    _compile(["-c", _HERE / "tw_emulate.cpp", "-o", path])
    return path


def _compile(arguments: Sequence[str | Path]) -> None:
    flags = [*_FLAGS, *(() if "-c" in arguments else ("-shared",))]
    done = subprocess.run(
        ["g++", *flags, *map(str, arguments)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[:4000]


def compile_shim(folder: Path) -> Path:
    """Return a folder with the stand-in for the driver, for LD_LIBRARY_PATH."""
    library = folder / "libcuda.so.1"
    _compile([_HERE / "driver_shim.cpp", "-o", library, "-ldl"])
    return folder


class Emulator:
    """Runs kernels on numpy arrays."""

    def __init__(self, kernels: Sequence[Kernel], *macros: str) -> None:
        self._folder = tempfile.TemporaryDirectory()
        self._kernels = {kernel.name: kernel for kernel in kernels}
        self._library = ctypes.CDLL(str(compile_for_cpu(kernels, Path(self._folder.name), *macros)))

    def run(self, name: str, arrays: Sequence[np.ndarray], backwards: bool = False) -> None:
        """Run one launch; `arrays` are what it reads, then what it writes."""
        kernel = self._kernels[name]
        ctypes.c_int.in_dll(self._library, "tw_backwards").value = int(backwards)
        pointers = (ctypes.c_void_p * len(arrays))(*(a.ctypes.data for a in arrays))
        function = ctypes.cast(getattr(self._library, name), ctypes.c_void_p)
        self._library.tw_emulate(
            function, *kernel.grid, kernel.threads, kernel.shared_bytes, pointers, len(arrays)
        )
