"""Operators whose output's size depends on data: an upper bound of it, and the actual size.

Many threads write what is kept: each counts in a piece of its own, and the sums of the pieces
before it are its first place. What lies beyond the actual size is zero.
"""

from __future__ import annotations

from math import isqrt, prod
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


def clear(buffer: Any, size: int, dtype: str) -> None:
    """Zero a buffer, so that what lies beyond the actual size can be computed with."""
    with T.serial(0, size) as place:
        buffer[place] = tirx.const(0, dtype)


def int64(number: int) -> Any:
    """Return a constant."""
    return tirx.const(number, "int64")


def _is_set(element: Any, dtype: str) -> Any:
    return element if dtype == "bool" else element != tirx.const(0, dtype)


def set_starts(starts: Any, amounts: Any, pieces: int) -> None:
    """Emit what sets `starts[p]` to the sum of the amounts before p, for 0 <= p <= pieces."""
    with T.parallel(0, pieces + 1) as piece:
        starts[piece] = int64(0)
        with T.serial(0, piece) as other:
            starts[piece] = starts[piece] + amounts[other]


def last_of(op: NodeContext, numbers: Value) -> Value:
    """Return the last element as [1]."""
    (extent,) = numbers.shape
    return op.te(
        lambda data: te.compute((1,), lambda index: data[index + (extent - 1)], name="last"),
        numbers,
        name="last",
    )


def _places_of(op: NodeContext, mask: Value, bound: int) -> tuple[Value, Value]:
    """Return where the first `bound` elements [n] are set as int64 [bound], and how many [1]."""
    places, _, starts = op.te_tuple(_compact, mask, bound, name="compact")
    return places, last_of(op, starts)


def _compact(mask: te.Tensor, bound: int) -> list[te.Tensor]:
    piece = max(1, isqrt(bound))
    pieces = -(-bound // piece)

    def loops(source: Any, places: Any, amounts: Any, starts: Any) -> tirx.Stmt:
        with IRBuilder() as builder:
            with T.seq_scope():
                source, places, amounts, starts = map(
                    T.buffer_proxy, (source, places, amounts, starts)
                )

                def length(part: Any) -> Any:
                    return tirx.min(piece, bound - part * piece)

                def is_set(place: Any) -> Any:
                    return _is_set(source[place], mask.dtype)

                clear(places, bound, "int64")
                with T.parallel(0, pieces) as part:
                    amounts[part] = int64(0)
                    with T.serial(0, length(part)) as step:
                        amounts[part] = amounts[part] + is_set(part * piece + step).astype("int64")
                set_starts(starts, amounts, pieces)
                with T.parallel(0, pieces) as part, T.serial(0, length(part)) as step:
                    place = part * piece + step
                    with T.If(is_set(place)), T.Then():
                        places[starts[part]] = place.astype("int64")
                        starts[part] = starts[part] + 1
            return builder.get()

    return te.extern(
        [(bound,), (pieces,), (pieces + 1,)],
        [mask],
        lambda ins, outs: loops(*ins, *outs),
        dtype=["int64"] * 3,
        name="compact",
    )


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
        places, count = _places_of(op, reshape_to(op, filled, (data.size,)), data.size)
        found = op.te(_indices, places, count, data.shape, name="nonzero")
        known[id(data)] = (data, with_sizes(found, [None, count]))
    return known[id(data)][1]


def _indices(places: te.Tensor, count: te.Tensor, shape: tuple[int, ...]) -> te.Tensor:
    """Return the index in each dimension of flat places, as [rank, places]."""

    # Vectors have no division of 64 bits.
    dtype = "int32" if prod(shape) <= np.iinfo(np.int32).max else "int64"

    def index(axis: Any, number: Any) -> Any:
        found, place = int64(0), places[number].astype(dtype)
        for dim, extent in enumerate(shape):
            own = (place // prod(shape[dim + 1 :]) % extent).astype("int64")
            found = tirx.Select(axis == dim, own, found)
        return tirx.Select(number.astype("int64") < count[0], found, int64(0))

    return te.compute((len(shape), int(places.shape[0])), index, name="nonzero")


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
    bound = min(data.shape[axis], condition.size)
    places, count = _places_of(op, masked(op, condition, False, [0]), bound)
    sizes[axis] = count
    kept = op.te(_taken, plain(data), places, count, axis, name="compress")
    return with_sizes(kept, sizes)


def _taken(data: te.Tensor, places: te.Tensor, count: te.Tensor, axis: int) -> te.Tensor:
    """Return what is at the first `count` of the places along an axis, then zeros."""
    shape = [int(extent) for extent in data.shape]
    shape[axis] = int(places.shape[0])

    def element(*indices: Any) -> Any:
        place = places[indices[axis]]
        value = data(*indices[:axis], place, *indices[axis + 1 :])
        is_kept = indices[axis].astype("int64") < count[0]
        return tirx.Select(is_kept, value, tirx.const(0, data.dtype))

    return te.compute(tuple(shape), element, name="compress")


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
    values, indices, inverse, counts, first = parts[:5]
    number = op.te(_count_own, first, name="unique_count")
    sizes = [number if place == axis else None for place in range(data.rank)]
    return [
        with_sizes(values, sizes),
        with_sizes(indices, [number]),
        inverse,
        with_sizes(counts, [number]),
    ]


def _count_own(first: te.Tensor) -> te.Tensor:
    """Return how many elements are their own index, as int64 [1]."""
    row = te.reduce_axis((0, int(first.shape[0])), "row")

    def count(_index: Any) -> Any:
        return te.sum((first[row] == row.var.astype("int64")).astype("int64"), axis=row)

    return te.compute((1,), count, name="unique_count")


def _is_less(one: Any, other: Any, dtype: str) -> Any:
    """Compare as numpy sorts: what is not a number comes last."""
    if not dtype.startswith(("float", "bfloat")):
        return one < other
    if dtype == "bfloat16":
        one, other = one.astype("float32"), other.astype("float32")
    return tirx.any(one < other, tirx.all(tirx.isnan(other), tirx.Not(tirx.isnan(one))))


def _unique(data: te.Tensor, axis: int, is_sorted: bool) -> list[te.Tensor]:
    """Return values, indices, inverse, counts, and per row the first row that equals it."""
    shape = [int(extent) for extent in data.shape]
    count, after = shape[axis], prod(shape[axis + 1 :])
    width = prod(shape) // count

    def at(row: Any, element: Any) -> Any:
        return element // after * (count * after) + row * after + element % after

    def loops(source: Any, *outs: Any) -> tirx.Stmt:
        with IRBuilder() as builder:
            with T.seq_scope():
                source, values, indices, inverse, counts, first, place, order = map(
                    T.buffer_proxy, (source, *outs)
                )
                clear(values, prod(shape), data.dtype)
                clear(indices, count, "int64")
                clear(counts, count, "int64")

                def compare(own: Any, one: Any, other: Any) -> None:
                    """Set `order[own]` to -1, 0 or 1, as row `one` is before, at or after."""
                    order[own] = int64(0)
                    with T.serial(0, width) as element, T.If(order[own] == 0), T.Then():
                        left, right = source[at(one, element)], source[at(other, element)]
                        is_after = _is_less(right, left, str(data.dtype)).astype("int64")
                        order[own] = is_after - _is_less(left, right, str(data.dtype)).astype(
                            "int64"
                        )

                with T.parallel(0, count) as row:
                    first[row] = row.astype("int64")
                    with T.serial(0, row) as other, T.If(first[row] == row), T.Then():
                        compare(row, row, other)
                        with T.If(order[row] == 0), T.Then():
                            first[row] = other.astype("int64")
                with T.parallel(0, count) as row, T.If(first[row] == row), T.Then():
                    place[row] = int64(0)
                    limit = count if is_sorted else row
                    with T.serial(0, limit) as other, T.If(first[other] == other), T.Then():
                        if is_sorted:
                            compare(row, other, row)
                        else:
                            order[row] = int64(-1)
                        with T.If(order[row] < 0), T.Then():
                            place[row] = place[row] + 1
                    indices[place[row]] = row.astype("int64")
                    with T.serial(0, count) as other, T.If(first[other] == row), T.Then():
                        counts[place[row]] = counts[place[row]] + 1
                    with T.serial(0, width) as element:
                        values[at(place[row], element)] = source[at(row, element)]
                with T.parallel(0, count) as row:
                    inverse[row] = place[first[row]]
            return builder.get()

    return te.extern(
        [tuple(shape), *[(count,)] * 6],
        [data],
        lambda ins, outs: loops(*ins, *outs),
        dtype=[data.dtype, *["int64"] * 6],
        name="unique",
    )
