"""Averages of quantized values as integer sums: mean over axes and average pooling.

    mean(s (x - z)) = (sum x - n z) s / n

The sum is the kernel's accumulator; s / n joins the scale of its epilogue.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np
from tvm import relax, te, tirx, topi

from tilewright.compiler.quantize.affine import Affine, unsigned_zero
from tilewright.compiler.quantize.graph import Graph
from tilewright.compiler.relax_utils import op_name

_POOLS = {"relax.nn.avg_pool1d": 1, "relax.nn.avg_pool2d": 2, "relax.nn.avg_pool3d": 3}
_BYTE = 255


@dataclass(frozen=True, eq=False)
class Average:
    """An average of bytes.

    Attributes:
        data: variable of the dequantized data.
        affine: how the data was dequantized, with the zero point of unsigned bytes.
        scale: float32 [1]: accumulator -> float.
        offset: int32 [1]: what joins the accumulator.
        axes: dimensions that a mean removes; None for a window.
        keep: whether a mean keeps them as extents of 1.
        window: (extents, strides, padding, dilation) of pooling; None for a mean.
        count: how many elements one average is of.
    """

    data: relax.Var
    affine: Affine
    scale: np.ndarray
    offset: np.ndarray
    axes: tuple[int, ...] | None
    keep: bool
    window: tuple[tuple[int, ...], ...] | None
    count: int
    weight: None = None
    pad_channels: int = 0
    channel: int = 1

    @property
    def bound(self) -> int:
        """Return the greatest absolute accumulator."""
        return 2 * _BYTE * self.count

    def with_bias(self, _bias: np.ndarray, *, exact: bool = True) -> None:
        """Return None: a constant that is added stays with the epilogue."""

    def sums(self, data: te.Tensor) -> te.Tensor:
        """Return the int32 sums as a tensor expression."""
        return self._mean(data) if self.window is None else self._window(data)

    def _mean(self, data: te.Tensor) -> te.Tensor:
        assert self.axes is not None
        axes = {axis: te.reduce_axis((0, data.shape[axis]), f"r{axis}") for axis in self.axes}
        shape = [
            1 if axis in axes else extent
            for axis, extent in enumerate(data.shape)
            if axis not in axes or self.keep
        ]

        def element(*at: Any) -> Any:
            left = iter(at)
            index = []
            for axis in range(len(data.shape)):
                if axis in axes:
                    index.append(axes[axis])
                    if self.keep:
                        next(left)
                else:
                    index.append(next(left))
            return te.sum(data(*index).astype("int32"), axis=list(axes.values()))

        return te.compute(shape, element, name="sum_pool")

    def _window(self, data: te.Tensor) -> te.Tensor:
        assert self.window is not None
        extents, strides, padding, dilation = self.window
        rank = len(extents)
        source = data
        if any(padding):
            zero = tirx.const(int(self.affine.zero), "uint8")
            before, after = [0, 0, *padding[:rank]], [0, 0, *padding[rank:]]
            source = topi.nn.pad(data, before, after, zero, name="pad_temp")
        counts = [
            (int(n) - (taps - 1) * step - 1) // stride + 1
            for n, taps, stride, step in zip(
                source.shape[2:], extents, strides, dilation, strict=True
            )
        ]
        taps = [te.reduce_axis((0, n), f"r{axis}") for axis, n in enumerate(extents)]

        def element(n: Any, c: Any, *at: Any) -> Any:
            places = [
                at[axis] * strides[axis] + taps[axis] * dilation[axis] for axis in range(rank)
            ]
            return te.sum(source(n, c, *places).astype("int32"), axis=taps)

        return te.compute((*data.shape[:2], *counts), element, name="sum_pool")


def read_average(graph: Graph, var: relax.Var) -> Average | None:
    """Return the average of bytes that computes a variable, or None if there is none."""
    call = graph.made_by(var)
    name = op_name(call)
    if call is None or (name != "relax.mean" and name not in _POOLS):
        return None
    affine = graph.of_kind(call.args[0], "dequantize")
    if affine is None or not affine.in_bytes:
        return None
    shape = graph.shape(call.args[0])
    if name == "relax.mean":
        said = call.attrs.axis
        every = range(len(shape))
        axes = tuple(every) if said is None else tuple(int(a) % len(shape) for a in said)
        count = prod(shape[axis] for axis in axes)
        window = None
        keep = bool(call.attrs.keepdims)
        if len(axes) == len(shape) and not keep:
            return None
    else:
        window = _window_of(call)
        if window is None:
            return None
        axes, keep, count = None, True, prod(window[0])
    zero = np.array(unsigned_zero(affine), "int32")
    moved = Affine(affine.kind, affine.source, affine.dtype, affine.scale, zero, 0)
    scale = np.array([float(affine.scale) / count], "float32")
    offset = np.array([-count * int(zero)], "int32")
    return Average(call.args[0], moved, scale, offset, axes, keep, window, count)


def _window_of(call: relax.Call) -> tuple[tuple[int, ...], ...] | None:
    """Return a pool's window, or None where the number of elements in it differs."""
    attrs = call.attrs
    names = ("pool_size", "strides", "padding", "dilation")
    window = tuple(tuple(int(n) for n in getattr(attrs, name)) for name in names)
    if attrs.ceil_mode or (any(window[2]) and not attrs.count_include_pad):
        return None
    return window
