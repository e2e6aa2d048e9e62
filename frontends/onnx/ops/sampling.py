"""Sampling at computed places: GridSample, RoiAlign, MaxRoiPool, DeformConv, Col2Im, MaxUnpool."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from tvm import relax, te, tirx

from tilewright.frontends.onnx.node import NodeContext
from tilewright.frontends.onnx.ops.convolution import with_bias
from tilewright.frontends.onnx.ops.reshaping import reshape_to
from tilewright.frontends.onnx.ops.window import Window, read_window
from tilewright.frontends.onnx.registry import register
from tilewright.frontends.onnx.values import Value

R = relax.op

_CUBIC_A = -0.75  # the constant of PyTorch and of the ONNX text


@register("GridSample", 16)
def grid_sample(op: NodeContext) -> Value:
    """https://onnx.ai/onnx/operators/onnx__GridSample.html (two or three spatial dimensions)."""
    mode, padding = op.attr("mode"), op.attr("padding_mode")
    mode = {"bilinear": "linear", "bicubic": "cubic"}.get(mode, mode)
    align = bool(op.attr("align_corners"))
    if mode not in ("linear", "nearest", "cubic"):
        op.fail(f"mode {mode!r}")
    return op.te(_grid_sample, op.input(0), op.input(1), mode, padding, align, name="grid_sample")


def _grid_sample(
    data: te.Tensor, grid: te.Tensor, mode: str, padding: str, align: bool
) -> te.Tensor:
    extents = [int(extent) for extent in data.shape[2:]]
    rank = len(extents)
    first = {"linear": 0, "nearest": 0, "cubic": -1}[mode]
    taps = {"linear": 2, "nearest": 1, "cubic": 4}[mode]

    def coordinates(n: Any, at: Sequence[Any]) -> list[Any]:
        """Return the place in the data; the grid's last dimension runs x, y, z."""
        result = []
        for axis, extent in enumerate(extents):
            value = grid(n, *at, tirx.const(rank - 1 - axis, "int32")).astype(data.dtype)
            value = _denormalize(value, extent, align)
            # A cubic kernel reflects or clamps its taps instead of the place.
            if mode != "cubic":
                value = _bounded(value, extent, padding, align)
            result.append(value)
        return result

    def load(n: Any, c: Any, places: Sequence[Any]) -> Any:
        inside = tirx.const(True, "bool")
        clamped = []
        for place, extent in zip(places, extents, strict=True):
            if mode == "cubic":
                place = _bounded(place, extent, padding, align)
            index = place.astype("int32")
            inside = tirx.all(inside, index >= 0, index < extent)
            clamped.append(tirx.max(tirx.min(index, extent - 1), 0))
        value = data(n, c, *clamped)
        return tirx.if_then_else(inside, value, tirx.const(0, data.dtype))

    def element(n: Any, c: Any, *at: Any) -> Any:
        places = coordinates(n, at)
        if mode == "nearest":
            return load(n, c, [tirx.nearbyint(place) for place in places])
        lows = [tirx.floor(place) for place in places]
        fractions = [place - low for place, low in zip(places, lows, strict=True)]
        weights = _linear_weights if mode == "linear" else _cubic_weights

        def blend(axis: int, chosen: list[Any]) -> Any:
            if axis == rank:
                return load(n, c, chosen)
            factors = weights(fractions[axis])
            parts = [
                factors[tap] * blend(axis + 1, [*chosen, lows[axis] + (first + tap)])
                for tap in range(taps)
            ]
            return sum(parts[1:], parts[0])

        return blend(0, [])

    shape = [*data.shape[:2], *grid.shape[1:-1]]
    return te.compute(shape, element, name="grid_sample")


def _denormalize(value: Any, extent: int, align: bool) -> Any:
    """Map [-1, 1] to the centres (align) or the edges of the outermost elements."""
    if align:
        return (value + 1) * ((extent - 1) / 2)
    return ((value + 1) * extent - 1) / 2


def _bounded(value: Any, extent: int, padding: str, align: bool) -> Any:
    """Apply the padding mode to a place (linear, nearest) or a tap (cubic)."""
    if padding == "border":
        return tirx.max(tirx.min(value, extent - 1.0), 0.0)
    if padding == "reflection":
        low, high = (0.0, extent - 1.0) if align else (-0.5, extent - 0.5)
        span = high - low
        if span == 0:
            return value * 0
        offset = tirx.abs(value - low)
        turns = tirx.floor(offset / span)
        rest = offset - turns * span
        odd = turns - 2 * tirx.floor(turns / 2) > 0.5
        reflected = tirx.Select(odd, high - rest, low + rest)
        return tirx.max(tirx.min(reflected, extent - 1.0), 0.0)
    return value


def _linear_weights(fraction: Any) -> list[Any]:
    return [1 - fraction, fraction]


def _cubic_weights(fraction: Any) -> list[Any]:
    """Weights of the taps at -1, 0, 1, 2 (Keys' kernel)."""
    a = _CUBIC_A

    def near(x: Any) -> Any:
        return ((a + 2) * x - (a + 3)) * x * x + 1

    def far(x: Any) -> Any:
        return ((a * x - 5 * a) * x + 8 * a) * x - 4 * a

    return [far(fraction + 1), near(fraction), near(1 - fraction), far(2 - fraction)]


def _bilinear(load: Callable[[Any, Any], Any], y: Any, x: Any) -> Any:
    """Interpolate between the four neighbours of a place."""
    y0, x0 = tirx.floor(y), tirx.floor(x)
    fy, fx = y - y0, x - x0
    row, column = y0.astype("int32"), x0.astype("int32")
    top = (1 - fx) * load(row, column) + fx * load(row, column + 1)
    bottom = (1 - fx) * load(row + 1, column) + fx * load(row + 1, column + 1)
    return (1 - fy) * top + fy * bottom


@register("RoiAlign", 10)
@register("RoiAlign", 16)
def roi_align(op: NodeContext) -> Value:
    """https://onnx.ai/onnx/operators/onnx__RoiAlign.html

    An adaptive number of samples (``sampling_ratio=0``) depends on the data and is not supported.
    """
    data, rois, batches = op.input(0), op.input(1), op.input(2)
    mode = op.attr("mode")
    shape = (op.attr("output_height"), op.attr("output_width"))
    ratio, scale = op.attr("sampling_ratio"), op.attr("spatial_scale")
    half = op.opset >= 16 and op.attr("coordinate_transformation_mode") == "half_pixel"
    if ratio == 0:
        op.fail("sampling_ratio=0, an adaptive number of samples")
    return op.te(_roi_align, data, rois, batches, shape, ratio, scale, half, mode, name="roi_align")


def _roi_align(
    data: te.Tensor,
    rois: te.Tensor,
    batches: te.Tensor,
    shape: tuple[int, int],
    ratio: int,
    scale: float,
    half: bool,
    mode: str,
) -> te.Tensor:
    height, width = (int(extent) for extent in data.shape[2:])
    offset = 0.5 if half else 0.0
    ry, rx = te.reduce_axis((0, ratio), "ry"), te.reduce_axis((0, ratio), "rx")

    def sample(r: Any, c: Any, place: tuple[Any, Any], corner: bool) -> Any:
        y, x = place
        valid = tirx.all(y >= -1.0, y <= float(height), x >= -1.0, x <= float(width))
        y, x = (tirx.max(tirx.min(v, n - 1.0), 0.0) for v, n in ((y, height), (x, width)))
        batch = _limited(batches(r), int(data.shape[0])).astype("int32")

        def load(row: Any, column: Any) -> Any:
            return data(batch, c, _limited(row, height), _limited(column, width))

        value = _largest_corner(load, y, x) if corner else _bilinear(load, y, x)
        return tirx.if_then_else(valid, value, tirx.const(0, data.dtype))

    def element(r: Any, c: Any, i: Any, j: Any) -> Any:
        x1, y1, x2, y2 = (rois(r, k) * scale - offset for k in range(4))
        h, w = y2 - y1, x2 - x1
        if not half:
            h, w = tirx.max(h, 1.0), tirx.max(w, 1.0)
        bin_h, bin_w = h / shape[0], w / shape[1]
        y = y1 + i * bin_h + (ry + 0.5) * bin_h / ratio
        x = x1 + j * bin_w + (rx + 0.5) * bin_w / ratio
        if mode == "max":
            return te.max(sample(r, c, (y, x), True), axis=[ry, rx])
        return te.sum(sample(r, c, (y, x), False) / (ratio * ratio), axis=[ry, rx])

    return te.compute((rois.shape[0], data.shape[1], *shape), element, name="roi_align")


def _largest_corner(load: Callable[[Any, Any], Any], y: Any, x: Any) -> Any:
    """Largest of the four weighted neighbours, which is what ``mode=max`` means in ONNX."""
    y0, x0 = tirx.floor(y), tirx.floor(x)
    fy, fx = y - y0, x - x0
    row, column = y0.astype("int32"), x0.astype("int32")
    values = [
        (1 - fy) * (1 - fx) * load(row, column),
        (1 - fy) * fx * load(row, column + 1),
        fy * (1 - fx) * load(row + 1, column),
        fy * fx * load(row + 1, column + 1),
    ]
    return tirx.max(tirx.max(values[0], values[1]), tirx.max(values[2], values[3]))


@register("DeformConv", 19)
def deform_conv(op: NodeContext) -> Value:
    """https://onnx.ai/onnx/operators/onnx__DeformConv.html (two spatial dimensions)."""
    data, weight, offset = op.input(0), op.input(1), op.input(2)
    bias, mask = op.optional(3), op.optional(4)
    if data.rank != 4:
        op.fail(f"{data.rank - 2} spatial dimensions; supported are 2")
    # The operator has no auto_pad; the reader's default is NOTSET.
    window = read_window(op, data.shape[2:], weight.shape[2:])
    groups, offset_groups = op.attr("group"), op.attr("offset_group")
    columns_args = [data, offset] if mask is None else [data, offset, mask]
    columns = op.te(_deformed, *columns_args, window, offset_groups, name="deform_columns")
    n, taps = data.shape[0], math.prod(window.kernel)
    height, width = columns.shape[-2:]
    outputs, depth = weight.shape[0], weight.shape[1]
    matrix = op.call(R.reshape, columns, (n, groups, depth * taps, height * width))
    kernel = op.call(R.reshape, weight, (groups, outputs // groups, depth * taps))
    result = op.call(R.matmul, kernel, matrix)
    return with_bias(op, op.call(R.reshape, result, (n, outputs, height, width)), bias)


def _deformed(data: te.Tensor, offset: te.Tensor, *rest: Any) -> te.Tensor:
    """Gather the displaced taps: [N, C, kh * kw, out height, out width]."""
    mask = rest[0] if len(rest) == 3 else None
    window, groups = rest[-2], rest[-1]
    height, width = (int(extent) for extent in data.shape[2:])
    channels, (kh, kw) = int(data.shape[1]), window.kernel

    def element(n: Any, c: Any, tap: Any, i: Any, j: Any) -> Any:
        group = tirx.floordiv(c, channels // groups)
        row, column = tirx.floordiv(tap, kw), tirx.floormod(tap, kw)
        slot = group * (kh * kw) + tap
        y = i * window.strides[0] - window.begin[0] + row * window.dilations[0]
        x = j * window.strides[1] - window.begin[1] + column * window.dilations[1]
        y = y.astype(data.dtype) + offset(n, 2 * slot, i, j)
        x = x.astype(data.dtype) + offset(n, 2 * slot + 1, i, j)

        def load(r: Any, s: Any) -> Any:
            inside = tirx.all(r >= 0, r < height, s >= 0, s < width)
            at = (tirx.max(tirx.min(r, height - 1), 0), tirx.max(tirx.min(s, width - 1), 0))
            return tirx.if_then_else(inside, data(n, c, *at), tirx.const(0, data.dtype))

        value = _bilinear(load, y, x)
        return value if mask is None else value * mask(n, slot, i, j)

    shape = [data.shape[0], channels, kh * kw, *offset.shape[2:]]
    return te.compute(shape, element, name="deform_columns")


@register("Col2Im", 18, shape_inputs=(1, 2))
def col2im(op: NodeContext) -> Value:
    """https://onnx.ai/onnx/operators/onnx__Col2Im.html: sums overlapping blocks."""
    image, block = op.ints(1) or (), op.ints(2) or ()
    rank = len(image)
    window = Window(
        tuple(block),
        tuple(op.attr("strides") or (1,) * rank),
        tuple(op.attr("dilations") or (1,) * rank),
        tuple(op.attr("pads") or (0,) * (2 * rank)),
    )
    data = op.input(0)
    counts = window.output(image)
    channels = data.shape[1] // math.prod(block)
    folded = op.call(R.reshape, data, (data.shape[0], channels, *block, *counts))
    return op.te(_col2im, folded, window, tuple(image), counts, name="col2im")


def _col2im(
    data: te.Tensor, window: Window, image: tuple[int, ...], counts: tuple[int, ...]
) -> te.Tensor:
    rank = len(image)
    taps = [te.reduce_axis((0, extent), f"r{axis}") for axis, extent in enumerate(window.kernel)]

    def element(n: Any, c: Any, *at: Any) -> Any:
        positions, valid = [], tirx.const(True, "bool")
        for axis in range(rank):
            start = at[axis] + window.begin[axis] - taps[axis] * window.dilations[axis]
            position = tirx.floordiv(start, window.strides[axis])
            hit = tirx.floormod(start, window.strides[axis]) == 0
            valid = tirx.all(valid, hit, position >= 0, position < counts[axis])
            positions.append(tirx.max(tirx.min(position, counts[axis] - 1), 0))
        value = data(n, c, *taps, *positions)
        return te.sum(tirx.if_then_else(valid, value, tirx.const(0, data.dtype)), axis=taps)

    return te.compute((*data.shape[:2], *image), element, name="col2im")


@register("MaxUnpool", 9, shape_inputs=(2,))
def max_unpool(op: NodeContext) -> Value:
    """https://onnx.ai/onnx/operators/onnx__MaxUnpool.html

    Indices count in the tensor that the attributes imply; a larger ``output_shape`` adds zeros at
    its ends.
    """
    data, indices, shape = op.input(0), op.input(1), op.ints(2)
    kernel = op.attr("kernel_shape")
    rank = len(kernel)
    strides = op.attr("strides") or (1,) * rank
    pads = op.attr("pads") or (0,) * (2 * rank)
    implied = [
        (data.shape[2 + axis] - 1) * strides[axis] - pads[axis] - pads[rank + axis] + kernel[axis]
        for axis in range(rank)
    ]
    total, count = math.prod([*data.shape[:2], *implied]), data.size
    empty = op.call(R.full, (total,), op.scalar(0, data.dtype), data.dtype)
    # No index may write outside, whatever the data say.
    places = op.call(R.floor_mod, reshape_to(op, indices, (count,)), op.scalar(total, "int64"))
    filled = op.call(R.scatter_elements, empty, places, op.call(R.reshape, data, (count,)), 0)
    result = op.call(R.reshape, filled, (*data.shape[:2], *implied))
    widths = [0, 0, 0, 0]
    for extent, wanted in zip(implied, shape[2:] if shape else implied, strict=True):
        widths += [0, wanted - extent]
    return op.call(R.nn.pad, result, widths) if any(widths) else result


@register("MaxRoiPool")
def max_roi_pool(op: NodeContext) -> Value:
    """https://onnx.ai/onnx/operators/onnx__MaxRoiPool.html (bins as in Caffe's ROIPooling)."""
    shape, scale = op.attr("pooled_shape"), op.attr("spatial_scale")
    if len(shape) != 2 or min(shape) < 1:
        op.fail(f"pooled_shape is {shape}; it must have two positive numbers")
    return op.te(_max_roi_pool, op.input(0), op.input(1), shape, scale, name="max_roi_pool")


def _max_roi_pool(
    data: te.Tensor, rois: te.Tensor, shape: tuple[int, int], scale: float
) -> te.Tensor:
    """Take the largest element of every bin; 0 where a bin lies outside the image.

    A region is [image, x1, y1, x2, y2] with both ends included, rounded to whole elements.
    """
    images, height, width = (int(data.shape[axis]) for axis in (0, 2, 3))
    ry, rx = te.reduce_axis((0, height), "ry"), te.reduce_axis((0, width), "rx")
    lowest = tirx.const(-np.inf, data.dtype)

    def inside(r: Any, first: int, bin_: Any, count: int, at: Any) -> Any:
        begin, end = (_rounded(rois(r, k) * scale) for k in (first, first + 2))
        size = tirx.max(end - begin + 1.0, 1.0) / count
        low, high = tirx.floor(bin_ * size) + begin, tirx.ceil((bin_ + 1) * size) + begin
        place = at.astype(data.dtype)
        return tirx.all(place >= low, place < high)

    def largest(r: Any, c: Any, i: Any, j: Any) -> Any:
        image = _limited(rois(r, 0).astype("int32"), images)
        is_in = tirx.all(inside(r, 2, i, shape[0], ry), inside(r, 1, j, shape[1], rx))
        return te.max(tirx.if_then_else(is_in, data(image, c, ry, rx), lowest), axis=[ry, rx])

    shape_4d = (rois.shape[0], data.shape[1], *shape)
    found = te.compute(shape_4d, largest, name="max_roi_pool")
    least = tirx.min_value(data.dtype)
    return te.compute(
        shape_4d,
        lambda *at: tirx.Select(found(*at) <= least, tirx.const(0, data.dtype), found(*at)),
        name="bins",
    )


def _rounded(value: Any) -> Any:
    """Round to whole numbers, ties away from zero."""
    return tirx.Select(value < 0.0, tirx.ceil(value - 0.5), tirx.floor(value + 0.5))


def _limited(index: Any, extent: int) -> Any:
    """Keep an index that comes from data inside a dimension."""
    return tirx.max(tirx.min(index, extent - 1), 0)
