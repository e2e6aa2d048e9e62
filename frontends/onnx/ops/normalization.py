"""Batch, layer, instance, group and local response normalisation."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from tvm import relax

from tilewright.frontends.onnx.node import NodeContext
from tilewright.frontends.onnx.ops.elementwise import cast
from tilewright.frontends.onnx.registry import register
from tilewright.frontends.onnx.values import Value, constant

R = relax.op


@register("BatchNormalization")
@register("BatchNormalization", 14)
def batch_normalization(op: NodeContext) -> Any:
    """https://onnx.ai/onnx/operators/onnx__BatchNormalization.html

    Inference is one multiplication and one addition, with constants of shape [C, 1, 1]; a later
    pass folds both into a convolution.
    """
    data = op.input(0)
    epsilon, momentum = op.attr("epsilon"), op.attr("momentum")
    training = bool(op.attr("training_mode")) if op.opset >= 14 else False
    for name in ("spatial", "is_test", "consumed_inputs"):
        if op.attrs.has(name) and name == "spatial" and not op.attr("spatial"):
            op.fail("spatial=0 is not supported")
        op.attr(name, None)
    scale, bias, mean, variance = (op.input(index) for index in range(1, 5))
    if training:
        return _train(op, data, (scale, bias, mean, variance), epsilon, momentum)
    if any(op.wants(index) for index in range(1, 5)):
        op.fail("outputs other than the first are only supported with training_mode=1")
    constants = [value.data for value in (scale, bias, mean, variance)]
    if all(item is not None for item in constants):
        return _affine(op, data, *_folded(constants, epsilon, data.dtype))
    shape = (scale.size, *(1,) * (data.rank - 2))
    columns = [op.call(R.reshape, value, shape) for value in (scale, bias, mean, variance)]
    return _normalize(op, data, columns, epsilon)


def _folded(parameters: list[Any], epsilon: float, dtype: str) -> tuple[np.ndarray, np.ndarray]:
    """Return factor and offset per channel; computed in float64, because variances are small."""
    scale, bias, mean, variance = (item.astype(np.float64) for item in parameters)
    factor = scale / np.sqrt(variance + epsilon)
    return factor.astype(dtype), (bias - mean * factor).astype(dtype)


def _affine(op: NodeContext, data: Value, factor: np.ndarray, offset: np.ndarray) -> Value:
    shape = (factor.size, *(1,) * (data.rank - 2))
    scaled = op.call(R.multiply, data, constant(factor.reshape(shape)))
    return op.call(R.add, scaled, constant(offset.reshape(shape)))


def _normalize(op: NodeContext, data: Value, columns: list[Value], epsilon: float) -> Value:
    """Compute (data - mean) * scale / sqrt(variance + epsilon) + bias."""
    scale, bias, mean, variance = columns
    variance = op.call(R.add, variance, op.scalar(epsilon, variance.dtype))
    factor = op.call(R.divide, scale, op.call(R.sqrt, variance))
    centred = op.call(R.subtract, data, mean)
    return op.call(R.add, op.call(R.multiply, centred, factor), bias)


def _train(
    op: NodeContext, data: Value, parameters: tuple[Value, ...], epsilon: float, momentum: float
) -> list[Value]:
    """Normalise with the statistics of the batch, and update the running ones."""
    axes = [0, *range(2, data.rank)]
    shape = (data.shape[1], *(1,) * (data.rank - 2))
    mean = op.call(R.mean, data, axis=axes)
    centred = op.call(R.subtract, data, op.call(R.reshape, mean, shape))
    variance = op.call(R.mean, op.call(R.multiply, centred, centred), axis=axes)
    scale, bias, old_mean, old_variance = parameters
    columns = [op.call(R.reshape, value, shape) for value in (scale, bias, mean, variance)]
    result = [_normalize(op, data, columns, epsilon)]
    for old, new in ((old_mean, mean), (old_variance, variance)):
        kept = op.call(R.multiply, old, op.scalar(momentum, old.dtype))
        added = op.call(R.multiply, new, op.scalar(1 - momentum, new.dtype))
        result.append(op.call(R.add, kept, added))
    return result


@register("LayerNormalization")
def layer_normalization(op: NodeContext) -> Any:
    """https://onnx.ai/onnx/operators/onnx__LayerNormalization.html (statistics in float32)."""
    data, scale, bias = op.input(0), op.input(1), op.optional(2)
    axis, epsilon = op.attr("axis"), op.attr("epsilon")
    op.attr("stash_type")
    axis = axis + data.rank if axis < 0 else axis
    axes = list(range(axis, data.rank))
    dtype = data.dtype
    wide = cast(op, data, "float32") if dtype in ("float16", "bfloat16") else data
    scale = _spread(op, cast(op, scale, wide.dtype), data.shape[axis:])
    if bias is None:
        bias = constant(np.zeros(data.shape[axis:], wide.dtype))
    bias = _spread(op, cast(op, bias, wide.dtype), data.shape[axis:])
    result = op.call(R.nn.layer_norm, wide, scale, bias, axes=axes, epsilon=epsilon)
    outputs = [cast(op, result, dtype)]
    if op.wants(1) or op.wants(2):
        mean = op.call(R.mean, wide, axis=axes, keepdims=True)
        centred = op.call(R.subtract, wide, mean)
        variance = op.call(R.mean, op.call(R.multiply, centred, centred), axes, keepdims=True)
        variance = op.call(R.add, variance, op.scalar(epsilon, wide.dtype))
        outputs += [mean, op.call(R.rsqrt, variance)]
    return outputs


def _spread(op: NodeContext, value: Value, shape: tuple[int, ...]) -> Value:
    """Broadcast a scale or bias to the normalised dimensions."""
    if value.shape == shape:
        return value
    if value.data is not None:
        squeezed = value.data
        if squeezed.ndim > len(shape):
            squeezed = squeezed.reshape(squeezed.shape[squeezed.ndim - len(shape) :])
        return constant(np.broadcast_to(squeezed, shape))
    return op.call(R.broadcast_to, value, shape)


@register("RMSNormalization")
def rms_normalization(op: NodeContext) -> Value:
    """https://onnx.ai/onnx/operators/onnx__RMSNormalization.html (statistics in float32)."""
    data, scale = op.input(0), op.input(1)
    axis, epsilon = op.attr("axis"), op.attr("epsilon")
    op.attr("stash_type")
    axis = axis + data.rank if axis < 0 else axis
    axes = list(range(axis, data.rank))
    wide = cast(op, data, "float32") if data.dtype in ("float16", "bfloat16") else data
    square = op.call(R.mean, op.call(R.multiply, wide, wide), axis=axes, keepdims=True)
    square = op.call(R.add, square, op.scalar(epsilon, wide.dtype))
    normal = cast(op, op.call(R.multiply, wide, op.call(R.rsqrt, square)), data.dtype)
    return op.call(R.multiply, normal, scale)


@register("InstanceNormalization")
def instance_normalization(op: NodeContext) -> Value:
    """https://onnx.ai/onnx/operators/onnx__InstanceNormalization.html"""
    data = op.input(0)
    axes = list(range(2, data.rank))
    return op.call(
        R.nn.instance_norm,
        data,
        op.input(1),
        op.input(2),
        channel_axis=1,
        axes=axes,
        epsilon=op.attr("epsilon"),
    )


@register("GroupNormalization", 18)
@register("GroupNormalization", 21)
def group_normalization(op: NodeContext) -> Value:
    """https://onnx.ai/onnx/operators/onnx__GroupNormalization.html

    Scale and bias are per group before opset 21, per channel since.
    """
    data, scale, bias = op.input(0), op.input(1), op.input(2)
    groups, epsilon = op.attr("num_groups"), op.attr("epsilon")
    op.attr("stash_type", None)
    channels = data.shape[1]
    if op.opset < 21:
        scale, bias = (_per_channel(op, value, channels // groups) for value in (scale, bias))
    if data.rank > 2:
        axes = list(range(2, data.rank))
        return op.call(R.nn.group_norm, data, scale, bias, groups, 1, axes, epsilon)
    rows = (data.shape[0], groups, channels // groups * math.prod(data.shape[2:]))
    flat = op.call(R.reshape, data, rows)
    mean = op.call(R.mean, flat, axis=[2], keepdims=True)
    centred = op.call(R.subtract, flat, mean)
    variance = op.call(R.mean, op.call(R.multiply, centred, centred), axis=[2], keepdims=True)
    variance = op.call(R.add, variance, op.scalar(epsilon, data.dtype))
    normal = op.call(R.multiply, centred, op.call(R.rsqrt, variance))
    normal = op.call(R.reshape, normal, data.shape)
    shape = (channels, *(1,) * (data.rank - 2))
    scaled = op.call(R.multiply, normal, op.call(R.reshape, scale, shape))
    return op.call(R.add, scaled, op.call(R.reshape, bias, shape))


def _per_channel(op: NodeContext, value: Value, repeats: int) -> Value:
    if value.data is not None:
        return constant(np.repeat(value.data, repeats))
    return op.call(R.repeat, value, repeats, 0)


@register("MeanVarianceNormalization")
def mean_variance_normalization(op: NodeContext) -> Value:
    """https://onnx.ai/onnx/operators/onnx__MeanVarianceNormalization.html"""
    data, axes = op.input(0), list(op.attr("axes", (0, 2, 3)))
    mean = op.call(R.mean, data, axis=axes, keepdims=True)
    centred = op.call(R.subtract, data, mean)
    variance = op.call(R.mean, op.call(R.multiply, centred, centred), axis=axes, keepdims=True)
    deviation = op.call(R.add, op.call(R.sqrt, variance), op.scalar(1e-9, data.dtype))
    return op.call(R.divide, centred, deviation)


@register("LpNormalization")
def lp_normalization(op: NodeContext) -> Value:
    """https://onnx.ai/onnx/operators/onnx__LpNormalization.html"""
    data, axis = op.input(0), [op.attr("axis")]
    if op.attr("p") == 1:
        norm = op.call(R.sum, op.call(R.abs, data), axis=axis, keepdims=True)
    else:
        norm = op.call(R.sum, op.call(R.multiply, data, data), axis=axis, keepdims=True)
        norm = op.call(R.sqrt, norm)
    zero = op.scalar(0, data.dtype)
    safe = op.call(R.where, op.call(R.equal, norm, zero), op.scalar(1, data.dtype), norm)
    return op.call(R.divide, data, safe)


@register("LRN")
def local_response_normalization(op: NodeContext) -> Value:
    """https://onnx.ai/onnx/operators/onnx__LRN.html

    The sum of squares over neighbouring channels is a product with a constant band matrix.
    """
    data, size = op.input(0), op.attr("size")
    alpha, beta, bias = op.attr("alpha"), op.attr("beta"), op.attr("bias")
    channels = data.shape[1]
    before, after = (size - 1) // 2, size - 1 - (size - 1) // 2
    row, column = np.indices((channels, channels))
    band = (column >= row - before) & (column <= row + after)
    flat = op.call(R.reshape, data, (data.shape[0], channels, math.prod(data.shape[2:])))
    weights = constant((band * (alpha / size)).astype(data.dtype))
    total = op.call(R.matmul, weights, op.call(R.multiply, flat, flat))
    total = op.call(R.add, total, op.scalar(bias, data.dtype))
    divisor = op.call(R.power, total, op.scalar(beta, data.dtype))
    return op.call(R.reshape, op.call(R.divide, flat, divisor), data.shape)
