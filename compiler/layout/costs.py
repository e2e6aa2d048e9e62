"""Analytical estimates of what an operator costs in a layout, where nothing was measured.

Bytes moved over bandwidth, plus arithmetic over the share of peak that its kernel reaches. Only
ratios matter for choosing; the shares come from `benchmarks/` on the reference machine, 1 thread.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import prod

import numpy as np
from tvm import tirx
from tvm.tirx import PrimFunc

from tilewright.compiler.access import BlockAccess, blocks, shape_of, variables
from tilewright.compiler.layout.indexing import linear_terms
from tilewright.compiler.layout.operator import Operator
from tilewright.compiler.layout.primitives import Layout
from tilewright.compiler.targets import Target

_BANDWIDTH_BYTES_S = 20e9
CLOCK_HZ = 3.9e9
_FMA_PIPES = 2
_CALL_SECONDS = 1e-6
# What fits in a few cache lines may be read in any order.
_SMALL_ELEMENTS = 64

CONTRACTION_SHARE = 0.9
"""Of the FMA peak: a register micro-kernel on channels innermost."""

WINDOWED_LAST_SHARE = 0.5
"""The same, windows of more than one pixel on channels-last data: rows far apart in memory."""

PLANAR_DATA_SHARE = 0.6
"""The same, but the data is read from planes (first layers with few channels)."""

WINDOW_SHARE = 0.4
"""Depthwise convolution and pooling on channels innermost."""

PLANAR_SHARE = 0.35
"""A contraction whose data and result are planes or plain matrices."""

PLANAR_WINDOW_SHARE = 0.03
"""Depthwise convolution, pooling and other reductions over planes."""

STRIDED_PENALTY = 6.0
"""How many times longer a copy takes whose vectors are gathered element by element."""


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


def conversion_seconds(shape: tuple[int, ...], dtype: str) -> float:
    """Estimate the time of copying a tensor from one layout to another."""
    moved = 2 * prod(shape) * np.dtype(dtype).itemsize
    return 2 * moved / _BANDWIDTH_BYTES_S + _CALL_SECONDS


def stride_penalty(func: PrimFunc) -> float:
    """Return how much longer an injective function takes for what it reads with a stride.

    Each load counts by its share of the points; a load is contiguous where the innermost output
    axis moves its last index, and only that, by one.
    """
    accesses = blocks(func)
    total = sum(access.points for access in accesses)
    strided = sum(
        access.points
        for access in accesses
        if any(_is_strided(access, load.buffer, load.indices) for load in access.loads)
    )
    return 1 + (STRIDED_PENALTY - 1) * strided / max(total, 1)


def _is_strided(access: BlockAccess, buffer: tirx.Var, indices: Sequence[tirx.Expr]) -> bool:
    if not access.index or prod(shape_of(buffer)) < _SMALL_ELEMENTS:
        return False
    axis = access.index[-1]
    if not isinstance(axis, tirx.Var):
        return True
    if access.extents[axis] == 1:
        return False
    stride, moved = 1, 0
    for extent, index in zip(reversed(shape_of(buffer)), reversed(indices), strict=True):
        step = _step(index, axis)
        if step is None:
            return True
        moved += step * stride
        stride *= extent
    return moved not in (0, 1)


def _step(index: tirx.Expr, axis: tirx.Var) -> int | None:
    """Return how far the index moves along the axis, or None where that varies."""
    terms, _ = linear_terms(index)
    step = 0
    for expr, coefficient in terms:
        if isinstance(expr, tirx.Var) and expr.same_as(axis):
            step += coefficient
        elif axis in variables(expr):
            return None
    return step
