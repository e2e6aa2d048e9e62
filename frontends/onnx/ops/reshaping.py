"""Operators that only move or repeat elements: reshape, transpose, slice, concat, pad..."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import numpy as np
from tvm import relax, te, tirx

from tilewright.frontends.onnx.node import NodeContext
from tilewright.frontends.onnx.ops.linear import transposed
from tilewright.frontends.onnx.registry import register
from tilewright.frontends.onnx.values import Value, constant, numpy_dtype

R = relax.op

# Parts of one concatenation; more are joined in groups, which costs a copy where one kernel would
# nest hundreds of conditions.
_MOST_JOINED = 32


def reshape_to(op: NodeContext, data: Value, shape: Sequence[int]) -> Value:
    """Reshape, unless the shape is the same already; a constant is reshaped when compiling."""
    shape = tuple(shape)
    if data.shape == shape:
        return data
    if data.data is not None:
        return constant(data.data.reshape(shape))
    if data.size == 0:
        return constant(np.zeros(shape, numpy_dtype(data.dtype)))
    return op.call(R.reshape, data, shape)


@register("Reshape", shape_inputs=(1,))
def reshape(op: NodeContext) -> Value:
    """https://onnx.ai/onnx/operators/onnx__Reshape.html"""
    data = op.input(0)
    target = list((op.ints(1) if op.opset >= 5 else op.attr("shape")) or ())
    if not op.attr("allowzero", 0):
        target = [data.shape[i] if extent == 0 else extent for i, extent in enumerate(target)]
    if target.count(-1) > 1 or any(extent < -1 for extent in target):
        raise ValueError(f"the shape {target} is not valid")
    if -1 in target:
        rest = math.prod(extent for extent in target if extent != -1)
        if rest == 0 or data.size % rest:
            raise ValueError(f"{data.shape} cannot be reshaped to {target}")
        target[target.index(-1)] = data.size // rest
    if math.prod(target) != data.size:
        raise ValueError(f"{data.shape} cannot be reshaped to {target}")
    return reshape_to(op, data, target)


@register("Flatten")
def flatten(op: NodeContext) -> Value:
    """https://onnx.ai/onnx/operators/onnx__Flatten.html"""
    data, axis = op.input(0), op.attr("axis")
    axis = axis + data.rank if axis < 0 else axis
    return reshape_to(op, data, (math.prod(data.shape[:axis]), math.prod(data.shape[axis:])))


@register("Squeeze", shape_inputs=(1,))
def squeeze(op: NodeContext) -> Value:
    """https://onnx.ai/onnx/operators/onnx__Squeeze.html"""
    data = op.input(0)
    axes = op.ints(1) if op.opset >= 13 else op.attr("axes")
    if axes is None:
        axes = [axis for axis, extent in enumerate(data.shape) if extent == 1]
    gone = {axis % data.rank for axis in axes} if data.rank else set()
    if any(data.shape[axis] != 1 for axis in gone):
        raise ValueError(f"axes {sorted(gone)} of shape {data.shape} are not all 1")
    return reshape_to(op, data, [n for axis, n in enumerate(data.shape) if axis not in gone])


@register("Unsqueeze", shape_inputs=(1,))
def unsqueeze(op: NodeContext) -> Value:
    """https://onnx.ai/onnx/operators/onnx__Unsqueeze.html"""
    data = op.input(0)
    axes = (op.ints(1) if op.opset >= 13 else op.attr("axes")) or ()
    rank = data.rank + len(axes)
    if any(not -rank <= axis < rank for axis in axes):
        raise ValueError(f"axes {axes} are out of range for {rank} dimensions")
    shape = list(data.shape)
    for axis in sorted(axis % rank for axis in axes):
        shape.insert(axis, 1)
    return reshape_to(op, data, shape)


@register("Transpose")
def transpose(op: NodeContext) -> Value:
    """https://onnx.ai/onnx/operators/onnx__Transpose.html"""
    data = op.input(0)
    axes = op.attr("perm") or tuple(reversed(range(data.rank)))
    if tuple(axes) == tuple(range(data.rank)):
        return data
    if data.blocks is not None:
        return transposed(op, data)
    return op.call(R.permute_dims, data, list(axes))


@register("Expand", shape_inputs=(1,))
def expand(op: NodeContext) -> Value:
    """https://onnx.ai/onnx/operators/onnx__Expand.html"""
    data = op.input(0)
    shape = np.broadcast_shapes(data.shape, op.ints(1) or ())
    return data if shape == data.shape else op.call(R.broadcast_to, data, shape)


@register("Tile", shape_inputs=(1,))
def tile(op: NodeContext) -> Value:
    """https://onnx.ai/onnx/operators/onnx__Tile.html"""
    data, repeats = op.input(0), op.ints(1) or ()
    return data if all(count == 1 for count in repeats) else op.call(R.tile, data, list(repeats))


@register("Concat")
def concat(op: NodeContext) -> Value:
    """https://onnx.ai/onnx/operators/onnx__Concat.html"""
    values = [op.input(index) for index in range(len(op.inputs))]
    axis = op.attr("axis", 1)
    kept = [value for value in values if value.size] or values[:1]
    while len(kept) > _MOST_JOINED:
        parts = [kept[at : at + _MOST_JOINED] for at in range(0, len(kept), _MOST_JOINED)]
        kept = [part[0] if len(part) == 1 else op.call(R.concat, part, axis) for part in parts]
    return kept[0] if len(kept) == 1 else op.call(R.concat, kept, axis)


@register("Split", shape_inputs=(1,))
def split(op: NodeContext) -> list[Value]:
    """https://onnx.ai/onnx/operators/onnx__Split.html"""
    data = op.input(0)
    axis = op.attr("axis", 0) % data.rank
    sizes = op.ints(1) if op.opset >= 13 else op.attr("split", None)
    op.attr("num_outputs", None)
    extent, count = data.shape[axis], len(op.node.output)
    if sizes is None:
        chunk = -(-extent // count)
        sizes = [min(chunk, max(0, extent - chunk * index)) for index in range(count)]
    if sum(sizes) != extent or len(sizes) != count:
        raise ValueError(f"sizes {tuple(sizes)} do not split {extent} into {count}")
    starts = np.cumsum([0, *sizes]).tolist()
    return [cut(op, data, axis, begin, end) for begin, end in pairwise(starts)]


def cut(op: NodeContext, data: Value, axis: int, begin: int, end: int) -> Value:
    """Take a range of one axis."""
    if begin == 0 and end == data.shape[axis]:
        return data
    return op.call(R.strided_slice, data, [axis], [begin], [end], assume_inbound=True)


@register("Slice", 1)
def slice_attributes(op: NodeContext) -> Value:
    """https://onnx.ai/onnx/operators/onnx__Slice.html before opset 10."""
    return _slice(op, op.attr("starts"), op.attr("ends"), op.attr("axes"), None)


@register("Slice", 10, shape_inputs=(1, 2, 3, 4))
def slice_inputs(op: NodeContext) -> Value:
    """https://onnx.ai/onnx/operators/onnx__Slice.html"""
    return _slice(op, op.ints(1) or (), op.ints(2) or (), op.ints(3), op.ints(4))


def _slice(
    op: NodeContext,
    starts: Sequence[int],
    ends: Sequence[int],
    axes: Sequence[int] | None,
    steps: Sequence[int] | None,
) -> Value:
    """Slice as numpy does; axes that are kept whole are dropped from the operator."""
    data = op.input(0)
    axes = range(len(starts)) if axes is None else [axis % data.rank for axis in axes]
    steps = [1] * len(starts) if steps is None else steps
    ranges: dict[int, range] = {}
    for axis, start, end, step in zip(axes, starts, ends, steps, strict=True):
        extent = data.shape[axis]
        # ONNX ends below -extent with a negative step mean "down to the first"; Python agrees.
        ranges[axis] = range(extent)[slice(start, end, step)]
    ranges = {axis: item for axis, item in ranges.items() if item != range(data.shape[axis])}
    if not ranges:
        return data
    if any(len(item) == 0 for item in ranges.values()):
        shape = [len(ranges.get(axis, range(n))) for axis, n in enumerate(data.shape)]
        return Value(tuple(shape), data.dtype, data=np.zeros(shape, data.dtype))
    if any(item.step < 0 for item in ranges.values()):
        return op.te(_take_ranges, data, ranges, name="slice")
    return op.call(
        R.strided_slice,
        data,
        list(ranges),
        [item.start for item in ranges.values()],
        [item[-1] + 1 for item in ranges.values()],
        [item.step for item in ranges.values()],
        assume_inbound=True,
    )


def _take_ranges(data: te.Tensor, ranges: dict[int, range]) -> te.Tensor:
    """Slice with steps of either sign."""
    shape = [len(ranges.get(axis, range(int(n)))) for axis, n in enumerate(data.shape)]

    def element(*indices: Any) -> Any:
        places = [
            ranges[axis].start + index * ranges[axis].step if axis in ranges else index
            for axis, index in enumerate(indices)
        ]
        return data(*places)

    return te.compute(shape, element, name="slice")


@register("DepthToSpace")
def depth_to_space(op: NodeContext) -> Value:
    """https://onnx.ai/onnx/operators/onnx__DepthToSpace.html"""
    data, block = op.input(0), op.attr("blocksize")
    n, c, h, w = data.shape
    if op.attr("mode", "DCR") == "DCR":
        shape, axes = (n, block, block, c // block**2, h, w), [0, 3, 4, 1, 5, 2]
    else:
        shape, axes = (n, c // block**2, block, block, h, w), [0, 1, 4, 2, 5, 3]
    moved = op.call(R.permute_dims, op.call(R.reshape, data, shape), axes)
    return op.call(R.reshape, moved, (n, c // block**2, h * block, w * block))


@register("SpaceToDepth")
def space_to_depth(op: NodeContext) -> Value:
    """https://onnx.ai/onnx/operators/onnx__SpaceToDepth.html"""
    data, block = op.input(0), op.attr("blocksize")
    n, c, h, w = data.shape
    split_up = op.call(R.reshape, data, (n, c, h // block, block, w // block, block))
    axes = [0, 3, 5, 1, 2, 4] if op.attr("mode", "DCR") == "DCR" else [0, 1, 3, 5, 2, 4]
    moved = op.call(R.permute_dims, split_up, axes)
    return op.call(R.reshape, moved, (n, c * block**2, h // block, w // block))


@register("Pad", 1)
def pad_attributes(op: NodeContext) -> Value:
    """https://onnx.ai/onnx/operators/onnx__Pad.html before opset 11."""
    widths = op.attr("pads", None) or op.attr("paddings")
    return _pad(op, widths, op.attr("value", 0.0), None)


@register("Pad", 11, shape_inputs=(1, 3))
def pad_inputs(op: NodeContext) -> Value:
    """https://onnx.ai/onnx/operators/onnx__Pad.html"""
    value = op.optional(2)
    fill: Any = 0 if value is None else value
    if value is not None and value.data is not None:
        fill = value.data.reshape(()).item()
    return _pad(op, op.ints(1) or (), fill, op.ints(3))


def _pad(op: NodeContext, widths: Sequence[int], fill: float, axes: Sequence[int] | None) -> Value:
    """Pad or, where a width is negative, crop."""
    data, mode = op.input(0), op.attr("mode")
    axes = range(data.rank) if axes is None else [axis % data.rank for axis in axes]
    before, after = [0] * data.rank, [0] * data.rank
    for place, axis in enumerate(axes):
        before[axis], after[axis] = widths[place], widths[len(axes) + place]
    for axis in range(data.rank):
        begin, end = max(0, -before[axis]), data.shape[axis] - max(0, -after[axis])
        data = cut(op, data, axis, begin, end)
    before, after = [max(0, n) for n in before], [max(0, n) for n in after]
    if not any(before) and not any(after):
        return data
    if mode == "constant":
        pairs = [width for pair in zip(before, after, strict=True) for width in pair]
        if data.dtype == "float32" and not isinstance(fill, Value):
            return op.call(R.nn.pad, data, pairs, "constant", fill)
        if isinstance(fill, Value):
            fill = reshape_to(op, fill, ())
        return op.te(_pad_constant, data, before, after, fill, name="pad")
    if mode not in ("edge", "reflect", "wrap"):
        op.fail(f"mode {mode!r}")
    return op.te(_pad_by_index, data, before, after, mode, name=f"pad_{mode}")


def _pad_constant(
    data: te.Tensor, before: Sequence[int], after: Sequence[int], fill: Any
) -> te.Tensor:
    shape = [int(n) + b + a for n, b, a in zip(data.shape, before, after, strict=True)]
    border = fill() if isinstance(fill, te.Tensor) else tirx.const(fill, data.dtype)

    def element(*indices: Any) -> Any:
        places = [index - b for index, b in zip(indices, before, strict=True)]
        inside = [
            tirx.all(place >= 0, place < n)
            for place, n, b, a in zip(places, data.shape, before, after, strict=True)
            if b or a
        ]
        return tirx.if_then_else(tirx.all(*inside), data(*places), border)

    return te.compute(shape, element, name="pad")


def _pad_by_index(
    data: te.Tensor, before: Sequence[int], after: Sequence[int], mode: str
) -> te.Tensor:
    """Pad with elements of the tensor itself."""
    shape = [int(n) + b + a for n, b, a in zip(data.shape, before, after, strict=True)]

    def place(index: Any, axis: int) -> Any:
        extent = int(data.shape[axis])
        if not before[axis] and not after[axis]:
            return index
        at = index - before[axis]
        if mode == "edge":
            return tirx.max(tirx.min(at, extent - 1), 0)
        if mode == "wrap":
            return tirx.floormod(at, extent)
        if extent == 1:
            return tirx.const(0, "int32")
        folded = tirx.floormod(at, 2 * (extent - 1))
        return tirx.min(folded, 2 * (extent - 1) - folded)

    def element(*indices: Any) -> Any:
        return data(*(place(index, axis) for axis, index in enumerate(indices)))

    return te.compute(shape, element, name=f"pad_{mode}")


@register("Trilu", 14, shape_inputs=(1,))
def trilu(op: NodeContext) -> Value:
    """https://onnx.ai/onnx/operators/onnx__Trilu.html"""
    data, upper = op.input(0), op.attr("upper")
    offset = op.ints(1)
    diagonal = offset[0] if offset else 0
    rows, columns = np.indices(data.shape[-2:])
    kept = columns - rows >= diagonal if upper else columns - rows <= diagonal
    return op.call(R.where, constant(kept), data, op.scalar(0, data.dtype))


@register("ReverseSequence", shape_inputs=(1,))
def reverse_sequence(op: NodeContext) -> Value:
    """https://onnx.ai/onnx/operators/onnx__ReverseSequence.html"""
    batch, time = op.attr("batch_axis"), op.attr("time_axis")
    return op.te(_reverse_sequence, op.input(0), op.input(1), batch, time, name="reverse")


def _reverse_sequence(data: te.Tensor, lengths: te.Tensor, batch: int, time: int) -> te.Tensor:
    def element(*indices: Any) -> Any:
        length = lengths(indices[batch])  # which may be anything
        length = tirx.max(tirx.min(length, int(data.shape[time])), 0).astype("int32")
        places = list(indices)
        mirrored = length - 1 - indices[time]
        places[time] = tirx.Select(indices[time] < length, mirrored, indices[time])
        return data(*places)

    return te.compute(data.shape, element, name="reverse")


@register("CenterCropPad", 18, shape_inputs=(1,))
def center_crop_pad(op: NodeContext) -> Value:
    """https://onnx.ai/onnx/operators/onnx__CenterCropPad.html"""
    data, sizes = op.input(0), op.ints(1) or ()
    axes = op.attr("axes")
    axes = range(data.rank) if axes is None else [axis % data.rank for axis in axes]
    before, after = [0] * data.rank, [0] * data.rank
    for axis, size in zip(axes, sizes, strict=True):
        extent = data.shape[axis]
        if size < extent:
            begin = (extent - size) // 2
            data = cut(op, data, axis, begin, begin + size)
        else:
            before[axis] = (size - extent) // 2
            after[axis] = size - extent - before[axis]
    if not any(before) and not any(after):
        return data
    return op.te(_pad_constant, data, before, after, 0, name="pad")
