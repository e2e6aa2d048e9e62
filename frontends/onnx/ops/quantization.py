"""Quantization: conversion to and from integers, and operators on integers."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from tvm import relax, te, tirx

from tilewright.compiler.quantize.affine import BITS, RANGES, emit_affine, saturated
from tilewright.frontends.onnx.blocked import BlockedConstant
from tilewright.frontends.onnx.folding import fold
from tilewright.frontends.onnx.node import NodeContext
from tilewright.frontends.onnx.ops.convolution import conv_te, with_bias
from tilewright.frontends.onnx.ops.division import quotient
from tilewright.frontends.onnx.ops.elementwise import FLOATS, cast, round_to_even
from tilewright.frontends.onnx.ops.integer_products import dot_convolution, dot_product
from tilewright.frontends.onnx.ops.small_types import decode, is_small_integer
from tilewright.frontends.onnx.ops.window import read_window
from tilewright.frontends.onnx.registry import register
from tilewright.frontends.onnx.values import Value, constant, dtype_of_onnx, is_small

R = relax.op

MICROSOFT = "com.microsoft"
_CONV = {1: R.nn.conv1d, 2: R.nn.conv2d, 3: R.nn.conv3d}
_WHOLE_BYTES = {dtype: bounds for dtype, bounds in RANGES.items() if not is_small(dtype)}


def along(op: NodeContext, value: Value, shape: Sequence[int], axis: int, block: int) -> Value:
    """Shape a scale or zero point so that it broadcasts against data.

    Args:
        op: The node.
        value: A scalar, one element per position of ``axis``, or one per block of the axis.
        shape: Shape of the data.
        axis: Axis that the elements run along.
        block: Number of positions that share one element; 0 if there are no blocks.
    """
    if value.size == 1:
        return _reshaped(op, value, ())
    if block:
        repeated = _repeated(op, value, block, axis)
        if repeated.shape[axis] == shape[axis]:
            return repeated
        return op.call(R.strided_slice, repeated, [axis], [0], [shape[axis]], assume_inbound=True)
    if value.rank == 1:
        return _reshaped(op, value, [value.size, *(1,) * (len(shape) - axis - 1)])
    return value


def _reshaped(op: NodeContext, value: Value, shape: Sequence[int]) -> Value:
    if value.data is not None:
        return constant(value.data.reshape(shape))
    return op.call(R.reshape, value, tuple(shape))


def _repeated(op: NodeContext, value: Value, count: int, axis: int) -> Value:
    if value.data is not None:
        return constant(np.repeat(value.data, count, axis))
    return op.call(R.repeat, value, count, axis)


@register("QuantizeLinear", domain=MICROSOFT)
@register("QuantizeLinear", 10)
def quantize_linear(op: NodeContext) -> Value:
    """https://onnx.ai/onnx/operators/onnx__QuantizeLinear.html

    Divides in the type of the data, rounds half to even, adds the zero point and saturates.
    """
    data, scale, zero = op.input(0), op.input(1), op.optional(2)
    axis, block = op.attr("axis", 1), op.attr("block_size", 0)
    saturate = bool(op.attr("saturate", 1))
    output, precision = op.attr("output_dtype", 0), op.attr("precision", 0)
    dtype = zero.dtype if zero is not None else dtype_of_onnx(output) if output else "uint8"
    if dtype not in _WHOLE_BYTES and not is_small(dtype):
        types = ", ".join(_WHOLE_BYTES)
        op.fail(f"quantization to {dtype}; supported are {types} and smaller types")
    axis = axis % data.rank if data.rank else 0
    wide = dtype_of_onnx(precision) if precision else "float32"
    fixed = dtype in RANGES and is_fixed(data, scale, zero, axis, block)
    if fixed and data.dtype == wide == scale.dtype == "float32":
        result = affine(op, "quantize", data, dtype, scale, zero, axis)
        return op.from_bits(result, dtype) if is_small(dtype) else result
    if data.dtype == "float64":
        wide = "float64"
    scale = along(op, cast(op, scale, wide), data.shape, axis, block)
    if zero is not None:
        zero = along(op, _widened(op, zero), data.shape, axis, block)
    return quantize(op, cast(op, data, wide), scale, zero, dtype, saturate)


def _widened(op: NodeContext, value: Value) -> Value:
    """Decode a value of a small type, which has no arithmetic."""
    return decode(op, value) if is_small(value.dtype) else value


def quantize(
    op: NodeContext,
    data: Value,
    scale: Value,
    zero: Value | None,
    dtype: str,
    saturate: bool = True,
) -> Value:
    """Compute saturate(round_half_even(data / scale) + zero); a small float rounds once, last."""
    if is_small(dtype) and not is_small_integer(dtype):
        scaled = quotient(op, data, scale)
        if zero is not None and not (zero.data is not None and not zero.data.any()):
            scaled = op.call(R.add, scaled, cast(op, zero, scaled.dtype))
        return cast(op, scaled, dtype, saturate)
    if dtype in _WHOLE_BYTES and data.dtype == scale.dtype == "float32" and scale.rank == 0:
        zero = op.scalar(0, "int32") if zero is None else cast(op, zero, "int32")
        if zero.rank == 0:
            return op.te(_saturated, data, scale, zero, dtype, name="quantize_linear")
    rounded = round_to_even(op, quotient(op, data, scale))
    if zero is not None:
        rounded = op.call(R.add, rounded, cast(op, zero, rounded.dtype))
    low, high = RANGES[dtype]
    clipped = op.call(R.clip, rounded, min=float(low), max=float(high))
    return cast(op, cast(op, clipped, "int32"), dtype)


def _saturated(data: te.Tensor, scale: te.Tensor, zero: te.Tensor, dtype: str) -> te.Tensor:
    return te.compute(
        data.shape, lambda *at: saturated(data(*at) / scale(), zero(), dtype), name="quantized"
    )


@register("DequantizeLinear", domain=MICROSOFT, foldable=False)
@register("DequantizeLinear", 10, foldable=False)
def dequantize_linear(op: NodeContext) -> Value:
    """https://onnx.ai/onnx/operators/onnx__DequantizeLinear.html"""
    data, scale, zero = op.input(0), op.input(1), op.optional(2)
    axis, block = op.attr("axis", 1), op.attr("block_size", 0)
    output = op.attr("output_dtype", 0)
    axis = axis % data.rank if data.rank else 0
    dtype = dtype_of_onnx(output) if output else scale.dtype
    fixed = dtype == scale.dtype == "float32" and is_fixed(data, scale, zero, axis, block)
    if fixed and data.dtype in _AFFINE:
        return affine(op, "dequantize", data, data.dtype, scale, zero, axis)
    if fixed and data.dtype in BITS:
        if data.data is None:
            return affine(op, "dequantize", op.bits(data), data.dtype, scale, zero, axis)
        whole = constant(data.data, "uint8" if data.dtype.startswith("u") else "int8")
        return affine(op, "dequantize", whole, whole.dtype, scale, zero, axis)
    integers, data = data, _widened(op, data)
    if all(value is None or value.is_constant for value in (data, scale, zero)):
        folded = fold(op.node, op.inputs, op.opset)
        if folded is not None:
            result = constant(folded[0])
            if block and dtype == "float32":
                _remember_blocks(op, result, integers, axis, block)
            return result
    elif block:
        op.builder.decoded[op.hint] = "its integers, scales or zero points are no constants"
    scale = along(op, cast(op, scale, dtype), data.shape, axis, block)
    if zero is None:
        return op.call(R.multiply, cast(op, data, dtype), scale)
    centred = centre(op, data, along(op, _widened(op, zero), data.shape, axis, block))
    return op.call(R.multiply, cast(op, centred, dtype), scale)


def _remember_blocks(
    op: NodeContext, result: Value, integers: Value, axis: int, block: int
) -> None:
    """Keep the integers behind a constant, for a product that unpacks them itself."""
    zero = op.optional_data(2)
    assert integers.data is not None
    result.blocks = BlockedConstant(
        op.hint,
        integers.data.astype(np.int16),
        op.data(1).astype(np.float32),
        None if zero is None else zero.astype(np.int16),
        integers.dtype,
        axis,
        block,
    )
    op.builder.decoded[op.hint] = "no matrix product reads it"


_AFFINE = (*_WHOLE_BYTES, "int32")


def is_fixed(data: Value, scale: Value, zero: Value | None, axis: int, block: int) -> bool:
    """Say whether scale and zero point are known, for the whole tensor or for each channel."""
    if scale.data is None or (zero is not None and zero.data is None) or block:
        return False
    if zero is not None and zero.size != scale.size:
        return False
    return scale.size == 1 or (scale.rank == 1 and scale.size == data.shape[axis])


def affine(
    op: NodeContext, kind: str, data: Value, dtype: str, scale: Value, zero: Value | None, axis: int
) -> Value:
    """Emit a conversion that passes can read back; see `compiler.quantize.affine`.

    A dequantized constant is also known when compiling, for converters that ask.
    """
    assert scale.data is not None
    scales = np.asarray(scale.data, "float32")
    zeros = np.zeros(scales.shape) if zero is None else np.asarray(zero.data)
    if scales.size == 1:
        scales, zeros = scales.reshape(()), zeros.reshape(())
    zeros = zeros.astype("int32")
    source = op.builder.expr(data)
    call = emit_affine(op.builder.block, kind, source, dtype, scales, zeros, axis)
    result = op.builder.emit(call, op.hint)
    if kind == "dequantize" and data.data is not None:
        column = [1] * data.rank
        if scales.ndim:
            column[axis] = -1
        centred = np.asarray(data.data).astype("int32") - zeros.reshape(column)
        result.data = (centred.astype("float32") * scales.reshape(column)).reshape(data.shape)
    return result


def real(
    op: NodeContext, data: Value, scale: Value, zero: Value | None, axis: int = 0
) -> Value | None:
    """Dequantize an operand of a quantized operator, or return None where it is not fixed."""
    if data.dtype not in _AFFINE or not is_fixed(data, scale, zero, axis, 0):
        return None
    return affine(op, "dequantize", data, data.dtype, scale, zero, axis)


def quantized(op: NodeContext, data: Value, scale: Value, zero: Value | None, dtype: str) -> Value:
    """Quantize the result of a quantized operator."""
    if dtype in _WHOLE_BYTES and is_fixed(data, scale, zero, 0, 0):
        return affine(op, "quantize", data, dtype, scale, zero, 0)
    return quantize(op, data, scale, zero, dtype)


def real_bias(op: NodeContext, bias: Value, data_scale: Value, weight_scale: Value) -> Value:
    """Return an integer bias in floats; its scale is that of the products."""
    assert bias.data is not None
    assert data_scale.data is not None
    assert weight_scale.data is not None
    scale = np.float32(data_scale.data.reshape(())) * weight_scale.data.astype("float32")
    return constant(bias.data.astype("float32") * scale.reshape(-1))


def centre(op: NodeContext, data: Value, zero: Value | None) -> Value:
    """Take the zero point off, in int32; a zero point of 0 costs nothing."""
    wide = data if data.dtype in FLOATS else cast(op, data, "int32")
    if zero is None or (zero.data is not None and not zero.data.any()):
        return wide
    return op.call(R.subtract, wide, cast(op, zero, wide.dtype))


@register("DynamicQuantizeLinear", 11)
def dynamic_quantize_linear(op: NodeContext) -> list[Value]:
    """https://onnx.ai/onnx/operators/onnx__DynamicQuantizeLinear.html"""
    data = op.input(0)
    zero = op.scalar(0, "float32")
    axes = list(range(data.rank))
    low = op.call(R.minimum, op.call(R.min, data, axis=axes), zero)
    high = op.call(R.maximum, op.call(R.max, data, axis=axes), zero)
    scale = op.call(R.divide, op.call(R.subtract, high, low), op.scalar(255, "float32"))
    safe = op.call(R.where, op.call(R.equal, scale, zero), op.scalar(1, "float32"), scale)
    point = op.call(R.subtract, zero, op.call(R.divide, low, safe))
    point = op.call(R.clip, round_to_even(op, point), min=0.0, max=255.0)
    point = cast(op, cast(op, point, "int32"), "uint8")
    return [quantize(op, data, safe, point, "uint8"), scale, point]


@register("MatMulInteger", 10)
def matmul_integer(op: NodeContext) -> Value:
    """https://onnx.ai/onnx/operators/onnx__MatMulInteger.html (int32 accumulation)."""
    left, right = op.input(0), op.input(1)
    fast = dot_product(op, left, op.optional(2), right, op.optional(3))
    if fast is not None:
        return fast
    left = centre(op, left, _rows(op, op.optional(2), left.rank))
    return op.call(R.matmul, left, centre(op, right, op.optional(3)))


def _rows(op: NodeContext, value: Value | None, rank: int) -> Value | None:
    """Turn one element per row of a matrix into a column."""
    if value is None or value.size == 1 or value.rank > 1 or rank < 2:
        return value
    return _reshaped(op, value, (value.size, 1))


@register("QLinearMatMul", 10)
def qlinear_matmul(op: NodeContext) -> Value:
    """https://onnx.ai/onnx/operators/onnx__QLinearMatMul.html"""
    left, left_scale, left_zero, right, right_scale, right_zero = (
        op.input(index) for index in range(6)
    )
    rank = left.rank
    if right.data is not None and right.rank == 2:
        a = real(op, left, left_scale, left_zero)
        b = real(op, right, right_scale, right_zero, 1)
        if a is not None and b is not None:
            zero = op.input(7)
            return quantized(op, op.call(R.matmul, a, b), op.input(6), zero, zero.dtype)
    left = centre(op, left, _rows(op, left_zero, rank))
    product = op.call(R.matmul, left, centre(op, right, right_zero))
    scale = op.call(
        R.multiply,
        cast(op, _rows(op, left_scale, rank) or left_scale, "float32"),
        cast(op, right_scale, "float32"),
    )
    return requantize(op, product, scale, op.input(6), op.input(7))


def requantize(
    op: NodeContext, accumulator: Value, scale: Value, out_scale: Value, out_zero: Value
) -> Value:
    """Scale an int32 accumulator to the output's quantization."""
    real = op.call(R.multiply, cast(op, accumulator, "float32"), scale)
    return quantize(op, real, cast(op, out_scale, "float32"), out_zero, out_zero.dtype)


@register("ConvInteger", 10)
def conv_integer(op: NodeContext) -> Value:
    """https://onnx.ai/onnx/operators/onnx__ConvInteger.html (pads with the zero point)."""
    return _integer_conv(op, op.input(0), op.optional(2), op.input(1), op.optional(3))


def _integer_conv(
    op: NodeContext, data: Value, zero: Value | None, weight: Value, weight_zero: Value | None
) -> Value:
    """Convolve centred integers; centring before padding makes the border the zero point."""
    window = read_window(op, data.shape[2:], weight.shape[2:])
    groups = op.attr("group")
    fast = dot_convolution(op, data, zero, weight, weight_zero, window, groups)
    if fast is not None:
        return fast
    if weight_zero is not None and weight_zero.size > 1:
        weight_zero = _reshaped(op, weight_zero, (weight_zero.size, *(1,) * (weight.rank - 1)))
    return conv_te(op, centre(op, data, zero), centre(op, weight, weight_zero), window, groups)


@register("QLinearConv", 10)
def qlinear_conv(op: NodeContext) -> Value:
    """https://onnx.ai/onnx/operators/onnx__QLinearConv.html"""
    data, data_scale, data_zero, weight, weight_scale, weight_zero = (
        op.input(index) for index in range(6)
    )
    out_scale, out_zero, bias = op.input(6), op.input(7), op.optional(8)
    x, w = real(op, data, data_scale, data_zero), real(op, weight, weight_scale, weight_zero)
    known_bias = bias is None or bias.data is not None
    if x is not None and w is not None and weight.data is not None and known_bias:
        result = _float_conv(op, x, w)
        if bias is not None:
            result = with_bias(op, result, real_bias(op, bias, data_scale, weight_scale))
        return quantized(op, result, out_scale, out_zero, out_zero.dtype)
    result = _integer_conv(op, data, data_zero, weight, weight_zero)
    column = (-1, *(1,) * (data.rank - 2))
    if bias is not None:
        result = op.call(R.add, result, _reshaped(op, bias, (bias.size, *column[1:])))
    if weight_scale.size > 1:
        weight_scale = _reshaped(op, weight_scale, (weight_scale.size, *column[1:]))
    scale = op.call(R.multiply, data_scale, weight_scale)
    return requantize(op, result, scale, out_scale, out_zero)


def _float_conv(op: NodeContext, data: Value, weight: Value) -> Value:
    window = read_window(op, data.shape[2:], weight.shape[2:])
    return op.call(
        _CONV[window.rank],
        data,
        weight,
        strides=window.strides,
        padding=window.padding,
        dilation=window.dilations,
        groups=op.attr("group"),
    )


@register("BitCast", 26)
def bit_cast(op: NodeContext) -> Value:
    """https://onnx.ai/onnx/operators/onnx__BitCast.html (types of the same width)."""
    data, dtype = op.input(0), dtype_of_onnx(op.attr("to"))
    if dtype == data.dtype:
        return data
    if "bool" in (dtype, data.dtype):
        # A boolean is one byte that holds 0 or 1.
        wide = data if data.dtype != "int8" else bit_cast_to(op, data, "uint8")
        return cast(op, cast(op, wide, "uint8"), dtype)
    return bit_cast_to(op, data, dtype)


def bit_cast_to(op: NodeContext, data: Value, dtype: str) -> Value:
    """Read the bits of a tensor as another type."""

    def compute(source: te.Tensor) -> te.Tensor:
        return te.compute(
            source.shape, lambda *at: tirx.reinterpret(dtype, source(*at)), name="bit_cast"
        )

    return op.te(compute, data, name="bit_cast")
