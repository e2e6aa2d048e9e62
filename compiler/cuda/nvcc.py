"""nvcc: found once, called with plain messages; CUDA C becomes cubin and PTX in one file."""

from __future__ import annotations

import os
import shutil
import subprocess
import sysconfig
import tempfile
from pathlib import Path

from tilewright.compiler.cuda import warpgroup
from tilewright.compiler.cuda.targets import CudaTarget
from tilewright.errors import CompileError, TargetError

VARIABLE = "TILEWRIGHT_NVCC"
_SHOWN_ERROR_CHARS = 2000
# Where NVIDIA's wheels for CUDA 13 put programs, below site-packages.
_WHEEL_FOLDER = Path("nvidia", "cu13", "bin")
_FLAGS = ("-std=c++17", "-O3", "--expt-relaxed-constexpr", "-diag-suppress=177,550,186")


def find_tool(name: str) -> Path | None:
    """Return a program of the CUDA toolkit: beside nvcc, on PATH, or from NVIDIA's wheels."""
    chosen = os.environ.get(VARIABLE, "").strip()
    places = []
    if chosen:
        places.append(Path(chosen) if name == "nvcc" else Path(chosen).parent / name)
    for site in {sysconfig.get_path("purelib"), sysconfig.get_path("platlib")}:
        places.append(Path(site) / _WHEEL_FOLDER / name)
    on_path = shutil.which(name)
    if on_path:
        places.append(Path(on_path))
    return next((place for place in places if os.access(place, os.X_OK)), None)


def find_nvcc() -> Path:
    """Return nvcc: TILEWRIGHT_NVCC, NVIDIA's wheels, or PATH, in this order.

    Raises:
        TargetError: there is none; the message says what to install.
    """
    found = find_tool("nvcc")
    if found is None:
        raise TargetError(
            f"no nvcc found (looked for ${VARIABLE}, NVIDIA's wheels and PATH), which CUDA targets "
            "need; run: pip install 'tilewright[cuda]', or install the CUDA toolkit 12 or newer"
        )
    return found


def compile_cuda(source: str, target: CudaTarget) -> bytes:
    """Compile CUDA C; return a fat binary: cubin for the architecture, PTX for later chips.

    Raises:
        TargetError: there is no nvcc.
        CompileError: it failed; the message holds what it printed.
    """
    nvcc = find_nvcc()
    with tempfile.TemporaryDirectory(prefix="tilewright-") as folder:
        work = Path(folder)
        (work / "kernels.cu").write_text(source)
        options = [*_FLAGS, *_code(source, target)]
        _run([nvcc, *options, "-fatbin", "kernels.cu", "-o", "kernels.fatbin"], work)
        return (work / "kernels.fatbin").read_bytes()


def _code(source: str, target: CudaTarget) -> list[str]:
    """Return the options that say for which chips to compile.

    Instructions of warpgroups are only in what is made for this very chip ("sm_90a").
    """
    virtual = target.arch.replace("sm_", "compute_")
    if warpgroup.MARK not in source:
        return [f"-gencode=arch={virtual},code=[{target.arch},{virtual}]"]
    return [
        f"-gencode=arch={virtual}a,code={target.arch}a",
        f"-gencode=arch={virtual},code={virtual}",
    ]


def _run(command: list[str | Path], folder: Path) -> None:
    done = subprocess.run(
        [*map(str, command)], cwd=folder, capture_output=True, text=True, check=False
    )
    if done.returncode != 0:
        shown = (done.stderr or done.stdout).strip()[-_SHOWN_ERROR_CHARS:]
        raise CompileError(f"nvcc failed with status {done.returncode}: {shown}")
