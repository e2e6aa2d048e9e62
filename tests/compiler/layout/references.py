"""Convolutions in numpy, and their PrimFuncs and packed weights."""

import numpy as np

from tests.compiler.layout.functions import fused, op, shapes_of
from tilewright.compiler.layout.primitives import Layout, Pad, Reorder, Split


def conv(data, weight, strides, padding, dilation=None, groups=1):
    """N-dimensional convolution; `padding` is all the leading ends, then all the trailing ones."""
    rank = data.ndim - 2
    dilation = dilation or [1] * rank
    pads = list(zip(padding[:rank], padding[rank:], strict=True))
    data = np.pad(data, [(0, 0), (0, 0), *pads])
    kernel = [(k - 1) * d + 1 for k, d in zip(weight.shape[2:], dilation, strict=True)]
    axes = tuple(range(2, 2 + rank))
    windows = np.lib.stride_tricks.sliding_window_view(data, kernel, axes)
    steps = tuple(slice(None, None, s) for s in strides)
    taps = tuple(slice(None, None, d) for d in dilation)
    windows = windows[(slice(None), slice(None), *steps, *taps)]
    parts = []
    for w, x in zip(np.split(weight, groups), np.split(windows, groups, axis=1), strict=True):
        contracted = (1, *range(2 + rank, 2 + 2 * rank))
        parts.append(np.moveaxis(np.tensordot(w, x, (range(1, 2 + rank), contracted)), 0, 1))
    return np.concatenate(parts, axis=1)


def conv_transpose(data, weight, strides, padding):
    """N-dimensional transposed convolution, weight [I, O, ...]; `padding` as in `conv`."""
    rank = data.ndim - 2
    extents = [
        (size - 1) * step + k
        for size, step, k in zip(data.shape[2:], strides, weight.shape[2:], strict=True)
    ]
    out = np.zeros((data.shape[0], weight.shape[1], *extents), data.dtype)
    for place in np.ndindex(*data.shape[2:]):
        patch = np.tensordot(data[(..., *place)], weight, (1, 0))
        at = [
            slice(i * step, i * step + k)
            for i, step, k in zip(place, strides, weight.shape[2:], strict=True)
        ]
        out[(..., *at)] += patch
    kept = [slice(padding[i], extents[i] - padding[rank + i]) for i in range(rank)]
    return out[(..., *kept)]


def packed_weight(shape, out_block, in_block=None):
    """Return the layout of a weight [O, I, ...]: O/b I/b ... bi bo, or O/b I ... bo."""
    rank = len(shape) - 2
    pad_out = -shape[0] % out_block
    steps = [Pad(0, 0, pad_out), Split(0, ((shape[0] + pad_out) // out_block, out_block))]
    if in_block is None:
        return Layout(shape, (*steps, Reorder((0, 2, *range(3, 3 + rank), 1))))
    pad_in = -shape[1] % in_block
    steps += [Pad(2, 0, pad_in), Split(2, ((shape[1] + pad_in) // in_block, in_block))]
    return Layout(shape, (*steps, Reorder((0, 2, *range(4, 4 + rank), 3, 1))))


def conv_function(x, w, strides, padding, dilation=None, groups=1):
    """Return the PrimFunc of a convolution alone, with its output shape."""
    make = {3: op.nn.conv1d, 4: op.nn.conv2d, 5: op.nn.conv3d}[len(x)]
    func = fused(
        lambda a, b: make(
            a, b, strides=strides, padding=padding, groups=groups,
            dilation=dilation or [1] * (len(x) - 2),
        ),
        x,
        w,
    )  # fmt: skip
    return func, shapes_of(func)[-1]


def max_pool(strides, pad):
    def reference(a):
        padded = np.pad(a, [(0, 0), (0, 0), (pad, pad), (pad, pad)], constant_values=-np.inf)
        windows = np.lib.stride_tricks.sliding_window_view(padded, (3, 3), (2, 3))
        return windows[:, :, :: strides[0], :: strides[1]].max((-2, -1))

    return reference
