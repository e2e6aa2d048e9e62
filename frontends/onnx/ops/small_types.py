"""Conversion to and from types below one byte, and float8: integer arithmetic on their bits."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from tvm import te, tirx

from tilewright.frontends.onnx.node import NodeContext
from tilewright.frontends.onnx.values import Value, constant, numpy_dtype

_SIGN_BIT, _MANTISSA_BITS, _BIAS = 31, 23, 127  # of float32
_INFINITY_BITS = 0x7F800000
_INTEGER_BITS = {"int2": 2, "uint2": 2, "int4": 4, "uint4": 4}
_EXPONENT_ONLY = "float8_e8m0fnu"


@dataclass(frozen=True, slots=True)
class _Format:
    """A small floating-point format with a sign bit.

    Attributes:
        bits: Width.
        mantissa: Bits of the mantissa.
        bias: Of the exponent.
        largest: Code of the largest finite number.
        nan: Code of what NaN becomes.
        beyond: Code of what a number that is too large becomes where it does not saturate.
        signed_zero: Whether there is a negative zero.
    """

    bits: int
    mantissa: int
    bias: int
    largest: int
    nan: int
    beyond: int
    signed_zero: bool = True


_FORMATS = {
    "float8_e4m3fn": _Format(8, 3, 7, 0x7E, 0x7F, 0x7F),
    "float8_e4m3fnuz": _Format(8, 3, 8, 0x7F, 0x80, 0x80, signed_zero=False),
    "float8_e5m2": _Format(8, 2, 15, 0x7B, 0x7E, 0x7C),
    "float8_e5m2fnuz": _Format(8, 2, 16, 0x7F, 0x80, 0x80, signed_zero=False),
    "float4_e2m1fn": _Format(4, 1, 1, 0x7, 0x8, 0x7),
    "float6_e2m3fn": _Format(6, 3, 1, 0x1F, 0x20, 0x1F),
    "float6_e3m2fn": _Format(6, 2, 3, 0x1F, 0x20, 0x1F),
}


def is_small_integer(dtype: str) -> bool:
    """Tell whether a type is an integer below one byte."""
    return dtype in _INTEGER_BITS


def decode(op: NodeContext, data: Value) -> Value:
    """Convert a value of a small type to int32 or float32; both hold every number of it."""
    if data.data is not None:
        return constant(data.data, "int32" if is_small_integer(data.dtype) else "float32")
    if not is_small_integer(data.dtype):
        codes = np.arange(256, dtype=np.uint8).view(numpy_dtype(data.dtype))
        table = constant(codes.astype(np.float32))
        return op.te(_look_up, table, op.bits(data), name=f"decode_{data.dtype}")
    mask = 2 ** _INTEGER_BITS[data.dtype] - 1
    sign = 0 if data.dtype.startswith("u") else (mask + 1) // 2

    def compute(source: te.Tensor) -> te.Tensor:
        return te.compute(
            source.shape,
            lambda *at: ((source(*at).astype("int32") & mask) ^ sign) - sign,
            name="decode",
        )

    return op.te(compute, op.bits(data), name=f"decode_{data.dtype}")


def _look_up(table: te.Tensor, codes: te.Tensor) -> te.Tensor:
    return te.compute(codes.shape, lambda *at: table(codes(*at).astype("int32")), name="decode")


def encode(op: NodeContext, data: Value, dtype: str, saturate: bool, round_mode: str) -> Value:
    """Convert int32 to a small integer type (its low bits), or float32 to a small float type."""

    def code(number: tirx.PrimExpr) -> tirx.PrimExpr:
        if is_small_integer(dtype):
            return number & (2 ** _INTEGER_BITS[dtype] - 1)
        if dtype == _EXPONENT_ONLY:
            return _exponent_code(number, saturate, round_mode)
        return _float_code(number, _FORMATS[dtype], saturate)

    def compute(source: te.Tensor) -> te.Tensor:
        return te.compute(
            source.shape, lambda *at: code(source(*at)).astype("uint8"), name="encode"
        )

    return op.from_bits(op.te(compute, data, name=f"encode_{dtype}"), dtype)


def _float_code(number: tirx.PrimExpr, to: _Format, saturate: bool) -> tirx.PrimExpr:
    """Return the code of a float32 number, rounded half to even.

    Everything is unsigned: TVM widens comparisons of int32, which it takes for indices.
    """
    bits = tirx.reinterpret("uint32", number)
    magnitude = bits & _word((1 << _SIGN_BIT) - 1)
    dropped = _MANTISSA_BITS - to.mantissa
    half = _word((1 << (dropped - 1)) - 1)
    rounded = (magnitude + half + ((magnitude >> _word(dropped)) & _word(1))) >> _word(dropped)
    rebias = (_BIAS - to.bias) << to.mantissa
    # Below the normal numbers codes are multiples of the smallest; adding this power of two leaves
    # the multiple, correctly rounded, in the low bits of a float32.
    shift = np.float32(2.0 ** (_MANTISSA_BITS + 1 - to.bias - to.mantissa))
    shifted = tirx.reinterpret("float32", magnitude) + tirx.const(float(shift), "float32")
    tiny = tirx.reinterpret("uint32", shifted) - _word(int(shift.view(np.uint32)))
    is_tiny = rounded < _word(rebias + (1 << to.mantissa))
    code = tirx.Select(is_tiny, tiny, rounded - _word(rebias))
    sign = (bits >> _word(_SIGN_BIT)) << _word(to.bits - 1)
    if not to.signed_zero:
        sign = tirx.Select(code < _word(1), _word(0), sign)
    beyond = _word(to.largest if saturate else to.beyond)
    signed = tirx.Select(code > _word(to.largest), beyond, code) | sign
    # A format without negative zero has its only NaN there.
    if not to.signed_zero and not saturate:
        signed = tirx.Select(code > _word(to.largest), beyond, signed)
    return tirx.Select(magnitude > _word(_INFINITY_BITS), _word(to.nan), signed)


def _exponent_code(number: tirx.PrimExpr, saturate: bool, round_mode: str) -> tirx.PrimExpr:
    """Return the exponent of a float32 number, which is all of a float8_e8m0fnu; 255 is NaN."""
    bits = tirx.reinterpret("uint32", number)
    exponent = (bits >> _word(_MANTISSA_BITS)) & _word(0xFF)
    fraction = bits & _word((1 << _MANTISSA_BITS) - 1)
    half = _word(1 << (_MANTISSA_BITS - 1))
    is_up = {
        "up": fraction > _word(0),
        "nearest": tirx.any(fraction > half, tirx.all(fraction >= half, exponent > _word(0))),
        "down": tirx.const(False, "bool"),
    }[round_mode]
    is_up = tirx.all(is_up, exponent < _word(0xFE if saturate else 0xFF))
    return tirx.Select(is_up, exponent + _word(1), exponent)


def _word(number: int) -> tirx.PrimExpr:
    return tirx.const(number, "uint32")
