"""Arithmetic on tensors whose size depends on data.

Operators compute up to the upper bound; before an operator that mixes elements, those beyond the
actual size get a number that does not count.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from tvm import relax

from tilewright.frontends.onnx.node import NodeContext
from tilewright.frontends.onnx.ops.bounded import (
    Sizes,
    masked,
    plain,
    size_at,
    sizes_of,
    with_sizes,
)
from tilewright.frontends.onnx.ops.elementwise import ELEMENTWISE, FLOATS, cast
from tilewright.frontends.onnx.ops.reduction import reduced_axes
from tilewright.frontends.onnx.ops.reshaping import reshape_to
from tilewright.frontends.onnx.registry import Convert, bounded_rule
from tilewright.frontends.onnx.values import Value

R = relax.op


def plain_inputs(op: NodeContext) -> NodeContext:
    """Return the node with inputs up to their upper bounds."""
    return op.with_inputs([plain(v) if isinstance(v, Value) else v for v in op.inputs])


def broadcast_sizes(op: NodeContext, values: Sequence[Value | None]) -> Sizes:
    """Return the sizes of what the values broadcast to."""
    present = [value for value in values if value is not None]
    rank = max(value.rank for value in present)
    result: list[Value | None] = []
    for place in range(-rank, 0):
        found: dict[int, Value | None] = {}
        for value in present:
            if value.rank < -place:
                continue
            size = sizes_of(value)[place]
            if size is not None or value.shape[place] != 1:
                found[id(size)] = size
        if len(found) > 1:
            op.fail("its inputs have sizes that depend on different data")
        result.append(next(iter(found.values()), None))
    return tuple(result)


@bounded_rule(
    *ELEMENTWISE,
    *("BitShift", "Celu", "Clip", "Div", "Elu", "Gelu", "HardSigmoid", "HardSwish", "IsInf"),
    *("LeakyRelu", "Mean", "Mish", "Mod", "PRelu", "Pow", "Reciprocal", "Relu", "Round", "Selu"),
    *("Shrink", "Softplus", "Softsign", "Swish", "ThresholdedRelu", "Where"),
)
def elementwise(op: NodeContext, convert: Convert) -> Any:
    """Compute with everything; the result is as large as what the inputs broadcast to."""
    sizes = broadcast_sizes(op, op.inputs)
    result = convert(plain_inputs(op))
    return with_sizes(result, sizes) if isinstance(result, Value) else result


@bounded_rule("Cast", "CastLike", "DequantizeLinear", "QuantizeLinear", "Trilu")
def like_first(op: NodeContext, convert: Convert) -> Any:
    """Compute with everything; the result is as large as the first input."""
    if any(isinstance(value, Value) and value.sizes for value in op.inputs[1:]):
        op.fail("the size of a parameter depends on data")
    result = convert(plain_inputs(op))
    return with_sizes(result, sizes_of(op.input(0))) if isinstance(result, Value) else result


@bounded_rule(
    *("AveragePool", "BatchNormalization", "Conv", "ConvTranspose", "GlobalAveragePool"),
    *("GlobalMaxPool", "InstanceNormalization", "LRN", "MaxPool"),
)
def per_image(op: NodeContext, convert: Convert) -> Any:
    """Compute with everything, where only the number of images depends on data."""
    sizes = sizes_of(op.input(0))
    if any(isinstance(v, Value) and v.sizes for v in op.inputs[1:]) or any(sizes[1:]):
        op.fail("another size of its input than the first depends on data")
    result = convert(plain_inputs(op))
    results = [result] if isinstance(result, Value) else list(result)
    return [with_sizes(v, [sizes[0], *[None] * (v.rank - 1)]) for v in results if v is not None]  # type: ignore[union-attr,arg-type]


@bounded_rule("RoiAlign")
def per_region(op: NodeContext, convert: Convert) -> Any:
    """Compute with everything; there are as many results as regions."""
    regions = op.input(1)
    if op.input(0).sizes:
        op.fail("the size of its images depends on data")
    result = convert(plain_inputs(op))
    assert isinstance(result, Value)
    return with_sizes(result, [sizes_of(regions)[0], None, None, None])


@bounded_rule("LayerNormalization", "RMSNormalization")
def normalised(op: NodeContext, convert: Convert) -> Any:
    """Compute with everything, where the normalised dimensions are of known size."""
    data = op.input(0)
    if any(sizes_of(data)[op.attr("axis", -1) % data.rank :]):
        op.fail("the number of elements to normalise depends on data")
    result = convert(plain_inputs(op))
    results = [result] if isinstance(result, Value) else result
    return [with_sizes(v, sizes_of(data)) if isinstance(v, Value) else v for v in results]


@bounded_rule("Softmax", "LogSoftmax")
def softmax(op: NodeContext, convert: Convert) -> Any:
    """Give elements that do not exist no share."""
    data, axis = op.input(0), op.attr("axis", -1 if op.opset >= 13 else 1) % op.input(0).rank
    axes = [axis] if op.opset >= 13 else range(axis, data.rank)
    result = convert(op.with_inputs([masked(op, data, -np.inf, axes)]))
    assert isinstance(result, Value)
    return with_sizes(result, sizes_of(data))


def _lowest(dtype: str) -> float | int | bool:
    if dtype in FLOATS:
        return -np.inf
    return False if dtype == "bool" else int(np.iinfo(dtype).min)


def _highest(dtype: str) -> float | int | bool:
    if dtype in FLOATS:
        return np.inf
    return True if dtype == "bool" else int(np.iinfo(dtype).max)


def _neutral(operator: str, dtype: str) -> float | int | bool:
    """Return the number that leaves a reduction as it is."""
    if operator in ("ReduceMax", "ReduceLogSumExp", "ArgMax"):
        return _lowest(dtype)
    if operator in ("ReduceMin", "ArgMin"):
        return _highest(dtype)
    return 1 if operator == "ReduceProd" else 0


def _reduced(op: NodeContext, axes: Sequence[int]) -> Sizes:
    sizes = sizes_of(op.input(0))
    if op.attr("keepdims"):
        return tuple(None if axis in axes else size for axis, size in enumerate(sizes))
    return tuple(size for axis, size in enumerate(sizes) if axis not in axes)


@bounded_rule(
    *("ReduceL1", "ReduceL2", "ReduceLogSum", "ReduceLogSumExp", "ReduceMax", "ReduceMin"),
    *("ReduceProd", "ReduceSum", "ReduceSumSquare"),
)
def reduction(op: NodeContext, convert: Convert) -> Any:
    """Reduce with neutral elements in the place of those that do not exist."""
    data, axes = op.input(0), reduced_axes(op)
    filled = masked(op, data, _neutral(op.node.op_type, data.dtype), axes)
    result = convert(op.with_inputs([filled, *op.inputs[1:]]))
    assert isinstance(result, Value)
    return with_sizes(result, _reduced(op, axes))


@bounded_rule("ReduceMean")
def mean(op: NodeContext, convert: Convert) -> Any:
    """Divide the sum by the number of elements that exist (none: by 0, as numpy does)."""
    data, axes = op.input(0), reduced_axes(op)
    if data.dtype not in FLOATS:
        op.fail("the mean of integers whose number depends on data")
    total = op.call(R.sum, masked(op, data, 0, axes), axis=axes, keepdims=bool(op.attr("keepdims")))
    for axis in axes:
        count = cast(op, reshape_to(op, size_at(data, axis), ()), data.dtype)
        total = op.call(R.divide, total, count)
    return with_sizes(total, _reduced(op, axes))


@bounded_rule("ArgMax", "ArgMin")
def arg_extreme(op: NodeContext, convert: Convert) -> Any:
    """Find the extreme element among those that exist."""
    data, axis = op.input(0), op.attr("axis") % op.input(0).rank
    filled = masked(op, data, _neutral(op.node.op_type, data.dtype), [axis])
    result = convert(op.with_inputs([filled]))
    assert isinstance(result, Value)
    return with_sizes(result, _reduced(op, [axis]))


@bounded_rule("TopK")
def top_k(op: NodeContext, convert: Convert) -> Any:
    """Select among the elements that exist."""
    data, axis = op.input(0), op.attr("axis", -1) % op.input(0).rank
    fill = _lowest(data.dtype) if op.attr("largest", 1) else _highest(data.dtype)
    results = convert(op.with_inputs([masked(op, data, fill, [axis]), *op.inputs[1:]]))
    sizes = [None if place == axis else size for place, size in enumerate(sizes_of(data))]
    return [with_sizes(value, sizes) for value in results if isinstance(value, Value)]  # type: ignore[union-attr]


@bounded_rule("CumSum", "CumProd")
def cumulative(op: NodeContext, convert: Convert) -> Any:
    """Accumulate nothing from elements that do not exist."""
    data = op.input(0)
    fill = 1 if op.node.op_type == "CumProd" else 0
    filled = masked(op, data, fill, range(data.rank))
    result = convert(op.with_inputs([filled, *op.inputs[1:]]))
    assert isinstance(result, Value)
    return with_sizes(result, sizes_of(data))


@bounded_rule("MatMul")
def matmul(op: NodeContext, convert: Convert) -> Any:
    """Multiply with zeros in the place of what does not exist along the summed dimension."""
    left, right = op.input(0), op.input(1)
    summed = right.rank - 2 if right.rank > 1 else 0
    result = convert(
        op.with_inputs([masked(op, left, 0, [left.rank - 1]), masked(op, right, 0, [summed])])
    )
    assert isinstance(result, Value)
    batches = [
        Value(v.shape[:-2], v.dtype, sizes=v.sizes[:-2] if v.sizes else None)
        for v in (left, right)
        if v.rank > 2
    ]
    sizes = list(broadcast_sizes(op, batches)) if batches else []
    sizes += [sizes_of(left)[-2]] if left.rank > 1 else []
    sizes += [sizes_of(right)[-1]] if right.rank > 1 else []
    return with_sizes(result, sizes)


@bounded_rule("Gemm")
def gemm(op: NodeContext, convert: Convert) -> Any:
    """Multiply as MatMul does."""
    left, right = op.input(0), op.input(1)
    rows, summed_left = (1, 0) if op.attr("transA") else (0, 1)
    columns, summed_right = (0, 1) if op.attr("transB") else (1, 0)
    inputs = [masked(op, left, 0, [summed_left]), masked(op, right, 0, [summed_right])]
    bias = op.optional(2)
    result = convert(op.with_inputs([*inputs, *([plain(bias)] if bias is not None else [])]))
    assert isinstance(result, Value)
    return with_sizes(result, [sizes_of(left)[rows], sizes_of(right)[columns]])
