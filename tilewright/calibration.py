"""Calibration samples: read, and checked against the model before anything is compiled for them."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from tilewright.errors import ModelError
from tilewright.inputs import load_npz

if TYPE_CHECKING:
    from tilewright.frontends.onnx import TensorSpec

Arrays = Mapping[str, np.ndarray]


def read_samples(
    proto: Any,
    calibration: str | os.PathLike[str] | Sequence[Arrays],
    shapes: Mapping[str, Sequence[int]] | None,
) -> Sequence[Arrays]:
    """Return samples that a model can run on.

    Args:
        proto: the model, an `onnx.ModelProto`.
        calibration: samples, or the path of an .npz file or a folder of them.
        shapes: shape per input, where the model leaves dimensions open.

    Raises:
        ModelError: there are no samples, or one lacks an input, has another shape or type than the
            model reads, or a value that is not finite.
    """
    from tilewright.frontends.onnx import read_inputs

    specs = read_inputs(proto, shapes)
    if isinstance(calibration, str | os.PathLike):
        samples: Sequence[Arrays] = load_samples(
            calibration, {spec.name: spec.shape for spec in specs}
        )
    else:
        samples = calibration
    if not len(samples):
        raise ModelError("there are no calibration samples; give at least one")
    for index, sample in enumerate(samples):
        for spec in specs:
            _check(sample, spec, index)
    return samples


def _check(sample: Arrays, spec: TensorSpec, index: int) -> None:
    where = f"calibration sample {index}"
    if spec.name not in sample:
        raise ModelError(f"{where} lacks the input {spec.name!r}")
    array = np.asarray(sample[spec.name])
    if array.shape != spec.shape or array.dtype.name != spec.dtype:
        raise ModelError(
            f"{where}: input {spec.name!r} is {array.dtype.name} {list(array.shape)}, but the "
            f"model reads {spec.dtype} {list(spec.shape)}; convert it"
        )
    if array.dtype.kind == "f" and not np.isfinite(array).all():
        raise ModelError(
            f"{where} has NaN or infinity in input {spec.name!r}; ranges cannot be found on it"
        )


def load_samples(
    path: str | os.PathLike[str], shapes: Mapping[str, Sequence[int]]
) -> list[dict[str, np.ndarray]]:
    """Read calibration samples.

    Args:
        path: a folder of .npz files with one sample each; or one .npz file, whose arrays may have
            all samples along an additional first axis, or along the first one in batches.
        shapes: shape of each input.

    Raises:
        ModelError: an input is missing, an array does not fit it, or there
            are no samples.
    """
    path = Path(path)
    files = sorted(path.glob("*.npz")) if path.is_dir() else [path]
    samples: list[dict[str, np.ndarray]] = []
    for file in files:
        arrays = load_npz(file)
        missing = sorted(set(shapes) - set(arrays))
        if missing:
            raise ModelError(f"{file} lacks the inputs {', '.join(missing)}")
        parts = {name: _split(arrays[name], tuple(shapes[name]), name) for name in shapes}
        counts = {len(part) for part in parts.values()}
        if len(counts) != 1:
            raise ModelError(f"{file} has different numbers of samples for different inputs")
        samples += [{n: part[i] for n, part in parts.items()} for i in range(counts.pop())]
    if not samples:
        kind = "no .npz files" if path.is_dir() else "no samples"
        raise ModelError(f"{path} holds {kind}; see docs/how-to/quantize.md for what is read")
    return samples


def _split(array: np.ndarray, shape: tuple[int, ...], name: str) -> list[np.ndarray]:
    if array.shape == shape:
        return [array]
    if array.ndim == len(shape) + 1 and array.shape[1:] == shape:
        return list(array)
    fits = array.ndim == len(shape) and array.shape[1:] == shape[1:]
    if fits and shape[0] and array.shape[0] % shape[0] == 0:
        return [array[i : i + shape[0]] for i in range(0, array.shape[0], shape[0])]
    raise ModelError(
        f"calibration data of input {name!r} has the shape {list(array.shape)}; accepted are "
        f"{list(shape)}, that with samples in front, or a multiple of it in the first dimension"
    )
