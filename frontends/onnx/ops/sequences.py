"""Sequences and optional values, which exist only while a model is compiled."""

from __future__ import annotations

from typing import Any

import numpy as np
from tvm import relax

from tilewright.frontends.onnx.node import NodeContext
from tilewright.frontends.onnx.ops.reshaping import cut, reshape_to
from tilewright.frontends.onnx.registry import register
from tilewright.frontends.onnx.values import Value, constant

R = relax.op


def _sequence(op: NodeContext) -> list[Value]:
    value: Any = op.inputs[0]
    if not isinstance(value, list):
        op.fail("its input is not a sequence that is known when compiling")
    return value


def _position(op: NodeContext, index: int, default: int) -> int:
    place = op.optional_data(index)
    return default if place is None else int(np.ravel(place)[0])


@register("SequenceEmpty", foldable=False)
def sequence_empty(op: NodeContext) -> Any:
    """https://onnx.ai/onnx/operators/onnx__SequenceEmpty.html"""
    op.attr("dtype")
    return [[]]


@register("SequenceConstruct", foldable=False)
def sequence_construct(op: NodeContext) -> Any:
    """https://onnx.ai/onnx/operators/onnx__SequenceConstruct.html"""
    return [list(op.inputs)]


@register("SequenceInsert", foldable=False, shape_inputs=(2,))
def sequence_insert(op: NodeContext) -> Any:
    """https://onnx.ai/onnx/operators/onnx__SequenceInsert.html"""
    items = list(_sequence(op))
    items.insert(_position(op, 2, len(items)), op.input(1))
    return [items]


@register("SequenceErase", foldable=False, shape_inputs=(1,))
def sequence_erase(op: NodeContext) -> Any:
    """https://onnx.ai/onnx/operators/onnx__SequenceErase.html"""
    items = list(_sequence(op))
    del items[_position(op, 1, -1)]
    return [items]


@register("SequenceAt", foldable=False, shape_inputs=(1,))
def sequence_at(op: NodeContext) -> Any:
    """https://onnx.ai/onnx/operators/onnx__SequenceAt.html"""
    return [_sequence(op)[_position(op, 1, 0)]]


@register("SequenceLength", foldable=False)
def sequence_length(op: NodeContext) -> Value:
    """https://onnx.ai/onnx/operators/onnx__SequenceLength.html"""
    return constant(np.array(len(_sequence(op)), np.int64))


@register("SplitToSequence", foldable=False, shape_inputs=(1,))
def split_to_sequence(op: NodeContext) -> Any:
    """https://onnx.ai/onnx/operators/onnx__SplitToSequence.html"""
    data, split = op.input(0), op.optional_data(1)
    axis, keepdims = op.attr("axis") % data.rank, op.attr("keepdims")
    extent = data.shape[axis]
    if split is None or split.ndim == 0:
        size = 1 if split is None else int(split)
        sizes = [min(size, extent - start) for start in range(0, extent, size)]
    else:
        sizes = [int(size) for size in split]
    items, start = [], 0
    for size in sizes:
        part = cut(op, data, axis, start, start + size)
        if split is None and not keepdims:
            part = reshape_to(op, part, (*data.shape[:axis], *data.shape[axis + 1 :]))
        items.append(part)
        start += size
    return [items]


@register("ConcatFromSequence", foldable=False)
def concat_from_sequence(op: NodeContext) -> Value:
    """https://onnx.ai/onnx/operators/onnx__ConcatFromSequence.html"""
    items, axis = _sequence(op), op.attr("axis")
    if op.attr("new_axis"):
        axis = axis % (items[0].rank + 1)
        shape = (*items[0].shape[:axis], 1, *items[0].shape[axis:])
        items = [reshape_to(op, item, shape) for item in items]
    return items[0] if len(items) == 1 else op.call(R.concat, items, axis)


@register("Optional", foldable=False)
def optional(op: NodeContext) -> Any:
    """https://onnx.ai/onnx/operators/onnx__Optional.html"""
    op.attr("type", None)
    return [op.inputs[0] if op.inputs else None]


@register("OptionalHasElement", foldable=False)
def optional_has_element(op: NodeContext) -> Value:
    """https://onnx.ai/onnx/operators/onnx__OptionalHasElement.html"""
    return constant(np.array(bool(op.inputs) and op.inputs[0] is not None))


@register("OptionalGetElement", foldable=False)
def optional_get_element(op: NodeContext) -> Any:
    """https://onnx.ai/onnx/operators/onnx__OptionalGetElement.html"""
    if not op.inputs or op.inputs[0] is None:
        raise ValueError("the optional value is empty")
    return [op.inputs[0]]
