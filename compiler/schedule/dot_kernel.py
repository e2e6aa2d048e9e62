"""Register tiles of dot products of bytes, and the instructions of ARM for them.

usdot                       4 products of u8 and s8 (i8mm)
sdot                        4 products of s8 and s8 (dotprod), see `weight_sums`
smull, sadalp               2 products of s8 and s8, first in 16 bits (aarch64), see there too
vmlal                       1 product of s16 and s16 (armv7), see `long_kernel`
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeAlias

from tvm import tirx
from tvm.target.codegen import llvm_lookup_intrinsic_id

from tilewright.compiler.schedule.expressions import Expr, dtype_of
from tilewright.compiler.schedule.lane_kernel import LANE_STEPS, LaneEmitter
from tilewright.compiler.schedule.micro_kernel import (
    Operand,
    Point,
    RegisterTile,
    constant_like,
    ramp,
)
from tilewright.compiler.targets import Target

DATA_DTYPE, WEIGHT_DTYPE, SUM_DTYPE = "uint8", "int8", "int32"
WIDE_DTYPE = "int16"
MADDWD = {
    **{512: "llvm.x86.avx512.pmaddw.d.512", 256: "llvm.x86.avx2.pmadd.wd"},
    128: "llvm.x86.sse2.pmadd.wd",
}
"""Sums of pairs of 16-bit products on x86, by bits of a vector."""

Accumulate: TypeAlias = Callable[[Expr, Any, Expr], Expr]
"""(accumulator, data of one cell, weights) -> accumulator."""

DOT_LANES = 4
_DOT_BYTES = 16
_PAIR = 2


def has_arm_dot(target: Target) -> bool:
    """Tell whether there are dot products of bytes of one sign."""
    return "asimddp" in target.features


def has_mixed_dot(target: Target) -> bool:
    """Tell whether there are dot products of unsigned and signed bytes."""
    return "i8mm" in target.features and has_arm_dot(target)


def is_signed(target: Target) -> bool:
    """Tell whether data must be signed to be multiplied."""
    return target.architecture == "aarch64" and not has_mixed_dot(target)


def intrinsic(name: str, dtype: str, *args: Expr) -> Expr:
    """Return the call of an LLVM intrinsic."""
    return tirx.call_llvm_pure_intrin(
        dtype, tirx.const(llvm_lookup_intrinsic_id(name), "uint32"), *args
    )


def _spread(data: Expr, dtype: str) -> Expr:
    """Return 4 bytes of data, or a lane that holds them, repeated over a vector."""
    if dtype_of(data) != SUM_DTYPE:
        data = tirx.reinterpret(SUM_DTYPE, data)
    return tirx.reinterpret(dtype, tirx.Broadcast(data, DOT_LANES))


def mixed_dot(old: Expr, data: Expr, weight: Expr) -> Expr:
    """Sums of 4 products: u8x4 for all lanes, s8x4 per lane."""
    name = "llvm.aarch64.neon.usdot"
    return intrinsic(name, "int32x4", old, _spread(data, f"uint8x{_DOT_BYTES}"), weight)


def signed_dot(old: Expr, data: Expr, weight: Expr) -> Expr:
    """Sums of 4 products: s8x4 for all lanes, s8x4 per lane."""
    # LLVM finds the form with a lane if data comes second.
    spread = _spread(data, f"int8x{_DOT_BYTES}")
    return intrinsic("llvm.aarch64.neon.sdot", "int32x4", old, weight, spread)


def paired_dot(old: Expr, data: Expr, weight: Expr) -> Expr:
    """Sums of 2 products: s8x2 in every lane, s8x2 per lane. A product fits 16 bits."""
    wide = tirx.Cast("int16x8", tirx.reinterpret("int8x8", data))
    product = wide * tirx.Cast("int16x8", weight)
    return old + intrinsic("llvm.aarch64.neon.saddlp", "int32x4", product)


def whole_cell(data: Expr, group: int) -> Expr:
    """Return the bytes of a cell as one number; of two bytes as a vector of it.

    In a vector they are flipped without passing through a core register.
    """
    if group == _PAIR:
        return tirx.Broadcast(tirx.reinterpret("int16", data), DOT_LANES)
    return tirx.reinterpret(SUM_DTYPE, data)


def repeated_byte(value: int, group: int) -> Expr:
    """Return what `whole_cell` returns for `group` times the same signed byte."""
    number = int.from_bytes(bytes([value % 256]) * group, "little", signed=True)
    if group == _PAIR:
        return tirx.Broadcast(tirx.const(number, "int16"), DOT_LANES)
    return tirx.const(number, SUM_DTYPE)


class DotEmitter(LaneEmitter):
    """Emits one dot instruction where the float kernel has a multiply-add."""

    def __init__(
        self,
        tile: RegisterTile,
        accumulators: Any,
        index_dtype: str,
        group: int,
        accumulate: Accumulate,
    ) -> None:
        super().__init__(tile, accumulators, index_dtype)
        self.group, self.accumulate = group, accumulate

    def has_lanes(self, data: Operand) -> bool:
        """Tell whether a lane of a vector holds the data of one step."""
        return self.accumulate in (mixed_dot, signed_dot, paired_dot)

    def load_group(self, operand: Operand, address: Expr) -> Expr:
        """Return the data of 4 steps as one vector of cells."""
        at = ramp(address * self.group, 1, LANE_STEPS * self.group)
        dtype = f"int{8 * self.group}x{LANE_STEPS}"
        return tirx.reinterpret(dtype, tirx.BufferLoad(operand.buffer, [at]))

    def lane(self, vector: Any, step: int) -> Any:
        """Return the data of one step out of those of a group."""
        if self.group != _PAIR:
            return super().lane(vector, step)
        return tirx.Shuffle([vector], [tirx.const(step, "int32")] * DOT_LANES)

    def combined(self, old: Expr, row: int, column: int, at: Point) -> Expr:
        """Return the accumulator after one step."""
        return self.accumulate(old, *self.loaded(row, column, at))

    def loaded(self, row: int, column: int, at: Point) -> tuple[Any, Expr]:
        """Return the data and the weights of one step."""
        (operand, base, offset), _ = self.factors(at)
        data = self.lanes_of_rows.get((operand, row))
        if data is None:
            data = self.cell_of(operand, row, 0, base, offset)
        return data, self.weights(column, at)

    def weights(self, column: int, at: Point) -> Expr:
        """Return the weights of one step."""
        _, (operand, base, offset) = self.factors(at)
        return self.cell_of(operand, 0, column, base, offset)

    def cell_of(self, operand: Operand, row: int, column: int, base: Expr, offset: int) -> Expr:
        """Return the bytes of one cell of data, or of a vector of cells of weights."""
        lanes = 1 if operand.vector == 0 else self.tile.lanes
        return cell_of(operand, row, column, base, offset, group=self.group, lanes=lanes)


def cell_of(
    operand: Operand, row: int, column: int, base: Expr, offset: int, *, group: int, lanes: int
) -> Expr:
    """Return the bytes of neighbouring cells of an operand.

    Args:
        operand: rows, columns and steps in cells.
        row, column: of the tile.
        base, offset: variable and constant part of the address of the step, in cells.
        group: bytes in a cell.
        lanes: cells.
    """
    cell = offset + operand.rows[row] + operand.columns[column]
    address = (base + constant_like(cell, base)) * group
    return tirx.BufferLoad(operand.buffer, [ramp(address, 1, group * lanes)])
