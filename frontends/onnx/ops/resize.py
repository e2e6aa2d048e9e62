"""Resize and Upsample: interpolation that is separable, with tables computed when compiling."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from tvm import relax, te, tirx

from tilewright.frontends.onnx.node import NodeContext
from tilewright.frontends.onnx.ops.elementwise import FLOATS, cast
from tilewright.frontends.onnx.registry import register
from tilewright.frontends.onnx.values import Value, constant

# More taps than this are summed by a reduction loop instead of being written out.
_UNROLLED_TAPS = 4


@dataclass(frozen=True, slots=True)
class _Rule:
    """How output positions map to input positions, as the attributes say."""

    mode: str
    coordinates: str
    nearest: str = "round_prefer_floor"
    cubic_a: float = -0.75
    exclude_outside: bool = False
    extrapolation: float = 0.0
    antialias: bool = False


@dataclass(frozen=True, slots=True)
class _Axis:
    """One resized axis: its scale, output extent and region of interest."""

    axis: int
    scale: float
    extent: int
    roi: tuple[float, float]


@register("Upsample", 7)
def upsample_attributes(op: NodeContext) -> Value:
    """https://onnx.ai/onnx/operators/onnx__Upsample.html before opset 9."""
    return _resize(op, _Rule(op.attr("mode"), "asymmetric", "floor"), op.attr("scales"), None)


@register("Upsample", 9, shape_inputs=(1,))
def upsample_inputs(op: NodeContext) -> Value:
    """https://onnx.ai/onnx/operators/onnx__Upsample.html"""
    scales = [float(item) for item in op.data(1)]
    return _resize(op, _Rule(op.attr("mode"), "asymmetric", "floor"), scales, None)


@register("Resize", 10, shape_inputs=(1,))
def resize_scales(op: NodeContext) -> Value:
    """https://onnx.ai/onnx/operators/onnx__Resize.html in opset 10."""
    return upsample_inputs(op)


@register("Resize", 11, shape_inputs=(1, 2, 3))
def resize(op: NodeContext) -> Value:
    """https://onnx.ai/onnx/operators/onnx__Resize.html"""
    rule = _Rule(
        mode=op.attr("mode"),
        coordinates=op.attr("coordinate_transformation_mode"),
        nearest=op.attr("nearest_mode"),
        cubic_a=op.attr("cubic_coeff_a"),
        exclude_outside=bool(op.attr("exclude_outside")),
        extrapolation=op.attr("extrapolation_value"),
        antialias=bool(op.attr("antialias", 0)),
    )
    roi, scales, sizes = op.optional_data(1), op.optional_data(2), op.ints(3)
    if rule.coordinates != "tf_crop_and_resize" or roi is None or not roi.size:
        roi = None
    given = None if scales is None or not scales.size else [float(item) for item in scales]
    return _resize(op, rule, given, sizes, roi)


def _resize(
    op: NodeContext,
    rule: _Rule,
    scales: Sequence[float] | None,
    sizes: Sequence[int] | None,
    roi: np.ndarray | None = None,
) -> Value:
    """Resize one axis after the other; an axis that keeps its extent is left alone."""
    data = op.input(0)
    axes = _axes(op, data, scales, sizes, roi)
    if not axes:
        return data
    if rule.mode == "nearest":
        tables = {item.axis: _nearest_table(rule, item, data.shape[item.axis]) for item in axes}
        outside = [_outside(rule, item, data.shape[item.axis]) for item in axes]
        result = _gather_axes(op, data, tables)
    else:
        result = data if data.dtype in FLOATS else cast(op, data, "float32")
        outside = []
        for item in axes:
            extent = data.shape[item.axis]
            index, weight = _taps(rule, item, extent)
            result = _interpolate(op, result, item.axis, index, weight)
            outside.append(_outside(rule, item, extent))
        result = cast(op, result, data.dtype)
    return _extrapolate(op, rule, result, [item.axis for item in axes], outside)


def _axes(
    op: NodeContext,
    data: Value,
    scales: Sequence[float] | None,
    sizes: Sequence[int] | None,
    roi: np.ndarray | None,
) -> list[_Axis]:
    """Return the axes that change, with scale and extent."""
    given = op.attr("axes", None)
    policy = op.attr("keep_aspect_ratio_policy", "stretch")
    axes = list(range(data.rank)) if given is None else [axis % data.rank for axis in given]
    if sizes:
        ratios = [size / data.shape[axis] for size, axis in zip(sizes, axes, strict=True)]
        extents = list(sizes)
        if policy != "stretch":
            ratio = min(ratios) if policy == "not_larger" else max(ratios)
            ratios = [ratio] * len(axes)
            extents = [int(ratio * data.shape[axis] + 0.5) for axis in axes]
    elif scales:
        ratios = list(scales)
        extents = [
            math.floor(scale * data.shape[axis]) for scale, axis in zip(scales, axes, strict=True)
        ]
    else:
        raise ValueError("neither scales nor sizes are given")
    found = []
    for place, axis in enumerate(axes):
        region = (0.0, 1.0)
        if roi is not None:
            region = (float(roi[place]), float(roi[len(axes) + place]))
        same = extents[place] == data.shape[axis] and math.isclose(ratios[place], 1.0)
        if not same or region != (0.0, 1.0):
            found.append(_Axis(axis, ratios[place], extents[place], region))
    return found


def _positions(rule: _Rule, item: _Axis, extent: int) -> np.ndarray:
    """Return the input coordinate of every output position, in float64."""
    at = np.arange(item.extent, dtype=np.float64)
    length = item.scale * extent
    if rule.coordinates == "align_corners":
        return at * 0 if length == 1 else at * (extent - 1) / (length - 1)
    if rule.coordinates == "asymmetric":
        return at / item.scale
    if rule.coordinates == "tf_crop_and_resize":
        low, high = item.roi
        if length == 1:
            return at * 0 + (high + low) * (extent - 1) / 2
        return low * (extent - 1) + at * (high - low) * (extent - 1) / (length - 1)
    if rule.coordinates == "pytorch_half_pixel" and length == 1:
        return at * 0 - 0.5
    offset = 0.0
    if rule.coordinates == "half_pixel_symmetric":
        offset = extent / 2 * (1 - item.extent / length)
    elif rule.coordinates not in ("half_pixel", "pytorch_half_pixel"):
        raise ValueError(f"coordinate_transformation_mode {rule.coordinates!r} is unknown")
    return offset + (at + 0.5) / item.scale - 0.5


def _nearest_table(rule: _Rule, item: _Axis, extent: int) -> np.ndarray:
    """Return the input index of every output position."""
    at = _positions(rule, item, extent)
    rounding: dict[str, Callable[[np.ndarray], np.ndarray]] = {
        "floor": np.floor,
        "ceil": np.ceil,
        "round_prefer_floor": lambda x: np.ceil(x - 0.5),
        "round_prefer_ceil": lambda x: np.floor(x + 0.5),
    }
    return np.clip(rounding[rule.nearest](at), 0, extent - 1).astype(np.int32)


def _taps(rule: _Rule, item: _Axis, extent: int) -> tuple[np.ndarray, np.ndarray]:
    """Return indices and weights of the taps of every output position, both [extent, taps]."""
    at = _positions(rule, item, extent)
    base = np.floor(at)
    fraction = (at - base)[:, None]
    shrink = min(item.scale, 1.0) if rule.antialias else 1.0
    cubic = rule.mode == "cubic"
    start = math.floor(-(2 if cubic else 1) / shrink) + 1
    offsets = np.arange(start, 2 - start)[None, :]
    distance = np.abs((offsets - fraction) * shrink)
    weight = _cubic(distance, rule.cubic_a) if cubic else np.maximum(0, 1 - distance)
    index = base[:, None].astype(np.int64) + offsets
    if rule.exclude_outside:
        weight = np.where((index < 0) | (index >= extent), 0, weight)
    if rule.exclude_outside or rule.antialias:
        total = weight.sum(axis=1, keepdims=True)
        weight = weight / np.where(total == 0, 1, total)
    return np.clip(index, 0, extent - 1).astype(np.int32), weight


def _cubic(x: np.ndarray, a: float) -> np.ndarray:
    """Evaluate Keys' cubic convolution kernel (IEEE ASSP 29(6), 1981) at distances x >= 0."""
    near = ((a + 2) * x - (a + 3)) * x * x + 1
    far = ((a * x - 5 * a) * x + 8 * a) * x - 4 * a
    return np.where(x <= 1, near, np.where(x < 2, far, 0))


def _outside(rule: _Rule, item: _Axis, extent: int) -> np.ndarray | None:
    """Tell which output positions lie outside the input, where they are extrapolated."""
    if rule.coordinates != "tf_crop_and_resize":
        return None
    at = _positions(rule, item, extent)
    outside = (at < 0) | (at > extent - 1)
    return outside if outside.any() else None


def _gather_axes(op: NodeContext, data: Value, tables: dict[int, np.ndarray]) -> Value:
    """Pick input positions along several axes; whole factors become index arithmetic."""
    factors: dict[int, int] = {}
    loads: list[Value] = []
    slots: dict[int, int] = {}
    for axis, table in tables.items():
        factor = len(table) // data.shape[axis] if data.shape[axis] else 0
        if factor and np.array_equal(table, np.arange(len(table)) // factor):
            factors[axis] = factor
        else:
            slots[axis] = len(loads)
            loads.append(constant(table))
    shape = [len(tables[axis]) if axis in tables else n for axis, n in enumerate(data.shape)]

    def compute(source: te.Tensor, *indices: te.Tensor) -> te.Tensor:
        def place(axis: int, index: Any) -> Any:
            if axis in factors:
                return tirx.floordiv(index, factors[axis])
            return indices[slots[axis]](index) if axis in slots else index

        def element(*at: Any) -> Any:
            return source(*(place(axis, index) for axis, index in enumerate(at)))

        return te.compute(shape, element, name="resize_nearest")

    return op.te(compute, data, *loads, name="resize_nearest")


def _interpolate(
    op: NodeContext, data: Value, axis: int, index: np.ndarray, weight: np.ndarray
) -> Value:
    """Weigh the taps along one axis."""
    taps = index.shape[1]
    weights = constant(weight.astype(np.float64), data.dtype)
    shape = [index.shape[0] if place == axis else n for place, n in enumerate(data.shape)]

    def compute(source: te.Tensor, index: te.Tensor, weight: te.Tensor) -> te.Tensor:
        def tap(at: Sequence[Any], number: Any) -> Any:
            places = list(at)
            places[axis] = index(at[axis], number)
            return source(*places) * weight(at[axis], number)

        if taps <= _UNROLLED_TAPS:
            return te.compute(
                shape,
                lambda *at: sum((tap(at, number) for number in range(1, taps)), tap(at, 0)),
                name="resize",
            )
        reduced = te.reduce_axis((0, taps), "tap")
        return te.compute(shape, lambda *at: te.sum(tap(at, reduced), axis=reduced), name="resize")

    return op.te(compute, data, constant(index), weights, name="resize_linear")


def _extrapolate(
    op: NodeContext,
    rule: _Rule,
    data: Value,
    axes: Sequence[int],
    outside: Sequence[np.ndarray | None],
) -> Value:
    """Set the positions outside the input to the extrapolation value."""
    mask = np.zeros((1,) * data.rank, bool)
    for axis, flags in zip(axes, outside, strict=True):
        if flags is not None:
            shape = [1] * data.rank
            shape[axis] = len(flags)
            mask = mask | flags.reshape(shape)
    if not mask.any():
        return data
    fill = op.scalar(rule.extrapolation, data.dtype)
    return op.call(relax.op.where, constant(mask), fill, data)
