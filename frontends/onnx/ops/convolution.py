"""Convolution and transposed convolution in one to three dimensions."""

from __future__ import annotations

from typing import Any

import numpy as np
from tvm import relax, te, tirx, topi

from tilewright.frontends.onnx.node import NodeContext
from tilewright.frontends.onnx.ops.elementwise import cast
from tilewright.frontends.onnx.ops.window import Window, read_window
from tilewright.frontends.onnx.registry import register
from tilewright.frontends.onnx.values import Value, constant

R = relax.op

_CONV = {1: R.nn.conv1d, 2: R.nn.conv2d, 3: R.nn.conv3d}
_TRANSPOSE = {1: R.nn.conv1d_transpose, 2: R.nn.conv2d_transpose, 3: R.nn.conv3d_transpose}


@register("Conv")
def conv(op: NodeContext) -> Value:
    """https://onnx.ai/onnx/operators/onnx__Conv.html (one to three spatial dimensions)."""
    data, weight, bias = op.input(0), op.input(1), op.optional(2)
    window = read_window(op, data.shape[2:], weight.shape[2:])
    groups = op.attr("group")
    if window.rank not in _CONV:
        op.fail(f"{window.rank} spatial dimensions; supported are 1 to 3")
    if data.shape[1] != weight.shape[1] * groups:
        raise ValueError(
            f"data has {data.shape[1]} channels, the weight expects "
            f"{weight.shape[1]} x {groups} groups"
        )
    result = op.call(
        _CONV[window.rank],
        data,
        weight,
        strides=window.strides,
        padding=window.padding,
        dilation=window.dilations,
        groups=groups,
        out_dtype="float32" if data.dtype in ("float16", "bfloat16") else data.dtype,
    )
    return with_bias(op, cast(op, result, data.dtype), bias)


def conv_te(op: NodeContext, data: Value, weight: Value, window: Window, groups: int) -> Value:
    """Emit a convolution as a tensor expression, for element types that Relax's do not take."""
    counts = window.output(data.shape[2:])
    return op.te(_conv, data, weight, window, groups, counts, name="conv")


def _conv(
    data: te.Tensor, weight: te.Tensor, window: Window, groups: int, counts: tuple[int, ...]
) -> te.Tensor:
    rank, out_channels = window.rank, int(weight.shape[0])
    extents = [int(extent) for extent in data.shape[2:]]
    channel = te.reduce_axis((0, int(weight.shape[1])), "rc")
    taps = [te.reduce_axis((0, extent), f"r{axis}") for axis, extent in enumerate(window.kernel)]
    depth = int(weight.shape[1])

    def element(n: Any, c: Any, *at: Any) -> Any:
        places = [
            at[axis] * window.strides[axis] + taps[axis] * window.dilations[axis]
            for axis in range(rank)
        ]
        group = tirx.floordiv(c, out_channels // groups)
        value = padded(n, group * depth + channel, *places)
        return te.sum(value * weight(c, channel, *taps), axis=[channel, *taps])

    padded = _bordered(data, window, extents)
    return te.compute((data.shape[0], out_channels, *counts), element, name="conv")


def _bordered(data: te.Tensor, window: Window, extents: list[int]) -> te.Tensor:
    if not any(window.padding):
        return data
    return topi.nn.pad(data, [0, 0, *window.begin], [0, 0, *window.end], 0)


def with_bias(op: NodeContext, data: Value, bias: Value | None) -> Value:
    """Add a bias of shape [C] to a tensor of shape [N, C, ...]."""
    if bias is None:
        return data
    shape = (bias.size, *(1,) * (data.rank - 2))
    if bias.data is not None:
        return op.call(R.add, data, constant(bias.data.reshape(shape)))
    return op.call(R.add, data, op.call(R.reshape, bias, shape))


@register("ConvTranspose")
def conv_transpose(op: NodeContext) -> Value:
    """https://onnx.ai/onnx/operators/onnx__ConvTranspose.html (one to three dimensions).

    Output padding only crops less at the end, so it is taken off the padding; what is left below
    zero is appended as zeros. The kernel of a dilated one is spread with zeros, because Relax has
    no dilated transposed convolution.
    """
    data, weight, bias = op.input(0), op.input(1), op.optional(2)
    rank = data.rank - 2
    if rank not in _TRANSPOSE:
        op.fail(f"{rank} spatial dimensions; supported are 1 to 3")
    begin, end, strides, dilations = _transpose_window(op, data.shape[2:], weight.shape[2:])
    result = op.call(
        _TRANSPOSE[rank],
        data,
        _dilated(op, weight, dilations),
        strides=strides,
        padding=(*(max(0, pad) for pad in begin), *(max(0, pad) for pad in end)),
        groups=op.attr("group"),
    )
    if min(*begin, *end) < 0:
        widths = [0, 0, 0, 0]
        for before, after in zip(begin, end, strict=True):
            widths += [max(0, -before), max(0, -after)]
        result = op.call(R.nn.pad, result, widths)
    return with_bias(op, result, bias)


def _transpose_window(
    op: NodeContext, extents: tuple[int, ...], kernel: tuple[int, ...]
) -> tuple[list[int], list[int], tuple[int, ...], tuple[int, ...]]:
    """Read what a transposed convolution crops at each side, its strides and dilations."""
    rank = len(extents)
    op.attr("kernel_shape")
    strides = op.attr("strides") or (1,) * rank
    dilations = op.attr("dilations") or (1,) * rank
    extra = op.attr("output_padding") or (0,) * rank
    pads = op.attr("pads") or (0,) * (2 * rank)
    auto_pad, wanted = op.attr("auto_pad"), op.attr("output_shape")
    begin, end = list(pads[:rank]), list(pads[rank:])
    if auto_pad in ("SAME_UPPER", "SAME_LOWER") and wanted is None:
        wanted = tuple(n * stride for n, stride in zip(extents, strides, strict=True))
    if wanted is not None:
        for axis in range(rank):
            reach = (kernel[axis] - 1) * dilations[axis] + 1
            full = strides[axis] * (extents[axis] - 1) + extra[axis] + reach
            total = full - wanted[-rank:][axis]
            half = total // 2
            begin[axis] = half if auto_pad == "SAME_UPPER" else total - half
            end[axis] = total - begin[axis]
    return begin, [pad - more for pad, more in zip(end, extra, strict=True)], strides, dilations


def _dilated(op: NodeContext, weight: Value, dilations: tuple[int, ...]) -> Value:
    """Spread a kernel: put ``dilation - 1`` zeros between its taps."""
    if all(dilation == 1 for dilation in dilations):
        return weight
    if weight.data is None:
        return op.te(topi.nn.dilate, weight, [1, 1, *dilations], name="dilate")
    spread = [
        (extent - 1) * dilation + 1
        for extent, dilation in zip(weight.shape[2:], dilations, strict=True)
    ]
    data = np.zeros((*weight.shape[:2], *spread), weight.data.dtype)
    data[(slice(None), slice(None), *(slice(None, None, step) for step in dilations))] = weight.data
    return constant(data)
