"""Quantize only the weights of a model: 4 or 8 bits in groups, activations stay in floats."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from tilewright.calibration import Arrays, read_samples
from tilewright.errors import ModelError

WEIGHTS = {"int4": 4, "int8": 8}
"""Names of weight types -> bits."""
AUTO = "auto"
"""In place of a type: 4 or 8 bits for every block of input channels, within `max_bytes`."""
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
    max_bytes: int | None = None,
    shapes: Mapping[str, Sequence[int]] | None = None,
    target: str = "native",
    progress: Callable[[str], None] = lambda _stage: None,
) -> dict[str, Any]:
    """Quantize the weights of a model's matrix products and write it as an ordinary ONNX model.

    Args:
        model: path of the float model.
        output: the file to write.
        weights: "int4", "int8", or "auto": see `mixed_precision.channel_blocks`.
        group: weights along the reduction that share a scale; a power of two from 16 on.
        symmetric: without zero points.
        operators: what products become: "nbits" (MatMulNBits of com.microsoft) or "dequantize"
            (DequantizeLinear with blocks, opset 21, before MatMul).
        calibration: samples, or the path of an .npz file or a folder of them, to weight errors by
            the mean square of the activations, and to round so that weights make up for each
            other's errors (GPTQ) where second moments fit in memory; None: all weights count alike.
        max_bytes: with "auto": greatest size of all codes, scales and zero points.
        shapes: shape per input, where the model leaves dimensions open; for samples only.
        target: what the samples are run on; must be this machine.
        progress: called with the name of each stage.

    Returns:
        "bits" (of a weight; their mean with "auto"), "float_bytes" and "bytes" (of all quantized
        weights before and after), "layers" (name, shape, signal-to-noise ratio in dB and bytes of
        every product, the worst first) and "kept" (product that stays in floats -> why).

    Raises:
        ModelError: the model, an option or the calibration data cannot be used.
    """
    from tilewright.compiler.quantize import weight_only_model as weight_only
    from tilewright.mixed_precision.channel_blocks import choose_parts
    from tilewright.quantization import save
    from tilewright.reference import load_proto

    if weights not in (*WEIGHTS, AUTO):
        raise ModelError(f"unknown weights {weights!r}; accepted are {', '.join(WEIGHTS)}, {AUTO}")
    if (weights == AUTO) != (max_bytes is not None):
        raise ModelError("weights 'auto' and max_bytes belong together: give both or neither")
    if weights == AUTO and operators != "nbits":
        raise ModelError("weights 'auto' are written as MatMulNBits only; leave operators out")
    stored = weight_only.WeightFormat(WEIGHTS.get(weights, 4), group, symmetric, operators)
    proto = load_proto(Path(model))
    moments = None
    if calibration is not None:
        progress("calibration")
        moments = _moments(proto, calibration, target, shapes)
    progress("weights")
    parts = None
    if max_bytes is not None:
        parts = choose_parts(proto, stored, moments, max_bytes)
    result = weight_only.quantize_weights(proto, stored, moments, parts=parts)
    save(result.proto.SerializeToString(), Path(output))
    layers = [{**asdict(layer), "layer": layer.name} for layer in result.layers]
    for layer in layers:
        del layer["name"]
    return {
        "bits": stored.bits if parts is None else _mean_bits(parts, result.layers),
        "float_bytes": sum(layer.float_bytes for layer in result.layers),
        "bytes": sum(layer.bytes for layer in result.layers),
        "layers": layers,
        "kept": result.kept,
    }


def _mean_bits(parts: Mapping[str, Any], layers: Sequence[Any]) -> float:
    """Return the mean bits of a weight, two decimals."""
    columns = {layer.name: layer.shape[1] for layer in layers}
    sizes = [
        (len(rows) * columns[name], format_.bits)
        for name, formats in parts.items()
        for rows, format_ in formats
    ]
    mean = sum(count * bits for count, bits in sizes) / sum(count for count, _ in sizes)
    return round(float(mean), 2)


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
    from tilewright.quantization import runner

    axes = product_inputs(proto)
    samples = read_samples(proto, calibration, shapes)
    run = runner(with_outputs(proto, axes), target, shapes)
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
