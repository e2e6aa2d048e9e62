"""Arithmetic of integer-only kernels: dyadic scales and rounding shifts.

A real factor m becomes an int32 multiplier M and a shift s with m = M / 2^s (HAWQ-V3, arXiv
2011.10680, section 3.2). Products are exact in 64 bits; the shift rounds half to even.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from math import frexp
from typing import Any

from tvm import tirx

MULTIPLIER_BITS = 31
_LARGEST_SHIFT = 62
SATURATING = 2.0**14
# Sums of products stay below this, so that the rounding term still fits 64 bits.
_SUM_BITS = 62


@dataclass
class Precision:
    """How many binary places a kernel's values can have.

    Every leaf of the expression (an integer times a real factor) is noted; then `shift` is the
    greatest number of places for which every multiplier fits int32 and every sum int64.

    Attributes:
        factor: greatest absolute factor.
        bound: greatest absolute sum of all leaves, in units of the result.
    """

    factor: float = 0.0
    bound: float = 0.0
    _fixed: int | None = field(default=None, repr=False)

    def note(self, factor: float, bound: float) -> None:
        """Take one leaf into account: its factor, and the greatest integer that it multiplies."""
        # A single unit of such a leaf saturates the result: its precision does not matter.
        if abs(factor) < SATURATING:
            self.factor = max(self.factor, abs(factor))
        self.bound += min(abs(factor), SATURATING) * bound

    @property
    def shift(self) -> int:
        """Return the binary places, at least 1."""
        if self.factor == 0:
            return 1
        by_factor = MULTIPLIER_BITS - frexp(self.factor)[1]
        by_sum = _SUM_BITS - frexp(self.bound)[1]
        return max(1, min(by_factor, by_sum, _LARGEST_SHIFT))


def shifted(value: Any, shift: int) -> Any:
    """Return an int64 divided by 2^shift, rounded half to even; `shift` is at least 1.

    floor((v + 2^(s-1) - 1 + odd) / 2^s), where odd is the lowest bit of floor(v / 2^s).
    """
    places = tirx.const(shift, "int64")
    odd = tirx.bitwise_and(tirx.shift_right(value, places), tirx.const(1, "int64"))
    return tirx.shift_right(value + tirx.const((1 << (shift - 1)) - 1, "int64") + odd, places)


def limited(value: Any, low: int, high: int) -> Any:
    """Return an integer limited to [low, high], in its own type."""
    dtype = value.ty.dtype if hasattr(value, "ty") else value.dtype
    return tirx.max(tirx.min(value, tirx.const(high, dtype)), tirx.const(low, dtype))
