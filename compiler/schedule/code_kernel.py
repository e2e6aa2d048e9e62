"""Register tiles of four bytes a cell whose weights stay codes of 2 or 4 bits in memory.

    codes      v >> 2 t & 3, or v >> 4 t & 15         vpsrlw, vpand
    weights    of 16, by code                         vpshufb
    products   as in `quad_kernel`

Half or a quarter of the bytes is read for 2 to 3 instructions more for every 32 weights: it pays
where few rows share the weights and these come from memory (a product of one row).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from tvm import tirx

from tilewright.compiler.schedule.bit_packing import CODES, code_bits, code_values
from tilewright.compiler.schedule.dot_kernel import intrinsic
from tilewright.compiler.schedule.expressions import Expr
from tilewright.compiler.schedule.low_bit import LowBit
from tilewright.compiler.schedule.micro_kernel import Point, RegisterTile, constant_like, ramp
from tilewright.compiler.schedule.quad_kernel import QUAD, QuadEmitter, quad_steps
from tilewright.compiler.schedule.table_kernel import SHUFFLE, constant_bytes

_ENTRIES = 16


def code_steps(low_bit: LowBit) -> int:
    """Return for how many cells of `CODES` channels 16 bits hold the sums."""
    if code_bits(low_bit) == 0:
        return 0
    return quad_steps(low_bit) * QUAD // CODES


class CodesEmitter(QuadEmitter):
    """Sums of products of four bytes for each cell, the weights looked up by their codes."""

    def __init__(
        self,
        tile: RegisterTile,
        accumulators: Any,
        index_dtype: str,
        extents: Sequence[int],
        low_bit: LowBit,
    ) -> None:
        super().__init__(tile, accumulators, index_dtype, extents, code_steps(low_bit))
        self.code_bits = code_bits(low_bit)
        values = [value % 256 for value in code_values(low_bit)]
        lanes = QUAD * tile.lanes
        self.table = constant_bytes((values * _ENTRIES)[:_ENTRIES] * (lanes // _ENTRIES))

    def updates(self, at: Point) -> list[Any]:
        """Return the products of one cell."""
        tile = self.tile
        (data, d_base, d_offset), (weight, w_base, w_offset) = self.factors(at)
        statements: list[Any] = []
        for column in range(tile.columns):
            lies = w_base + constant_like(w_offset + weight.columns[column], self.index_dtype)
            binds, quads = self._decoded(weight.buffer, lies, column)
            statements += binds
            for row in range(tile.rows):
                for number, quad in enumerate(quads):
                    place = constant_like(
                        d_offset + data.rows[row] + number * QUAD, self.index_dtype
                    )
                    four = tirx.BufferLoad(data.buffer, [ramp(d_base + place, 1, QUAD)])
                    pairs = self.products(four, quad)
                    statements.append(self.add(row * tile.columns + column, pairs))
        return statements

    def _decoded(self, buffer: Any, address: Expr, column: int) -> tuple[list[Any], list[Any]]:
        """Return the statements that look the weights of a cell up, and those, four by four."""
        lanes = QUAD * self.tile.lanes
        dtype, words = f"uint8x{lanes}", f"uint16x{lanes // 2}"
        per = 8 // self.code_bits
        mask = tirx.Broadcast(tirx.const((1 << self.code_bits) - 1, "uint8"), lanes)
        binds, quads = [], []
        for vector in range(CODES // QUAD // per):
            at = ramp(address + constant_like(vector * lanes, address), 1, lanes)
            codes = tirx.Var(f"codes{column}_{vector}", dtype)
            binds.append(tirx.Bind(codes, tirx.BufferLoad(buffer, [at])))
            for part in range(per):
                shift = tirx.Broadcast(tirx.const(part * self.code_bits, "uint16"), lanes // 2)
                moved = tirx.reinterpret(words, codes) >> shift if part else codes
                index = tirx.reinterpret(dtype, moved) & mask
                value = intrinsic(SHUFFLE[8 * lanes], dtype, self.table, index)
                quad = tirx.Var(f"quad{column}_{vector}_{part}", f"int8x{lanes}")
                binds.append(tirx.Bind(quad, tirx.reinterpret(f"int8x{lanes}", value)))
                quads.append(quad)
        return binds, quads
