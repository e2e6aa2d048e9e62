"""Moves on elements: functions, binary operators with broadcast, normalisations, reductions."""

from __future__ import annotations

from math import prod

import numpy as np

from benchmarks.fuzz.graph import Graph, Value
from benchmarks.fuzz.moves.products import broadcasts
from benchmarks.fuzz.moves.registry import move

_UNARY = (
    *("Relu", "Sigmoid", "Tanh", "Abs", "Neg", "Erf", "HardSwish", "HardSigmoid", "LeakyRelu"),
    *("Elu", "Softplus", "Softsign", "Gelu", "Mish", "Identity", "Sin", "Floor", "Exp", "Cos"),
    *("Celu", "Selu", "ThresholdedRelu", "Ceil", "Sign", "Atan"),
)
_BINARY = ("Add", "Mul", "Sub", "Max", "Min")


def _partner(graph: Graph, x: Value) -> Value:
    """Return a tensor that x broadcasts with; x itself where any result is too large."""
    others = [other for other in graph.values if broadcasts(x.shape, other.shape)]
    return graph.pick(others or [x])


@move
def normalise_batch(graph: Graph, x: Value) -> Value | None:
    """BatchNormalization for inference, which is folded into what stands before it."""
    if x.rank < 2:
        return None
    channels = (x.shape[1],)
    positive = graph.weight(graph.random.uniform(0.5, 2, channels).astype(np.float32))
    parts = [graph.normal(channels) for _ in range(3)]
    return graph.emit("BatchNormalization", [x.name, *parts, positive])


@move
def normalise_layer(graph: Graph, x: Value) -> Value | None:
    """LayerNormalization over the last dimensions."""
    if x.rank < 2 or x.shape[-1] < 2:
        return None
    axis = graph.integer(1, x.rank - 1)
    scale, shift = graph.normal(x.shape[axis:]), graph.normal(x.shape[axis:])
    return graph.emit("LayerNormalization", [x.name, scale, shift], x.shape, axis=axis, epsilon=0.1)


@move
def soften(graph: Graph, x: Value) -> Value | None:
    """Softmax over any dimension."""
    axis = graph.integer(-x.rank, x.rank - 1)
    return graph.emit(graph.pick(("Softmax", "LogSoftmax")), [x.name], axis=axis)


@move
def apply(graph: Graph, x: Value) -> Value | None:
    """An element-wise function."""
    return graph.emit(graph.pick(_UNARY), [x.name])


@move
def clip(graph: Graph, x: Value) -> Value | None:
    """Clip, as ReLU6 is written."""
    low, high = graph.weight(np.float32(-0.5)), graph.weight(np.float32(graph.pick((1, 6))))
    return graph.emit("Clip", [x.name, low, high])


@move
def combine_with_constant(graph: Graph, x: Value) -> Value | None:
    """A binary operator with a constant that is broadcast, from either side."""
    shape = tuple(1 if graph.chance() else extent for extent in x.shape)
    shape = shape[graph.integer(0, x.rank) :]
    names = [x.name, graph.normal(shape)]
    if graph.chance(3):
        names.reverse()
    return graph.emit(graph.pick(_BINARY), names)


@move
def combine(graph: Graph, x: Value) -> Value | None:
    """A binary operator with another tensor of the graph: residuals and gates."""
    return graph.emit(graph.pick(_BINARY), [x.name, _partner(graph, x).name])


@move
def reduce(graph: Graph, x: Value) -> Value | None:
    """A reduction over some axes."""
    axes = [axis for axis in range(x.rank) if graph.chance()] or [x.rank - 1]
    keep = 1 if len(axes) == x.rank else graph.integer(0, 1)
    kind = graph.pick(("ReduceMean", "ReduceMax", "ReduceMin", "ReduceSum", "ReduceL2"))
    y = graph.emit(kind, [x.name, graph.integers(axes)], keepdims=keep)
    size = prod(x.shape[axis] for axis in axes)
    if kind != "ReduceSum":
        return y
    return graph.emit("Mul", [y.name, graph.weight(np.float32(1 / np.sqrt(size)))])


@move
def divide(graph: Graph, x: Value) -> Value | None:
    """x / (1 + |y|), y of the graph or x itself."""
    size = graph.emit("Abs", [_partner(graph, x).name])
    below = graph.emit("Add", [size.name, graph.weight(np.float32(1))], size.shape)
    return graph.emit("Div", [x.name, below.name])


@move
def raise_to_power(graph: Graph, x: Value) -> Value | None:
    """Pow with a whole exponent, or Sqrt of what is not negative."""
    if graph.chance():
        return graph.emit("Pow", [x.name, graph.weight(np.float32(graph.pick((2, 3))))])
    return graph.emit("Sqrt", [graph.emit("Abs", [x.name], x.shape).name])


@move
def select(graph: Graph, x: Value) -> Value | None:
    """Where: x or another tensor, by a comparison with a constant."""
    is_chosen = graph.emit("Greater", [x.name, graph.weight(np.float32(0.1))], x.shape)
    return graph.emit("Where", [is_chosen.name, x.name, _partner(graph, x).name])


@move
def rectify_by_channel(graph: Graph, x: Value) -> Value | None:
    """PRelu with a slope for each channel."""
    if x.rank < 2:
        return None
    slope = graph.normal((x.shape[1], *(1 for _ in x.shape[2:])))
    return graph.emit("PRelu", [x.name, slope], x.shape)


@move
def normalise_instance(graph: Graph, x: Value) -> Value | None:
    """InstanceNormalization, or that of several groups as GroupNorm is exported."""
    if x.rank < 3 or prod(x.shape[2:]) < 2:
        return None
    channels = x.shape[1]
    if graph.chance():
        parts = [graph.normal((channels,)) for _ in range(2)]
        return graph.emit("InstanceNormalization", [x.name, *parts], x.shape, epsilon=0.1)
    groups = graph.pick([n for n in range(1, channels + 1) if channels % n == 0])
    shape = (x.shape[0], groups, prod(x.shape[1:]) // groups)
    y = graph.emit("Reshape", [x.name, graph.integers(shape)], shape)
    ones, zeros = np.ones(groups, np.float32), np.zeros(groups, np.float32)
    parts = [graph.weight(ones), graph.weight(zeros)]
    y = graph.emit("InstanceNormalization", [y.name, *parts], shape, epsilon=0.1)
    y = graph.emit("Reshape", [y.name, graph.integers(x.shape)], x.shape)
    of_channel = (channels, *(1 for _ in x.shape[2:]))
    y = graph.emit("Mul", [y.name, graph.normal(of_channel)], x.shape)
    return graph.emit("Add", [y.name, graph.normal(of_channel)], x.shape)


@move
def sum_up(graph: Graph, x: Value) -> Value | None:
    """CumSum along an axis, in either direction."""
    axis = graph.weight(np.int64(graph.integer(-x.rank, x.rank - 1)))
    flags = {"exclusive": graph.integer(0, 1), "reverse": graph.integer(0, 1)}
    return graph.emit("CumSum", [x.name, axis], x.shape, **flags)
