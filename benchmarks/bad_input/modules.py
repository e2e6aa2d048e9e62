"""A deployable module with a flipped bit, or with more damage: it must never be run."""

from __future__ import annotations

import functools
import subprocess
import tempfile
from pathlib import Path

import numpy as np

import tilewright
from benchmarks.bad_input.damage import attempt, damage_bytes, flip, one_line
from benchmarks.mutations.models import MODELS
from benchmarks.mutations.trial import REFUSED, Trial
from tilewright.compiler.toolchain import find_c_compiler
from tilewright.errors import ModuleError

UNNOTICED = "unnoticed"
_ROOT = Path(__file__).resolve().parents[2]


@functools.cache
def original() -> bytes:
    """Return a module with convolutions, products and constants."""
    compiled = tilewright.compile(MODELS["convolution"](), logs=())
    return compiled.path.read_bytes()


@functools.cache
def _runner() -> Path:
    """Compile the example in C."""
    program = Path(tempfile.mkdtemp(prefix="tilewright-bad-")) / "run_model"
    source = _ROOT / "examples" / "c" / "run_model.c"
    flags = ["-std=c11", "-O1", f"-I{_ROOT / 'runtime' / 'c'}", "-ldl"]
    subprocess.run([*find_c_compiler(), source, "-o", program, *flags], check=True)
    return program


def prepare() -> None:
    """Compile what every trial needs."""
    original()
    _runner()


def damaged(number: int) -> bytes:
    """Return the module with one bit flipped, every fourth time with other damage."""
    random = np.random.default_rng(number)
    if number % 4:
        return flip(original(), random)
    return damage_bytes(original(), random)


def run_trial(number: int) -> Trial:
    """Load a damaged module in Python, and run it by the example in C."""
    return attempt(lambda folder: _load(folder, damaged(number)))


def _load(folder: Path, content: bytes) -> Trial:
    path = folder / "model.so"
    path.write_bytes(content)
    if content == original():
        return Trial(REFUSED, "(the damage undid itself)")
    done = subprocess.run(
        [_runner(), "model.so", "x.bin"], cwd=folder, capture_output=True, text=True, timeout=60
    )
    if done.returncode != 1 or "model.so: " not in done.stderr:
        return Trial(UNNOTICED, f"C: status {done.returncode}: {done.stderr[:200]}")
    try:
        tilewright.load(path)
    except ModuleError as error:
        return Trial(REFUSED, one_line(error, folder))
    return Trial(UNNOTICED, "Python loads it")
