"""Operators whose output's size depends on data: an upper bound of it, and the actual size.

The loops are written out: each output position depends on how many came before. What lies beyond
the actual size is zero.
"""

from __future__ import annotations

from math import prod
from typing import Any

import numpy as np
from tvm import te, tirx
from tvm.script.ir_builder import IRBuilder
from tvm.script.ir_builder import tirx as T

from tilewright.frontends.onnx.node import NodeContext
from tilewright.frontends.onnx.ops.bounded import masked, plain, sizes_of, with_sizes
from tilewright.frontends.onnx.ops.reshaping import reshape_to
from tilewright.frontends.onnx.registry import register
from tilewright.frontends.onnx.values import Value, constant


def _clear(buffer: Any, size: int, dtype: str) -> None:
    """Zero a buffer, so that what lies beyond the actual size can be computed with."""
    with T.serial(0, size) as place:
        buffer[place] = tirx.const(0, dtype)


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
    # Exporters write one for every use of a mask; those must have the same size.
    known = op.builder.nonzero_of
    if id(data) not in known:
        filled = masked(op, data, 0, range(data.rank))
        found, count = op.te_tuple(_nonzero, filled, name="nonzero")
        known[id(data)] = (data, with_sizes(found, [None, count]))
    return known[id(data)][1]


def _nonzero(data: te.Tensor) -> list[te.Tensor]:
    shape = [int(extent) for extent in data.shape]
    size = prod(shape)

    def loops(source: Any, found: Any, count: Any) -> tirx.Stmt:
        with IRBuilder() as builder:
            with T.seq_scope():
                source, found, count = map(T.buffer_proxy, (source, found, count))
                _clear(found, len(shape) * size, "int64")
                count[0] = _int(0)
                with (
                    T.serial(0, size) as flat,
                    T.If(_is_set(source[flat], data.dtype)),
                    T.Then(),
                ):
                    for dim, extent in enumerate(shape):
                        place = flat // prod(shape[dim + 1 :]) % extent
                        found[count[0] + dim * size] = place.astype("int64")
                    count[0] = count[0] + 1
            return builder.get()

    return te.extern(
        [(len(shape), size), (1,)],
        [data],
        lambda ins, outs: loops(ins[0], *outs),
        dtype=["int64", "int64"],
        name="nonzero",
    )


@register("Compress", 9)
def compress(op: NodeContext) -> Value:
    """https://onnx.ai/onnx/operators/onnx__Compress.html"""
    data, condition, axis = op.input(0), op.input(1), op.attr("axis")
    sizes = list(sizes_of(data))
    if axis is None:
        if data.sizes and data.rank > 1:
            op.fail("without an axis, its input must have one dimension if its size is open")
        data, axis = reshape_to(op, plain(data), (data.size,)), 0
        sizes = sizes[:1] or [None]
    axis = axis % data.rank
    if not data.size or not condition.size:
        shape = [*data.shape[:axis], 0, *data.shape[axis + 1 :]]
        return Value(tuple(shape), data.dtype, data=np.zeros(shape, data.dtype))
    condition = masked(op, condition, False, [0])
    kept, count = op.te_tuple(_compress, plain(data), condition, axis, name="compress")
    sizes[axis] = count
    return with_sizes(kept, sizes)


def _compress(data: te.Tensor, condition: te.Tensor, axis: int) -> list[te.Tensor]:
    shape = [int(extent) for extent in data.shape]
    length, before, after = shape[axis], prod(shape[:axis]), prod(shape[axis + 1 :])
    bound = min(length, int(condition.shape[0]))
    shape[axis] = bound

    def loops(source: Any, wanted: Any, kept: Any, count: Any) -> tirx.Stmt:
        with IRBuilder() as builder:
            with T.seq_scope():
                source, wanted, kept, count = map(T.buffer_proxy, (source, wanted, kept, count))
                _clear(kept, prod(shape), data.dtype)
                count[0] = _int(0)
                with T.serial(0, bound) as index, T.If(wanted[index]), T.Then():
                    with T.serial(0, before) as row, T.serial(0, after) as column:
                        target = (count[0] + row * bound) * after + column
                        kept[target] = source[(row * length + index) * after + column]
                    count[0] = count[0] + 1
            return builder.get()

    return te.extern(
        [tuple(shape), (1,)],
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
    axis = axis % data.rank
    parts = op.te_tuple(_unique, data, axis, is_sorted, name="unique")
    values, indices, inverse, counts, number = parts[:5]
    sizes = [number if place == axis else None for place in range(data.rank)]
    return [
        with_sizes(values, sizes),
        with_sizes(indices, [number]),
        inverse,
        with_sizes(counts, [number]),
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
                source, values, indices, inverse, counts, number, scratch = map(
                    T.buffer_proxy, (source, *outs)
                )
                _clear(values, prod(shape), data.dtype)
                _clear(indices, count, "int64")
                _clear(counts, count, "int64")
                # scratch: per row the first row that equals it, per row its place, one comparison.
                order = 2 * count

                def compare(one: Any, other: Any) -> None:
                    scratch[order] = _int(0)
                    with T.serial(0, width) as element, T.If(scratch[order] == 0), T.Then():
                        left, right = source[at(one, element)], source[at(other, element)]
                        scratch[order] = (left > right).astype("int64") - (left < right).astype(
                            "int64"
                        )

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
                with T.serial(0, count) as row:
                    inverse[row] = scratch[scratch[row] + count]
                    counts[inverse[row]] = counts[inverse[row]] + 1
            return builder.get()

    return te.extern(
        [tuple(shape), *[(count,)] * 3, (1,), (2 * count + 1,)],
        [data],
        lambda ins, outs: loops(*ins, *outs),
        dtype=[data.dtype, *["int64"] * 5],
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
    scores = masked(op, scores, -np.inf, range(scores.rank))
    args = (plain(boxes), scores, overlap, least, per_class, is_centred)
    chosen, count = op.te_tuple(_suppress, *args, name="nms")[:2]
    return with_sizes(chosen, [count, None])


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
                chosen, number, state, last = map(T.buffer_proxy, outs)
                _clear(chosen, batches * classes * per_class * 3, "int64")
                start, previous, best, is_kept, is_done = range(5)  # places in `state`
                number[0] = _int(0)
                with T.serial(0, batches) as batch, T.serial(0, classes) as kind:
                    state[start] = number[0]
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
                            with T.serial(_int(0), number[0] - state[start]) as index:
                                other = chosen[(state[start] + index) * 3 + 2]
                                shared = _overlap(
                                    corners, batch * count, state[best], other, is_centred
                                )
                                with T.If(shared > most_overlap[0]), T.Then():
                                    state[is_kept] = _int(0)
                            with T.If(state[is_kept] == 1), T.Then():
                                chosen[number[0] * 3] = batch.astype("int64")
                                chosen[number[0] * 3 + 1] = kind.astype("int64")
                                chosen[number[0] * 3 + 2] = state[best]
                                number[0] = number[0] + 1
                            with T.If(number[0] - state[start] >= per_class), T.Then():
                                state[is_done] = _int(1)
            return builder.get()

    return te.extern(
        [(batches * classes * per_class, 3), (1,), (5,), (1,)],
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
