"""How many bits the weights and the data of an integer operator need: W4A8, W1A1 and so on.

Weights are constants, so that their values tell:

    W1    all have one absolute value: -s or s
    Wp    p bits of two's complement hold them

Data is bytes, of which the type of the quantize operator, or a clip, a relu or a choice between
two constants before it, leaves only some bits:

    A1    uint2 behind a clip to 0 .. 1;  0 and 2 (zero point 1) behind Where(.., 1, -1)
    A4    uint4, int4;  uint8 that is clipped to 0 .. 15, or of which BitwiseAnd leaves 4 bits
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from tvm import relax, tirx

from tilewright.compiler.quantize.affine import BITS, Affine, unsigned_zero
from tilewright.compiler.quantize.graph import Graph
from tilewright.compiler.relax_utils import op_name

_WHOLE_BYTE = 0xFF
# Operators on integers or floats whose results are among what they read.
_MOVING = frozenset(
    "relax." + name
    for name in (
        "reshape", "permute_dims", "expand_dims", "squeeze", "flatten", "strided_slice",
        "nn.max_pool1d", "nn.max_pool2d", "nn.max_pool3d",
    )
)  # fmt: skip
_FAR = 2.0**30


@dataclass(frozen=True, slots=True)
class WeightRange:
    """Which integers weights are.

    Attributes:
        low, high: least and greatest.
        is_sign: there are but two, of opposite signs.
    """

    low: int
    high: int
    is_sign: bool

    @property
    def bits(self) -> int:
        """Bits that hold each of them."""
        if self.is_sign:
            return 1
        return 1 + max(int(self.high).bit_length(), int(-self.low - 1).bit_length(), 0)


ANY_BYTE = WeightRange(-128, 127, False)


def weight_range(weights: np.ndarray) -> WeightRange:
    """Return the range of weights less their zero point.

    Args:
        weights: integers, any shape.
    """
    low, high = int(weights.min(initial=0)), int(weights.max(initial=0))
    one_size = weights.size > 0 and low < 0 and bool((np.abs(weights.astype(int)) == high).all())
    return WeightRange(low, high, one_size)


def data_bits(mask: int) -> int:
    """Return how many bits of a byte can be set."""
    return mask.bit_count()


def data_mask(graph: Graph, affine: Affine) -> int:
    """Return the bits that can be set in the unsigned bytes of a dequantize operator's source.

    Args:
        graph: the function.
        affine: the dequantize operator.
    """
    whole = (1 << BITS[affine.dtype]) - 1
    source: relax.Expr = affine.source
    while (call := graph.made_by(source)) is not None:
        if op_name(call) == "relax.bitwise_and":
            source, bits = call.args
            constant = graph.constant(bits)
            if constant is not None and str(constant.dtype) == "uint8":
                whole &= int(np.bitwise_or.reduce(constant, axis=None))
        elif op_name(call) in _MOVING:
            source = call.args[0]
        else:
            break
    quantize = graph.of_kind(source, "quantize")
    if quantize is None or not quantize.in_bytes:
        return whole
    mask = whole & ((1 << BITS[quantize.dtype]) - 1)
    values = _values(graph, quantize.source)
    if values is None:
        return mask
    low, high = quantize.range
    with np.errstate(all="ignore"):
        steps = np.clip(np.rint(np.array(values) / float(quantize.scale)), -_FAR, _FAR)
    steps = np.clip(steps + unsigned_zero(quantize), 0, high - low).astype(int)
    if len(steps) == 2 and not _is_choice(graph, quantize.source):
        return mask & ((1 << int(steps.max()).bit_length()) - 1)
    return mask & int(np.bitwise_or.reduce(steps))


def _values(graph: Graph, expr: relax.Expr) -> list[float] | None:
    """Return the bounds of a float tensor, or the values of a choice; None where not known."""
    call = graph.made_by(expr)
    name = op_name(call)
    if call is None:
        return None
    if name in _MOVING:
        return _values(graph, call.args[0])
    if name == "relax.clip":
        return [float(getattr(bound.value, "value", bound.value)) for bound in call.args[1:3]]
    if name == "relax.where":
        sides = [graph.constant(side) for side in call.args[1:3]]
        if all(side is not None and side.size == 1 for side in sides):
            return [float(side.reshape(())) for side in sides if side is not None]
    if name in ("relax.sigmoid", "relax.nn.softmax"):
        return [0.0, 1.0]
    return None


def _is_choice(graph: Graph, expr: relax.Expr) -> bool:
    """Say whether a float tensor has two values, not all between two."""
    call = graph.made_by(expr)
    while call is not None and op_name(call) in _MOVING:
        call = graph.made_by(call.args[0])
    return op_name(call) == "relax.where"


def name_of(weights: WeightRange, mask: int) -> str:
    """Return the name of an operator's form, for instance "W4A8"."""
    return f"W{weights.bits}A{data_bits(mask)}"


def narrowed_data(value: tirx.PrimExpr, mask: int) -> tirx.PrimExpr:
    """Return a byte of data with what is known of its bits said in the expression."""
    return value if mask >= _WHOLE_BYTE else value & tirx.const(mask, "uint8")


def narrowed_weight(value: tirx.PrimExpr, weights: WeightRange) -> tirx.PrimExpr:
    """Return a weight with what is known of its values said in the expression."""
    if weights.is_sign:
        return tirx.Select(
            value > tirx.const(0, "int8"),
            tirx.const(weights.high, "int8"),
            tirx.const(weights.low, "int8"),
        )
    low, high = (tirx.const(bound, "int8") for bound in (weights.low, weights.high))
    return tirx.max(tirx.min(value, high), low)
