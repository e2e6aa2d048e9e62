"""Calibration data that is damaged, or made for something else."""

from __future__ import annotations

import functools
import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from benchmarks.bad_input.damage import Random, attempt, damage_bytes
from benchmarks.mutations.models import MODELS
from benchmarks.mutations.trial import RAN, Trial
from tilewright.quantization import quantize

_SHAPE = (1, 3, 12, 10)
_METHODS = ("minmax", "percentile", "mse", "entropy", "dobi")


def _normal(random: Random, *shape: int) -> np.ndarray:
    return random.standard_normal(shape).astype(np.float32)


# What stands under the name of the input.
_ARRAYS: tuple[Callable[[Random], Any], ...] = (
    lambda r: _normal(r, *_SHAPE),
    lambda r: _normal(r, 4, *_SHAPE),
    lambda r: _normal(r, 3, *_SHAPE[1:]),
    lambda r: _normal(r, 0, *_SHAPE[1:]),
    lambda r: _normal(r, *_SHAPE[::-1]),
    lambda r: _normal(r, 1, 3, 12),
    lambda r: np.float32(3),
    lambda r: np.zeros(_SHAPE, np.float32),
    lambda r: np.full(_SHAPE, np.nan, np.float32),
    lambda r: np.full(_SHAPE, np.inf, np.float32),
    lambda r: np.full(_SHAPE, 3e38, np.float32),
    lambda r: np.where(r.random(_SHAPE) < 0.01, np.nan, _normal(r, *_SHAPE)).astype(np.float32),
    lambda r: _normal(r, *_SHAPE).astype(np.float64),
    lambda r: _normal(r, *_SHAPE).astype(np.complex64),
    lambda r: r.integers(0, 255, _SHAPE).astype(np.uint8),
    lambda r: np.full(_SHAPE, "text"),
    lambda r: np.array([object()], dtype=object),
    lambda r: np.zeros(_SHAPE, bool),
    lambda r: np.zeros(3, [("a", np.float32), ("b", np.int8)]),
    lambda r: np.full(_SHAPE, np.datetime64("2020-01-01")),
)


@functools.cache
def _model() -> bytes:
    return MODELS["convolution"]().SerializeToString()


def prepare() -> None:
    """Make what every trial needs."""
    _model()


def run_trial(number: int) -> Trial:
    """Quantize a model on odd samples; the model that is written must load again."""
    return attempt(lambda folder: _quantize(folder, number))


def _quantize(folder: Path, number: int) -> Trial:
    random = np.random.default_rng(number)
    source, written = folder / "model.onnx", folder / "quantized.onnx"
    source.write_bytes(_model())
    data = folder / "data"
    _write_samples(data, random)
    method = _METHODS[number % len(_METHODS)]
    try:
        quantize(source, data, written, method, bias_correction=number % 3 == 0)
    except BaseException:
        if written.exists():
            raise AssertionError("a refusal left a file behind") from None
        raise
    onnx.checker.check_model(onnx.load(written), full_check=True)
    return Trial(RAN)


def _write_samples(path: Path, random: Random) -> None:
    """Write a file, or a folder of files, some of them good."""
    kind = int(random.integers(6))
    if kind == 0:
        path.mkdir()
        for index in range(int(random.integers(0, 4))):
            (path / f"{index}.npz").write_bytes(_archive(random))
        (path / "notes.txt").write_text("not a sample")
    elif kind == 1:
        path.write_bytes(damage_bytes(_saved({"x": _normal(random, 4, *_SHAPE)}), random))
    elif kind == 2:
        buffer = io.BytesIO()
        np.save(buffer, _normal(random, *_SHAPE))
        path.write_bytes(buffer.getvalue())
    elif kind == 3:
        path.write_bytes(random.bytes(int(random.integers(0, 300))))
    else:
        path.write_bytes(_archive(random))


def _archive(random: Random) -> bytes:
    name = ("x", "x", "x", "y", "", "X/x")[int(random.integers(6))]
    return _saved({name: _ARRAYS[int(random.integers(len(_ARRAYS)))](random)})


def _saved(arrays: dict[str, Any]) -> bytes:
    buffer = io.BytesIO()
    np.savez(buffer, **arrays)
    return buffer.getvalue()
