"""Evaluates a node whose inputs are all constants, with ONNX's reference implementation."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx
from onnx.reference import ReferenceEvaluator
from onnx.reference.ops._op_list import load_op

from tilewright.frontends.onnx.values import Value

# A folded tensor may outgrow its inputs by this much; beyond it, the operator runs at run time
# instead of swelling the deployed file.
GROWTH_LIMIT_BYTES = 64 << 20

# The reference computes these with Python loops over every element.
_SLOW = frozenset(
    [
        "Conv",
        "ConvTranspose",
        "ConvInteger",
        "QLinearConv",
        "DeformConv",
        "MaxPool",
        "AveragePool",
        "LpPool",
        "Resize",
        "Upsample",
        "LSTM",
        "GRU",
        "RNN",
        "GridSample",
        "RoiAlign",
        "NonMaxSuppression",
    ]
)
_SLOW_ELEMENTS = 1 << 16

_FAILURES = (
    ValueError, TypeError, IndexError, KeyError, AttributeError, ArithmeticError, RuntimeError,
    AssertionError,
)  # fmt: skip

_EXPANDING_BY_SHAPE_INPUT = {"Expand": 1, "ConstantOfShape": 0, "RandomUniform": 0}


def fold(node: onnx.NodeProto, inputs: Sequence[Value | None], opset: int) -> list[Any] | None:
    """Compute the outputs of a node from constant inputs.

    Args:
        node: A node without subgraphs.
        inputs: Its inputs; every one that is present holds data.
        opset: Opset version of the node's domain.

    Returns:
        One array per output of the node, or None where folding does not pay (the result would be
        a giant tensor, or the reference implementation is slow) or is not possible.
    """
    arrays = [None if value is None or value.data is None else value.data for value in inputs]
    given = [array for array in arrays if array is not None]
    if _result_bytes(node, arrays) > sum(array.nbytes for array in given) + GROWTH_LIMIT_BYTES:
        return None
    if node.op_type in _SLOW and sum(array.size for array in given) > _SLOW_ELEMENTS:
        return None
    try:
        operator = load_op(node.domain, node.op_type, opset, evaluator_cls=ReferenceEvaluator)
    except _FAILURES:
        return None
    parameters = {
        "log": _no_log,
        "opsets": {node.domain: opset},
        "verbose": 0,
        "new_ops": None,
        "evaluator_cls": ReferenceEvaluator,
    }
    direct = _DIRECT.get(node.op_type) if node.domain == "" else None
    try:
        if direct is not None:
            return [direct(node, *given)]
        outputs = operator(node, parameters).run(*arrays)
    except _FAILURES:
        # The reference implementation has gaps; the converter has the last word.
        return None
    return [np.asarray(item) if isinstance(item, np.generic) else item for item in outputs]


def _gather_elements(node: onnx.NodeProto, data: np.ndarray, indices: np.ndarray) -> np.ndarray:
    """Gather along one axis; the reference fails where the other extents differ."""
    axis = next((item.i for item in node.attribute if item.name == "axis"), 0) % data.ndim
    part = tuple(
        slice(None) if place == axis else slice(extent)
        for place, extent in enumerate(indices.shape)
    )
    return np.take_along_axis(data[part], indices, axis)


_DIRECT = {"GatherElements": _gather_elements}


def _no_log(*_: Any) -> None:
    """Take the messages of the reference implementation."""


def _result_bytes(node: onnx.NodeProto, arrays: Sequence[np.ndarray | None]) -> int:
    """Estimate the size of the result of an operator that may be larger than its inputs."""
    given = [array for array in arrays if array is not None]
    if not given:
        return 0
    item = max(array.dtype.itemsize for array in given)
    if node.op_type in _EXPANDING_BY_SHAPE_INPUT:
        shape = arrays[_EXPANDING_BY_SHAPE_INPUT[node.op_type]]
        extents = [] if shape is None else np.ravel(shape).tolist()
        return item * math.prod(max(1, extent) for extent in extents)
    first = given[0]
    if node.op_type == "Tile":
        return first.nbytes * math.prod(max(1, int(count)) for count in np.ravel(given[-1]))
    if node.op_type == "Range" and len(given) == 3:
        start, limit, delta = (float(np.ravel(array)[0]) for array in given)
        return item * max(0, math.ceil((limit - start) / delta)) if delta else 0
    if node.op_type == "OneHot" and len(given) == 3:
        return given[2].itemsize * first.size * max(1, int(np.ravel(given[1])[0]))
    if node.op_type == "Gather" and len(given) == 2 and first.size:
        return given[1].size * first.nbytes // max(1, min(first.shape, default=1))
    if node.op_type == "Pad":
        total = int(np.abs(given[1]).sum()) if len(given) > 1 else 0
        return item * math.prod(extent + total for extent in first.shape)
    if node.op_type == "EyeLike":
        return 8 * first.size
    return _broadcast_bytes(given, item)


def _broadcast_bytes(given: Sequence[np.ndarray], item: int) -> int:
    """Size of the tensor that element-wise inputs broadcast to; 0 where they do not."""
    try:
        return item * math.prod(np.broadcast_shapes(*(array.shape for array in given)))
    except ValueError:
        return 0
