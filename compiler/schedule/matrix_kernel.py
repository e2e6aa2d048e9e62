"""Register tiles of 2 x 8 by 8 x 2 products of bytes (i8mm: usmmla).

    accumulator    [row 0, row 1] x [output 0, output 1], a second one for outputs 2 and 3
    data           8 bytes of row 0, 8 bytes of row 1
    weights        8 bytes of output 0, 8 bytes of output 1

Twice the products of usdot in an instruction. Two rows and four outputs take two accumulators, as
many as they would as vectors of outputs; at the end pairs change places, and rows are vectors
again.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from tvm import tirx

from tilewright.compiler.schedule.dot_kernel import (
    DATA_DTYPE,
    DOT_LANES,
    SUM_DTYPE,
    DotEmitter,
    intrinsic,
)
from tilewright.compiler.schedule.expressions import Expr
from tilewright.compiler.schedule.micro_kernel import (
    Operand,
    Point,
    RegisterTile,
    constant_like,
    local_buffer,
    ramp,
)

MATRIX_GROUP = 8
_HALF_BYTES = 2 * MATRIX_GROUP
# Lanes of two accumulators, one after the other: outputs 0 to 3 of row 0, and of row 1.
_ROWS_OF_PAIR = ((0, 1, 4, 5), (2, 3, 6, 7))


def matrix_dot(old: Expr, data: Any, weight: Expr) -> Expr:
    """Sums of 8 products: u8x8 of two rows, s8x8 of two outputs."""
    return intrinsic("llvm.aarch64.neon.usmmla", f"{SUM_DTYPE}x{DOT_LANES}", old, data, weight)


class MatrixDotEmitter(DotEmitter):
    """Emits two matrix products for every two rows and four outputs.

    A last row without a second one takes an accumulator more, beside those of the tile.
    """

    def __init__(self, tile: RegisterTile, accumulators: Any, index_dtype: str) -> None:
        super().__init__(tile, accumulators, index_dtype, MATRIX_GROUP, matrix_dot)
        size = tile.chains * tile.columns * tile.lanes
        self.beside = local_buffer("beside", size, SUM_DTYPE) if tile.rows % 2 else None

    def has_lanes(self, data: Operand) -> bool:
        """Tell whether a lane of a vector holds the data of one step."""
        return False

    def initial(self) -> list[Any]:
        """Return the stores that set all accumulators."""
        if self.beside is None:
            return super().initial()
        zero = tirx.Broadcast(tirx.const(0, SUM_DTYPE), DOT_LANES)
        last = self.tile.rows
        stores = [
            tirx.BufferStore(*self._replaced(self._place(chain, last, column), zero))
            for chain in range(self.tile.chains)
            for column in range(self.tile.columns)
        ]
        return [*super().initial(), tirx.AllocBuffer(self.beside), *stores]

    def updates(self, at: Point) -> list[Any]:
        """Return the products of one step of 8 bytes."""
        statements: list[Any] = []
        data, weights = self.factors(at)
        for row in range(0, self.tile.rows, 2):
            read = [r < self.tile.rows and not self.tile.skip(r, at.steps) for r in (row, row + 1)]
            if not any(read):
                continue
            # A row that is not there, or is behind the padding, has bytes of zero.
            zero = tirx.Broadcast(tirx.const(0, DATA_DTYPE), MATRIX_GROUP)
            halves = [
                self.cell_of(data[0], row + i, 0, *data[1:]) if there else zero
                for i, there in enumerate(read)
            ]
            pair = tirx.Var(f"rows{row}", f"{DATA_DTYPE}x{_HALF_BYTES}")
            statements.append(tirx.Bind(pair, _shuffled(halves, range(_HALF_BYTES))))
            for column in range(self.tile.columns):
                for half in range(2):
                    place = self._place(self.chain(at), row + half, column)
                    weight = self._weights(*weights, column, half)
                    new = matrix_dot(tirx.BufferLoad(place[0], [place[1]]), pair, weight)
                    statements.append(tirx.BufferStore(*self._replaced(place, new)))
        return statements

    def joined(self) -> list[Any]:
        """Return the statements that join all chains into the first, and make vectors of rows."""
        tile = self.tile
        statements = super().joined()
        for chain in range(1, tile.chains if self.beside is not None else 1):
            for column in range(tile.columns):
                first, other = (self._place(c, tile.rows, column) for c in (0, chain))
                added = tirx.BufferLoad(first[0], [first[1]]) + tirx.BufferLoad(
                    other[0], [other[1]]
                )
                statements.append(tirx.BufferStore(*self._replaced(first, added)))
        for row in range(0, tile.rows, 2):
            for column in range(tile.columns):
                statements += self._separated(row, column)
        return statements

    def _separated(self, row: int, column: int) -> list[Any]:
        """Return the statements that make vectors of the outputs of each of two rows."""
        places = [self._place(0, row + half, column) for half in range(2)]
        pair = [tirx.Var(f"half{half}", f"{SUM_DTYPE}x{DOT_LANES}") for half in range(2)]
        loads = [tirx.BufferLoad(buffer, [at]) for buffer, at in places]
        stores = [
            tirx.BufferStore(*self._replaced(place, _shuffled(pair, lanes)))
            for place, lanes in zip(places, _ROWS_OF_PAIR, strict=True)
        ]
        binds = [tirx.Bind(var, load) for var, load in zip(pair, loads, strict=True)]
        return [*binds, *stores[: self.tile.rows - row]]

    def _place(self, chain: int, row: int, column: int) -> tuple[Any, Expr]:
        """Return the buffer and the index of an accumulator."""
        if row < self.tile.rows:
            return self.accumulators, self.cell(chain, row, column)
        number = (chain * self.tile.columns + column) * DOT_LANES
        return self.beside, ramp(constant_like(number, self.index_dtype), 1, DOT_LANES)

    def _replaced(self, place: tuple[Any, Expr], value: Expr) -> tuple[Any, Expr, list[Expr]]:
        return place[0], value, [place[1]]

    def _weights(self, operand: Operand, base: Expr, offset: int, column: int, half: int) -> Expr:
        """Return the weights of two outputs."""
        cell = constant_like(offset + operand.columns[column], self.index_dtype)
        address = (base + cell) * self.group + constant_like(half * _HALF_BYTES, self.index_dtype)
        return tirx.BufferLoad(operand.buffer, [ramp(address, 1, _HALF_BYTES)])


def _shuffled(vectors: Sequence[Expr], lanes: Sequence[int]) -> Expr:
    return tirx.Shuffle(list(vectors), [tirx.const(lane, "int32") for lane in lanes])
