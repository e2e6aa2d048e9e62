"""Register tiles of products by bits: 32 of them in a word, and, count, add.

    sum x w = sum over i, j of 2^(i + j) popcount(x_j & w_i)

with x_j and w_i the bits of data and weights; the highest of two's complement counts as negative.
Where a weight is a sign, w = -s or s, and b the bit that says which, one plane is enough and no sum
of the data is needed:

    sum x w = s sum over j of 2^j (popcount(b) - popcount(x_j ^ b))

Counts are summed in bytes, at most 31 of them, by NEON's cnt, by vpshufb on half bytes on x86.
(BiBench, arXiv 2301.11233; ABQ-LLM, arXiv 2408.08554, section 3.4.)
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from tvm import tirx

from tilewright.compiler.schedule.blocked_kernel import BlockedEmitter
from tilewright.compiler.schedule.data_planes import data_planes
from tilewright.compiler.schedule.dot_kernel import SUM_DTYPE, intrinsic
from tilewright.compiler.schedule.expressions import Expr
from tilewright.compiler.schedule.low_bit import LowBit
from tilewright.compiler.schedule.micro_kernel import (
    Point,
    RegisterTile,
    constant_like,
    ramp,
    sequence,
)

_BYTES = 4
_MOST_STEPS = 255 // 8


class PlanesEmitter(BlockedEmitter):
    """Emits and, count, add where the float kernel has a multiply-add; one nest for all bits."""

    def __init__(
        self,
        tile: RegisterTile,
        accumulators: Any,
        index_dtype: str,
        extents: Sequence[int],
        low_bit: LowBit,
    ) -> None:
        lanes = _BYTES * tile.lanes
        super().__init__(tile, accumulators, index_dtype, extents, _MOST_STEPS, "uint8", lanes)
        self.low_bit = low_bit
        self.planes = data_planes(low_bit.mask)
        self.factor: Expr | None = None

    def walk(self, depth: int, at: Point) -> list[Any]:
        """Return the statements of loop `depth` and all inside it, for each pair of bits."""
        if self.factor is not None:
            return super().walk(depth, at)
        counts = {"weight_bit": self.low_bit.weight_bits, "data_bit": len(self.planes)}
        zero = constant_like(0, self.index_dtype)
        bits: dict[str, Expr] = {
            name: tirx.Var(name, self.index_dtype) if count > 1 else zero
            for name, count in counts.items()
        }
        i, j = bits.values()
        self.factor = self._factor(i, j)
        moved: list[Expr] = []
        binds = []
        for operand, base in zip(self.tile.operands, at.bases, strict=True):
            plane = tirx.Var(f"plane{len(moved)}", self.index_dtype)
            binds.append(tirx.Bind(plane, base + (i * self.tile.lanes if operand.vector else j)))
            moved.append(plane)
        body = sequence([*binds, *super().walk(depth, replace(at, bases=tuple(moved)))])
        self.factor = None
        for name, var in reversed(bits.items()):
            if counts[name] > 1:
                extent = constant_like(counts[name], self.index_dtype)
                body = tirx.For(var, zero, extent, tirx.ForKind.SERIAL, body)
        return [body]

    def _factor(self, i: Expr, j: Expr) -> Expr:
        """Return what the counts of a pair of bits are multiplied by, in all lanes."""
        first = tirx.const(self.planes[0], SUM_DTYPE)
        if self.low_bit.is_sign:
            value = tirx.const(-self.low_bit.high, SUM_DTYPE) << (j.astype(SUM_DTYPE) + first)
        else:
            highest = constant_like(self.low_bit.weight_bits - 1, i)
            one = tirx.Select(i < highest, tirx.const(1, SUM_DTYPE), tirx.const(-1, SUM_DTYPE))
            value = one << ((i + j).astype(SUM_DTYPE) + first)
        return tirx.Broadcast(value, self.tile.lanes)

    def updates(self, at: Point) -> list[Any]:
        """Return the counts of one word for each row and column vector."""
        tile = self.tile
        (data, d_base, d_offset), (weight, w_base, w_offset) = self.factors(at)
        statements = []
        for row in range(tile.rows):
            place = d_base + constant_like(d_offset + data.rows[row], self.index_dtype)
            word = tirx.Broadcast(tirx.BufferLoad(data.buffer, [place]), tile.lanes)
            for column in range(tile.columns):
                place = w_base + constant_like(w_offset + weight.columns[column], self.index_dtype)
                words = tirx.BufferLoad(weight.buffer, [ramp(place, 1, tile.lanes)])
                both = word ^ words if self.low_bit.is_sign else word & words
                bytes_ = tirx.reinterpret(f"uint8x{self.narrow_lanes}", both)
                counts = intrinsic("llvm.ctpop", f"uint8x{self.narrow_lanes}", bytes_)
                statements.append(self.add(row * tile.columns + column, counts))
        return statements

    def widened(self) -> list[Any]:
        """Return the statements that add the counts of four bytes each to the wide sums."""
        tile = self.tile
        assert self.factor is not None
        statements = []
        for row in range(tile.rows):
            for column in range(tile.columns):
                at = self.narrow_cell(row * tile.columns + column)
                four = tirx.reinterpret(f"uint32x{tile.lanes}", tirx.BufferLoad(self.narrow, [at]))
                whole = tirx.reinterpret(f"{SUM_DTYPE}x{tile.lanes}", _summed(four, tile.lanes))
                cell = self.cell(0, row, column)
                total = tirx.BufferLoad(self.accumulators, [cell]) + whole * self.factor
                statements.append(tirx.BufferStore(self.accumulators, total, [cell]))
        return statements


def _summed(four: Expr, lanes: int) -> Expr:
    """Return the sums of the four bytes of each lane."""

    def constant(number: int) -> Expr:
        return tirx.Broadcast(tirx.const(number, "uint32"), lanes)

    bytes_ = constant(0x00FF00FF)
    pairs = (four & bytes_) + ((four >> constant(8)) & bytes_)
    return (pairs & constant(0xFFFF)) + (pairs >> constant(16))
