"""Moves that multiply matrices."""

from __future__ import annotations

from math import prod

import numpy as np

from benchmarks.fuzz.graph import MOST_PRODUCTS, Graph, Value, small_enough
from benchmarks.fuzz.moves.registry import CHANNELS, move


@move
def multiply_by_weights(graph: Graph, x: Value) -> Value | None:
    """MatMul with a constant matrix, and often a bias and an activation."""
    if x.rank < 2:
        return None
    outputs = graph.pick(CHANNELS)
    if prod(x.shape) * outputs > MOST_PRODUCTS:
        return None
    y = graph.emit("MatMul", [x.name, graph.normal((x.shape[-1], outputs), x.shape[-1])])
    if graph.chance():
        y = graph.emit("Add", [y.name, graph.normal((outputs,))])
    return graph.emit(graph.pick(("Relu", "Gelu", "Tanh")), [y.name]) if graph.chance() else y


@move
def multiply_by_itself(graph: Graph, x: Value) -> Value | None:
    """x x^T, as attention does: a product of two tensors that are not constants."""
    if x.rank < 2 or prod(x.shape) * x.shape[-2] > MOST_PRODUCTS:
        return None
    axes = [*range(x.rank - 2), x.rank - 1, x.rank - 2]
    turned = graph.emit("Transpose", [x.name], perm=axes)
    scaled = graph.emit("Mul", [x.name, graph.weight(np.float32(1 / np.sqrt(x.shape[-1])))])
    return graph.emit("MatMul", [scaled.name, turned.name])


@move
def gemm(graph: Graph, x: Value) -> Value | None:
    """Gemm with its transposes and factors."""
    if x.rank != 2:
        return None
    outputs, across = graph.pick(CHANNELS), graph.chance()
    depth = x.shape[1]
    shape = (outputs, depth) if across else (depth, outputs)
    inputs = [x.name, graph.normal(shape, depth)]
    if graph.chance():
        inputs.append(graph.normal(graph.pick(((outputs,), (1,), (x.shape[0], 1)))))
    alpha = graph.pick((1.0, 0.5))
    return graph.emit("Gemm", inputs, transB=int(across), alpha=alpha, beta=2.0)


@move
def multiply_by_batched_weights(graph: Graph, x: Value) -> Value | None:
    """MatMul with a constant that has a matrix for each batch, or is broadcast over some."""
    if x.rank < 3:
        return None
    outputs, depth = graph.pick(CHANNELS), x.shape[-1]
    batch = tuple(1 if graph.chance(3) else extent for extent in x.shape[:-2])
    if prod(x.shape) * outputs > MOST_PRODUCTS or prod(batch) * depth * outputs > MOST_PRODUCTS:
        return None
    return graph.emit("MatMul", [x.name, graph.normal((*batch, depth, outputs), depth)])


@move
def multiply_two(graph: Graph, x: Value) -> Value | None:
    """MatMul of two tensors of the graph whose shapes happen to fit."""
    fitting = [
        other
        for other in graph.values
        if other.rank >= 2
        and x.rank >= 2
        and other.shape[-2] == x.shape[-1]
        and broadcasts(x.shape[:-2], other.shape[:-2])
        and prod(x.shape) * prod(other.shape) <= MOST_PRODUCTS
    ]
    if not fitting:
        return None
    scale = graph.weight(np.float32(1 / np.sqrt(x.shape[-1])))
    scaled = graph.emit("Mul", [x.name, scale], x.shape)
    return graph.emit("MatMul", [scaled.name, graph.pick(fitting).name])


def broadcasts(one: tuple[int, ...], other: tuple[int, ...]) -> bool:
    """Say whether two shapes can be broadcast to one, and to a small one."""
    try:
        return small_enough(np.broadcast_shapes(one, other))
    except ValueError:
        return False
