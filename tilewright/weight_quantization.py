"""Quantize only the weights of a model: 4 or 8 bits in groups, activations stay in floats."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from tilewright.errors import ModelError

Arrays = Mapping[str, np.ndarray]
WEIGHTS = {"int4": 4, "int8": 8}
"""Names of weight types -> bits."""
_MOST_BYTES = 2 << 30


def quantize_weights(
    model: str | os.PathLike[str],
    output: str | os.PathLike[str],
    weights: str = "int4",
    group: int = 32,
    *,
    symmetric: bool = True,
    operators: str = "nbits",
    calibration: str | os.PathLike[str] | Sequence[Arrays] | None = None,
    shapes: Mapping[str, Sequence[int]] | None = None,
    target: str = "native",
    progress: Callable[[str], None] = lambda _stage: None,
) -> dict[str, Any]:
    """Quantize the weights of a model's matrix products and write it as an ordinary ONNX model.

    Args:
        model: path of the float model.
        output: the file to write.
        weights: "int4" or "int8".
        group: weights along the reduction that share a scale; a power of two from 16 on.
        symmetric: without zero points.
        operators: what products become: "nbits" (MatMulNBits of com.microsoft) or "dequantize"
            (DequantizeLinear with blocks, opset 21, before MatMul).
        calibration: samples, or the path of an .npz file or a folder of them, to weight errors by
            the mean square of the activations, and to round so that weights make up for each
            other's errors (GPTQ) where second moments fit in memory; None: all weights count alike.
        shapes: shape per input, where the model leaves dimensions open; for samples only.
        target: what the samples are run on; must be this machine.
        progress: called with the name of each stage.

    Returns:
        "bits", "float_bytes" and "bytes" (of all quantized weights before and after), "layers"
        (name, shape, signal-to-noise ratio in dB and bytes of every product, the worst first) and
        "kept" (product that stays in floats -> why).

    Raises:
        ModelError: the model, an option or the calibration data cannot be used.
    """
    from tilewright.compiler.quantize import weight_only_model as weight_only
    from tilewright.quantization import save
    from tilewright.reference import load_proto

    if weights not in WEIGHTS:
        raise ModelError(f"unknown weights {weights!r}; accepted are {', '.join(WEIGHTS)}")
    stored = weight_only.WeightFormat(WEIGHTS[weights], group, symmetric, operators)
    proto = load_proto(Path(model))
    moments = None
    if calibration is not None:
        progress("calibration")
        moments = _moments(proto, calibration, target, shapes)
    progress("weights")
    result = weight_only.quantize_weights(proto, stored, moments)
    save(result.proto.SerializeToString(), Path(output))
    layers = [{**asdict(layer), "layer": layer.name} for layer in result.layers]
    for layer in layers:
        del layer["name"]
    return {
        "bits": stored.bits,
        "float_bytes": sum(layer.float_bytes for layer in result.layers),
        "bytes": sum(layer.bytes for layer in result.layers),
        "layers": layers,
        "kept": result.kept,
    }


def _moments(
    proto: Any,
    calibration: str | os.PathLike[str] | Sequence[Arrays],
    target: str,
    shapes: Mapping[str, Sequence[int]] | None,
) -> dict[str, np.ndarray]:
    """Return the second moments of what products with weights multiply.

    E[x x^T] as long as all of them fit in `_MOST_BYTES`, of further tensors the mean squares.
    """
    from tilewright.compiler.quantize.post_training import with_outputs
    from tilewright.compiler.quantize.weight_only_model import product_inputs
    from tilewright.quantization import _runner, load_samples

    axes = product_inputs(proto)
    run, inputs = _runner(with_outputs(proto, axes), target, shapes)
    samples = calibration
    if isinstance(calibration, str | os.PathLike):
        samples = load_samples(calibration, inputs)
    assert not isinstance(samples, str | os.PathLike)
    assert samples is not None
    if not samples:
        raise ModelError("there are no calibration samples; give at least one, or none at all")
    sums: dict[str, np.ndarray] = {}
    counts = dict.fromkeys(axes, 0)
    for sample in samples:
        computed = {**sample, **run(sample)}
        for name in axes:
            rows = np.asarray(computed[name], np.float64)
            rows = rows.reshape(-1, rows.shape[-1])
            if name not in sums:
                held = sum(array.nbytes for array in sums.values())
                whole = held + 8 * rows.shape[1] ** 2 <= _MOST_BYTES
                sums[name] = np.zeros((rows.shape[1],) * (2 if whole else 1))
            sums[name] += rows.T @ rows if sums[name].ndim == 2 else (rows * rows).sum(0)
            counts[name] += len(rows)
    for name, total in sums.items():
        if not np.isfinite(total).all():
            raise ModelError(f"tensor {name!r} has values that are not finite on the samples")
    return {name: total / counts[name] for name, total in sums.items()}
