"""Moves that change the shape or the order of elements."""

from __future__ import annotations

from math import prod

import numpy as np

from benchmarks.fuzz.graph import Graph, Value, small_enough
from benchmarks.fuzz.moves.registry import move


@move
def join(graph: Graph, x: Value) -> Value | None:
    """Concat along an axis in which the shapes may differ."""
    axis = graph.integer(0, x.rank - 1)
    others = [
        other
        for other in graph.values
        if other.rank == x.rank
        and all(
            a == b for i, (a, b) in enumerate(zip(x.shape, other.shape, strict=True)) if i != axis
        )
    ]
    names = [x.name, graph.pick(others).name] if others else [x.name, x.name]
    return graph.emit("Concat", names, axis=axis)


@move
def turn(graph: Graph, x: Value) -> Value | None:
    """Transpose."""
    axes = list(range(x.rank))
    for i in range(x.rank - 1):
        j = graph.integer(i, x.rank - 1)
        axes[i], axes[j] = axes[j], axes[i]
    return graph.emit("Transpose", [x.name], perm=axes)


@move
def reshape(graph: Graph, x: Value) -> Value | None:
    """Reshape: neighbours become one, or a dimension is split."""
    shape = list(x.shape)
    if len(shape) > 1 and graph.chance():
        at = graph.integer(0, len(shape) - 2)
        shape[at : at + 2] = [shape[at] * shape[at + 1]]
    elif len(shape) < 5:
        at = graph.integer(0, len(shape) - 1)
        factor = graph.pick([f for f in range(1, shape[at] + 1) if shape[at] % f == 0])
        shape[at : at + 1] = [factor, shape[at] // factor]
    return graph.emit("Reshape", [x.name, graph.integers(shape)], shape)


@move
def slice_(graph: Graph, x: Value) -> Value | None:
    """Slice with a step, forwards or backwards."""
    axis = graph.integer(0, x.rank - 1)
    extent = x.shape[axis]
    start = graph.integer(0, extent - 1)
    end = graph.integer(start + 1, extent)
    step = graph.pick((1, 1, 2, 3))
    bounds = [(start, end, step), (end - 1, start - 1 - extent, -step)][graph.chance(4)]
    if bounds[1] < -extent:
        bounds = (bounds[0], -extent - 1, bounds[2])
    parts = [graph.integers([value]) for value in (bounds[0], bounds[1], axis, bounds[2])]
    return graph.emit("Slice", [x.name, *parts])


@move
def pad(graph: Graph, x: Value) -> Value | None:
    """Pad in three modes."""
    mode = graph.pick(("constant", "edge", "reflect"))
    sizes = [[graph.integer(0, 2) if graph.chance() else 0 for _ in x.shape] for _ in range(2)]
    if mode == "reflect":
        sizes = [[min(n, e - 1) for n, e in zip(side, x.shape, strict=True)] for side in sizes]
    inputs = [x.name, graph.integers([*sizes[0], *sizes[1]])]
    if mode == "constant" and graph.chance():
        inputs.append(graph.weight(np.float32(0.5)))
    return graph.emit("Pad", inputs, mode=mode)


@move
def gather(graph: Graph, x: Value) -> Value | None:
    """Gather by constant indices, some of them negative."""
    axis = graph.integer(0, x.rank - 1)
    extent = x.shape[axis]
    picked = [graph.integer(-extent, extent - 1) for _ in range(graph.integer(1, 4))]
    return graph.emit("Gather", [x.name, graph.integers(picked)], axis=axis)


@move
def resize(graph: Graph, x: Value) -> Value | None:
    """Resize by two, nearest or linear."""
    if x.rank != 4:
        return None
    mode = graph.pick(("nearest", "linear"))
    factors = graph.weight(np.array([1, 1, 2, 2], np.float32))
    return graph.emit("Resize", [x.name, "", factors], mode=mode)


@move
def depth_to_space(graph: Graph, x: Value) -> Value | None:
    """DepthToSpace, as super-resolution ends."""
    if x.rank != 4 or x.shape[1] % 4:
        return None
    return graph.emit("DepthToSpace", [x.name], blocksize=2, mode=graph.pick(("DCR", "CRD")))


@move
def space_to_depth(graph: Graph, x: Value) -> Value | None:
    """SpaceToDepth, as some detectors begin."""
    if x.rank != 4 or x.shape[2] % 2 or x.shape[3] % 2:
        return None
    return graph.emit("SpaceToDepth", [x.name], blocksize=2)


@move
def split(graph: Graph, x: Value) -> Value | None:
    """Split in two, of which both go on."""
    axis = graph.integer(0, x.rank - 1)
    if x.shape[axis] < 2:
        return None
    first = graph.integer(1, x.shape[axis] - 1)
    sizes = (first, x.shape[axis] - first)
    shapes = [(*x.shape[:axis], size, *x.shape[axis + 1 :]) for size in sizes]
    one, other = graph.emit_all("Split", [x.name, graph.integers(sizes)], shapes, axis=axis)
    graph.values.append(one)
    return other


@move
def repeat(graph: Graph, x: Value) -> Value | None:
    """Tile, or Expand of what has an extent of one."""
    if 1 in x.shape and graph.chance():
        shape = [graph.integer(1, 5) if extent == 1 else extent for extent in x.shape]
        return graph.emit("Expand", [x.name, graph.integers(shape)], shape)
    counts = [graph.integer(1, 2) for _ in x.shape]
    shape = [count * extent for count, extent in zip(counts, x.shape, strict=True)]
    if not small_enough(shape):
        return None
    return graph.emit("Tile", [x.name, graph.integers(counts)], shape)


@move
def flatten(graph: Graph, x: Value) -> Value | None:
    """Flatten, as classifiers end."""
    axis = graph.integer(0, x.rank)
    shape = (prod(x.shape[:axis]), prod(x.shape[axis:]))
    return graph.emit("Flatten", [x.name], shape, axis=axis)


@move
def squeeze(graph: Graph, x: Value) -> Value | None:
    """Squeeze what has an extent of one, or Unsqueeze."""
    ones = [axis for axis, extent in enumerate(x.shape) if extent == 1]
    if ones and x.rank > 1 and graph.chance():
        return graph.emit("Squeeze", [x.name, graph.integers([graph.pick(ones)])])
    if x.rank > 4:
        return None
    return graph.emit("Unsqueeze", [x.name, graph.integers([graph.integer(0, x.rank)])])
