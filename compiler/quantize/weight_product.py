"""The product with constant integer weights as the importer emits it, and how passes read it back.

The importer knows no target: it hands over codes, scales and zero points as they are in the model,
in one PrimFunc with an attribute that says the parameters. `passes.pack_weights` replaces it.
"""

from __future__ import annotations

import json
from dataclasses import dataclass

import numpy as np
import tvm
from tvm import relax, te, tirx

from tilewright.compiler.relax_utils import call_marked, constant_array, read_mark
from tilewright.compiler.weight_only import WORD_BITS

ATTRIBUTE = "tilewright.weight_product"
DECODED = "tilewright.decoded_weights"
"""Attribute of a module: JSON, tensor -> why integer weights were decoded when compiling."""

BITS = (2, 4, 8)


@dataclass(frozen=True, eq=False)
class IntegerWeights:
    """Constant weights in groups; weight = (code - zero) * scale.

    Attributes:
        packed: uint8 [columns, groups, bytes], the first code in the lowest bits.
        scales: float32 [columns, groups].
        zeros: float32 [columns, groups]; None: all are 2 ** (bits - 1).
        bits: width of a code.
        rows: extent of the reduction, without padding.
    """

    packed: np.ndarray
    scales: np.ndarray
    zeros: np.ndarray | None
    bits: int
    rows: int

    @property
    def columns(self) -> int:
        """Outputs."""
        return len(self.packed)

    @property
    def group(self) -> int:
        """Rows that share a scale."""
        return int(self.packed.shape[-1]) * 8 // self.bits

    def codes(self) -> np.ndarray:
        """Return the codes, uint8 [columns, groups, group]."""
        return unpack(self.packed, self.bits)

    def decoded(self) -> np.ndarray:
        """Return the weights, float32 [rows, columns]."""
        zeros = 2 ** (self.bits - 1) if self.zeros is None else self.zeros[..., None]
        weights = (self.codes().astype(np.float32) - zeros) * self.scales[..., None]
        return np.ascontiguousarray(weights.reshape(self.columns, -1)[:, : self.rows].T)

    def problem(self) -> str:
        """Return why no kernel multiplies by these weights as they are, or nothing."""
        if self.bits not in BITS:
            return f"its weights have {self.bits} bits; kernels unpack 2, 4 and 8"
        if self.group * self.bits % WORD_BITS:
            return f"{self.group} weights of {self.bits} bits do not fill words of {WORD_BITS} bits"
        return ""


@dataclass(frozen=True, eq=False)
class WeightProduct:
    """One product: data [.., rows] times weights."""

    data: relax.Expr
    weights: IntegerWeights


def decoded_weights(mod: tvm.IRModule) -> dict[str, str]:
    """Return tensor -> why its integer weights were decoded when compiling."""
    if mod.attrs is None or DECODED not in mod.attrs:
        return {}
    return dict(json.loads(str(mod.attrs[DECODED])))


def unpack(packed: np.ndarray, bits: int) -> np.ndarray:
    """Take bytes apart into codes, the lowest bits first.

    Args:
        packed: uint8, [..., bytes].
        bits: width of a code: 2, 4 or 8.

    Returns:
        uint8, [..., bytes * 8 / bits].
    """
    shifts = np.arange(0, 8, bits, dtype=np.uint8)
    codes = packed[..., None] >> shifts & np.uint8(2**bits - 1)
    return codes.reshape(*packed.shape[:-1], -1)


def pack(codes: np.ndarray, bits: int) -> np.ndarray:
    """Return codes in bytes, the lowest bits first: uint8 [.., n] -> [.., n * bits / 8]."""
    apart = codes.reshape(*codes.shape[:-1], -1, 8 // bits)
    shifts = np.arange(0, 8, bits, dtype=np.uint8)
    return np.bitwise_or.reduce(apart << shifts, axis=-1).astype(np.uint8)


def emit_product(
    builder: relax.BlockBuilder, data: relax.Expr, weights: IntegerWeights
) -> relax.Call:
    """Return the call of a product's PrimFunc, which is added to the builder's module."""
    assert not weights.problem()
    arrays = [weights.packed, weights.scales]
    if weights.zeros is not None:
        arrays.append(weights.zeros)
    constants = [relax.const(tvm.runtime.tensor(np.ascontiguousarray(a))) for a in arrays]

    def compute(x: te.Tensor, packed: te.Tensor, scales: te.Tensor, *zeros: te.Tensor) -> te.Tensor:
        k = te.reduce_axis((0, weights.rows), name="k")
        in_byte = 8 // weights.bits

        def value(*at: tirx.Var) -> tirx.PrimExpr:
            *lead, n = at
            group, row = k // weights.group, k % weights.group
            byte = packed(n, group, row // in_byte)
            shift = (row % in_byte * weights.bits).astype("uint8")
            code = (byte >> shift) & tirx.const(2**weights.bits - 1, "uint8")
            middle = tirx.const(2 ** (weights.bits - 1), "float32")
            zero = zeros[0](n, group) if zeros else middle
            weight = (code.astype("float32") - zero) * scales(n, group)
            return te.sum(x(*lead, k) * weight, axis=[k])

        return te.compute((*x.shape[:-1], weights.columns), value, name="weight_product")

    name = f"w{weights.bits}_matmul"
    said = {"bits": weights.bits, "rows": weights.rows}
    return call_marked(builder, name, compute, [data, *constants], {ATTRIBUTE: json.dumps(said)})


def read_product(mod: tvm.IRModule, expr: object) -> WeightProduct | None:
    """Return the product that a call is, or None."""
    said = read_mark(mod, expr, ATTRIBUTE)
    if said is None:
        return None
    data, *constants = expr.args[1].fields  # type: ignore[attr-defined]
    packed, scales, *zeros = (constant_array(constant) for constant in constants)
    found = IntegerWeights(packed, scales, zeros[0] if zeros else None, said["bits"], said["rows"])
    return WeightProduct(data, found)
