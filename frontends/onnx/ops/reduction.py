"""Reductions over axes, and the index of the largest or smallest element."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from tvm import relax, te, tirx

from tilewright.frontends.onnx.node import NodeContext
from tilewright.frontends.onnx.ops.elementwise import FLOATS, cast
from tilewright.frontends.onnx.ops.reshaping import reshape_to
from tilewright.frontends.onnx.registry import register
from tilewright.frontends.onnx.values import Value, constant

R = relax.op

# Opset since which the axes are an input instead of an attribute.
_AXES_INPUT_SINCE = {"ReduceSum": 13}
_DEFAULT_AXES_INPUT_SINCE = 18


def reduced_axes(op: NodeContext) -> list[int]:
    """Return the axes that a reduction is over, in order."""
    data = op.input(0)
    since = _AXES_INPUT_SINCE.get(op.node.op_type, _DEFAULT_AXES_INPUT_SINCE)
    given = op.ints(1) if op.opset >= since else op.attr("axes", None)
    if any(not -data.rank <= axis < data.rank for axis in given or ()):
        raise ValueError(f"axes {given} are out of range for {data.rank} dimensions")
    if op.opset >= since and bool(op.attr("noop_with_empty_axes")) and not given:
        return []
    return sorted({axis % data.rank for axis in given} if given else range(data.rank))


def _reduce(op: NodeContext, compute: Callable[[NodeContext, Value, list[int]], Value]) -> Value:
    """Reduce with kept dimensions, and drop them if wanted."""
    data, axes, keepdims = op.input(0), reduced_axes(op), bool(op.attr("keepdims"))
    if data.size == 0:
        return _reduce_nothing(op, data, axes, keepdims)
    result = compute(op, data, axes)
    if keepdims or not axes:
        return result
    left = [extent for axis, extent in enumerate(data.shape) if axis not in axes]
    return reshape_to(op, result, left)


def _reduce_nothing(op: NodeContext, data: Value, axes: list[int], keepdims: bool) -> Value:
    """Reduce a tensor without elements: the neutral element everywhere."""
    kind = np.dtype(data.dtype)
    low = -np.inf if kind.kind == "f" else (False if kind.kind == "b" else np.iinfo(kind).min)
    high = np.inf if kind.kind == "f" else (True if kind.kind == "b" else np.iinfo(kind).max)
    neutral: dict[str, Any] = {
        "ReduceProd": 1, "ReduceMax": low, "ReduceMin": high, "ReduceMean": np.nan,
        "ReduceLogSum": -np.inf, "ReduceLogSumExp": -np.inf,
    }  # fmt: skip
    shape = [1 if axis in axes else extent for axis, extent in enumerate(data.shape)]
    if not keepdims:
        shape = [extent for axis, extent in enumerate(data.shape) if axis not in axes]
    return constant(np.full(shape, neutral.get(op.node.op_type, 0), kind))


def _total(op: NodeContext, data: Value, axes: list[int]) -> Value:
    return op.call(R.sum, data, axis=axes, keepdims=True) if axes else data


def _extreme(op: NodeContext, data: Value, axes: list[int], largest: bool) -> Value:
    """Take the largest or smallest element.

    Not relax.op.max for floats: it starts from the lowest finite number, so that the maximum of
    a row of -inf (a masked row of attention) would be finite.
    """
    if not axes:
        return data
    if data.dtype == "bool":
        return cast(op, _extreme(op, cast(op, data, "uint8"), axes, largest), "bool")
    if data.dtype not in FLOATS:
        return op.call(R.max if largest else R.min, data, axis=axes, keepdims=True)
    return op.te(
        _float_extreme, data, axes, largest, name="reduce_max" if largest else "reduce_min"
    )


def _float_extreme(data: te.Tensor, axes: list[int], largest: bool) -> te.Tensor:
    start = -np.inf if largest else np.inf
    reducer = te.comm_reducer(
        lambda x, y: tirx.max(x, y) if largest else tirx.min(x, y),
        lambda dtype: tirx.const(start, dtype),
        name="extreme",
    )
    reduced = {axis: te.reduce_axis((0, data.shape[axis]), f"r{axis}") for axis in axes}
    shape = [1 if axis in reduced else extent for axis, extent in enumerate(data.shape)]

    def element(*at: Any) -> Any:
        places = [reduced.get(axis, index) for axis, index in enumerate(at)]
        return reducer(data(*places), axis=list(reduced.values()))

    return te.compute(shape, element, name="reduce_extreme")


def _largest(op: NodeContext, data: Value, axes: list[int]) -> Value:
    return _extreme(op, data, axes, largest=True)


@register("ReduceSum", shape_inputs=(1,))
def reduce_sum(op: NodeContext) -> Value:
    """https://onnx.ai/onnx/operators/onnx__ReduceSum.html"""
    return _reduce(op, _total)


@register("ReduceMax", shape_inputs=(1,))
def reduce_max(op: NodeContext) -> Value:
    """https://onnx.ai/onnx/operators/onnx__ReduceMax.html"""
    return _reduce(op, _largest)


@register("ReduceMin", shape_inputs=(1,))
def reduce_min(op: NodeContext) -> Value:
    """https://onnx.ai/onnx/operators/onnx__ReduceMin.html"""

    return _reduce(op, lambda op, data, axes: _extreme(op, data, axes, largest=False))


@register("ReduceProd", shape_inputs=(1,))
def reduce_prod(op: NodeContext) -> Value:
    """https://onnx.ai/onnx/operators/onnx__ReduceProd.html"""

    def product(op: NodeContext, data: Value, axes: list[int]) -> Value:
        return op.call(R.prod, data, axis=axes, keepdims=True) if axes else data

    return _reduce(op, product)


@register("ReduceMean", shape_inputs=(1,))
def reduce_mean(op: NodeContext) -> Value:
    """https://onnx.ai/onnx/operators/onnx__ReduceMean.html"""

    def mean(op: NodeContext, data: Value, axes: list[int]) -> Value:
        if not axes:
            return data
        if data.dtype in FLOATS:
            return op.call(R.mean, data, axis=axes, keepdims=True)
        count = int(np.prod([data.shape[axis] for axis in axes]))
        return op.call(R.divide, _total(op, data, axes), op.scalar(count, data.dtype))

    return _reduce(op, mean)


@register("ReduceL1", shape_inputs=(1,))
def reduce_l1(op: NodeContext) -> Value:
    """https://onnx.ai/onnx/operators/onnx__ReduceL1.html"""
    return _reduce(op, lambda op, data, axes: _total(op, op.call(R.abs, data), axes))


@register("ReduceSumSquare", shape_inputs=(1,))
def reduce_sum_square(op: NodeContext) -> Value:
    """https://onnx.ai/onnx/operators/onnx__ReduceSumSquare.html"""
    return _reduce(op, lambda op, data, axes: _total(op, op.call(R.multiply, data, data), axes))


@register("ReduceL2", shape_inputs=(1,))
def reduce_l2(op: NodeContext) -> Value:
    """https://onnx.ai/onnx/operators/onnx__ReduceL2.html"""

    def norm(op: NodeContext, data: Value, axes: list[int]) -> Value:
        wide = data if data.dtype in FLOATS else cast(op, data, "float64")
        total = _total(op, op.call(R.multiply, wide, wide), axes)
        return cast(op, op.call(R.sqrt, total), data.dtype)

    return _reduce(op, norm)


@register("ReduceLogSum", shape_inputs=(1,))
def reduce_log_sum(op: NodeContext) -> Value:
    """https://onnx.ai/onnx/operators/onnx__ReduceLogSum.html"""
    return _reduce(op, lambda op, data, axes: op.call(R.log, _total(op, data, axes)))


@register("ReduceLogSumExp", shape_inputs=(1,))
def reduce_log_sum_exp(op: NodeContext) -> Value:
    """https://onnx.ai/onnx/operators/onnx__ReduceLogSumExp.html (the largest is taken off)."""

    def compute(op: NodeContext, data: Value, axes: list[int]) -> Value:
        top = _largest(op, data, axes)
        scaled = op.call(R.exp, op.call(R.subtract, data, top))
        return op.call(R.add, op.call(R.log, _total(op, scaled, axes)), top)

    return _reduce(op, compute)


@register("ArgMax")
@register("ArgMin")
def arg_extreme(op: NodeContext) -> Value:
    """https://onnx.ai/onnx/operators/onnx__ArgMax.html (int64 indices)."""
    data = op.input(0)
    axis, keepdims = op.attr("axis") % data.rank, bool(op.attr("keepdims"))
    last = bool(op.attr("select_last_index", 0))
    function = R.argmax if op.node.op_type == "ArgMax" else R.argmin
    if last:
        data = op.call(R.flip, data, axis)
    best = cast(op, op.call(function, data, axis=axis, keepdims=keepdims), "int64")
    if not last:
        return best
    return op.call(R.subtract, op.scalar(data.shape[axis] - 1, "int64"), best)
