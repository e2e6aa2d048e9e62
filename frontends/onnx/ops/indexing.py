"""Gathering and scattering by index."""

from __future__ import annotations

from typing import Any

import numpy as np
from tvm import relax, te, tirx

from tilewright.frontends.onnx.node import NodeContext
from tilewright.frontends.onnx.ops.reshaping import cut, reshape_to
from tilewright.frontends.onnx.registry import register
from tilewright.frontends.onnx.values import Value, constant

R = relax.op


@register("Gather")
def gather(op: NodeContext) -> Value:
    """https://onnx.ai/onnx/operators/onnx__Gather.html

    A constant index, or a constant run of indices, is a slice. Indices known only at run time are
    wrapped, so that negative ones count from the end and no index reads outside the tensor.
    """
    data, indices = op.input(0), op.input(1)
    axis = op.attr("axis") % data.rank
    extent = data.shape[axis]
    if indices.data is None:
        return op.call(R.take, data, indices, axis=axis, mode="wrap")
    places = indices.data
    if places.size and not (-extent <= places.min() and places.max() < extent):
        raise ValueError(f"an index is out of range for extent {extent}")
    places = np.where(places < 0, places + extent, places).astype(np.int64)
    run = places.reshape(-1)
    if places.ndim <= 1 and run.size and np.array_equal(run, np.arange(run[0], run[0] + run.size)):
        part = cut(op, data, axis, int(run[0]), int(run[0]) + run.size)
        shape = (*data.shape[:axis], *places.shape, *data.shape[axis + 1 :])
        return reshape_to(op, part, shape)
    # Not relax.op.take: its unchecked mode prints a warning, and these indices are checked.
    return op.te(_gather, data, constant(places), axis, name="gather")


def _gather(data: te.Tensor, indices: te.Tensor, axis: int) -> te.Tensor:
    rank = len(indices.shape)

    def element(*place: Any) -> Any:
        index = indices(*place[axis : axis + rank]).astype("int32")
        return data(*place[:axis], index, *place[axis + rank :])

    shape = [*data.shape[:axis], *indices.shape, *data.shape[axis + 1 :]]
    return te.compute(shape, element, name="gather")


def wrapped(op: NodeContext, indices: Value, extent: int) -> Value:
    """Count negative indices from the end; constants are checked and wrapped when compiling."""
    if indices.data is not None:
        return constant(_checked(indices.data, np.array(extent)))
    return op.call(R.floor_mod, indices, op.scalar(extent, indices.dtype))


def _checked(indices: np.ndarray, extents: np.ndarray) -> np.ndarray:
    """Count negative indices from the end.

    Raises:
        ValueError: An index is out of range.
    """
    if ((indices < -extents) | (indices >= extents)).any():
        raise ValueError(f"an index is out of range for extent {extents.tolist()}")
    return np.where(indices < 0, indices + extents, indices).astype(indices.dtype)


@register("GatherElements")
def gather_elements(op: NodeContext) -> Value:
    """https://onnx.ai/onnx/operators/onnx__GatherElements.html"""
    data, axis = op.input(0), op.attr("axis") % op.input(0).rank
    indices = wrapped(op, op.input(1), data.shape[axis])
    return op.te(_gather_elements, data, indices, axis, name="gather_elements")


def _gather_elements(data: te.Tensor, indices: te.Tensor, axis: int) -> te.Tensor:
    def element(*place: Any) -> Any:
        at = list(place)
        at[axis] = indices(*place).astype("int32")
        return data(*at)

    return te.compute(indices.shape, element, name="gather_elements")


@register("GatherND")
def gather_nd(op: NodeContext) -> Value:
    """https://onnx.ai/onnx/operators/onnx__GatherND.html"""
    data, indices = op.input(0), op.input(1)
    batch = op.attr("batch_dims", 0)
    return op.te(_gather_nd, data, indices, batch, name="gather_nd")


def _gather_nd(data: te.Tensor, indices: te.Tensor, batch: int) -> te.Tensor:
    depth = int(indices.shape[-1])
    lead = len(indices.shape) - 1

    def element(*place: Any) -> Any:
        at = list(place[:batch])
        for position in range(depth):
            extent = int(data.shape[batch + position])
            index = indices(*place[:lead], tirx.const(position, "int32")).astype("int32")
            at.append(tirx.floormod(index, extent))
        return data(*at, *place[lead:])

    shape = [*indices.shape[:-1], *data.shape[batch + depth :]]
    return te.compute(shape, element, name="gather_nd")


_REDUCTIONS = {"none": "update", "add": "add", "mul": "mul", "max": "max", "min": "min"}


@register("Scatter")
@register("ScatterElements")
def scatter_elements(op: NodeContext) -> Value:
    """https://onnx.ai/onnx/operators/onnx__ScatterElements.html"""
    data, axis = op.input(0), op.attr("axis") % op.input(0).rank
    reduction = op.attr("reduction", "none")
    indices = wrapped(op, op.input(1), data.shape[axis])
    if op.input(2).size == 0:
        return data
    return op.call(
        R.scatter_elements, data, indices, op.input(2), axis, reduction=_REDUCTIONS[reduction]
    )


@register("ScatterND")
def scatter_nd(op: NodeContext) -> Value:
    """https://onnx.ai/onnx/operators/onnx__ScatterND.html

    Constant indices that cover a box of the tensor, as slice assignment exports them, become a
    gather of the updates (every element is either kept or replaced by one update).
    """
    data, indices, updates = op.input(0), op.input(1), op.input(2)
    reduction = op.attr("reduction", "none")
    if updates.size == 0:
        return data
    if indices.data is not None and reduction == "none":
        return _scatter_by_map(op, data, indices.data, updates)
    depth = indices.shape[-1]
    if indices.data is not None:
        indices = constant(_checked(indices.data, np.array(data.shape[:depth])))
    else:
        indices = op.call(
            R.floor_mod, indices, constant(np.array(data.shape[:depth], indices.dtype))
        )
    return op.call(R.scatter_nd, data, indices, updates, _REDUCTIONS[reduction])


def _scatter_by_map(op: NodeContext, data: Value, indices: np.ndarray, updates: Value) -> Value:
    """Select per element between the data and the update that replaces it."""
    depth = indices.shape[-1]
    outer, inner = data.shape[:depth], data.shape[depth:]
    rows = indices.reshape(-1, depth)
    rows = np.where(rows < 0, rows + np.array(outer), rows)
    if (rows < 0).any() or (rows >= np.array(outer)).any():
        raise ValueError(f"an index is out of range for shape {outer}")
    source = np.full(outer, -1, np.int32)
    source[tuple(rows.T)] = np.arange(len(rows), dtype=np.int32)
    flat = reshape_to(op, updates, (len(rows), *inner))
    replaced = source >= 0
    if replaced.all() and np.array_equal(source.reshape(-1), np.arange(len(rows))):
        return reshape_to(op, flat, data.shape)
    return op.te(_merge, data, flat, constant(source), name="scatter_nd")


def _merge(data: te.Tensor, updates: te.Tensor, source: te.Tensor) -> te.Tensor:
    depth = len(source.shape)

    def element(*place: Any) -> Any:
        row = source(*place[:depth])
        kept = row < 0
        return tirx.if_then_else(kept, data(*place), updates(tirx.max(row, 0), *place[depth:]))

    return te.compute(data.shape, element, name="scatter_nd")


@register("OneHot", shape_inputs=(1,))
def one_hot(op: NodeContext) -> Value:
    """https://onnx.ai/onnx/operators/onnx__OneHot.html"""
    indices, values = op.input(0), op.input(2)
    depth = int(np.ravel(op.data(1))[0])
    axis = op.attr("axis")
    axis = axis + indices.rank + 1 if axis < 0 else axis
    return op.te(_one_hot, indices, values, depth, axis, name="one_hot")


def _one_hot(indices: te.Tensor, values: te.Tensor, depth: int, axis: int) -> te.Tensor:
    shape = [*indices.shape[:axis], depth, *indices.shape[axis:]]

    def element(*place: Any) -> Any:
        index = indices(*place[:axis], *place[axis + 1 :]).astype("int64")
        wrapped = tirx.Select(index < 0, index + depth, index)
        hit = wrapped == place[axis].astype("int64")
        return tirx.if_then_else(hit, values(1), values(0))

    return te.compute(shape, element, name="one_hot")


@register("TensorScatter", 24)
def tensor_scatter(op: NodeContext) -> Value:
    """https://onnx.ai/onnx/operators/onnx__TensorScatter.html

    Every element asks which update, if any, lands on it, so nothing is written twice.
    """
    cache, update, places = op.input(0), op.input(1), op.optional(2)
    axis, circular = op.attr("axis") % cache.rank, op.attr("mode") == "circular"
    if places is None:
        places = constant(np.zeros(cache.shape[0], np.int64))
    return op.te(_tensor_scatter, cache, update, places, axis, circular, name="tensor_scatter")


def _tensor_scatter(
    cache: te.Tensor, update: te.Tensor, places: te.Tensor, axis: int, circular: bool
) -> te.Tensor:
    extent, length = int(cache.shape[axis]), int(update.shape[axis])

    def element(*at: Any) -> Any:
        row = at[axis] - places(at[0]).astype("int32")
        row = tirx.floormod(row, extent) if circular else row
        source = list(at)
        source[axis] = tirx.max(tirx.min(row, length - 1), 0)
        return tirx.if_then_else(tirx.all(row >= 0, row < length), update(*source), cache(*at))

    return te.compute(cache.shape, element, name="tensor_scatter")


@register("ArrayFeatureExtractor", domain="ai.onnx.ml")
def array_feature_extractor(op: NodeContext) -> Value:
    """https://onnx.ai/onnx/operators/onnx_aionnxml_ArrayFeatureExtractor.html"""
    data, indices = op.input(0), op.input(1)
    flat = reshape_to(op, indices, (indices.size,))
    if data.rank == 1:
        data = reshape_to(op, data, (1, data.size))
    return op.call(R.take, data, flat, axis=data.rank - 1, mode="wrap")
