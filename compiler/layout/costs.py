"""Analytical estimates of what an operator costs in a layout, where nothing was measured.

Bytes moved over bandwidth, plus arithmetic over the share of peak that its kernel reaches. Only
ratios matter for choosing; the shares come from `benchmarks/` on the reference machine, 1 thread.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import prod

import numpy as np

from tilewright.compiler.layout.operator import Operator
from tilewright.compiler.layout.primitives import Layout
from tilewright.compiler.layout.strides import Walk
from tilewright.compiler.targets import Target

_BANDWIDTH_BYTES_S = 20e9
CLOCK_HZ = 3.9e9
_FMA_PIPES = 2
_CALL_SECONDS = 1e-6
# Registers transpose tiles of this element size; other conversions take twice a straight copy.
_TRANSPOSABLE_BYTES = 4
_UNTRANSPOSED_COPY = 2.0

CONTRACTION_SHARE = 0.9
"""Of the FMA peak: a register micro-kernel on channels innermost."""

WINDOWED_LAST_SHARE = 0.5
"""The same, windows of more than one pixel on channels-last data: rows far apart in memory."""

PLANAR_DATA_SHARE = 0.6
"""The same, but the data is read from planes (first layers with few channels)."""

WINDOW_SHARE = 0.6
"""Depthwise convolution and pooling on blocks of channels."""

WINDOW_LAST_SHARE = 0.3
"""The same on channels last: neighbouring pixels are far apart, and each vector is loaded anew."""

PLANAR_SHARE = 0.35
"""A contraction whose data and result are planes or plain matrices.

On Zen 3 the kernels alone reach 0.45 (1x1, 128 channels of 4096) to 0.71 (128 x 768 x 768), but
each step of a deep reduction reads from another page (1x1, 256 channels of 56 x 56: slower than to
turn the image around and back). Pixels that do not lie side by side are gathered.
"""

PLANAR_IMAGE_SHARE = 0.7
"""The same with windows of several pixels that move by one, on rows of some vectors.

On Zen 3, blocks / planes: 3x3, 64 channels of 56 x 56 2.31 / 2.56 ms, dilated 2.15 / 2.73.
"""

PLANAR_STAGED_SHARE = 0.8
"""The same, 1x1 and planes of whole vectors: a task copies its pixels (`schedule/staged.py`).

On Zen 3, of peak: 256 planes of 56 x 56 to 64 80%, 128 sequences of 4096 to 256 87%, 24 planes to
144 90%; blocks of channels reach 98%, but an operator alone is converted twice.
"""

PLANAR_WINDOW_SHARE = 0.03
"""Depthwise convolution, pooling and other reductions over planes."""

PLANAR_DEPTHWISE_SHARE = 0.3
"""Depthwise convolution over planes, by rows that are at least a vector long.

On Zen 3, over blocks / over planes: 32 channels of 112 x 112 107 / 124 us, 144 of 56 x 56 118 /
135, 96 of 112 x 112 with stride 2 125 / 174, 384 of 14 x 14 18 / 30, 240 of 28 x 28, 5x5 197 / 275.
"""

PLANAR_GROUPED_SHARE = 0.6
"""Convolutions in groups of several channels over planes: pixels are vectors.

On Zen 3, 3x3 in 32 groups: 128 channels of 56 x 56 74% (blocks of 4 channels, half a vector: 34%),
512 of 14 x 14 80% (blocks of 8: 97%), 256 of 28 x 28 74% (71%).
"""

STRIDED_PENALTY = 6.0
"""How many times longer a copy takes whose vectors are gathered element by element."""

TRANSPOSED_PENALTY = 1.3
"""The same where square tiles of 4-byte data are transposed in registers.

Between planes and blocks a copy takes 0.9 to 1.1 of a straight one, between channels last and
anything else 1.1 to 1.7 (AVX2, one thread, 0.2 to 4 MB).
"""


def seconds(
    operator: Operator, layouts: Sequence[Layout], target: Target, macs: float, share: float
) -> float:
    """Estimate a reduction: `macs` multiply-adds at `share` of the peak, and its memory traffic."""
    peak = 2 * _FMA_PIPES * target.lanes("float32") * CLOCK_HZ
    return 2 * macs / (peak * share) + moved_seconds(operator, layouts)


def moved_seconds(operator: Operator, layouts: Sequence[Layout]) -> float:
    """Estimate the time of reading and writing every parameter once."""
    moved = sum(
        layout.size_bytes(str(param.ty.dtype))
        for layout, param in zip(layouts, operator.func.params, strict=True)
    )
    return moved / _BANDWIDTH_BYTES_S + _CALL_SECONDS


def read_seconds(size_bytes: float) -> float:
    """Estimate the time of reading so many bytes once."""
    return size_bytes / _BANDWIDTH_BYTES_S


def conversion_seconds(shape: tuple[int, ...], dtype: str) -> float:
    """Estimate the time of copying a tensor from one layout to another."""
    size = np.dtype(dtype).itemsize
    penalty = TRANSPOSED_PENALTY if size == _TRANSPOSABLE_BYTES else _UNTRANSPOSED_COPY
    return 2 * penalty * prod(shape) * size / _BANDWIDTH_BYTES_S + _CALL_SECONDS


def stride_penalty(walk: Walk, layouts: Sequence[Layout], target: Target) -> float:
    """Return how much longer an injective function takes for what it reads with a stride."""
    transposed, gathered = walk.strided_shares(layouts, target.lanes("float32"))
    return 1 + (TRANSPOSED_PENALTY - 1) * transposed + (STRIDED_PENALTY - 1) * gathered
