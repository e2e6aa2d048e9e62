"""What may come next in a graph: each move reads tensors and adds a node, or declines with None.

The moves stay around what the compiler rewrites: convolutions of all kinds, products, element-wise
operators with broadcast, reductions, changes of shape, residuals, and pairs of quantize and
dequantize.
"""

from __future__ import annotations

from collections.abc import Callable
from math import prod

import numpy as np

from benchmarks.fuzz.graph import MOST_PRODUCTS, Graph, Value, small_enough

Move = Callable[[Graph, Value], Value | None]
MOVES: list[Move] = []

_CHANNELS = (1, 2, 3, 4, 5, 7, 8, 13, 16, 17, 24, 31, 32, 33, 40, 64)
_UNARY = (
    *("Relu", "Sigmoid", "Tanh", "Abs", "Neg", "Erf", "HardSwish", "HardSigmoid", "LeakyRelu"),
    *("Elu", "Softplus", "Softsign", "Gelu", "Mish", "Identity", "Sin", "Floor"),
)
_BINARY = ("Add", "Mul", "Sub", "Max", "Min")
# One step of an 8-bit tensor whose values lie mostly within +-4.
_STEP = 0.0317


def move(function: Move) -> Move:
    """Register a move."""
    MOVES.append(function)
    return function


def _window(graph: Graph, x: Value, most: int = 4) -> dict[str, list[int]] | None:
    """Return kernel, strides, dilations and padding that fit the spatial dimensions of x."""
    spatial = x.shape[2:]
    kernel = [graph.integer(1, most) for _ in spatial]
    strides = [graph.integer(1, 3) for _ in spatial]
    dilations = [graph.integer(1, 2) if graph.chance(3) else 1 for _ in spatial]
    before = [graph.integer(0, k - 1) for k in kernel]
    after = [graph.integer(0, k - 1) for k in kernel]
    for extent, k, d, lo, hi in zip(spatial, kernel, dilations, before, after, strict=True):
        if extent + lo + hi < d * (k - 1) + 1:
            return None
    return {
        "kernel_shape": kernel,
        "strides": strides,
        "dilations": dilations,
        "pads": before + after,
    }


def _groups(graph: Graph, channels: int) -> tuple[int, int]:
    """Return (groups, output channels): dense, depthwise or grouped."""
    kind = graph.integer(0, 3)
    if kind == 1:
        return channels, channels * graph.integer(1, 2)
    if kind == 2:
        divisors = [d for d in range(1, channels + 1) if channels % d == 0]
        groups = graph.pick(divisors)
        return groups, groups * graph.integer(1, 9)
    return 1, graph.pick(_CHANNELS)


@move
def convolve(graph: Graph, x: Value) -> Value | None:
    """Conv in one to three dimensions."""
    if not 3 <= x.rank <= 5:
        return None
    window = _window(graph, x)
    groups, outputs = _groups(graph, x.shape[1])
    if window is None:
        return None
    kernel = window["kernel_shape"]
    fan_in = x.shape[1] // groups * prod(kernel)
    if outputs * fan_in * prod(x.shape) // x.shape[1] > MOST_PRODUCTS:
        return None
    inputs = [x.name, graph.normal((outputs, x.shape[1] // groups, *kernel), fan_in)]
    if graph.chance():
        inputs.append(graph.normal((outputs,)))
    return graph.emit("Conv", inputs, group=groups, **window)


@move
def convolve_plainly(graph: Graph, x: Value) -> Value | None:
    """The convolutions that networks are made of: square, padded to the same size."""
    if x.rank != 4:
        return None
    kernel = graph.pick((1, 3, 3, 5))
    outputs = graph.pick(_CHANNELS)
    fan_in = x.shape[1] * kernel * kernel
    if outputs * fan_in * prod(x.shape) // x.shape[1] > 4 * MOST_PRODUCTS:
        return None
    weight = graph.normal((outputs, x.shape[1], kernel, kernel), fan_in)
    stride = graph.integer(1, 2)
    y = graph.emit(
        *("Conv", [x.name, weight, graph.normal((outputs,))]),
        kernel_shape=[kernel, kernel],
        pads=[kernel // 2] * 4,
        strides=[stride, stride],
    )
    return graph.emit("Relu", [y.name]) if graph.chance() else y


@move
def convolve_transposed(graph: Graph, x: Value) -> Value | None:
    """ConvTranspose with strides, dilations, padding and groups."""
    if not 3 <= x.rank <= 5:
        return None
    window = _window(graph, x, 4)
    groups, outputs = _groups(graph, x.shape[1])
    if window is None or outputs % groups:
        return None
    kernel, strides = window["kernel_shape"], window["strides"]
    extents = [
        (extent - 1) * s + d * (k - 1) + 1 - lo - hi
        for extent, s, d, k, lo, hi in zip(
            *(x.shape[2:], strides, window["dilations"], kernel),
            *(window["pads"][: len(kernel)], window["pads"][len(kernel) :]),
            strict=True,
        )
    ]
    macs = prod(x.shape) * outputs // groups * prod(kernel)
    if min(extents) < 1 or macs > MOST_PRODUCTS:
        return None
    fan_in = max(1, x.shape[1] // groups * prod(kernel) // prod(strides))
    inputs = [x.name, graph.normal((x.shape[1], outputs // groups, *kernel), fan_in)]
    if graph.chance():
        inputs.append(graph.normal((outputs,)))
    return graph.emit("ConvTranspose", inputs, group=groups, **window)


@move
def pool(graph: Graph, x: Value) -> Value | None:
    """MaxPool and AveragePool."""
    if not 3 <= x.rank <= 5:
        return None
    window = _window(graph, x, 3)
    if window is None:
        return None
    ceil = int(graph.chance(4))
    if graph.chance():
        return graph.emit("MaxPool", [x.name], ceil_mode=ceil, **window)
    counted = int(graph.chance())
    return graph.emit("AveragePool", [x.name], count_include_pad=counted, **window)


@move
def pool_globally(graph: Graph, x: Value) -> Value | None:
    """GlobalAveragePool or GlobalMaxPool."""
    if not 3 <= x.rank <= 5:
        return None
    return graph.emit(graph.pick(("GlobalAveragePool", "GlobalMaxPool")), [x.name])


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
def multiply_by_weights(graph: Graph, x: Value) -> Value | None:
    """MatMul with a constant matrix, and often a bias and an activation."""
    if x.rank < 2:
        return None
    outputs = graph.pick(_CHANNELS)
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
    outputs, across = graph.pick(_CHANNELS), graph.chance()
    depth = x.shape[1]
    shape = (outputs, depth) if across else (depth, outputs)
    inputs = [x.name, graph.normal(shape, depth)]
    if graph.chance():
        inputs.append(graph.normal(graph.pick(((outputs,), (1,), (x.shape[0], 1)))))
    alpha = graph.pick((1.0, 0.5))
    return graph.emit("Gemm", inputs, transB=int(across), alpha=alpha, beta=2.0)


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
    others = [other for other in graph.values if _broadcasts(x.shape, other.shape)]
    if not others:
        return None
    return graph.emit(graph.pick(_BINARY), [x.name, graph.pick(others).name])


def _broadcasts(one: tuple[int, ...], other: tuple[int, ...]) -> bool:
    try:
        return small_enough(np.broadcast_shapes(one, other))
    except ValueError:
        return False


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
def quantize(graph: Graph, x: Value) -> Value | None:
    """A pair of QuantizeLinear and DequantizeLinear, signed or not, with a zero point."""
    return _quantized(graph, x)


def _quantized(graph: Graph, x: Value) -> Value:
    kind = graph.pick((np.int8, np.uint8))
    zero = graph.integer(-20, 20) + (128 if kind == np.uint8 else 0)
    scale = graph.weight(np.float32(_STEP * graph.pick((1.0, 0.61, 1.7))))
    point = graph.weight(kind(zero))
    stored = graph.emit("QuantizeLinear", [x.name, scale, point], x.shape)
    return graph.emit("DequantizeLinear", [stored.name, scale, point], x.shape)


def _quantized_weight(graph: Graph, shape: tuple[int, ...], fan_in: int, axis: int) -> str:
    """Return 8-bit weights, dequantized per tensor or per channel along an axis."""
    array = graph.random.integers(-127, 128, shape).astype(np.int8)
    per_channel = graph.chance()
    scales = np.float32(1 / 73 / np.sqrt(fan_in)) * graph.random.uniform(
        0.5, 2, shape[axis] if per_channel else ()
    ).astype(np.float32)
    points = np.zeros(scales.shape, np.int8)
    names = [graph.weight(array), graph.weight(np.asarray(scales)), graph.weight(points)]
    attributes = {"axis": axis} if per_channel else {}
    return graph.emit("DequantizeLinear", names, shape, **attributes).name


@move
def convolve_in_integers(graph: Graph, x: Value) -> Value | None:
    """Q/DQ around a convolution, as a quantizer writes it."""
    if x.rank != 4:
        return None
    window = _window(graph, x, 3)
    groups, outputs = _groups(graph, x.shape[1])
    if window is None:
        return None
    kernel = window["kernel_shape"]
    fan_in = x.shape[1] // groups * prod(kernel)
    if outputs * fan_in * prod(x.shape) // x.shape[1] > MOST_PRODUCTS:
        return None
    x = _quantized(graph, x)
    shape = (outputs, x.shape[1] // groups, *kernel)
    weight = _quantized_weight(graph, shape, fan_in, 0)
    y = graph.emit("Conv", [x.name, weight], group=groups, **window)
    if graph.chance():
        y = graph.emit("Relu", [y.name])
    return _quantized(graph, y)


@move
def multiply_in_integers(graph: Graph, x: Value) -> Value | None:
    """Q/DQ around a product with constant weights."""
    if x.rank < 2:
        return None
    outputs, depth = graph.pick(_CHANNELS), x.shape[-1]
    if prod(x.shape) * outputs > MOST_PRODUCTS:
        return None
    x = _quantized(graph, x)
    y = graph.emit("MatMul", [x.name, _quantized_weight(graph, (depth, outputs), depth, 1)])
    return _quantized(graph, y)
