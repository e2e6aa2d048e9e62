"""Division and remainder; of integers, they are defined for every operand."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from tvm import relax, tirx

from tilewright.frontends.onnx.node import NodeContext
from tilewright.frontends.onnx.ops.elementwise import FLOATS, aligned, broadcast_te
from tilewright.frontends.onnx.registry import register
from tilewright.frontends.onnx.values import Value, constant

R = relax.op


@register("Div")
def divide(op: NodeContext) -> Value:
    """https://onnx.ai/onnx/operators/onnx__Div.html

    Integers round towards zero. By zero they give 0, as in numpy; the smallest number by -1 gives
    itself. Processors stop the program for both.
    """
    left, right = op.input(0), aligned(op, op.input(0), op.input(1))
    if left.dtype in FLOATS:
        return quotient(op, left, right)
    if _is_harmless(right):
        return op.call(R.divide, left, right)
    return broadcast_te(op, _defined(tirx.truncdiv, left.dtype, True), "divide", left, right)


def quotient(op: NodeContext, left: Value, right: Value) -> Value:
    """Divide floats.

    By a constant 0, multiply with infinity, which is the same in IEEE 754: TVM refuses to divide.
    """
    if right.data is None or right.size != 1 or right.data.all():
        return op.call(R.divide, left, right)
    with np.errstate(divide="ignore", over="ignore"):
        return op.call(R.multiply, left, constant(1 / right.data, right.dtype))


@register("Mod")
def modulo(op: NodeContext) -> Value:
    """https://onnx.ai/onnx/operators/onnx__Mod.html (fmod=1 takes the sign of the dividend).

    The remainder of integers by zero is 0, as in numpy.
    """
    left, right = op.input(0), op.input(1)
    towards_zero = bool(op.attr("fmod"))
    if left.dtype in FLOATS:
        return broadcast_te(op, _float_remainder(left.dtype, towards_zero), "mod", left, right)
    if _is_harmless(right) and not towards_zero:
        return op.call(R.floor_mod, left, right)
    remainder = tirx.truncmod if towards_zero else tirx.floormod
    return broadcast_te(op, _defined(remainder, left.dtype, False), "mod", left, right)


def _is_harmless(divisor: Value) -> bool:
    """Tell whether no element of a divisor is known to be, or may turn out as, 0 or -1."""
    return divisor.data is not None and not np.isin(divisor.data, (0, -1)).any()


def _defined(
    function: Callable[..., Any], dtype: str, is_quotient: bool
) -> Callable[[Any, Any], Any]:
    """Return an integer division that never sees the divisors 0 and -1, but 1 in their place.

    The remainder by 1 is the 0 that is wanted. A quotient is multiplied by 0 or -1; selecting it
    by the same conditions would let TVM's simplifier see that the divisor cannot be 0 where the
    quotient counts, and divide by it everywhere.
    """

    def element(a: Any, b: Any) -> Any:
        one, zero = tirx.const(1, dtype), tirx.const(0, dtype)
        # As int64: TVM's simplifier fails on comparisons of unsigned numbers with constants.
        wide = b.astype("int64")
        is_odd = is_zero = wide == tirx.const(0, "int64")
        factor = tirx.Select(is_zero, zero, one)
        if not dtype.startswith("u"):
            is_minus_one = wide == tirx.const(-1, "int64")
            is_odd = tirx.any(is_zero, is_minus_one)
            factor = tirx.Select(is_minus_one, tirx.const(-1, dtype), factor)
        result = function(a, tirx.Select(is_odd, one, b))
        return result * factor if is_quotient else result

    return element


def _float_remainder(dtype: str, towards_zero: bool) -> Callable[[Any, Any], Any]:
    def remainder(a: Any, b: Any) -> Any:
        whole = tirx.trunc(a / b) if towards_zero else tirx.floor(a / b)
        # An infinite divisor leaves the dividend, or is the result if floored from another sign.
        crossed = tirx.all(tirx.const(not towards_zero, "bool"), a * b < tirx.const(0, dtype))
        endless = tirx.Select(crossed, b, a)
        finite = tirx.abs(a) < tirx.const(np.inf, dtype)
        special = tirx.all(tirx.abs(b) == tirx.const(np.inf, dtype), finite)
        return tirx.Select(special, endless, a - whole * b)

    return remainder
