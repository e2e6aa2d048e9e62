"""Operators of the com.microsoft domain that its transformer optimiser and quantizer emit.

https://github.com/microsoft/onnxruntime/blob/main/docs/ContribOperators.md
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from tvm import relax

from tilewright.frontends.onnx.node import NodeContext
from tilewright.frontends.onnx.ops.activations import hard_sigmoid_of
from tilewright.frontends.onnx.ops.convolution import conv
from tilewright.frontends.onnx.ops.linear import product, scaled, transposed
from tilewright.frontends.onnx.ops.quantization import centre, quantized, real, real_bias
from tilewright.frontends.onnx.ops.reshaping import cut, reshape_to
from tilewright.frontends.onnx.registry import register
from tilewright.frontends.onnx.values import Value, constant

R = relax.op

DOMAIN = "com.microsoft"


@register("Gelu", domain=DOMAIN)
def gelu(op: NodeContext) -> Value:
    """Exact GELU."""
    return op.call(R.nn.gelu, op.input(0))


@register("BiasGelu", domain=DOMAIN)
def bias_gelu(op: NodeContext) -> Value:
    """GELU of data + bias."""
    return op.call(R.nn.gelu, op.call(R.add, op.input(0), op.input(1)))


@register("FastGelu", domain=DOMAIN)
def fast_gelu(op: NodeContext) -> Value:
    """GELU with tanh, of data or data + bias."""
    data, bias = op.input(0), op.optional(1)
    return op.call(R.nn.gelu_tanh, data if bias is None else op.call(R.add, data, bias))


@register("QuickGelu", domain=DOMAIN)
def quick_gelu(op: NodeContext) -> Value:
    """Compute x * sigmoid(alpha * x)."""
    data = op.input(0)
    gate = op.call(R.sigmoid, scaled(op, data, op.attr("alpha", 1.702)))
    return op.call(R.multiply, data, gate)


@register("FusedMatMul", domain=DOMAIN)
def fused_matmul(op: NodeContext) -> Value:
    """Matrix product with transposed operands and a factor."""
    left, right = op.input(0), op.input(1)
    if op.attr("transBatchA", 0) or op.attr("transBatchB", 0):
        op.fail("transBatchA and transBatchB are not supported")
    left = transposed(op, left) if op.attr("transA", 0) else left
    right = transposed(op, right) if op.attr("transB", 0) else right
    return scaled(op, product(op, left, right), op.attr("alpha", 1.0))


@register("FusedConv", domain=DOMAIN)
def fused_conv(op: NodeContext) -> Value:
    """Convolution, optionally plus a tensor, with an activation."""
    op.attrs.use_schema("Conv")
    result = conv(op)
    if op.optional(3) is not None:
        result = op.call(R.add, result, op.input(3))
    name: str = op.attr("activation", "")
    parameters: list[float] = list(op.attr("activation_params", ()))
    if name in ("", "Relu", "Tanh", "Sigmoid"):
        functions = {"Relu": R.nn.relu, "Tanh": R.tanh, "Sigmoid": R.sigmoid}
        return op.call(functions[name], result) if name else result
    if name == "LeakyRelu":
        return op.call(R.nn.leakyrelu, result, parameters[0])
    if name == "Clip":
        return op.call(R.clip, result, min=parameters[0], max=parameters[1])
    if name == "HardSigmoid":
        return hard_sigmoid_of(op, result, parameters[0], parameters[1])
    op.fail(f"activation {name!r}")


@register("SimplifiedLayerNormalization", domain=DOMAIN)
def simplified_layer_normalization(op: NodeContext) -> Value:
    """Root mean square normalisation over the last dimensions."""
    data, scale = op.input(0), op.input(1)
    axis, epsilon = op.attr("axis", -1) % data.rank, op.attr("epsilon", 1e-5)
    op.attr("stash_type", 1)
    return _rms(op, data, scale, axis, epsilon)


def _rms(op: NodeContext, data: Value, scale: Value, axis: int, epsilon: float) -> Value:
    axes = list(range(axis, data.rank))
    square = op.call(R.mean, op.call(R.multiply, data, data), axis=axes, keepdims=True)
    square = op.call(R.add, square, op.scalar(epsilon, data.dtype))
    return op.call(R.multiply, op.call(R.multiply, data, op.call(R.rsqrt, square)), scale)


@register("SkipLayerNormalization", domain=DOMAIN)
@register("SkipSimplifiedLayerNormalization", domain=DOMAIN)
def skip_layer_normalization(op: NodeContext) -> Any:
    """Normalise data + skip (+ bias); the fourth output is that sum."""
    simplified = op.node.op_type == "SkipSimplifiedLayerNormalization"
    data, scale = op.call(R.add, op.input(0), op.input(1)), op.input(2)
    bias = op.optional(3 if simplified else 4)
    if bias is not None:
        data = op.call(R.add, data, bias)
    epsilon = op.attr("epsilon", 1e-12)
    if op.wants(1) or op.wants(2):
        op.fail("the outputs mean and inv_std_var are not supported")
    last = data.rank - 1
    if simplified:
        return [_rms(op, data, scale, last, epsilon), None, None, data]
    beta = op.optional(3)
    if beta is None:
        beta = constant(np.zeros(scale.shape, scale.dtype))
    result = op.call(R.nn.layer_norm, data, scale, beta, axes=[last], epsilon=epsilon)
    return [result, None, None, data]


@register("EmbedLayerNormalization", domain=DOMAIN)
def embed_layer_normalization(op: NodeContext) -> Any:
    """Sum of word, position and segment embeddings, normalised."""
    ids, segments, words, places, kinds = (op.optional(index) for index in range(5))
    if ids is None or words is None or places is None:
        op.fail("input_ids, word_embedding and position_embedding are needed")
    if op.optional(7) is not None or op.wants(1):
        op.fail("a mask is not supported")
    if op.attr("mask_index_type", 0):
        op.fail("mask_index_type is not supported")
    total = op.call(R.take, words, ids, axis=0, mode="wrap")
    given = op.optional(8)
    if given is None:
        rows = cut(op, places, 0, 0, ids.shape[1])
    else:
        rows = op.call(R.take, places, given, axis=0, mode="wrap")
    total = op.call(R.add, total, rows)
    if segments is not None and kinds is not None:
        total = op.call(R.add, total, op.call(R.take, kinds, segments, axis=0, mode="wrap"))
    epsilon = op.attr("epsilon", 1e-12)
    result = op.call(R.nn.layer_norm, total, op.input(5), op.input(6), axes=[2], epsilon=epsilon)
    return [result, None, total]


@register("Attention", domain=DOMAIN)
def attention(op: NodeContext) -> Value:
    """Self-attention with one weight for query, key and value (no past, no sequence lengths).

    A mask of rank 2 is 1 where a key may be seen, [batch, keys].
    """
    data, weight, bias, mask = op.input(0), op.input(1), op.optional(2), op.optional(3)
    heads = op.attr("num_heads")
    for name in ("qkv_hidden_sizes", "do_rotary", "past_present_share_buffer"):
        if op.attr(name, 0):
            op.fail(f"attribute {name!r} is not supported")
    if any(op.optional(index) is not None for index in (4, 6)):
        op.fail("a past state is not supported")
    batch, length, _ = data.shape
    hidden = weight.shape[1] // 3
    size = hidden // heads
    packed = product(op, data, weight)
    packed = packed if bias is None else op.call(R.add, packed, bias)
    query, key, value = (
        op.call(
            R.permute_dims,
            reshape_to(
                op, cut(op, packed, 2, k * hidden, (k + 1) * hidden), (batch, length, heads, size)
            ),
            [0, 2, 3, 1] if k == 1 else [0, 2, 1, 3],
        )
        for k in range(3)
    )
    scores = scaled(op, product(op, query, key), op.attr("scale", 0.0) or 1 / math.sqrt(size))
    if op.optional(5) is not None:
        scores = op.call(R.add, scores, op.input(5))
    scores = _masked(op, scores, mask, op.attr("mask_filter_value", -10000.0))
    if op.attr("unidirectional", 0):
        seen = np.tril(np.ones((length, length), bool))
        scores = op.call(R.where, constant(seen), scores, op.scalar(-np.inf, scores.dtype))
    context = product(op, op.call(R.nn.softmax, scores, -1), value)
    context = op.call(R.permute_dims, context, [0, 2, 1, 3])
    return reshape_to(op, context, (batch, length, hidden))


def _masked(op: NodeContext, scores: Value, mask: Value | None, fill: float) -> Value:
    """Add the filter value where a mask of rank 2 is 0."""
    if mask is None:
        return scores
    if mask.rank != 2:
        op.fail(f"a mask of rank {mask.rank}; supported is [batch, keys]")
    hidden = op.call(R.equal, mask, op.scalar(0, mask.dtype))
    penalty = op.call(R.where, hidden, op.scalar(fill, scores.dtype), op.scalar(0, scores.dtype))
    return op.call(R.add, scores, reshape_to(op, penalty, (mask.shape[0], 1, 1, mask.shape[1])))


@register("QLinearAdd", domain=DOMAIN)
@register("QLinearMul", domain=DOMAIN)
def qlinear_binary(op: NodeContext) -> Value:
    """Element-wise sum or product of quantized tensors."""
    left, right = (_real(op, index) for index in (0, 3))
    function = R.add if op.node.op_type == "QLinearAdd" else R.multiply
    return _quantized(op, op.call(function, left, right), 6)


@register("QLinearSigmoid", domain=DOMAIN)
@register("QLinearLeakyRelu", domain=DOMAIN)
def qlinear_unary(op: NodeContext) -> Value:
    """Activation of a quantized tensor."""
    value = _real(op, 0)
    if op.node.op_type == "QLinearSigmoid":
        result = op.call(R.sigmoid, value)
    else:
        result = op.call(R.nn.leakyrelu, value, op.attr("alpha", 0.01))
    return _quantized(op, result, 3)


@register("QLinearGlobalAveragePool", domain=DOMAIN)
def qlinear_global_average_pool(op: NodeContext) -> Value:
    """Mean of a quantized tensor over its spatial dimensions."""
    if op.attr("channels_last", 0):
        op.fail("channels_last is not supported")
    value = _real(op, 0)
    axes = list(range(2, value.rank))
    return _quantized(op, op.call(R.mean, value, axis=axes, keepdims=True), 3)


@register("QLinearConcat", domain=DOMAIN)
def qlinear_concat(op: NodeContext) -> Value:
    """Concatenation of quantized tensors, each with its own scale."""
    parts = [_real(op, index) for index in range(2, len(op.inputs), 3)]
    joined = op.call(R.concat, parts, axis=op.attr("axis"))
    return quantized(op, joined, op.input(0), op.input(1), op.input(1).dtype)


@register("QLinearSoftmax", domain=DOMAIN)
def qlinear_softmax(op: NodeContext) -> Value:
    """Softmax of a quantized tensor along an axis."""
    op.attr("opset")
    result = op.call(R.nn.softmax, _real(op, 0), axis=op.attr("axis", -1))
    return _quantized(op, result, 3)


def _real(op: NodeContext, index: int) -> Value:
    """Dequantize input ``index`` with the scale and zero point that follow it."""
    data, scale, zero = op.input(index), op.input(index + 1), op.optional(index + 2)
    known = real(op, data, scale, zero)
    if known is not None:
        return known
    centred = centre(op, data, zero)
    return op.call(R.multiply, op.call(R.astype, centred, "float32"), scale)


def _quantized(op: NodeContext, value: Value, index: int) -> Value:
    """Quantize with the scale and zero point of inputs ``index`` and the one that follows."""
    zero = op.optional(index + 1)
    dtype = op.input(0).dtype if zero is None else zero.dtype
    return quantized(op, value, op.input(index), zero, dtype)


@register("QGemm", domain=DOMAIN)
def qgemm(op: NodeContext) -> Value:
    """Quantized matrix product with an int32 bias; float32 out where no output scale is given."""
    value = _known_qgemm(op)
    if value is None:
        value = _open_qgemm(op)
    if op.optional(7) is None:
        return value
    zero = op.optional(8)
    dtype = "uint8" if zero is None else zero.dtype
    return quantized(op, value, op.input(7), zero, dtype)


def _known_qgemm(op: NodeContext) -> Value | None:
    """Return the product of dequantized operands, which a pass makes integer again."""
    weight, bias = op.input(3), op.optional(6)
    if weight.data is None or (bias is not None and bias.data is None) or op.attr("transA", 0):
        return None
    if op.attr("alpha", 1.0) != 1.0:
        return None
    by_column = 0 if op.attr("transB", 0) else 1
    left = real(op, op.input(0), op.input(1), op.optional(2))
    right = real(op, weight, op.input(4), op.optional(5), by_column)
    if left is None or right is None:
        return None
    result = op.call(R.matmul, left, transposed(op, right) if by_column == 0 else right)
    if bias is None:
        return result
    return op.call(R.add, result, real_bias(op, bias, op.input(1), op.input(4)))


def _open_qgemm(op: NodeContext) -> Value:
    """Return the product in integers, scaled."""
    left, right = (centre(op, op.input(index), op.optional(index + 2)) for index in (0, 3))
    left = transposed(op, left) if op.attr("transA", 0) else left
    right = transposed(op, right) if op.attr("transB", 0) else right
    result = op.call(R.matmul, left, right)
    if op.optional(6) is not None:
        result = op.call(R.add, result, op.input(6))
    scale = scaled(op, op.call(R.multiply, op.input(1), op.input(4)), op.attr("alpha", 1.0))
    return op.call(R.multiply, op.call(R.astype, result, "float32"), scale)
