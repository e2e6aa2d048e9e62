"""Pooling over windows and over all positions."""

from __future__ import annotations

import math
from typing import Any

from tvm import relax, te, tirx

from tilewright.frontends.onnx.node import NodeContext
from tilewright.frontends.onnx.ops.window import Window, read_window
from tilewright.frontends.onnx.registry import register
from tilewright.frontends.onnx.values import Value

R = relax.op

_MAX = {1: R.nn.max_pool1d, 2: R.nn.max_pool2d, 3: R.nn.max_pool3d}
_AVERAGE = {1: R.nn.avg_pool1d, 2: R.nn.avg_pool2d, 3: R.nn.avg_pool3d}


@register("GlobalAveragePool")
def global_average_pool(op: NodeContext) -> Value:
    """https://onnx.ai/onnx/operators/onnx__GlobalAveragePool.html"""
    data = op.input(0)
    return op.call(R.mean, data, axis=list(range(2, data.rank)), keepdims=True)


@register("GlobalMaxPool")
def global_max_pool(op: NodeContext) -> Value:
    """https://onnx.ai/onnx/operators/onnx__GlobalMaxPool.html"""
    data = op.input(0)
    return op.call(R.max, data, axis=list(range(2, data.rank)), keepdims=True)


@register("GlobalLpPool")
def global_lp_pool(op: NodeContext) -> Value:
    """https://onnx.ai/onnx/operators/onnx__GlobalLpPool.html"""
    data, p = op.input(0), float(op.attr("p"))
    powered = op.call(R.power, op.call(R.abs, data), op.scalar(p, data.dtype))
    total = op.call(R.sum, powered, axis=list(range(2, data.rank)), keepdims=True)
    return op.call(R.power, total, op.scalar(1 / p, data.dtype))


@register("MaxPool")
def max_pool(op: NodeContext) -> Any:
    """https://onnx.ai/onnx/operators/onnx__MaxPool.html"""
    data = op.input(0)
    extents = data.shape[2:]
    window = read_window(op, extents)
    ceil_mode, column_major = bool(op.attr("ceil_mode")), bool(op.attr("storage_order"))
    counts = window.output(extents, ceil_mode)
    padding = _exact_padding(window, extents, counts)
    pooled: Value
    if window.rank in _MAX and data.dtype == "float32" and padding is not None:
        pooled = op.call(
            _MAX[window.rank],
            data,
            pool_size=window.kernel,
            strides=window.strides,
            padding=padding,
            dilation=window.dilations,
        )
    else:
        pooled = op.te(_max_pool, data, window, counts, name="max_pool")
    if not op.wants(1):
        return pooled
    return [pooled, op.te(_max_pool_index, data, window, counts, column_major, name="max_index")]


def _exact_padding(
    window: Window, extents: tuple[int, ...], counts: tuple[int, ...]
) -> tuple[int, ...] | None:
    """Set the end padding so that plain (floor) pooling gives these counts; None if it cannot."""
    end = [
        (count - 1) * window.strides[axis] + window.reach(axis) - extents[axis] - window.begin[axis]
        for axis, count in enumerate(counts)
    ]
    end = [pad if pad >= 0 else 0 for pad in end]
    exact = Window(window.kernel, window.strides, window.dilations, (*window.begin, *end))
    return exact.padding if exact.output(extents) == counts else None


def _positions(
    window: Window, indices: tuple[Any, ...], taps: tuple[Any, ...], extents: tuple[int, ...]
) -> tuple[list[Any], Any]:
    """Return the data indices under a tap of a window, and whether they are inside the data."""
    places, inside = [], tirx.const(True, "bool")
    for axis, extent in enumerate(extents):
        start = indices[axis + 2] * window.strides[axis] - window.begin[axis]
        place = start + taps[axis] * window.dilations[axis]
        places.append(place)
        inside = tirx.all(inside, place >= 0, place < extent)
    return places, inside


def _reduce_axes(window: Window) -> list[Any]:
    return [te.reduce_axis((0, extent), f"r{axis}") for axis, extent in enumerate(window.kernel)]


def _max_pool(data: te.Tensor, window: Window, counts: tuple[int, ...]) -> te.Tensor:
    axes = _reduce_axes(window)
    extents = tuple(int(extent) for extent in data.shape[2:])

    def element(*indices: Any) -> Any:
        places, inside = _positions(window, indices, tuple(axes), extents)
        value = tirx.if_then_else(inside, data(*indices[:2], *places), tirx.min_value(data.dtype))
        return te.max(value, axis=axes)

    return te.compute((*data.shape[:2], *counts), element, name="max_pool")


def _max_pool_index(
    data: te.Tensor, window: Window, counts: tuple[int, ...], column_major: bool
) -> te.Tensor:
    """Index of the largest element of each window in the flattened data (int64)."""
    axes = _reduce_axes(window)
    extents = tuple(int(extent) for extent in data.shape[2:])
    strides = _flat_strides(extents, column_major)
    channels = int(data.shape[1])

    def combine(left: Any, right: Any) -> Any:
        first = tirx.any(left[1] > right[1], tirx.all(left[1] == right[1], left[0] < right[0]))
        return tirx.Select(first, left[0], right[0]), tirx.Select(first, left[1], right[1])

    def neutral(index: str, value: str) -> Any:
        return tirx.max_value(index), tirx.min_value(value)

    arg_max = te.comm_reducer(combine, neutral, name="arg_max")

    def element(*indices: Any) -> Any:
        places, inside = _positions(window, indices, tuple(axes), extents)
        value = tirx.if_then_else(inside, data(*indices[:2], *places), tirx.min_value(data.dtype))
        flat = (indices[0] * channels + indices[1]).astype("int64") * math.prod(extents)
        for place, stride in zip(places, strides, strict=True):
            flat = flat + place.astype("int64") * stride
        return arg_max((flat, value), axis=axes)

    pair = te.compute((*data.shape[:2], *counts), element, name="max_index")
    return te.compute(pair[0].shape, lambda *i: pair[0](*i), name="index")


def _flat_strides(extents: tuple[int, ...], column_major: bool) -> list[int]:
    """Strides of the flattened spatial dimensions, in elements."""
    order = range(len(extents))
    if column_major:
        return [math.prod(extents[:axis]) for axis in order]
    return [math.prod(extents[axis + 1 :]) for axis in order]


@register("AveragePool")
def average_pool(op: NodeContext) -> Value:
    """https://onnx.ai/onnx/operators/onnx__AveragePool.html"""
    data = op.input(0)
    extents = data.shape[2:]
    window = read_window(op, extents)
    ceil_mode, count_pad = bool(op.attr("ceil_mode")), bool(op.attr("count_include_pad"))
    counts = window.output(extents, ceil_mode)
    plain = counts == window.output(extents) and set(window.dilations) == {1}
    if plain and window.rank in _AVERAGE and data.dtype == "float32":
        return op.call(
            _AVERAGE[window.rank],
            data,
            pool_size=window.kernel,
            strides=window.strides,
            padding=window.padding,
            count_include_pad=count_pad,
        )
    total = op.te(_sum_pool, data, window, counts, None, name="sum_pool")
    counted = _tap_counts(window, extents, counts, count_pad)
    return op.te(_divide_by, total, counted, name="average")


@register("LpPool")
def lp_pool(op: NodeContext) -> Value:
    """https://onnx.ai/onnx/operators/onnx__LpPool.html"""
    data = op.input(0)
    window = read_window(op, data.shape[2:])
    counts = window.output(data.shape[2:], bool(op.attr("ceil_mode")))
    p = float(op.attr("p"))
    total = op.te(_sum_pool, data, window, counts, p, name="lp_pool")
    return op.call(R.power, total, op.scalar(1 / p, data.dtype))


def _sum_pool(
    data: te.Tensor, window: Window, counts: tuple[int, ...], p: float | None
) -> te.Tensor:
    """Sum the data under each window, or the p-th powers of its absolute values."""
    axes = _reduce_axes(window)
    extents = tuple(int(extent) for extent in data.shape[2:])

    def element(*indices: Any) -> Any:
        places, inside = _positions(window, indices, tuple(axes), extents)
        value = data(*indices[:2], *places)
        if p is not None:
            value = tirx.power(tirx.abs(value), tirx.const(p, data.dtype))
        return te.sum(tirx.if_then_else(inside, value, tirx.const(0, data.dtype)), axis=axes)

    return te.compute((*data.shape[:2], *counts), element, name="sum_pool")


def _tap_counts(
    window: Window, extents: tuple[int, ...], counts: tuple[int, ...], count_pad: bool
) -> list[list[int]]:
    """Number of taps that count, per dimension and window position.

    The divisor of a window is the product over dimensions. Taps beyond the padding, where
    ``ceil_mode`` made the window leave the tensor, never count.
    """
    result = []
    for axis, count in enumerate(counts):
        low = -window.begin[axis] if count_pad else 0
        high = extents[axis] + (window.end[axis] if count_pad else 0)
        row = []
        for position in range(count):
            start = position * window.strides[axis] - window.begin[axis]
            taps = range(window.kernel[axis])
            places = [start + tap * window.dilations[axis] for tap in taps]
            row.append(sum(low <= place < high for place in places))
        result.append(row)
    return result


def _divide_by(total: te.Tensor, counted: list[list[int]]) -> te.Tensor:
    """Divide every position by its number of taps; a mean of none is NaN, as in the reference."""

    def number(taps: int) -> Any:
        return tirx.const(taps if taps else math.nan, total.dtype)

    def pick(index: Any, row: list[int]) -> Any:
        value = number(row[-1])
        for position in range(len(row) - 2, -1, -1):
            if row[position] != row[position + 1]:
                value = tirx.Select(index <= position, number(row[position]), value)
        return value

    def element(*indices: Any) -> Any:
        divisor = tirx.const(1, total.dtype)
        for index, row in zip(indices[2:], counted, strict=True):
            divisor = divisor * pick(index, row)
        return total(*indices) / divisor

    return te.compute(total.shape, element, name="average")
