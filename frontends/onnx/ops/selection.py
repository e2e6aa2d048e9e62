"""TopK: the largest or smallest elements along an axis, written as loops."""

from __future__ import annotations

from math import prod
from typing import Any

import numpy as np
from tvm import te, tirx
from tvm.script.ir_builder import IRBuilder
from tvm.script.ir_builder import tirx as T

from tilewright.frontends.onnx.node import NodeContext
from tilewright.frontends.onnx.registry import register
from tilewright.frontends.onnx.values import Value

TOP_K_ANNOTATION = "tilewright.top_k"
"""Of the block: k, the axis, and whether the largest are wanted."""


@register("TopK", 1)
@register("TopK", 10, shape_inputs=(1,))
def top_k(op: NodeContext) -> list[Value]:
    """https://onnx.ai/onnx/operators/onnx__TopK.html (equal elements: the first one first)."""
    data = op.input(0)
    k = int(np.ravel(op.data(1))[0]) if op.opset >= 10 else op.attr("k")
    largest = bool(op.attr("largest", 1))
    op.attr("sorted", 1)
    axis = op.attr("axis", -1) % data.rank
    if not 0 <= k <= data.shape[axis]:
        op.fail(f"k is {k}, but axis {axis} has {data.shape[axis]} elements")
    return op.te_tuple(_top_k, data, k, axis, largest, name="top_k")


def _top_k(data: te.Tensor, k: int, axis: int, largest: bool) -> list[te.Tensor]:
    """Select `k` times the best element that comes after the one selected before.

    The order is total (value, then index), so nothing needs to be marked or moved.
    """
    shape = [int(extent) for extent in data.shape]
    length, after = shape[axis], prod(shape[axis + 1 :])
    shape[axis] = k

    def loops(source: Any, values: Any, indices: Any) -> tirx.Stmt:
        with IRBuilder() as builder:
            source, values, indices = map(T.buffer_proxy, (source, values, indices))
            with T.parallel(0, prod(shape) // max(1, k)) as row:
                first = row // after * (length * after) + row % after
                target = row // after * (k * after) + row % after
                _select(source, values, indices, first, target, (length, k, after), largest)
            return builder.get()

    return te.extern(
        [tuple(shape), tuple(shape)],
        [data],
        lambda ins, outs: loops(ins[0], outs[0], outs[1]),
        dtype=[data.dtype, "int64"],
        name="top_k",
        attrs={TOP_K_ANNOTATION: [k, axis, int(largest)]},
    )


def _select(
    source: Any,
    values: Any,
    indices: Any,
    first: Any,
    target: Any,
    sizes: tuple[int, int, int],
    largest: bool,
) -> None:
    """Emit the loops of one row; `sizes` are its length, k, and the distance of its elements."""
    length, k, step = sizes

    def is_before(one: Any, other: Any) -> Any:
        return one > other if largest else one < other

    with T.serial(0, k) as place:
        out = target + place * step
        indices[out] = tirx.const(-1, "int64")
        with T.serial(0, length) as index:
            value = source[first + index * step]
            previous = target + tirx.max(place - 1, 0) * step
            is_left = tirx.any(
                place < 1,
                is_before(values[previous], value),
                tirx.all(
                    tirx.Not(is_before(value, values[previous])),
                    indices[previous] < index.astype("int64"),
                ),
            )
            best = tirx.max(indices[out], tirx.const(0, "int64")) * step
            with (
                T.If(is_left),
                T.Then(),
                T.If(tirx.any(indices[out] < 0, is_before(value, source[first + best]))),
                T.Then(),
            ):
                indices[out] = index.astype("int64")
        chosen = tirx.max(indices[out], tirx.const(0, "int64")) * step
        values[out] = source[first + chosen]
