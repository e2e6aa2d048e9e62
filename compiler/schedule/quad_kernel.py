"""Register tiles of four bytes a cell for x86 without VNNI, where weights are narrow enough.

    vpmaddubsw    u8 x s8, pairs summed in 16 bits           2 instructions for 32 products,
    vpaddw        for as many steps as 16 bits hold          the exact vpmaddwd on data widened to
    vpmaddwd      with ones, vpaddd: once in a block         16 bits takes 4

The sum of a pair is at most 2 * 255 * |w|, so that weights of 4 bits (|w| <= 8) leave room for 8
steps, those of 2 bits for 32; with data of 4 bits it is 136. Nothing saturates.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from tvm import tirx

from tilewright.compiler.schedule.blocked_kernel import BlockedEmitter
from tilewright.compiler.schedule.dot_kernel import MADDWD, cell_of, intrinsic
from tilewright.compiler.schedule.expressions import Expr
from tilewright.compiler.schedule.low_bit import LowBit
from tilewright.compiler.schedule.micro_kernel import Point, RegisterTile
from tilewright.compiler.targets import Target

QUAD = 4
_PAIR = 2
_MOST, _LEAST = 32767, -32768
_MADDUBS = {
    512: "llvm.x86.avx512.pmaddubs.w.512",
    256: "llvm.x86.avx2.pmadd.ub.sw",
}


def quad_steps(low_bit: LowBit) -> int:
    """Return how many sums of two products 16 bits hold, 0 where one may be too great."""
    high = _PAIR * low_bit.mask * max(low_bit.high, 1)
    low = _PAIR * low_bit.mask * min(low_bit.low, -1)
    return min(_MOST // high, _LEAST // low)


def has_quads(target: Target) -> bool:
    """Tell whether a target has the instructions."""
    return target.architecture == "x86_64" and target.vector_bits in _MADDUBS


class QuadEmitter(BlockedEmitter):
    """Sums of four products of bytes for each cell, in two halves of 16 bits."""

    def __init__(
        self,
        tile: RegisterTile,
        accumulators: Any,
        index_dtype: str,
        extents: Sequence[int],
        most: int,
    ) -> None:
        lanes = 2 * tile.lanes
        super().__init__(tile, accumulators, index_dtype, extents, most, "int16", lanes)
        self.bits = 32 * tile.lanes

    def updates(self, at: Point) -> list[Any]:
        """Return the products of one step."""
        tile = self.tile
        data, weights = self.factors(at)
        statements = []
        for row in range(tile.rows):
            if tile.skip(row, at.steps):
                continue
            cell = cell_of(data[0], row, 0, *data[1:], group=QUAD, lanes=1)
            for column in range(tile.columns):
                weight = cell_of(weights[0], 0, column, *weights[1:], group=QUAD, lanes=tile.lanes)
                pairs = self.products(cell, weight)
                statements.append(self.add(row * tile.columns + column, pairs))
        return statements

    def products(self, cell: Expr, weight: Expr) -> Expr:
        """Return the sums of pairs of products: four bytes of data with those of every output."""
        spread = tirx.Broadcast(tirx.reinterpret("int32", cell), self.tile.lanes)
        bytes_ = tirx.reinterpret(f"uint8x{QUAD * self.tile.lanes}", spread)
        return intrinsic(_MADDUBS[self.bits], f"int16x{self.narrow_lanes}", bytes_, weight)

    def widened(self) -> list[Any]:
        """Return the statements that add the narrow sums to the wide ones."""
        tile = self.tile
        ones = tirx.Broadcast(tirx.const(1, "int16"), self.narrow_lanes)
        statements = []
        for row in range(tile.rows):
            for column in range(tile.columns):
                at = self.narrow_cell(row * tile.columns + column)
                halves = tirx.BufferLoad(self.narrow, [at])
                whole = intrinsic(MADDWD[self.bits], f"int32x{tile.lanes}", halves, ones)
                cell = self.cell(0, row, column)
                total = tirx.BufferLoad(self.accumulators, [cell]) + whole
                statements.append(tirx.BufferStore(self.accumulators, total, [cell]))
        return statements
