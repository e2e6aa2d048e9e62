"""Activation functions."""

from __future__ import annotations

import math
from functools import partial

from tvm import relax, te, tirx

from tilewright.frontends.onnx.node import NodeContext
from tilewright.frontends.onnx.ops.elementwise import cast, clip
from tilewright.frontends.onnx.registry import register
from tilewright.frontends.onnx.values import Value

R = relax.op


@register("Relu")
def relu(op: NodeContext) -> Value:
    """https://onnx.ai/onnx/operators/onnx__Relu.html"""
    data = op.input(0)
    if data.dtype.startswith("int"):
        return op.call(R.maximum, data, op.scalar(0, data.dtype))
    return op.call(R.nn.relu, data)


@register("LeakyRelu")
def leaky_relu(op: NodeContext) -> Value:
    """https://onnx.ai/onnx/operators/onnx__LeakyRelu.html"""
    return op.call(R.nn.leakyrelu, op.input(0), op.attr("alpha"))


@register("PRelu")
def prelu(op: NodeContext) -> Value:
    """https://onnx.ai/onnx/operators/onnx__PRelu.html"""
    data, slope = op.input(0), op.input(1)
    if op.opset < 7 and slope.rank == 1 and slope.size > 1:  # one slope per channel
        slope = op.call(R.reshape, slope, (slope.size, *(1,) * (data.rank - 2)))
    zero = op.scalar(0, data.dtype)
    return op.call(R.where, op.call(R.less, data, zero), op.call(R.multiply, data, slope), data)


@register("Elu")
def elu(op: NodeContext) -> Value:
    """https://onnx.ai/onnx/operators/onnx__Elu.html"""
    return _elu(op, op.input(0), op.attr("alpha"), 1.0)


@register("Selu")
def selu(op: NodeContext) -> Value:
    """https://onnx.ai/onnx/operators/onnx__Selu.html"""
    return _elu(op, op.input(0), op.attr("alpha"), op.attr("gamma"))


def _elu(op: NodeContext, data: Value, alpha: float, gamma: float) -> Value:
    """Compute gamma * (x if x > 0 else alpha * (exp(x) - 1))."""
    one = op.scalar(1, data.dtype)
    scaled = op.call(R.subtract, op.call(R.exp, data), one)
    scaled = op.call(R.multiply, scaled, op.scalar(alpha, data.dtype))
    positive = op.call(R.greater, data, op.scalar(0, data.dtype))
    result = op.call(R.where, positive, data, scaled)
    return result if gamma == 1 else op.call(R.multiply, result, op.scalar(gamma, data.dtype))


@register("Celu")
def celu(op: NodeContext) -> Value:
    """https://onnx.ai/onnx/operators/onnx__Celu.html"""
    given, alpha = op.input(0), op.attr("alpha")
    data = cast(op, given, "float32") if given.dtype in ("float16", "bfloat16") else given
    one = op.scalar(1, data.dtype)
    scaled = op.call(R.exp, op.call(R.divide, data, op.scalar(alpha, data.dtype)))
    scaled = op.call(R.multiply, op.call(R.subtract, scaled, one), op.scalar(alpha, data.dtype))
    zero = op.scalar(0, data.dtype)
    low = op.call(R.minimum, zero, scaled)
    return cast(op, op.call(R.add, op.call(R.maximum, data, zero), low), given.dtype)


@register("ThresholdedRelu")
def thresholded_relu(op: NodeContext) -> Value:
    """https://onnx.ai/onnx/operators/onnx__ThresholdedRelu.html"""
    data = op.input(0)
    above = op.call(R.greater, data, op.scalar(op.attr("alpha"), data.dtype))
    return op.call(R.where, above, data, op.scalar(0, data.dtype))


@register("Shrink")
def shrink(op: NodeContext) -> Value:
    """https://onnx.ai/onnx/operators/onnx__Shrink.html"""
    data, bias, limit = op.input(0), op.attr("bias"), op.attr("lambd")
    zero = op.scalar(0, data.dtype)
    bias_value = op.scalar(bias, data.dtype)
    below = op.call(R.less, data, op.scalar(-limit, data.dtype))
    above = op.call(R.greater, data, op.scalar(limit, data.dtype))
    high = op.call(R.where, above, op.call(R.subtract, data, bias_value), zero)
    return op.call(R.where, below, op.call(R.add, data, bias_value), high)


@register("HardSigmoid")
def hard_sigmoid(op: NodeContext) -> Value:
    """https://onnx.ai/onnx/operators/onnx__HardSigmoid.html"""
    return hard_sigmoid_of(op, op.input(0), op.attr("alpha"), op.attr("beta"))


@register("HardSwish")
def hard_swish(op: NodeContext) -> Value:
    """https://onnx.ai/onnx/operators/onnx__HardSwish.html"""
    data = op.input(0)
    return op.call(R.multiply, data, hard_sigmoid_of(op, data, 1 / 6, 0.5))


def hard_sigmoid_of(op: NodeContext, data: Value, alpha: float, beta: float) -> Value:
    """Compute clip(alpha * x + beta, 0, 1)."""
    scaled = op.call(R.multiply, data, op.scalar(alpha, data.dtype))
    return clip(op, op.call(R.add, scaled, op.scalar(beta, data.dtype)), 0.0, 1.0)


@register("Softplus")
def softplus(op: NodeContext) -> Value:
    """https://onnx.ai/onnx/operators/onnx__Softplus.html"""
    return _softplus(op, op.input(0))


def _softplus(op: NodeContext, data: Value) -> Value:
    """Compute max(x, 0) + log1p(exp(-|x|)).

    log1p is the quotient of Kahan (HP-15C manual, 1982), exact where 1 + t rounds.
    """
    one, zero = op.scalar(1, data.dtype), op.scalar(0, data.dtype)
    small = op.call(R.exp, op.call(R.negative, op.call(R.abs, data)))
    rounded = op.call(R.add, small, one)
    kept = op.call(R.subtract, rounded, one)
    lost = op.call(R.equal, kept, zero)
    quotient = op.call(R.divide, small, op.call(R.where, lost, one, kept))
    log = op.call(R.multiply, op.call(R.log, rounded), quotient)
    return op.call(R.add, op.call(R.maximum, data, zero), op.call(R.where, lost, small, log))


@register("Softsign")
def softsign(op: NodeContext) -> Value:
    """https://onnx.ai/onnx/operators/onnx__Softsign.html"""
    data = op.input(0)
    bottom = op.call(R.add, op.call(R.abs, data), op.scalar(1, data.dtype))
    return op.call(R.divide, data, bottom)


@register("Mish")
def mish(op: NodeContext) -> Value:
    """https://onnx.ai/onnx/operators/onnx__Mish.html"""
    data = op.input(0)
    return op.call(R.multiply, data, op.call(R.tanh, _softplus(op, data)))


@register("Swish")
def swish(op: NodeContext) -> Value:
    """https://onnx.ai/onnx/operators/onnx__Swish.html"""
    data, alpha = op.input(0), op.attr("alpha")
    if alpha == 1:
        return op.call(R.nn.silu, data)
    scaled = op.call(R.multiply, data, op.scalar(alpha, data.dtype))
    return op.call(R.multiply, data, op.call(R.sigmoid, scaled))


@register("Gelu")
def gelu(op: NodeContext) -> Value:
    """https://onnx.ai/onnx/operators/onnx__Gelu.html"""
    exact = op.attr("approximate") != "tanh"
    return op.call(R.nn.gelu if exact else R.nn.gelu_tanh, op.input(0))


# Not foldable: the reference implementation has only the later meaning.
@register("Softmax", 1, foldable=False)
@register("LogSoftmax", 1, foldable=False)
def softmax_flattened(op: NodeContext) -> Value:
    """https://onnx.ai/onnx/operators/onnx__Softmax.html before opset 13.

    The input is seen as a matrix: dimensions before ``axis`` are rows, the others columns.
    """
    data = op.input(0)
    axis = op.attr("axis", 1)
    axis = axis + data.rank if axis < 0 else axis
    function = _softmax_of(op)
    if axis == data.rank - 1:
        return op.call(function, data, -1)
    rows, columns = math.prod(data.shape[:axis]), math.prod(data.shape[axis:])
    flat = op.call(R.reshape, data, (rows, columns))
    return op.call(R.reshape, op.call(function, flat, -1), data.shape)


@register("Softmax", 13)
@register("LogSoftmax", 13)
def softmax(op: NodeContext) -> Value:
    """https://onnx.ai/onnx/operators/onnx__Softmax.html"""
    given = op.input(0)
    data = cast(op, given, "float32") if given.dtype in ("float16", "bfloat16") else given
    return cast(op, op.call(_softmax_of(op), data, op.attr("axis")), given.dtype)


def _softmax_of(op: NodeContext):
    return R.nn.softmax if op.node.op_type == "Softmax" else R.nn.log_softmax


@register("Hardmax", 1, foldable=False)
@register("Hardmax", 13)
def hardmax(op: NodeContext) -> Value:
    """https://onnx.ai/onnx/operators/onnx__Hardmax.html"""
    data, axis = op.input(0), op.attr("axis")
    axis = axis + data.rank if axis < 0 else axis
    if op.opset >= 13:
        return _hardmax(op, data, axis)
    rows, columns = math.prod(data.shape[:axis]), math.prod(data.shape[axis:])
    flat = op.call(R.reshape, data, (rows, columns))
    return op.call(R.reshape, _hardmax(op, flat, 1), data.shape)


def _hardmax(op: NodeContext, data: Value, axis: int) -> Value:
    """Put 1 at the first largest element along an axis, 0 elsewhere."""
    best = op.call(R.argmax, data, axis=axis, keepdims=True)
    return op.te(partial(_one_hot_like, axis=axis), data, best, name="hardmax")


def _one_hot_like(data: te.Tensor, best: te.Tensor, axis: int) -> te.Tensor:
    def element(*indices):
        at = list(indices)
        at[axis] = tirx.const(0, "int32")
        hit = best(*at) == indices[axis].astype(best.dtype)
        return tirx.Select(hit, tirx.const(1, data.dtype), tirx.const(0, data.dtype))

    return te.compute(data.shape, element, name="hardmax")
