"""The tensor expressions of Winograd's algorithm: both transforms, and products between them.

Their blocks are known by name to the schedules (`compiler/schedule/winograd.py`).
"""

from __future__ import annotations

from collections.abc import Sequence

from tvm import te, tirx, topi

from tilewright.compiler.schedule.expressions import dtype_of
from tilewright.compiler.winograd import (
    INPUT_BLOCK,
    OUTPUT_BLOCK,
    PRODUCT,
    SIGNAL_RANK,
    Matrix,
    Winograd,
)


def _entry(matrix: Matrix, row: tirx.Expr, column: tirx.Expr, dtype: str) -> tirx.Expr:
    """Return matrix[row, column] as an expression, for loops that are not written out."""

    def number(entry: float) -> tirx.Expr:
        return tirx.const(entry if dtype.startswith("float") else int(entry), dtype)

    value: tirx.Expr = number(0)
    for i, values in enumerate(matrix):
        for j, entry in enumerate(values):
            if entry:
                here = tirx.all(row == i, column == j)
                value = tirx.Select(here, number(entry), value)
    return value


def input_transform(
    x: te.Tensor,
    variant: Winograd,
    before: Sequence[int],
    after: Sequence[int],
    tiles: tuple[int, int],
    steps: tuple[int, int] = (1, 1),
    dtype: str = "float32",
    border: int = 0,
    rows: Winograd | None = None,
) -> te.Tensor:
    """V[a, b, n, .., th, tw, c] = sum of B^T[a, i] B^T[b, j] x[n, c, .., m th + i, m tw + j].

    A signal x[n, c, m tw + j] without rows has one of them: a and th are 0.

    The sum is over i and j; between them and n and c may be a depth, which keeps its padding. With
    dilation there are indices p and q in front of th and tw, and rows are (m th + i) steps + p.

    Args:
        x: [N, C, (D,) H, W], or [N, C, W].
        variant: which tiles.
        before, after: padding of each axis behind the channels.
        tiles: number of tiles along height and width.
        steps: the dilation of height and width.
        dtype: of V, which x is converted to.
        border: what the padding is filled with.
        rows: which tiles along the height, where others than along the width.
    """
    batch, channels, *extents = (int(extent) for extent in x.shape)
    rows = rows or variant
    sides = min(len(extents), 2)
    needed = [
        (each.outputs * count + each.taps - 1) * step - extent - pad
        for each, count, step, extent, pad in zip(
            (rows, variant)[-sides:],
            tiles[-sides:],
            steps[-sides:],
            extents[-sides:],
            before[-sides:],
            strict=True,
        )
    ]
    behind = [*after[:-sides], *needed]
    zero = tirx.const(border, str(x.dtype))
    padded = topi.nn.pad(x, [0, 0, *before], [0, 0, *behind], zero, name="pad_temp")
    images = [] if steps == (1, 1) else steps
    depth = [int(extent) for extent in padded.shape[2:-2]]
    i, j = te.reduce_axis((0, rows.tile), "i"), te.reduce_axis((0, variant.tile), "j")

    def value(a: tirx.Expr, b: tirx.Expr, n: tirx.Expr, *rest: tirx.Expr) -> tirx.Expr:
        *outer, th, tw, c = rest
        row, column = th * rows.outputs + i, tw * variant.outputs + j
        if images:
            *outer, p, q = outer
            row, column = row * steps[0] + p, column * steps[1] + q
        matrices = _entry(rows.data, a, i, dtype) * _entry(variant.data, b, j, dtype)
        element = padded[(n, c, *outer, *(row, column)[-sides:])]
        converted = element if str(x.dtype) == dtype else element.astype(dtype)
        return te.sum(converted * matrices, axis=[i, j])

    shape = (rows.tile, variant.tile, batch, *depth, *images, *tiles, channels)
    return te.compute(shape, value, name=INPUT_BLOCK)


def depth_product(data: te.Tensor, weight: te.Tensor, stride: int, depth: int) -> te.Tensor:
    """M[a, b, n, d, r, o] = sum over k, c of V[a, b, n, d stride + k, r, c] U[a, b, k, c, o].

    Args:
        data: V [t, t, N, padded depth, tiles of a slice, C].
        weight: U [t, t, K, C, O].
        stride: of the depth.
        depth: of the result.
    """
    t, _, batch, _, rows, channels = (int(extent) for extent in data.shape)
    *_, taps, _, outputs = (int(extent) for extent in weight.shape)
    k, c = te.reduce_axis((0, taps), "k"), te.reduce_axis((0, channels), "c")
    return te.compute(
        (t, t, batch, depth, rows, outputs),
        lambda a, b, n, d, r, o: te.sum(
            data[a, b, n, d * stride + k, r, c] * weight[a, b, k, c, o], axis=[k, c]
        ),
        name=PRODUCT,
    )


def whole_product(data: te.Tensor, weight: te.Tensor) -> te.Tensor:
    """M[a, b, r, o] = sum over c of V[a, b, r, c] U[a, b, c, o], of int16 in int32."""
    t, _, rows, channels = (int(extent) for extent in data.shape)
    c = te.reduce_axis((0, channels), "c")

    def element(a: tirx.Expr, b: tirx.Expr, r: tirx.Expr, o: tirx.Expr) -> tirx.Expr:
        term = data[a, b, r, c].astype("int32") * weight[a, b, c, o].astype("int32")
        return te.sum(term, axis=[c])

    return te.compute((t, t, rows, int(weight.shape[-1])), element, name=PRODUCT)


def output_transform(
    x: te.Tensor,
    variant: Winograd,
    out: tuple[int, ...],
    steps: tuple[int, int] = (1, 1),
    rows: Winograd | None = None,
) -> te.Tensor:
    """y[n, o, .., h, w] = sum of A^T[h % m, a] A^T[w % m, b] M[a, b, n, .., h / m, w / m, o].

    The sum is over a and b. With dilation there are indices h % steps and w % steps before the
    last three, and the others have h / steps and w / steps for h and w. A result [N, O, W] has one
    row. `rows` are the tiles along the height, where others than along the width.
    """
    first, dtype = rows or variant, str(x.dtype)
    a, b = te.reduce_axis((0, first.tile), "a"), te.reduce_axis((0, variant.tile), "b")
    rank = len(out)

    def value(n: tirx.Expr, o: tirx.Expr, *rest: tirx.Expr) -> tirx.Expr:
        *outer, h, w = rest if rank > SIGNAL_RANK else (tirx.const(0, dtype_of(o)), *rest)
        if steps != (1, 1):
            outer += [h % steps[0], w % steps[1]]
            h, w = h // steps[0], w // steps[1]
        (down, row), (right, column) = (
            (at % each.outputs, at // each.outputs) for at, each in ((h, first), (w, variant))
        )
        matrices = _entry(first.result, down, a, dtype)
        matrices = matrices * _entry(variant.result, right, b, dtype)
        return te.sum(x[(a, b, n, *outer, row, column, o)] * matrices, axis=[a, b])

    return te.compute(out, value, name=OUTPUT_BLOCK)
