"""Virtual environments of baselines that cannot live beside tilewright: Ansor's is the only one."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from tilewright.errors import MeasureError

BASELINES = ("ansor",)
_PYTHONS = ("3.11", "3.10")
_BITBLAS = "bitblas==0.1.0"  # carries TVM 0.17 with auto_scheduler, Relay and LLVM 10
_REQUIREMENTS = (
    "numpy<2",
    "scipy<1.12",
    "xgboost<2",
    "decorator",
    "attrs",
    "psutil",
    "typing_extensions",
    "tornado",
    "cloudpickle",
    "ml_dtypes",
    "pytest",
    "onnx==1.15.0",
    "nvidia-cuda-nvrtc-cu12",
    "nvidia-cuda-runtime-cu12",
)
_MARKER = "tilewright.json"
_DRIVER = Path(__file__).parent / "ansor_driver"
_CUDA_NOT_INITIALIZED = 100  # what a stub of libcuda answers: no device
_CHECK = (
    "import tvm; from tvm import auto_scheduler, relay; import onnx; "
    "print(tvm.__version__, tvm.target.codegen.llvm_version_major())"
)


@dataclass(frozen=True, slots=True)
class Environment:
    """The folder of Ansor's virtual environment, installed or not."""

    folder: Path

    @property
    def python(self) -> Path:
        """Return its interpreter."""
        return self.folder / "bin" / "python"

    @property
    def facts(self) -> dict[str, str]:
        """Return the versions that it was installed with; empty if it is not installed."""
        try:
            return json.loads((self.folder / _MARKER).read_text())
        except (OSError, ValueError):
            return {}

    def missing(self) -> str | None:
        """Return why it cannot be used, or None."""
        if self.facts and self.python.exists():
            return None
        return "not installed; run: tilewright baseline install ansor"

    def variables(self, threads: int = 1) -> dict[str, str]:
        """Return the environment variables that a process in it needs."""
        site = next(iter(sorted(self.folder.glob("lib/python3.*/site-packages"))), self.folder)
        tvm = site / "bitblas" / "3rdparty" / "tvm"
        libraries = [self.folder / "stub"]
        libraries += [site / "nvidia" / name / "lib" for name in ("cuda_nvrtc", "cuda_runtime")]
        kept = {k: v for k, v in os.environ.items() if k not in ("PYTHONHOME", "VIRTUAL_ENV")}
        return kept | {
            # Ansor's own workers import the operators too.
            "PYTHONPATH": f"{_DRIVER}:{tvm / 'python'}",
            "PYTHONDONTWRITEBYTECODE": "1",
            "TVM_LIBRARY_PATH": str(tvm / "build"),
            "LD_LIBRARY_PATH": ":".join(map(str, libraries)),
            "TOPHUB_LOCATION": "NONE",
            "TVM_NUM_THREADS": str(threads),
        }


def ansor_environment(root: Path | None = None) -> Environment:
    """Return Ansor's environment under `root`, by default the user's cache folder."""
    if root is None:
        cache = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
        root = Path(cache) / "tilewright" / "baselines"
    return Environment(root / "ansor")


def check_name(name: str) -> None:
    """Refuse a baseline that is not ours to install.

    Raises:
        MeasureError: the name is unknown.
    """
    if name not in BASELINES:
        raise MeasureError(
            f"unknown baseline '{name}'; only {', '.join(BASELINES)} has an environment of its "
            'own, the others come with: pip install "tilewright[bench]"'
        )


def install(
    environment: Environment, progress: Callable[[str], None] = lambda _stage: None
) -> dict[str, str]:
    """Make the virtual environment, from PyPI alone; return the versions in it.

    Raises:
        MeasureError: Python 3.10 or 3.11, gcc or nm is missing, or a step failed.
    """
    python = find_python()
    for tool in ("gcc", "nm"):
        if shutil.which(tool) is None:
            raise MeasureError(
                f"{tool} is not on the PATH; Ansor's stub of libcuda needs gcc and nm"
            )
    folder = environment.folder
    folder.parent.mkdir(parents=True, exist_ok=True)
    (folder / _MARKER).unlink(missing_ok=True)
    progress(f"virtual environment {folder}")
    _step([python, "-m", "venv", "--clear", str(folder)])
    pip = [
        str(environment.python),
        "-m",
        "pip",
        "install",
        "--quiet",
        "--disable-pip-version-check",
    ]
    progress("packages")
    _step([*pip, *_REQUIREMENTS])
    progress(_BITBLAS)
    _step([*pip, "--no-deps", _BITBLAS])
    progress("stub of libcuda")
    _build_stub(environment)
    progress("check")
    found = _step([str(environment.python), "-c", _CHECK], environment.variables())
    version, llvm = found.split()[-2:]
    facts = {"tvm": version, "llvm": llvm, "source": _BITBLAS, "python": python}
    (folder / _MARKER).write_text(json.dumps(facts, indent=1) + "\n")
    return facts


def remove(environment: Environment) -> bool:
    """Delete the environment; return whether there was one."""
    if not environment.folder.exists():
        return False
    shutil.rmtree(environment.folder)
    return True


def find_python() -> str:
    """Return a Python that the wheels exist for.

    Raises:
        MeasureError: there is none on the PATH.
    """
    names = ["python3", *(f"python{version}" for version in _PYTHONS)]
    for name in names:
        path = shutil.which(name)
        if path is None:
            continue
        code = "import sys, venv; print('%d.%d' % sys.version_info[:2])"
        done = subprocess.run([path, "-c", code], capture_output=True, text=True, check=False)
        if done.returncode == 0 and done.stdout.strip() in _PYTHONS:
            return path
    raise MeasureError(
        f"Ansor's packages need Python {' or '.join(_PYTHONS)} with venv; none of "
        f"{', '.join(names)} on the PATH is one"
    )


def _build_stub(environment: Environment) -> None:
    """Build a libcuda that says there is no device: TVM's library is linked against one."""
    folder = environment.folder / "stub"
    folder.mkdir(exist_ok=True)
    library = Path(environment.variables()["TVM_LIBRARY_PATH"]) / "libtvm.so"
    symbols = _step(["nm", "-D", "--undefined-only", str(library)]).splitlines()
    names = [line.split()[-1] for line in symbols if line.split()]
    wanted = [name for name in names if name.startswith("cu") and name[2:3].isupper()]
    source = folder / "cuda.c"
    source.write_text(
        "".join(f"int {name}(void) {{ return {_CUDA_NOT_INITIALIZED}; }}\n" for name in wanted)
    )
    target = str(folder / "libcuda.so.1")
    _step(["gcc", "-shared", "-fPIC", "-Wl,-soname,libcuda.so.1", "-o", target, str(source)])


def _step(command: Sequence[str], variables: Mapping[str, str] | None = None) -> str:
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=variables)
    if done.returncode:
        lines = (done.stderr.strip() or done.stdout.strip() or "no output").splitlines()
        shown = " ".join(command[:4])
        raise MeasureError(f"{shown} ... failed with status {done.returncode}: {lines[-1]}")
    return done.stdout
