"""What a product says of its factors: weights of a few integers, data of a few bits.

The graph pass writes it into the expression, as bounds that change nothing (`x & 15`, `max(min(w,
7), -8)`, `select(w > 0, 1, -1)`), so that it goes through fusion and layouts, is part of a task's
key, and a kernel that makes no use of it computes the same.

    weights    bits   two's complement, or one for a sign
    data       bits   those that a mask leaves, whichever they are
"""

from __future__ import annotations

from dataclasses import dataclass

from tvm import tirx
from tvm.ir import TensorLoad

from tilewright.compiler.schedule.expressions import Expr, dtype_of, loads_in

_BYTE = 8


@dataclass(frozen=True, slots=True)
class LowBit:
    """The ranges of the factors of a product.

    Attributes:
        low, high: least and greatest weight.
        is_sign: weights are one of the two.
        mask: bits that can be set in the data.
    """

    low: int = -128
    high: int = 127
    is_sign: bool = False
    mask: int = 0xFF

    @property
    def weight_bits(self) -> int:
        """Bits of a weight."""
        if self.is_sign:
            return 1
        return 1 + max(self.high.bit_length(), (-self.low - 1).bit_length(), 0)

    @property
    def data_bits(self) -> int:
        """Bits of the data."""
        return self.mask.bit_count()

    @property
    def is_narrow(self) -> bool:
        """Whether a factor has fewer than 8 bits."""
        return self.weight_bits < _BYTE or self.data_bits < _BYTE


def read_low_bit(term: Expr) -> LowBit:
    """Return what a product of an unsigned byte and a signed one says of them.

    Args:
        term: a product of two loads under casts and bounds.
    """
    while isinstance(term, tirx.Cast):
        term = term.value
    if not isinstance(term, tirx.Mul):
        return LowBit()
    found: dict[str, int | bool] = {}
    for side in (term.a, term.b):
        loads = loads_in(side)
        dtype = dtype_of(loads[0]) if loads else ""
        found |= _bounds(side) if dtype == "int8" else _mask(side) if dtype == "uint8" else {}
    return LowBit(**found)  # type: ignore[arg-type]


def _mask(expr: Expr) -> dict[str, int | bool]:
    mask = 0xFF
    while not isinstance(expr, TensorLoad):
        if isinstance(expr, tirx.BitwiseAnd) and isinstance(expr.b, tirx.IntImm):
            mask &= int(expr.b)
            expr = expr.a
        elif isinstance(expr, tirx.Cast):
            expr = expr.value
        else:
            return {}
    return {"mask": mask}


def _bounds(expr: Expr) -> dict[str, int | bool]:
    low, high = -128, 127
    while not isinstance(expr, TensorLoad):
        if isinstance(expr, tirx.Cast):
            expr = expr.value
        elif isinstance(expr, tirx.Max) and isinstance(expr.b, tirx.IntImm):
            low, expr = max(low, int(expr.b)), expr.a
        elif isinstance(expr, tirx.Min) and isinstance(expr.b, tirx.IntImm):
            high, expr = min(high, int(expr.b)), expr.a
        elif isinstance(expr, tirx.Select):
            values = expr.true_value, expr.false_value
            if not all(isinstance(value, tirx.IntImm) for value in values):
                return {}
            return {"low": int(values[1]), "high": int(values[0]), "is_sign": True}
        else:
            return {}
    return {"low": low, "high": high}
