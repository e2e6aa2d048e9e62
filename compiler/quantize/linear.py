"""Convolutions and matrix products on quantized operands: recognised, and made integer.

    sum (x - zx) (w - zw) sx sw = (sum x (w - zw) - zx sum (w - zw)) sx sw

The weights are centred when compiling, and the second sum is a constant per output channel that
joins the bias. It holds at the border too, because the integer operator pads with zx.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from tvm import relax, te, tirx, topi

from tilewright.compiler.quantize.affine import BITS, Affine, unsigned_zero
from tilewright.compiler.quantize.columns import Columns, columns_of
from tilewright.compiler.quantize.graph import Graph
from tilewright.compiler.quantize.low_bit import (
    ANY_BYTE,
    WeightRange,
    data_mask,
    name_of,
    narrowed_data,
    narrowed_weight,
    weight_range,
)
from tilewright.compiler.relax_utils import op_name, static_shape

_CONVOLUTIONS = {"relax.nn.conv1d": 1, "relax.nn.conv2d": 2, "relax.nn.conv3d": 3}
_MATMUL = "relax.matmul"
# The dot instructions sum products in groups of at most this many.
_GROUP = 4
# A float bias counts as an integer multiple of the accumulator's scale up to this error.
_BIAS_ERROR = 1e-2
_INT32_LIMIT = 2.0**31
_BYTE = 8


@dataclass(frozen=True, eq=False)
class Linear:
    """An integer convolution or matrix product.

    Attributes:
        data: variable of the dequantized data.
        affine: how the data was dequantized, with the zero point of unsigned bytes.
        weight: int8, centred, input channels padded to whole groups.
        scale: float32 per output channel (or one for all): accumulator -> float.
        offset: int32 per output channel: what joins the accumulator.
        channel: dimension of the output that the channels are, from the right.
        pad_channels: channels of zeros that the data lacks.
        columns: neighbouring columns of the data that stand side by side as channels, see
            `quantize.columns`; their padding along the width is done with.
        window: (strides, padding, dilation, groups) of a convolution, None for a product.
        weights: which integers the weights are.
        mask: bits that can be set in the data.
    """

    data: relax.Var
    affine: Affine
    weight: np.ndarray
    scale: np.ndarray
    offset: np.ndarray
    channel: int
    pad_channels: int
    window: tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...], int] | None
    weights: WeightRange = ANY_BYTE
    mask: int = 0xFF
    columns: Columns | None = None

    @property
    def is_narrow(self) -> bool:
        """Whether fewer than 8 bits are enough for a factor, of sums over many channels."""
        grouped = self.window is not None and self.window[-1] > 1
        return not grouped and (self.weights.bits < _BYTE or self.mask < (1 << _BYTE) - 1)

    @property
    def form(self) -> str:
        """Bits of weights and data, for instance "W4A8"."""
        return name_of(self.weights, self.mask)

    @property
    def bound(self) -> int:
        """Return the greatest absolute accumulator, offset included."""
        summed = tuple(axis for axis in range(self.weight.ndim) if axis != self._out_axis)
        sums = np.abs(self.weight.astype(np.int64)).sum(axis=summed)
        return int((sums * 255 + np.abs(self.offset.astype(np.int64))).max(initial=0))

    @property
    def _out_axis(self) -> int:
        return self.weight.ndim - 1 if self.window is None else 0

    def with_bias(self, bias: np.ndarray, *, exact: bool = True) -> Linear | None:
        """Return the operator with a float bias in integers.

        Args:
            bias: one number, or one for each output channel.
            exact: None is returned where the bias would have to be rounded to the accumulator's
                scale; else it is rounded, and limited where it leaves 32 bits.
        """
        if bias.size not in (1, self.offset.size):
            return None
        steps = bias.reshape(-1).astype(np.float64) / self.scale.astype(np.float64)
        whole = np.rint(steps)
        if not exact:
            limit = _INT32_LIMIT / 2
            whole = np.clip(whole, -limit, limit)
        elif np.any(np.abs(steps - whole) > _BIAS_ERROR + 1e-6 * np.abs(steps)):
            return None
        total = self.offset.astype(np.float64) + whole
        if np.abs(total).max() >= _INT32_LIMIT:
            return None
        return replace(self, offset=total.astype(np.int32))


def read_linear(graph: Graph, var: relax.Var) -> Linear | None:
    """Return the integer operator that computes a variable, or None if there is none."""
    call = graph.made_by(var)
    name = op_name(call)
    if call is None or (name not in _CONVOLUTIONS and name != _MATMUL):
        return None
    data, weight = call.args
    affine = graph.of_kind(data, "dequantize")
    constant = graph.quantized_constant(weight)
    if affine is None or constant is None or not affine.in_bytes:
        return None
    out_axis = 0 if name in _CONVOLUTIONS else constant.integers.ndim - 1
    centred = _centred(constant.integers, constant.affine, out_axis)
    if centred is None or (name == _MATMUL and constant.integers.ndim != 2):
        return None
    # Signed data is read as unsigned, int8 128 higher.
    affine = replace(affine, zero=np.array(unsigned_zero(affine), "int32"))
    summed = tuple(axis for axis in range(centred.ndim) if axis != out_axis)
    sums = centred.astype(np.int64).sum(axis=summed)
    mask = data_mask(graph, graph.affines[data])
    bound = np.abs(centred.astype(np.int64)).sum(axis=summed).max(initial=0) * 255
    if 2 * bound >= _INT32_LIMIT:
        return None
    offset = (-int(affine.zero) * sums).astype(np.int32)
    scale = np.float32(affine.scale) * constant.affine.scale.astype(np.float32)
    scale = np.broadcast_to(scale, offset.shape).astype(np.float32)
    window, columns, pad, channel = None, None, 0, 1
    if name in _CONVOLUTIONS:
        attrs = call.attrs
        groups = int(attrs.groups)
        channel = 1 + _CONVOLUTIONS[name]
        window = (_ints(attrs.strides), _ints(attrs.padding), _ints(attrs.dilation), groups)
        columns = columns_of(centred, window, static_shape(data)[-1])
        if columns is not None:
            centred, window = columns.weight(centred), columns.window(window)
        if groups == 1:
            pad = -centred.shape[1] % _GROUP
    elif centred.shape[0] % _GROUP:
        pad = -centred.shape[0] % _GROUP
    weights = weight_range(centred)
    if pad:
        # The border of data is its zero point, in channels that are not there too.
        weights = replace(weights, is_sign=weights.is_sign and not affine.zero)
        in_axis = 1 - out_axis
        widths = [(0, pad if axis == in_axis else 0) for axis in range(centred.ndim)]
        centred = np.pad(centred, widths)
    return Linear(
        *(data, affine, centred, scale, offset, channel, pad, window, weights, mask, columns)
    )


def _ints(values: Any) -> tuple[int, ...]:
    return tuple(int(value) for value in values)


def _centred(integers: np.ndarray, affine: Affine, out_axis: int) -> np.ndarray | None:
    """Return the weights less their zero points as int8, or None where they do not fit."""
    if affine.dtype not in BITS:
        return None
    if not affine.is_uniform and affine.axis != out_axis:
        return None
    return centred_bytes(integers, affine.zero, out_axis)


def centred_bytes(integers: np.ndarray, zero: np.ndarray, axis: int) -> np.ndarray | None:
    """Return integers less their zero points as int8, or None where they do not fit.

    Args:
        integers: the data.
        zero: int32, [] or one per position of `axis`.
        axis: see `zero`.
    """
    column = [1] * integers.ndim
    if zero.ndim:
        column[axis] = -1
    centred = integers.astype(np.int32) - zero.reshape(column)
    if centred.min(initial=0) < -128 or centred.max(initial=0) > 127:
        return None
    return centred.astype(np.int8)


def accumulate(linear: Linear, data: te.Tensor, weight: te.Tensor) -> te.Tensor:
    """Return the int32 sums of products as a tensor expression."""
    if linear.window is None:
        return _product(linear, data, weight)
    return _convolution(linear, data, weight)


def _term(linear: Linear, data: tirx.PrimExpr, weight: tirx.PrimExpr) -> tirx.PrimExpr:
    """Return a product in int32, with the ranges of its factors where they are narrow."""
    if linear.is_narrow:
        data = narrowed_data(data, linear.mask)
        weight = narrowed_weight(weight, linear.weights)
    return data.astype("int32") * weight.astype("int32")


def _product(linear: Linear, data: te.Tensor, weight: te.Tensor) -> te.Tensor:
    depth, columns = (int(extent) for extent in weight.shape)
    k = te.reduce_axis((0, depth), "k")
    return te.compute(
        (*data.shape[:-1], columns),
        lambda *at: te.sum(_term(linear, data(*at[:-1], k), weight(k, at[-1])), axis=[k]),
        name="matmul",
    )


def _convolution(linear: Linear, data: te.Tensor, weight: te.Tensor) -> te.Tensor:
    assert linear.window is not None
    strides, padding, dilation, groups = linear.window
    rank = len(strides)
    before, after = list(padding[:rank]), list(padding[rank:])
    source = data
    if any(padding):
        zero = tirx.const(int(linear.affine.zero), "uint8")
        source = topi.nn.pad(data, [0, 0, *before], [0, 0, *after], zero, name="pad_temp")
    outputs, depth, *kernel = (int(extent) for extent in weight.shape)
    extents = [
        (int(extent) - (taps - 1) * step - 1) // stride + 1
        for extent, taps, step, stride in zip(
            source.shape[2:], kernel, dilation, strides, strict=True
        )
    ]
    taps = [te.reduce_axis((0, extent), f"r{axis}") for axis, extent in enumerate(kernel)]
    channel = te.reduce_axis((0, depth), "rc")
    per_group = outputs // groups

    def element(n: Any, o: Any, *at: Any) -> Any:
        places = [at[axis] * strides[axis] + taps[axis] * dilation[axis] for axis in range(rank)]
        from_channel = channel
        if groups > 1:
            # Depthwise: the channel is the output's own, which layouts can then follow.
            group = o if per_group == 1 else tirx.floordiv(o, per_group)
            from_channel = group if depth == 1 else group * depth + channel
        inner = channel if groups == 1 or depth > 1 else 0
        term = _term(linear, source(n, from_channel, *places), weight(o, inner, *taps))
        axes = [*taps, channel] if groups == 1 or depth > 1 else taps
        return te.sum(term, axis=axes)

    return te.compute((data.shape[0], outputs, *extents), element, name="conv")
