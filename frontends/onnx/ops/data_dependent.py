"""Operators whose output's size depends on data: an upper bound of it, and the actual extents.

The module returns the actual extents beside the output, and the runtime cuts the output to them.
The loops are written out: each output position depends on how many came before.
"""

from __future__ import annotations

from math import prod
from typing import Any

import numpy as np
from tvm import te, tirx
from tvm.script.ir_builder import IRBuilder
from tvm.script.ir_builder import tirx as T

from tilewright.frontends.onnx.node import NodeContext
from tilewright.frontends.onnx.ops.reshaping import reshape_to
from tilewright.frontends.onnx.registry import register
from tilewright.frontends.onnx.values import Value, constant


def bounded(upper: Value, extents: Value) -> Value:
    """Return a value of which only the leading `extents` (int64, one per dimension) count."""
    return Value(upper.shape, upper.dtype, expr=upper.expr, extents=extents)


def _int(number: int) -> Any:
    return tirx.const(number, "int64")


def _is_set(element: Any, dtype: str) -> Any:
    return element if dtype == "bool" else element != tirx.const(0, dtype)


@register("NonZero", 9)
def nonzero(op: NodeContext) -> Value:
    """https://onnx.ai/onnx/operators/onnx__NonZero.html"""
    data = op.input(0)
    if not data.rank:
        op.fail("its input is a scalar; reshape it to [1]")
    if not data.size:
        return constant(np.zeros((data.rank, 0), np.int64))
    return bounded(*op.te_tuple(_nonzero, data, name="nonzero"))


def _nonzero(data: te.Tensor) -> list[te.Tensor]:
    shape = [int(extent) for extent in data.shape]
    size = prod(shape)

    def loops(source: Any, found: Any, extents: Any) -> tirx.Stmt:
        with IRBuilder() as builder:
            with T.seq_scope():
                source, found, extents = map(T.buffer_proxy, (source, found, extents))
                extents[0] = _int(len(shape))
                extents[1] = _int(0)
                with (
                    T.serial(0, size) as flat,
                    T.If(_is_set(source[flat], data.dtype)),
                    T.Then(),
                ):
                    for dim, extent in enumerate(shape):
                        place = flat // prod(shape[dim + 1 :]) % extent
                        found[extents[1] + dim * size] = place.astype("int64")
                    extents[1] = extents[1] + 1
            return builder.get()

    return te.extern(
        [(len(shape), size), (2,)],
        [data],
        lambda ins, outs: loops(ins[0], *outs),
        dtype=["int64", "int64"],
        name="nonzero",
    )


@register("Compress", 9)
def compress(op: NodeContext) -> Value:
    """https://onnx.ai/onnx/operators/onnx__Compress.html"""
    data, condition, axis = op.input(0), op.input(1), op.attr("axis")
    if axis is None:
        data, axis = reshape_to(op, data, (data.size,)), 0
    axis = axis % data.rank
    if not data.size or not condition.size:
        shape = [*data.shape[:axis], 0, *data.shape[axis + 1 :]]
        return Value(tuple(shape), data.dtype, data=np.zeros(shape, data.dtype))
    return bounded(*op.te_tuple(_compress, data, condition, axis, name="compress"))


def _compress(data: te.Tensor, condition: te.Tensor, axis: int) -> list[te.Tensor]:
    shape = [int(extent) for extent in data.shape]
    length, before, after = shape[axis], prod(shape[:axis]), prod(shape[axis + 1 :])
    bound = min(length, int(condition.shape[0]))
    shape[axis] = bound

    def loops(source: Any, wanted: Any, kept: Any, extents: Any) -> tirx.Stmt:
        with IRBuilder() as builder:
            with T.seq_scope():
                source, wanted, kept, extents = map(T.buffer_proxy, (source, wanted, kept, extents))
                for dim, extent in enumerate(shape):
                    extents[dim] = _int(0 if dim == axis else extent)
                with T.serial(0, bound) as index, T.If(wanted[index]), T.Then():
                    with T.serial(0, before) as row, T.serial(0, after) as column:
                        target = (extents[axis] + row * bound) * after + column
                        kept[target] = source[(row * length + index) * after + column]
                    extents[axis] = extents[axis] + 1
            return builder.get()

    return te.extern(
        [tuple(shape), (len(shape),)],
        [data, condition],
        lambda ins, outs: loops(*ins, *outs),
        dtype=[data.dtype, "int64"],
        name="compress",
    )


@register("Unique", 11)
def unique(op: NodeContext) -> list[Value]:
    """https://onnx.ai/onnx/operators/onnx__Unique.html (compares every pair of rows)."""
    data, axis, is_sorted = op.input(0), op.attr("axis"), bool(op.attr("sorted"))
    if axis is None:
        data, axis = reshape_to(op, data, (data.size,)), 0
    if not data.size:
        op.fail("its input has no elements")
    parts = op.te_tuple(_unique, data, axis % data.rank, is_sorted, name="unique")
    values, indices, inverse, counts, extents, number = parts[:6]
    return [
        bounded(values, extents),
        bounded(indices, number),
        inverse,
        bounded(counts, number),
    ]


def _unique(data: te.Tensor, axis: int, is_sorted: bool) -> list[te.Tensor]:
    shape = [int(extent) for extent in data.shape]
    count, after = shape[axis], prod(shape[axis + 1 :])
    width = prod(shape) // count

    def at(row: Any, element: Any) -> Any:
        return element // after * (count * after) + row * after + element % after

    def loops(source: Any, *outs: Any) -> tirx.Stmt:
        with IRBuilder() as builder:
            with T.seq_scope():
                source, values, indices, inverse, counts, extents, number, scratch = map(
                    T.buffer_proxy, (source, *outs)
                )
                # scratch: per row the first row that equals it, per row its place, one comparison.
                order = 2 * count

                def compare(one: Any, other: Any) -> None:
                    scratch[order] = _int(0)
                    with T.serial(0, width) as element, T.If(scratch[order] == 0), T.Then():
                        left, right = source[at(one, element)], source[at(other, element)]
                        scratch[order] = (left > right).astype("int64") - (left < right).astype(
                            "int64"
                        )

                for dim, extent in enumerate(shape):
                    extents[dim] = _int(0 if dim == axis else extent)
                number[0] = _int(0)
                with T.serial(0, count) as row:
                    scratch[row] = row.astype("int64")
                    with T.serial(0, row) as other:
                        is_open = tirx.all(scratch[row] == row, scratch[other] == other)
                        with T.If(is_open), T.Then():
                            compare(row, other)
                            with T.If(scratch[order] == 0), T.Then():
                                scratch[row] = other.astype("int64")
                with T.serial(0, count) as row, T.If(scratch[row] == row), T.Then():
                    place = count + row
                    scratch[place] = _int(0) if is_sorted else number[0]
                    if is_sorted:
                        with (
                            T.serial(0, count) as other,
                            T.If(scratch[other] == other),
                            T.Then(),
                        ):
                            compare(other, row)
                            with T.If(scratch[order] < 0), T.Then():
                                scratch[place] = scratch[place] + 1
                    indices[scratch[place]] = row.astype("int64")
                    counts[scratch[place]] = _int(0)
                    with T.serial(0, width) as element:
                        values[at(scratch[place], element)] = source[at(row, element)]
                    number[0] = number[0] + 1
                extents[axis] = number[0]
                with T.serial(0, count) as row:
                    inverse[row] = scratch[scratch[row] + count]
                    counts[inverse[row]] = counts[inverse[row]] + 1
            return builder.get()

    return te.extern(
        [tuple(shape), *[(count,)] * 3, (len(shape),), (1,), (2 * count + 1,)],
        [data],
        lambda ins, outs: loops(*ins, *outs),
        dtype=[data.dtype, *["int64"] * 6],
        name="unique",
    )


@register("NonMaxSuppression", 10, shape_inputs=(2,))
def non_max_suppression(op: NodeContext) -> Value:
    """https://onnx.ai/onnx/operators/onnx__NonMaxSuppression.html"""
    boxes, scores = op.input(0), op.input(1)
    most = op.ints(2)
    overlap, least = op.optional(3), op.optional(4)
    per_class = min(max(most[0], 0) if most else 0, boxes.shape[1])
    if not per_class:
        return constant(np.zeros((0, 3), np.int64))
    overlap = reshape_to(op, overlap or op.scalar(0, "float32"), (1,))
    least = reshape_to(op, least or op.scalar(-np.inf, "float32"), (1,))
    is_centred = bool(op.attr("center_point_box"))
    args = (boxes, scores, overlap, least, per_class, is_centred)
    return bounded(*op.te_tuple(_suppress, *args, name="nms")[:2])


def _suppress(
    boxes: te.Tensor,
    scores: te.Tensor,
    overlap: te.Tensor,
    least: te.Tensor,
    per_class: int,
    is_centred: bool,
) -> list[te.Tensor]:
    """Go through the boxes of a class from the best score down; keep what overlaps none kept."""
    batches, classes, count = (int(extent) for extent in scores.shape)

    def loops(ins: Any, outs: Any) -> tirx.Stmt:
        with IRBuilder() as builder:
            with T.seq_scope():
                corners, score, most_overlap, lowest = map(T.buffer_proxy, ins)
                chosen, extents, state, last = map(T.buffer_proxy, outs)
                start, previous, best, is_kept, is_done = range(5)  # places in `state`
                extents[0] = _int(0)
                extents[1] = _int(3)
                with T.serial(0, batches) as batch, T.serial(0, classes) as kind:
                    state[start] = extents[0]
                    state[previous] = _int(-1)
                    state[is_done] = _int(0)
                    last[0] = tirx.const(np.inf, "float32")
                    with T.serial(0, count), T.If(state[is_done] == 0), T.Then():
                        first = (batch * classes + kind) * count
                        state[best] = _int(-1)
                        with T.serial(0, count) as box:
                            value = score[first + box]
                            so_far = score[first + tirx.max(state[best], _int(0))]
                            is_later = tirx.all(value >= last[0], box > state[previous])
                            candidate = tirx.all(
                                value > lowest[0],
                                tirx.any(value < last[0], tirx.all(value <= last[0], is_later)),
                                tirx.any(state[best] < 0, value > so_far),
                            )
                            with T.If(candidate), T.Then():
                                state[best] = box.astype("int64")
                        with T.If(state[best] < 0), T.Then():
                            state[is_done] = _int(1)
                        with T.If(state[best] >= 0), T.Then():
                            state[previous] = state[best]
                            last[0] = score[first + state[best]]
                            state[is_kept] = _int(1)
                            with T.serial(_int(0), extents[0] - state[start]) as index:
                                other = chosen[(state[start] + index) * 3 + 2]
                                shared = _overlap(
                                    corners, batch * count, state[best], other, is_centred
                                )
                                with T.If(shared > most_overlap[0]), T.Then():
                                    state[is_kept] = _int(0)
                            with T.If(state[is_kept] == 1), T.Then():
                                chosen[extents[0] * 3] = batch.astype("int64")
                                chosen[extents[0] * 3 + 1] = kind.astype("int64")
                                chosen[extents[0] * 3 + 2] = state[best]
                                extents[0] = extents[0] + 1
                            with T.If(extents[0] - state[start] >= per_class), T.Then():
                                state[is_done] = _int(1)
            return builder.get()

    return te.extern(
        [(batches * classes * per_class, 3), (2,), (5,), (1,)],
        [boxes, scores, overlap, least],
        loops,
        dtype=["int64", "int64", "int64", "float32"],
        name="nms",
    )


def _overlap(corners: Any, first: Any, one: Any, other: Any, is_centred: bool) -> Any:
    """Return the area that two boxes share over the area that they cover; 0 if they do not meet."""
    (low_a, high_a), (low_b, high_b) = (
        _corners(corners, (first + box) * 4, is_centred) for box in (one, other)
    )
    sides = [
        tirx.max(tirx.min(ha, hb) - tirx.max(la, lb), tirx.const(0.0, "float32"))
        for la, ha, lb, hb in zip(low_a, high_a, low_b, high_b, strict=True)
    ]
    shared = sides[0] * sides[1]
    areas = [
        (high[0] - low[0]) * (high[1] - low[1]) for low, high in ((low_a, high_a), (low_b, high_b))
    ]
    union = areas[0] + areas[1] - shared
    zero = tirx.const(0.0, "float32")
    return tirx.Select(union > zero, shared / tirx.Select(union > zero, union, zero + 1.0), zero)


def _corners(corners: Any, at: Any, is_centred: bool) -> tuple[list[Any], list[Any]]:
    """Return the lower and the upper corner of a box."""
    a, b, c, d = (corners[at + index] for index in range(4))
    if is_centred:  # x, y of the centre, width, height
        half = tirx.const(0.5, "float32")
        return [a - c * half, b - d * half], [a + c * half, b + d * half]
    return [tirx.min(a, c), tirx.min(b, d)], [tirx.max(a, c), tirx.max(b, d)]
