"""Operators that move elements of tensors whose size depends on data, or select by them."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from tvm import relax, te, tirx

from tilewright.frontends.onnx.node import NodeContext
from tilewright.frontends.onnx.ops.bounded import (
    masked,
    plain,
    size_at,
    sizes_of,
    with_sizes,
)
from tilewright.frontends.onnx.ops.bounded_math import plain_inputs
from tilewright.frontends.onnx.ops.reshaping import reshape_to
from tilewright.frontends.onnx.registry import Convert, bounded_rule
from tilewright.frontends.onnx.values import Value, constant

R = relax.op


@bounded_rule("Identity", "NonZero", "Compress", "NonMaxSuppression", "If", "Optional")
@bounded_rule("OptionalGetElement", "OptionalHasElement", "SequenceConstruct", "SequenceInsert")
def aware(op: NodeContext, convert: Convert) -> Any:
    """Leave it to the converter, which knows of sizes or passes values on."""
    return convert(op)


@bounded_rule("Transpose")
def transpose(op: NodeContext, convert: Convert) -> Any:
    """Permute the sizes too."""
    data = op.input(0)
    axes = op.attr("perm") or tuple(reversed(range(data.rank)))
    result = convert(plain_inputs(op))
    assert isinstance(result, Value)
    return with_sizes(result, [sizes_of(data)[axis] for axis in axes])


@bounded_rule("Unsqueeze", "Squeeze", "Flatten", "Reshape")
def reshape(op: NodeContext, convert: Convert) -> Any:
    """Reshape where all dimensions before the one of open size are 1, so that rows stay together.

    Extents of 1 may come and go anywhere.
    """
    data = op.input(0)
    sizes, kind = sizes_of(data), op.node.op_type
    if kind == "Squeeze":
        axes = op.ints(1) if op.opset >= 13 else op.attr("axes")
        given = {axis % data.rank for axis in axes} if axes is not None else None
        gone = {
            axis
            for axis, extent in enumerate(data.shape)
            if (axis in given if given is not None else extent == 1 and sizes[axis] is None)
        }
        if any(sizes[axis] is not None for axis in gone):
            op.fail("it removes a dimension whose size depends on data")
        shape = [extent for axis, extent in enumerate(data.shape) if axis not in gone]
        kept = [size for axis, size in enumerate(sizes) if axis not in gone]
        return with_sizes(reshape_to(op, plain(data), shape), kept)
    if kind == "Unsqueeze":
        result = convert(plain_inputs(op))
        assert isinstance(result, Value)
        axes = (op.ints(1) if op.opset >= 13 else op.attr("axes")) or ()
        left = iter(sizes)
        new = {axis % result.rank for axis in axes}
        return with_sizes(
            result, [None if axis in new else next(left) for axis in range(result.rank)]
        )
    if kind == "Flatten":
        axis = op.attr("axis") % (data.rank + 1) if op.attr("axis") < 0 else op.attr("axis")
        before, after = data.shape[:axis], data.shape[axis:]
        is_before = any(sizes[:axis])
        target = [-1, math.prod(after)] if is_before else [math.prod(before), -1]
    else:
        target = list((op.ints(1) if op.opset >= 5 else op.attr("shape")) or ())
        op.attr("allowzero", 0)
    return _reshape(op, data, target)


def _reshape(op: NodeContext, data: Value, target: list[int]) -> Value:
    sizes = sizes_of(data)
    opened = [axis for axis, size in enumerate(sizes) if size is not None]
    copied = [axis for axis, extent in enumerate(target) if extent == 0]
    if all(axis in copied for axis in opened) and -1 not in target[: opened[-1]]:
        # Dimensions up to the last open one are kept; what follows is of known size.
        shape = [data.shape[axis] if extent == 0 else extent for axis, extent in enumerate(target)]
        if -1 in shape:
            known = -math.prod(shape)
            shape[shape.index(-1)] = data.size // max(1, known)
        kept = [sizes[axis] if axis in opened else None for axis in range(len(shape))]
        return with_sizes(reshape_to(op, plain(data), shape), kept)
    (axis, *others) = opened
    before, inner = data.shape[:axis], math.prod(data.shape[axis + 1 :])
    place = target.index(-1) if -1 in target else target.index(0) if 0 in target else -1
    if others or math.prod(before) != 1 or place < 0 or math.prod(target[:place]) != 1:
        op.fail(
            f"{data.shape}, of which size {axis} depends on data, to {target}: only a first "
            "dimension of open size can be reshaped"
        )
    rows = math.prod(target[place + 1 :])
    if rows <= 0 or (inner % rows and rows % inner):
        op.fail(f"{data.shape}, of which size {axis} depends on data, to {target}")
    count = sizes[axis]
    if inner > rows:
        count = op.call(R.multiply, count, op.scalar(inner // rows, "int64"))
    elif inner < rows:
        count = op.call(R.floor_divide, count, op.scalar(rows // inner, "int64"))
    shape = [*target[:place], data.shape[axis] * inner // rows, *target[place + 1 :]]
    kept = [count if at == place else None for at in range(len(shape))]
    return with_sizes(reshape_to(op, plain(data), shape), kept)


def _from_start(op: NodeContext, indices: Value, size: Value | None) -> Value:
    """Count negative indices from the actual end of a dimension of open size."""
    if size is None or (indices.data is not None and (indices.data >= 0).all()):
        return plain(indices)
    whole = plain(indices)
    negative = op.call(R.less, whole, op.scalar(0, indices.dtype))
    length = op.call(R.astype, reshape_to(op, size, ()), indices.dtype)
    return op.call(R.where, negative, op.call(R.add, whole, length), whole)


@bounded_rule("Gather")
def gather(op: NodeContext, convert: Convert) -> Any:
    """Gather by zeros in the place of indices that do not exist."""
    data, indices = op.input(0), op.input(1)
    axis = op.attr("axis") % data.rank
    sizes = sizes_of(data)
    places = _from_start(op, indices, sizes[axis])
    result = convert(op.with_inputs([plain(data), places]))
    assert isinstance(result, Value)
    return with_sizes(result, [*sizes[:axis], *sizes_of(indices), *sizes[axis + 1 :]])


@bounded_rule("GatherElements")
def gather_elements(op: NodeContext, convert: Convert) -> Any:
    """Gather as many as there are indices."""
    data, indices = op.input(0), op.input(1)
    places = _from_start(op, indices, sizes_of(data)[op.attr("axis") % data.rank])
    result = convert(op.with_inputs([plain(data), places]))
    assert isinstance(result, Value)
    return with_sizes(result, sizes_of(indices))


@bounded_rule("GatherND")
def gather_nd(op: NodeContext, convert: Convert) -> Any:
    """Gather as many as there are rows of indices."""
    data, indices, batch = op.input(0), op.input(1), op.attr("batch_dims", 0)
    depth = indices.shape[-1]
    sizes = sizes_of(data)
    if sizes_of(indices)[-1] is not None or any(sizes[:batch]):
        op.fail("the length of its indices, or a batch dimension, depends on data")
    places = plain(indices)
    if any(sizes[batch : batch + depth]):
        lengths = op.call(R.concat, [size_at(data, batch + k) for k in range(depth)], 0)
        negative = op.call(R.less, places, op.scalar(0, indices.dtype))
        lengths = op.call(R.astype, lengths, indices.dtype)
        places = op.call(R.where, negative, op.call(R.add, places, lengths), places)
    result = convert(op.with_inputs([plain(data), places]))
    assert isinstance(result, Value)
    return with_sizes(result, [*sizes_of(indices)[:-1], *sizes[batch + depth :]])


@bounded_rule("ScatterND")
def scatter_nd(op: NodeContext, convert: Convert) -> Any:
    """Scatter updates that do not exist into a further row, which is cut off again."""
    data, indices, updates = op.input(0), op.input(1), op.input(2)
    depth = indices.shape[-1]
    lead = indices.rank - 1
    if data.sizes or sizes_of(indices)[-1] is not None or any(sizes_of(updates)[lead:]):
        op.fail("the size of what is written to, or of one update, depends on data")
    outer, inner = data.shape[:depth], data.shape[depth:]
    rows = math.prod(outer)
    strides = [math.prod(outer[k + 1 :]) for k in range(depth)]
    wrapped = op.call(R.floor_mod, plain(indices), constant(np.array(outer, indices.dtype)))
    scaled = op.call(R.multiply, wrapped, constant(np.array(strides, indices.dtype)))
    flat = op.call(R.sum, scaled, axis=[lead])
    sizes = sizes_of(indices)[:-1]
    if not any(sizes):
        sizes = sizes_of(updates)[:lead]
    flat = masked(op, with_sizes(flat, sizes), rows, range(lead))
    table = op.call(
        R.concat,
        [
            reshape_to(op, data, (rows, *inner)),
            op.call(R.zeros, (1, *inner), data.dtype),
        ],
        0,
    )
    places = reshape_to(op, flat, (flat.size, 1))
    values = reshape_to(op, plain(updates), (flat.size, *inner))
    written = convert(op.with_inputs([table, places, values]))
    assert isinstance(written, Value)
    kept = op.call(R.strided_slice, written, [0], [0], [rows], [1])
    return reshape_to(op, kept, data.shape)


@bounded_rule("Concat")
def concat(op: NodeContext, convert: Convert) -> Any:
    """Join along an axis; where its sizes are open, each part begins where the one before ends."""
    values = [op.input(index) for index in range(len(op.inputs))]
    axis = op.attr("axis", 1) % values[0].rank
    sizes: list[Value | None] = []
    for place in range(values[0].rank):
        found = {id(sizes_of(value)[place]): sizes_of(value)[place] for value in values}
        if place != axis and len(found) > 1:
            op.fail("its inputs have sizes that depend on different data")
        sizes.append(next(iter(found.values())))
    if not any(sizes_of(value)[axis] for value in values):
        result = convert(plain_inputs(op))
        assert isinstance(result, Value)
        sizes[axis] = None
        return with_sizes(result, sizes)
    ends: list[Value] = []
    for value in values:
        size = size_at(value, axis)
        ends.append(op.call(R.add, ends[-1], size) if ends else size)
    sizes[axis] = ends[-1]
    joined = op.te(_join, axis, len(values), *map(plain, values), *ends[:-1], name="concat")
    return with_sizes(joined, sizes)


def _join(axis: int, count: int, *tensors: te.Tensor) -> te.Tensor:
    """Concatenate `count` tensors, of which each but the last ends at a place of its own."""
    parts, ends = tensors[:count], tensors[count:]
    shape = [int(extent) for extent in parts[0].shape]
    shape[axis] = sum(int(part.shape[axis]) for part in parts)

    def element(*place: Any) -> Any:
        at = place[axis].astype("int64")

        def read(part: te.Tensor, start: Any) -> Any:
            inside = tirx.max(tirx.min(at - start, int(part.shape[axis]) - 1), 0)
            return part(*place[:axis], inside.astype("int32"), *place[axis + 1 :])

        result = read(parts[-1], ends[-1](0))
        for index in range(count - 2, -1, -1):
            start = ends[index - 1](0) if index else tirx.const(0, "int64")
            result = tirx.if_then_else(at < ends[index](0), read(parts[index], start), result)
        return result

    return te.compute(shape, element, name="concat")


@bounded_rule("Slice")
def slice_open(op: NodeContext, convert: Convert) -> Any:
    """Slice; bounds may count from an end that depends on data."""
    data = op.input(0)
    if op.opset < 10:
        op.fail("before opset 10, its input cannot have a size that depends on data")
    starts, ends = (op.ints(index) or () for index in (1, 2))
    given = op.ints(3)
    axes = range(len(starts)) if given is None else [axis % data.rank for axis in given]
    steps = op.ints(4) or (1,) * len(starts)
    result = data
    for axis, start, end, step in zip(axes, starts, ends, steps, strict=True):
        size = sizes_of(result)[axis]
        if size is None:
            bounds = [constant(np.array([n], np.int64)) for n in (start, end, axis, step)]
            kept = sizes_of(result)
            part = convert(op.with_inputs([plain(result), *bounds]))
            assert isinstance(part, Value)
            result = with_sizes(part, kept)
        else:
            result = slice_axis(op, result, axis, _fixed(start), _fixed(end), step)
    return result


def _fixed(number: int) -> Value:
    return constant(np.array([number], np.int64))


def slice_axis(
    op: NodeContext, data: Value, axis: int, start: Value, end: Value, step: int
) -> Value:
    """Slice one dimension; its size, the start and the end (int64 [1]) may depend on data."""
    if step < 1:
        op.fail(f"step {step} along a size that depends on data")
    found = op.te_tuple(_range, size_at(data, axis), start, end, step, name="range")
    first, count = found
    extent = _largest_count(data.shape[axis], start, end, step)
    part = op.te(_part, plain(data), first, axis, extent, step, name="slice")
    sizes = list(sizes_of(data))
    sizes[axis] = count
    return with_sizes(part, sizes)


def _largest_count(extent: int, start: Value, end: Value, step: int) -> int:
    """Return a bound for the number of elements between two places."""
    bound = extent
    if start.data is not None and end.data is not None:
        first, last = int(start.data.reshape(-1)[0]), int(end.data.reshape(-1)[0])
        if (first < 0) == (last < 0):
            bound = min(bound, max(0, last - first))
        elif first < 0:
            bound = min(bound, -first)
        else:
            bound = max(0, extent - first + last)
        bound = min(bound, max(0, extent - first) if first >= 0 else -first)
    return max(1, math.ceil(bound / step))


def _range(size: te.Tensor, start: te.Tensor, end: te.Tensor, step: int) -> list[te.Tensor]:
    """Return where a slice begins and how many elements it has, as numpy counts."""

    def from_end(bound: Any) -> Any:
        # bound + size, without overflow for the smallest number
        return tirx.max(bound, -size(0)) + size(0)

    def resolved(bound: Any) -> Any:
        return tirx.Select(bound < 0, from_end(bound), tirx.min(bound, size(0)))

    first = te.compute((1,), lambda _: resolved(start(0)), name="first")
    length = te.compute(
        (1,),
        lambda _: tirx.max(
            tirx.floordiv(resolved(end(0)) - resolved(start(0)) + (step - 1), step),
            tirx.const(0, "int64"),
        ),
        name="length",
    )
    return [first, length]


def _part(data: te.Tensor, first: te.Tensor, axis: int, count: int, step: int) -> te.Tensor:
    shape = [*data.shape[:axis], count, *data.shape[axis + 1 :]]
    last = int(data.shape[axis]) - 1

    def element(*place: Any) -> Any:
        at = tirx.min(first(0) + place[axis].astype("int64") * step, last).astype("int32")
        return data(*place[:axis], at, *place[axis + 1 :])

    return te.compute(shape, element, name="slice")
