"""Moves over spatial windows: convolutions of all kinds, and pooling."""

from __future__ import annotations

from math import prod
from typing import Any

from benchmarks.fuzz.graph import MOST_PRODUCTS, Graph, Value
from benchmarks.fuzz.moves.registry import CHANNELS, move


def draw_window(graph: Graph, x: Value, most: int = 4) -> dict[str, Any] | None:
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


def draw_groups(graph: Graph, channels: int) -> tuple[int, int]:
    """Return (groups, output channels): dense, depthwise or grouped."""
    kind = graph.integer(0, 3)
    if kind == 1:
        return channels, channels * graph.integer(1, 2)
    if kind == 2:
        divisors = [d for d in range(1, channels + 1) if channels % d == 0]
        groups = graph.pick(divisors)
        return groups, groups * graph.integer(1, 9)
    return 1, graph.pick(CHANNELS)


@move
def convolve(graph: Graph, x: Value) -> Value | None:
    """Conv in one to three dimensions."""
    if not 3 <= x.rank <= 5:
        return None
    window = draw_window(graph, x)
    groups, outputs = draw_groups(graph, x.shape[1])
    if window is None:
        return None
    kernel = window["kernel_shape"]
    fan_in = x.shape[1] // groups * prod(kernel)
    if outputs * fan_in * prod(x.shape) // x.shape[1] > MOST_PRODUCTS:
        return None
    if graph.chance(6):
        window.pop("pads")
        window["auto_pad"] = graph.pick(("SAME_UPPER", "SAME_LOWER"))
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
    outputs = graph.pick(CHANNELS)
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
    window = draw_window(graph, x, 4)
    groups, outputs = draw_groups(graph, x.shape[1])
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
    if graph.chance(4):
        window["output_padding"] = [graph.integer(0, stride - 1) for stride in strides]
    return graph.emit("ConvTranspose", inputs, group=groups, **window)


@move
def pool(graph: Graph, x: Value) -> Value | None:
    """MaxPool and AveragePool."""
    if not 3 <= x.rank <= 5:
        return None
    window = draw_window(graph, x, 3)
    if window is None:
        return None
    ceil = graph.chance(4) and not _begins_outside(x.shape[2:], window)
    if graph.chance():
        return graph.emit("MaxPool", [x.name], ceil_mode=int(ceil), **window)
    counted = int(graph.chance())
    return graph.emit("AveragePool", [x.name], count_include_pad=counted, **window)


def _begins_outside(spatial: tuple[int, ...], window: dict[str, Any]) -> bool:
    """Say whether rounding up adds a window that begins beyond the tensor and its left padding.

    Such a window is left out, but ONNX's shape inference counts it.
    """
    pads = window["pads"]
    for axis, extent in enumerate(spatial):
        stride = window["strides"][axis]
        reach = window["dilations"][axis] * (window["kernel_shape"][axis] - 1) + 1
        span = extent + pads[axis] + pads[len(spatial) + axis] - reach
        if -(-span // stride) * stride >= extent + pads[axis]:
            return True
    return False


@move
def pool_globally(graph: Graph, x: Value) -> Value | None:
    """GlobalAveragePool or GlobalMaxPool."""
    if not 3 <= x.rank <= 5:
        return None
    return graph.emit(graph.pick(("GlobalAveragePool", "GlobalMaxPool")), [x.name])
