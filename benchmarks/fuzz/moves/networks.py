"""Moves of several nodes: the blocks that networks repeat."""

from __future__ import annotations

from math import prod

import numpy as np

from benchmarks.fuzz.graph import MOST_PRODUCTS, Graph, Value
from benchmarks.fuzz.moves.registry import CHANNELS, move


@move
def residual_block(graph: Graph, x: Value) -> Value | None:
    """Two convolutions, normalised or not, and their input added, as in ResNet."""
    if x.rank != 4 or 18 * x.shape[1] * prod(x.shape) > MOST_PRODUCTS:
        return None
    y = _same_convolution(graph, x, x.shape[1])
    y = graph.emit(graph.pick(("Relu", "HardSwish")), [y.name], y.shape)
    y = _same_convolution(graph, y, x.shape[1])
    y = graph.emit("Add", graph.pick(([y.name, x.name], [x.name, y.name])), x.shape)
    return graph.emit("Relu", [y.name], y.shape) if graph.chance() else y


def _same_convolution(graph: Graph, x: Value, outputs: int) -> Value:
    weight = graph.normal((outputs, x.shape[1], 3, 3), 9 * x.shape[1])
    y = graph.emit("Conv", [x.name, weight], kernel_shape=[3, 3], pads=[1] * 4)
    if graph.chance(3):
        parts = [graph.normal((outputs,)) for _ in range(3)]
        spread = graph.weight(graph.random.uniform(0.5, 2, outputs).astype(np.float32))
        y = graph.emit("BatchNormalization", [y.name, *parts, spread], y.shape)
    return y


@move
def inverted_bottleneck(graph: Graph, x: Value) -> Value | None:
    """Widen, a depthwise convolution, narrow, and add, as in MobileNet."""
    if x.rank != 4:
        return None
    channels, wide = x.shape[1], x.shape[1] * graph.integer(1, 3)
    if wide * 2 * prod(x.shape) > MOST_PRODUCTS:
        return None
    y = graph.emit("Conv", [x.name, graph.normal((wide, channels, 1, 1), channels)])
    y = graph.emit("Clip", [y.name, graph.weight(np.float32(0)), graph.weight(np.float32(6))])
    depthwise = graph.normal((wide, 1, 3, 3), 9)
    y = graph.emit("Conv", [y.name, depthwise], group=wide, pads=[1] * 4)
    y = graph.emit("Conv", [y.name, graph.normal((channels, wide, 1, 1), wide)])
    return graph.emit("Add", [x.name, y.name], x.shape)


@move
def gate(graph: Graph, x: Value) -> Value | None:
    """Squeeze and excite: channels scaled by a function of their means."""
    if x.rank != 4:
        return None
    channels, inner = x.shape[1], graph.pick((1, 2, 5, 8))
    y = graph.emit("GlobalAveragePool", [x.name])
    y = graph.emit("Conv", [y.name, graph.normal((inner, channels, 1, 1), channels)])
    y = graph.emit("Relu", [y.name], y.shape)
    y = graph.emit("Conv", [y.name, graph.normal((channels, inner, 1, 1), inner)])
    y = graph.emit(graph.pick(("Sigmoid", "HardSigmoid")), [y.name], y.shape)
    return graph.emit("Mul", [x.name, y.name], x.shape)


@move
def attend(graph: Graph, x: Value) -> Value | None:
    """Attention in one head: softmax(q k) v."""
    if x.rank != 3:
        return None
    depth, inner = x.shape[2], graph.pick(CHANNELS[:9])
    if prod(x.shape) * max(3 * inner, x.shape[1]) > MOST_PRODUCTS:
        return None
    q, k, v = (
        graph.emit("MatMul", [x.name, graph.normal((depth, inner), depth)]) for _ in range(3)
    )
    turned = graph.emit("Transpose", [k.name], perm=[0, 2, 1])
    scores = graph.emit("MatMul", [q.name, turned.name])
    scores = graph.emit("Mul", [scores.name, graph.weight(np.float32(inner**-0.5))], scores.shape)
    shares = graph.emit("Softmax", [scores.name], scores.shape, axis=-1)
    return graph.emit("MatMul", [shares.name, v.name])


@move
def draw_image(graph: Graph, x: Value) -> Value | None:
    """Many channels, then an image of twice the size with few of them, as a generator ends."""
    if x.rank not in (4, 5):
        return None
    rank, channels, outputs = x.rank - 2, graph.pick((16, 24, 40, 64)), graph.integer(1, 4)
    kernel = [graph.pick((2, 4)) for _ in range(rank)]
    pads = [graph.integer(0, taps // 2) for taps in (*kernel, *kernel)]
    places = x.shape[0] * prod(x.shape[2:])
    if places * channels * max(x.shape[1], outputs * prod(kernel)) > MOST_PRODUCTS:
        return None
    if any(
        2 * (extent - 1) + taps - lo - hi < 1
        for extent, taps, lo, hi in zip(x.shape[2:], kernel, pads[:rank], pads[rank:], strict=True)
    ):
        return None
    wide = graph.normal((channels, x.shape[1], *[1] * rank), x.shape[1])
    y = graph.emit("Conv", [x.name, wide])
    weight = graph.normal((channels, outputs, *kernel), channels * prod(kernel) // 2**rank)
    y = graph.emit("ConvTranspose", [y.name, weight], strides=[2] * rank, pads=pads)
    return graph.emit("Tanh", [y.name], y.shape) if graph.chance() else y
