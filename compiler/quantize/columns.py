"""Convolutions of one or two channels: columns of the data stand side by side as channels.

    sum over (kx) x[y, ox s + kx] w[kx]
        = sum over (t, j) x'[j, y, ox s + g t] w'[t, j],    x'[j, y, p] = x[y, p + j]

Instructions for bytes sum products of four channels. Of one channel three quarters of them would
be zeros; g = 4 of its columns fill them (two of two channels), and the window of k columns becomes
one of ceil(k / g), g columns apart. What the window lacks for whole groups has weights of zero.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from tvm import te, tirx

Window = tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...], int]
"""Strides, padding, dilation and groups of a convolution."""

_GROUP = 4


@dataclass(frozen=True)
class Columns:
    """How columns become channels.

    Attributes:
        group: columns side by side.
        before: columns of padding on the left.
        kernel: columns of the window as it was.
        width: columns of the data afterwards.
    """

    group: int
    before: int
    kernel: int
    width: int

    def weight(self, weight: np.ndarray) -> np.ndarray:
        """Return weights [O, C, .., k] as [O, g C, .., ceil(k / g)]."""
        missing = -self.kernel % self.group
        widths = [(0, 0)] * (weight.ndim - 1) + [(0, missing)]
        padded = np.pad(weight, widths)
        split = padded.reshape(*padded.shape[:-1], -1, self.group)
        moved = np.moveaxis(split, -1, 1)
        return np.ascontiguousarray(moved.reshape(moved.shape[0], -1, *moved.shape[3:]))

    def window(self, window: Window) -> Window:
        """Return the window over the data afterwards."""
        strides, padding, dilation, groups = window
        rank = len(strides)
        left = [*padding[:rank]]
        right = [*padding[rank:]]
        left[-1] = right[-1] = 0
        return strides, (*left, *right), (*dilation[:-1], self.group), groups

    def side_by_side(self, data: te.Tensor, zero: int) -> te.Tensor:
        """Return bytes [N, C, .., W] as [N, g C, .., width]; the border holds the zero point."""
        batch, channels, *others, width = (int(extent) for extent in data.shape)
        border = tirx.const(zero, data.dtype)

        def element(n: Any, c: Any, *at: Any) -> Any:
            column = at[-1] + tirx.floordiv(c, channels) - self.before
            inside = tirx.all(column >= 0, column < width)
            value = data(n, tirx.floormod(c, channels), *at[:-1], column)
            return tirx.if_then_else(inside, value, border)

        shape = (batch, self.group * channels, *others, self.width)
        return te.compute(shape, element, name="columns")


def columns_of(weight: np.ndarray, window: Window, width: int) -> Columns | None:
    """Return how columns become channels, or None where it saves nothing.

    Args:
        weight: of the convolution, [O, C, .., k].
        window: of the convolution.
        width: columns of the data.
    """
    strides, padding, dilation, groups = window
    channels, kernel = weight.shape[1], weight.shape[-1]
    if groups != 1 or channels * 2 > _GROUP or dilation[-1] != 1 or kernel == 1:
        return None
    rank = len(strides)
    group = _GROUP // channels
    outputs = (width + padding[rank - 1] + padding[-1] - kernel) // strides[-1] + 1
    taps = -(-kernel // group)
    reach = (outputs - 1) * strides[-1] + (taps - 1) * group + 1
    return Columns(group, padding[rank - 1], kernel, reach)
