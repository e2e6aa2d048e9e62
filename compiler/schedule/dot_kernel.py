"""Register tiles of dot products of bytes, and the instructions of ARM for them.

usdot                       4 products of u8 and s8 (i8mm)
sdot                        4 products of s8 and s8 (dotprod): data is moved down by 128
mul, saddlp or vpadal       2 products widened to 16 bits (any NEON)
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

from tvm import tirx
from tvm.target.codegen import llvm_lookup_intrinsic_id

from tilewright.compiler.schedule.expressions import Expr, dtype_of
from tilewright.compiler.schedule.lane_kernel import LaneEmitter
from tilewright.compiler.schedule.micro_kernel import (
    Operand,
    RegisterTile,
    constant_like,
    local_buffer,
    ramp,
)
from tilewright.compiler.targets import Target

DATA_DTYPE, WEIGHT_DTYPE, SUM_DTYPE = "uint8", "int8", "int32"

Accumulate: TypeAlias = Callable[[Expr, Expr, Expr], Expr]
"""(accumulator, data of one cell, weights) -> accumulator."""

_LANES = 4
_BYTES = 16
_OFFSET = 128
_FLIPPED = -0x7F7F7F80  # the highest bit of each of 4 bytes


def has_arm_dot(target: Target) -> bool:
    """Tell whether there are dot products of bytes of one sign."""
    return "asimddp" in target.features


def has_mixed_dot(target: Target) -> bool:
    """Tell whether there are dot products of unsigned and signed bytes."""
    return "i8mm" in target.features and has_arm_dot(target)


def is_signed(target: Target) -> bool:
    """Tell whether data must be signed to be multiplied."""
    return has_arm_dot(target) and not has_mixed_dot(target)


def intrinsic(name: str, dtype: str, *args: Expr) -> Expr:
    """Return the call of an LLVM intrinsic."""
    return tirx.call_llvm_pure_intrin(
        dtype, tirx.const(llvm_lookup_intrinsic_id(name), "uint32"), *args
    )


def _spread(data: Expr, dtype: str) -> Expr:
    """Return 4 bytes of data, or a lane that holds them, repeated over a vector."""
    if dtype_of(data) != SUM_DTYPE:
        data = tirx.reinterpret(SUM_DTYPE, data)
    return tirx.reinterpret(dtype, tirx.Broadcast(data, _LANES))


def mixed_dot(old: Expr, data: Expr, weight: Expr) -> Expr:
    """Sums of 4 products: u8x4 for all lanes, s8x4 per lane."""
    name = "llvm.aarch64.neon.usdot"
    return intrinsic(name, "int32x4", old, _spread(data, f"uint8x{_BYTES}"), weight)


def signed_dot(old: Expr, data: Expr, weight: Expr) -> Expr:
    """Sums of 4 products: s8x4 for all lanes, s8x4 per lane; data is less by 128 than meant."""
    data = tirx.reinterpret(SUM_DTYPE, data) ^ tirx.const(_FLIPPED, SUM_DTYPE)
    # LLVM finds the form with a lane if data comes second.
    return _sdot(old, weight, _spread(data, f"int8x{_BYTES}"))


def _sdot(old: Expr, left: Expr, right: Expr) -> Expr:
    return intrinsic("llvm.aarch64.neon.sdot", "int32x4", old, left, right)


def widened_dot(old: Expr, data: Expr, weight: Expr, architecture: str) -> Expr:
    """Sums of 2 products: u8x2 for all lanes, s8x2 per lane. A product fits 16 bits."""
    pairs = tirx.Broadcast(tirx.reinterpret("int16", data), _LANES)
    words = tirx.Cast("int16x8", tirx.reinterpret("uint8x8", pairs))
    product = words * tirx.Cast("int16x8", weight)
    if architecture == "aarch64":
        return old + intrinsic("llvm.aarch64.neon.saddlp", "int32x4", product)
    return intrinsic("llvm.arm.neon.vpadals", "int32x4", old, product)


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
        # Signed data is lowered by 128 in a scalar register: the vector units have no time left.
        return self.accumulate is mixed_dot

    def load_group(self, operand: Operand, address: Expr) -> Expr:
        """Return the data of 4 steps as one vector of cells."""
        at = ramp(address * self.group, 1, _BYTES)
        return tirx.reinterpret("int32x4", tirx.BufferLoad(operand.buffer, [at]))

    def combined(
        self, old: Expr, row: int, column: int, bases: Sequence[Expr], fixed: Sequence[int]
    ) -> Expr:
        """Return the accumulator after one step."""
        return self.accumulate(old, *self.loaded(row, column, bases, fixed))

    def loaded(
        self, row: int, column: int, bases: Sequence[Expr], fixed: Sequence[int]
    ) -> tuple[Expr, Expr]:
        """Return the data and the weights of one step."""
        by_dtype: dict[str, Expr] = {}
        for operand, base, offset in zip(self.tile.operands, bases, fixed, strict=True):
            lane = self.lanes_of_rows.get((operand, row))
            if lane is not None:
                by_dtype[DATA_DTYPE] = lane
                continue
            cell = offset + operand.rows[row] + operand.columns[column]
            address = (base + constant_like(cell, self.index_dtype)) * self.group
            count = self.group if operand.vector == 0 else self.group * self.tile.lanes
            load = tirx.BufferLoad(operand.buffer, [ramp(address, 1, count)])
            by_dtype[str(operand.buffer.dtype)] = load
        return by_dtype[DATA_DTYPE], by_dtype[WEIGHT_DTYPE]


class SignedDotEmitter(DotEmitter):
    """Dot products of signed bytes: what data lacks is summed once for all rows.

    sum u w = sum (u - 128) w + 128 sum w. A row that skips a step takes u = 0 there.
    """

    def initial(self) -> list[Any]:
        """Return the stores that set all accumulators and the sums of weights."""
        size = self.tile.columns * _LANES
        self.weight_sums = local_buffer("weight_sums", size, SUM_DTYPE)
        zero = tirx.Broadcast(tirx.const(0, SUM_DTYPE), _LANES)
        stores = [
            tirx.BufferStore(self.weight_sums, zero, [self._sums(column)])
            for column in range(self.tile.columns)
        ]
        return [*super().initial(), tirx.AllocBuffer(self.weight_sums), *stores]

    def _sums(self, column: int) -> Expr:
        return ramp(constant_like(column * _LANES, self.index_dtype), 1, _LANES)

    def updates(
        self, bases: list[Expr], fixed: list[int], steps: dict[int, int], chain: int
    ) -> list[Any]:
        """Return one dot product for each row and column vector, and one for each column vector."""
        statements = super().updates(bases, fixed, steps, chain)
        rows = range(self.tile.rows)
        skipped = [row for row in rows if self.tile.skip(row, steps)]
        if len(skipped) == len(rows):
            return statements
        for column in range(self.tile.columns):
            _, weight = self.loaded(0, column, bases, fixed)
            for buffer, cell, value in (
                (self.weight_sums, self._sums(column), 1),
                *((self.accumulators, self.cell(chain, row, column), -_OFFSET) for row in skipped),
            ):
                same = tirx.Broadcast(tirx.const(value, "int8"), _BYTES)
                new = _sdot(tirx.BufferLoad(buffer, [cell]), same, weight)
                statements.append(tirx.BufferStore(buffer, new, [cell]))
        return statements

    def joined(self) -> list[Any]:
        """Return the statements that join all chains into the first and add what data lacks."""
        statements = super().joined()
        for column in range(self.tile.columns):
            sums = tirx.BufferLoad(self.weight_sums, [self._sums(column)])
            lacking = sums * tirx.Broadcast(tirx.const(_OFFSET, SUM_DTYPE), _LANES)
            for row in range(self.tile.rows):
                cell = self.cell(0, row, column)
                new = tirx.BufferLoad(self.accumulators, [cell]) + lacking
                statements.append(tirx.BufferStore(self.accumulators, new, [cell]))
        return statements
