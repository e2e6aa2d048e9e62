"""Bytes of data as bit planes, once for a whole kernel: a word for 32 neighbours and each bit.

x86      vpmovmskb on the bytes moved left until the bit is their highest
others   8 bytes at a time: a product brings their lowest bits together in one byte
"""

from __future__ import annotations

from typing import Any

from tvm import tirx

from tilewright.compiler.schedule.dot_kernel import intrinsic
from tilewright.compiler.schedule.expressions import Expr
from tilewright.compiler.schedule.micro_kernel import constant_like, ramp
from tilewright.compiler.targets import Target

_WORD = 32
_EIGHT = 8
_LOWEST_BITS = 0x0101010101010101
# Bit k of byte k, brought to bit 56 + k.
_GATHER = 0x0102040810204080
_MASK = "llvm.x86.avx2.pmovmskb"


def data_planes(mask: int) -> range:
    """Return the bits of a byte that have planes: from the lowest that can be set to the highest.

    Args:
        mask: bits that can be set.
    """
    lowest = (mask & -mask).bit_length() - 1
    return range(lowest, mask.bit_length())


def plane_word(source: Any, address: Expr, bit: int, target: Target) -> Expr:
    """Return one bit of 32 neighbouring bytes as an int32.

    Args:
        source: flat buffer of bytes.
        address: of the first.
        bit: which, 0 to 7.
        target: what for.
    """
    if target.architecture == "x86_64":
        loaded = tirx.BufferLoad(source, [ramp(address, 1, _WORD)])
        pairs = tirx.reinterpret(f"uint16x{_WORD // 2}", loaded)
        moved = pairs << tirx.Broadcast(tirx.const(_EIGHT - 1 - bit, "uint16"), _WORD // 2)
        return intrinsic(_MASK, "int32", tirx.reinterpret(f"int8x{_WORD}", moved))
    word: Expr = tirx.const(0, "uint32")
    for part in range(_WORD // _EIGHT):
        at = ramp(address + constant_like(part * _EIGHT, address), 1, _EIGHT)
        eight = tirx.reinterpret("uint64", tirx.BufferLoad(source, [at]))
        bits = (eight >> _long(bit)) & _long(_LOWEST_BITS)
        byte = ((bits * _long(_GATHER)) >> _long(7 * _EIGHT)).astype("uint32")
        word = word | (byte << tirx.const(part * _EIGHT, "uint32"))
    return tirx.reinterpret("int32", word)


def _long(number: int) -> Expr:
    return tirx.const(number, "uint64")
