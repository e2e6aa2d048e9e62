"""Transpose a square tile of 4-byte elements in vector registers."""

from __future__ import annotations

from typing import Any

from tvm import tirx

from tilewright.compiler.schedule.expressions import Expr
from tilewright.compiler.schedule.micro_kernel import local_buffer


def transpose_rows(rows: list[Expr], dtype: str) -> tuple[list[tirx.Stmt], list[Any]]:
    """Return statements that transpose n vectors of n lanes, and the buffers of the result rows.

    Every step is one two-input shuffle of x86: 32-bit and 64-bit unpacks within groups of four
    lanes, then moves of whole groups. Each vector has a buffer of its own, as TVM takes local
    buffers of 1 KiB from the heap.

    Args:
        rows: vectors of n elements, n a power of two, at least 4.
        dtype: element type.
    """
    lanes = len(rows)
    statements: list[tirx.Stmt] = []
    stage = 0

    def shuffled(pairs: list[tuple[Expr, Expr, list[int]]]) -> list[Expr]:
        nonlocal stage
        buffers.clear()
        results = []
        for row, (a, b, order) in enumerate(pairs):
            buffer = local_buffer(f"transposed_{stage}_{row}", lanes, dtype)
            buffers.append(buffer)
            at = [tirx.Ramp(tirx.const(0, "int32"), tirx.const(1, "int32"), lanes)]
            indices = [tirx.const(index, "int32") for index in order]
            statements.append(tirx.AllocBuffer(buffer))
            statements.append(tirx.BufferStore(buffer, tirx.Shuffle([a, b], indices), at))
            results.append(tirx.BufferLoad(buffer, at))
        stage += 1
        return results

    buffers: list[Any] = []
    low32, high32 = (
        _unpack(lanes, [0, lanes, 1, lanes + 1]),
        _unpack(lanes, [2, lanes + 2, 3, lanes + 3]),
    )
    low64, high64 = (
        _unpack(lanes, [0, 1, lanes, lanes + 1]),
        _unpack(lanes, [2, 3, lanes + 2, lanes + 3]),
    )
    pairs = []
    for row in range(0, lanes, 2):
        pairs += [(rows[row], rows[row + 1], low32), (rows[row], rows[row + 1], high32)]
    t = shuffled(pairs)
    # Four rows become, in each group g of four lanes, columns 4g to 4g + 3 of these rows.
    quads = []
    for row in range(0, lanes, 4):
        for half in (0, 1):
            a, b = t[row + half], t[row + 2 + half]
            quads += [(a, b, low64), (a, b, high64)]
    columns = shuffled(quads)
    groups = lanes // 4
    if groups == 1:
        return statements, buffers
    even = _groups([0, 2], groups) if groups == 4 else _groups([0], groups)
    odd = _groups([1, 3], groups) if groups == 4 else _groups([1], groups)
    if groups == 4:
        pairs = []
        for column in range(4):
            for row in (0, 2):
                a, b = columns[4 * row + column], columns[4 * (row + 1) + column]
                pairs += [(a, b, even), (a, b, odd)]
        t = shuffled(pairs)  # for each column: even and odd groups of rows 0-7, then of rows 8-15
        final: list[Any] = [None] * lanes
        for column in range(4):
            e0, o0, e1, o1 = t[4 * column : 4 * column + 4]
            for group, (a, b, order) in enumerate(
                [(e0, e1, even), (o0, o1, even), (e0, e1, odd), (o0, o1, odd)]
            ):
                final[4 * group + column] = (a, b, order)
    else:
        final = [None] * lanes
        for column in range(4):
            a, b = columns[column], columns[4 + column]
            final[column], final[4 + column] = (a, b, even), (a, b, odd)
    shuffled(final)
    return statements, buffers


def _unpack(lanes: int, pattern: list[int]) -> list[int]:
    """Repeat a pattern of four lanes in every group of four."""
    return [group + lane for group in range(0, lanes, 4) for lane in pattern]


def _groups(chosen: list[int], groups: int) -> list[int]:
    """Take whole groups of four lanes from the first vector, then the same from the second."""
    picked = [*chosen, *(groups + group for group in chosen)]
    return [4 * group + lane for group in picked for lane in range(4)]
