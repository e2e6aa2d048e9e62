"""Conversions between floats and small integers: the PrimFuncs, and how passes read them back.

    quantize:    q = saturate(round_half_even(x / scale) + zero)
    dequantize:  x = float32(q - zero) * scale

The importer emits each as one PrimFunc with an attribute that says its parameters; a pass reads
the attribute, and where no pass does, the PrimFunc is compiled as it is.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import tvm
from tvm import relax, te, tirx

from tilewright.compiler.relax_utils import call_marked, constant_array, read_mark

ATTRIBUTE = "tilewright.quantization"
# Types below a byte lie one in a byte, in its low bits.
BITS = {"int2": 2, "uint2": 2, "int4": 4, "uint4": 4, "int8": 8, "uint8": 8}
"""Bits of the integers that a byte can hold, by type."""

RANGES = {
    **{f"int{bits}": (-(1 << (bits - 1)), (1 << (bits - 1)) - 1) for bits in (2, 4, 8, 16)},
    **{f"uint{bits}": (0, (1 << bits) - 1) for bits in (2, 4, 8, 16)},
}

MAGIC = 1.5 * 2.0**23
MAGIC_BITS = 0x4B400000
# Below, the sum of a float and MAGIC keeps the distance of one between neighbours.
SMALL = 2.0**22


@dataclass(frozen=True, eq=False)
class Affine:
    """One conversion.

    Attributes:
        kind: "quantize" or "dequantize".
        source: what is converted.
        dtype: of the integers.
        scale: float32 [] or [channels].
        zero: int32, the shape of `scale`.
        axis: which dimension of the source the channels are; 0 for a single scale.
    """

    kind: str
    source: relax.Expr
    dtype: str
    scale: np.ndarray
    zero: np.ndarray
    axis: int

    @property
    def is_uniform(self) -> bool:
        """Whether the whole tensor has one scale."""
        return self.scale.ndim == 0

    @property
    def in_bytes(self) -> bool:
        """Whether the whole tensor has one scale, and every integer fits a byte."""
        return self.is_uniform and self.dtype in BITS

    @property
    def range(self) -> tuple[int, int]:
        """Least and greatest integer."""
        return RANGES[self.dtype]

    @property
    def unsigned(self) -> str:
        """Type of the same integers moved up, so that the least is 0."""
        return f"uint{BITS[self.dtype]}"


def read_affine(mod: tvm.IRModule, expr: object) -> Affine | None:
    """Return the conversion that a call is, or None."""
    said = read_mark(mod, expr, ATTRIBUTE)
    if said is None:
        return None
    source, *constants = expr.args[1].fields  # type: ignore[attr-defined]
    if constants:
        scale, zero = (constant_array(constant) for constant in constants)
    else:
        scale, zero = np.array(said["scale"], "float32"), np.array(said["zero"], "int32")
    return Affine(said["kind"], source, said["dtype"], scale, zero, said["axis"])


def evaluate(affine: Affine, integers: np.ndarray) -> np.ndarray:
    """Dequantize constant integers, as the kernel would."""
    column = [1] * integers.ndim
    if not affine.is_uniform:
        column[affine.axis] = -1
    zero, scale = affine.zero.reshape(column), affine.scale.reshape(column)
    return ((integers.astype(np.int32) - zero).astype(np.float32) * scale).reshape(integers.shape)


def emit_affine(
    builder: relax.BlockBuilder,
    kind: str,
    source: relax.Expr,
    dtype: str,
    scale: np.ndarray,
    zero: np.ndarray,
    axis: int = 0,
) -> relax.Call:
    """Return the call of a conversion's PrimFunc, which is added to the builder's module.

    Args:
        builder: where the PrimFunc goes.
        kind: "quantize" or "dequantize".
        source: float32 tensor, or integers.
        dtype: of the integers.
        scale: float32 [] or [channels].
        zero: int32, the shape of `scale`.
        axis: dimension of the channels.
    """
    said: dict[str, Any] = {"kind": kind, "dtype": dtype, "axis": axis}
    operands: list[relax.Expr] = []
    if scale.ndim == 0:
        said |= {"scale": float(scale), "zero": int(zero)}
    else:
        operands = [relax.const(scale.astype("float32")), relax.const(zero.astype("int32"))]

    def compute(x: te.Tensor, *channels: te.Tensor) -> te.Tensor:
        def parameters(at: Sequence[Any]) -> tuple[Any, Any]:
            if not channels:
                return tirx.const(float(scale), "float32"), tirx.const(int(zero), "int32")
            return channels[0](at[axis]), channels[1](at[axis])

        return te.compute(x.shape, _element(kind, x, parameters, dtype), name=f"{kind}d")

    marks = {ATTRIBUTE: json.dumps(said)}
    return call_marked(builder, f"{kind}_linear", compute, [source, *operands], marks)


def _element(
    kind: str, x: te.Tensor, parameters: Callable[[Sequence[Any]], tuple[Any, Any]], dtype: str
) -> Callable[..., Any]:
    bits = BITS.get(dtype, 8)

    def quantized(*at: Any) -> Any:
        scale, zero = parameters(at)
        whole = saturated(x(*at) / scale, zero, dtype)
        return whole & tirx.const((1 << bits) - 1, "uint8") if bits < 8 else whole

    def real(*at: Any) -> Any:
        scale, zero = parameters(at)
        whole = x(*at).astype("int32")
        if bits < 8 and not dtype.startswith("u"):
            sign = tirx.const(1 << (bits - 1), "int32")
            whole = (whole ^ sign) - sign
        return (whole - zero).astype("float32") * scale

    return quantized if kind == "quantize" else real


def rounded_bits(value: Any, low: Any, high: Any) -> Any:
    """Return a float32 limited to [low, high] and rounded half to even, plus `MAGIC`.

    Whole bounds commute with rounding. Next to 1.5 * 2**23 floats lie one apart, so that adding it
    rounds, in one instruction that vectorises; the whole number is in the low bits of the sum.
    """
    return tirx.max(tirx.min(value, high), low) + tirx.const(MAGIC, "float32")


def saturated(value: Any, zero: Any, dtype: str, *, is_small: bool = False) -> Any:
    """Round a float32 half to even, add the int32 zero point and saturate.

    Args:
        value: float32.
        zero: int32.
        dtype: whose range the result has; below a byte it is stored in one.
        is_small: the absolute value is known to be below `SMALL`. It can be rounded as it is then,
            and is limited as an integer, which instructions that narrow and saturate do at once.
    """
    if is_small:
        bits = tirx.reinterpret("int32", value + tirx.const(MAGIC, "float32"))
        whole = bits + (zero - tirx.const(MAGIC_BITS, "int32"))
        low, high = (tirx.const(bound, "int32") for bound in RANGES[dtype])
        return tirx.max(tirx.min(whole, high), low).astype(storage(dtype))
    low, high = (tirx.const(bound, "int32") - zero for bound in RANGES[dtype])
    bits = rounded_bits(value, low.astype("float32"), high.astype("float32"))
    return (tirx.reinterpret("int32", bits) + zero).astype(storage(dtype))


def storage(dtype: str) -> str:
    """Return the type that a kernel reads and writes integers of a type as."""
    return "uint8" if BITS.get(dtype, 8) < 8 else dtype


def unsigned_zero(affine: Affine) -> int:
    """Return the zero point of the same integers as unsigned ones: int8 moved up by 128."""
    return int(affine.zero) - affine.range[0]
