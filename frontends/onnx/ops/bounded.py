"""Tensors whose size depends on data: helpers for their sizes and for what lies beyond."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from tvm import relax, te, tirx

from tilewright.frontends.onnx.node import NodeContext
from tilewright.frontends.onnx.values import Value, constant

R = relax.op
Sizes = tuple[Value | None, ...]


def sizes_of(value: Value) -> Sizes:
    """Return the run-time size per dimension; None where it is the extent."""
    return value.sizes or (None,) * value.rank


def with_sizes(value: Value, sizes: Sequence[Value | None]) -> Value:
    """Return a value that has these sizes at run time."""
    known = tuple(sizes) if any(size is not None for size in sizes) else None
    return Value(value.shape, value.dtype, data=value.data, expr=value.expr, sizes=known)


def plain(value: Value) -> Value:
    """Return a value with everything up to its upper bound, for operators that allow it."""
    return with_sizes(value, ()) if value.sizes else value


def size_at(value: Value, axis: int) -> Value:
    """Return the size of a dimension as int64 [1]."""
    size = sizes_of(value)[axis]
    return constant(np.array([value.shape[axis]], np.int64)) if size is None else size


def extended(op: NodeContext, value: Value, shape: Sequence[int]) -> Value:
    """Enlarge a tensor at the end of its dimensions, with zeros."""
    if value.shape == tuple(shape):
        return plain(value)

    def compute(data: te.Tensor) -> te.Tensor:
        def element(*place: Any) -> Any:
            inside = [index < extent for index, extent in zip(place, data.shape, strict=True)]
            return tirx.if_then_else(tirx.all(*inside), data(*place), tirx.const(0, data.dtype))

        return te.compute(tuple(shape), element, name="extend")

    return op.te(compute, plain(value), name="extend")


def masked(op: NodeContext, value: Value, fill: float | int | bool, axes: Sequence[int]) -> Value:
    """Write a number to every element that lies beyond a size of one of these dimensions."""
    sizes = {axis: size for axis, size in enumerate(sizes_of(value)) if size and axis in axes}
    if not sizes:
        return plain(value)

    def compute(data: te.Tensor, *limits: te.Tensor) -> te.Tensor:
        def element(*place: Any) -> Any:
            inside = [
                place[axis].astype("int64") < limit(0)
                for axis, limit in zip(sizes, limits, strict=True)
            ]
            number = tirx.const(fill, data.dtype)
            return tirx.if_then_else(tirx.all(*inside), data(*place), number)

        return te.compute(data.shape, element, name="mask")

    return op.te(compute, plain(value), *sizes.values(), name="mask")
