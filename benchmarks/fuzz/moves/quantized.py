"""Moves with pairs of QuantizeLinear and DequantizeLinear, as quantizers write them."""

from __future__ import annotations

from math import prod

import numpy as np

from benchmarks.fuzz.graph import MOST_PRODUCTS, Graph, Value
from benchmarks.fuzz.moves.registry import CHANNELS, move
from benchmarks.fuzz.moves.windows import draw_groups, draw_window

# One step of an 8-bit tensor whose values lie mostly within +-4.
_STEP = 0.0317


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
    window = draw_window(graph, x, 3)
    groups, outputs = draw_groups(graph, x.shape[1])
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
    outputs, depth = graph.pick(CHANNELS), x.shape[-1]
    if prod(x.shape) * outputs > MOST_PRODUCTS:
        return None
    x = _quantized(graph, x)
    y = graph.emit("MatMul", [x.name, _quantized_weight(graph, (depth, outputs), depth, 1)])
    return _quantized(graph, y)


@move
def multiply_with_bias_in_integers(graph: Graph, x: Value) -> Value | None:
    """Q/DQ around a Gemm with a bias."""
    if x.rank != 2:
        return None
    outputs, depth = graph.pick(CHANNELS), x.shape[1]
    x = _quantized(graph, x)
    weight = _quantized_weight(graph, (outputs, depth), depth, 0)
    y = graph.emit("Gemm", [x.name, weight, graph.normal((outputs,))], transB=1)
    return _quantized(graph, y)


@move
def add_in_integers(graph: Graph, x: Value) -> Value | None:
    """Q/DQ around a residual: both sides and the sum have their own scales."""
    others = [other for other in graph.values if other.shape == x.shape]
    one, other = _quantized(graph, x), _quantized(graph, graph.pick(others))
    y = graph.emit(graph.pick(("Add", "Mul")), [one.name, other.name])
    if graph.chance():
        y = graph.emit("Relu", [y.name])
    return _quantized(graph, y)


@move
def move_in_integers(graph: Graph, x: Value) -> Value | None:
    """Q/DQ around what only moves or averages values."""
    x = _quantized(graph, x)
    kinds = ["Flatten", "Transpose", "Concat"]
    if x.rank == 4:
        kinds += ["GlobalAveragePool", "MaxPool", "AveragePool"]
    kind = graph.pick(kinds)
    inputs, attributes = [x.name], {}
    if kind == "Concat":
        inputs, attributes = [x.name, x.name], {"axis": x.rank - 1}
    if kind in ("MaxPool", "AveragePool"):
        attributes = {"kernel_shape": [1 + (extent > 1) for extent in x.shape[2:]]}
    return _quantized(graph, graph.emit(kind, inputs, **attributes))


@move
def convolve_with_codes(graph: Graph, x: Value) -> Value | None:
    """QLinearConv, the form of older quantizers, with a bias of 32 bits."""
    if x.rank != 4:
        return None
    window = draw_window(graph, x, 3)
    outputs = graph.pick(CHANNELS)
    if window is None:
        return None
    fan_in = x.shape[1] * prod(window["kernel_shape"])
    if outputs * fan_in * prod(x.shape) // x.shape[1] > MOST_PRODUCTS:
        return None
    step = graph.weight(np.float32(_STEP))
    point = graph.weight(np.uint8(graph.integer(100, 150)))
    codes = graph.emit("QuantizeLinear", [x.name, step, point], x.shape)
    shape = (outputs, x.shape[1], *window["kernel_shape"])
    scales = graph.random.uniform(0.5, 2, outputs if graph.chance() else ()) / 73 / np.sqrt(fan_in)
    inputs = [
        *(codes.name, step, point),
        # 7 bits: ONNX Runtime judges what the reference cannot run, and saturates sums of pairs.
        graph.weight(graph.random.integers(-63, 64, shape).astype(np.int8)),
        graph.weight(np.asarray(scales, np.float32)),
        graph.weight(np.zeros(np.shape(scales), np.int8)),
        *(step, point),
        graph.weight(graph.random.integers(-900, 900, outputs).astype(np.int32)),
    ]
    y = graph.emit("QLinearConv", inputs, **window)
    return graph.emit("DequantizeLinear", [y.name, step, point], y.shape)
