"""Dot products of bytes on armv7: widened to 16 bits, multiplied by a lane and added in one step.

vmull and vpadal would take as many instructions for as many products, but each product a register
until it is added, and LLVM makes all before it adds the first: with 16 registers half are spilled.
"""

from __future__ import annotations

from typing import Any

from tvm import tirx

from tilewright.compiler.schedule.dot_kernel import DOT_LANES, DotEmitter, intrinsic
from tilewright.compiler.schedule.expressions import Expr
from tilewright.compiler.schedule.lane_kernel import LANE_STEPS
from tilewright.compiler.schedule.micro_kernel import Operand, Point, ramp

_WORDS, _UNSIGNED = "int16x4", "uint16x4"


class LongDotEmitter(DotEmitter):
    """Two multiply-adds of 16 bits for each cell of two bytes."""

    def has_lanes(self, data: Operand) -> bool:
        """Tell whether a lane of a vector holds the data of one step."""
        return True

    def bind_row(self, row: int, operand: Operand, address: Expr) -> tuple[list[Any], Any]:
        """Return the statements that load 4 steps of a row, and both bytes of each, widened."""
        at = ramp(address * self.group, 1, LANE_STEPS * self.group)
        pairs = tirx.reinterpret(_UNSIGNED, tirx.BufferLoad(operand.buffer, [at]))
        loaded = tirx.Var(f"pairs{row}", _UNSIGNED)
        even, odd = (tirx.Var(f"{name}{row}", _WORDS) for name in ("even", "odd"))
        binds = [tirx.Bind(loaded, pairs)]
        binds += [tirx.Bind(v, e) for v, e in zip((even, odd), _unsigned(loaded), strict=True)]
        return binds, (even, odd)

    def lane(self, loaded: Any, step: int) -> Any:
        """Return both bytes of one step, each repeated over a vector."""
        places = [tirx.const(step, "int32")] * DOT_LANES
        return tuple(tirx.Shuffle([vector], places) for vector in loaded)

    def loaded(self, row: int, column: int, at: Point) -> tuple[Any, Expr]:
        """Return both bytes of the data of one step, and its weights."""
        data, weight = super().loaded(row, column, at)
        if not isinstance(data, tuple):
            data = _unsigned(tirx.Broadcast(tirx.reinterpret("uint16", data), DOT_LANES))
        return data, weight


def long_dot(old: Expr, data: Any, weight: Expr) -> Expr:
    """Sums of 2 products of 16 bits: what `loaded` returns."""
    for left, right in zip(_signed(tirx.reinterpret(_WORDS, weight)), data, strict=True):
        old = old + intrinsic("llvm.arm.neon.vmulls", "int32x4", left, right)
    return old


def _unsigned(pairs: Expr) -> tuple[Expr, Expr]:
    """Return the lower and the upper byte of each word, without sign."""
    low, byte = (tirx.Broadcast(tirx.const(n, "uint16"), DOT_LANES) for n in (255, 8))
    return tirx.reinterpret(_WORDS, pairs & low), tirx.reinterpret(_WORDS, pairs >> byte)


def _signed(pairs: Expr) -> tuple[Expr, Expr]:
    """Return the lower and the upper byte of each word, with its sign."""
    byte = tirx.Broadcast(tirx.const(8, "int16"), DOT_LANES)
    return (pairs << byte) >> byte, pairs >> byte
