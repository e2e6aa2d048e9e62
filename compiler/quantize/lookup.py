"""Element-wise operators between two bytes as a table of 256 bytes.

    quantize(silu(dequantize(x)))  ->  table[x]

Whatever a region computes from one byte alone is computed for all 256 when compiling, in single
precision as the operators say. Exact, and without a floating-point operation at run time.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from math import erf, sqrt
from typing import Any

import numpy as np
from tvm import relax

from tilewright.compiler.quantize.affine import Affine, unsigned_zero
from tilewright.compiler.quantize.graph import Graph
from tilewright.compiler.quantize.region import Region
from tilewright.compiler.relax_utils import op_name

_ONE = np.float32(1)
_CURVED = frozenset(
    "relax." + name
    for name in ("sigmoid", "tanh", "exp", "erf", "nn.silu", "nn.gelu", "nn.gelu_tanh", "divide")
)


@dataclass(frozen=True, eq=False)
class Lookup:
    """A region as a table.

    Attributes:
        source: variable of the byte that it is a function of: a quantize operator of the region, or
            the source of a dequantize operator before it.
        table: uint8 [256], from unsigned bytes to unsigned bytes.
    """

    source: relax.Var
    table: np.ndarray


def find_lookup(graph: Graph, region: Region) -> Lookup | None:
    """Return the table that a region is, if it computes a curve of a single byte."""
    if not any(op_name(graph.value[var]) in _CURVED for var in region.members):
        return None
    root = graph.affines[region.root]
    sources = [
        affine.source
        for affine in (graph.affines.get(var) for var in _dequantized(graph, region))
        if affine is not None
    ]
    for source in dict.fromkeys(sources):
        if not isinstance(source, relax.Var):
            continue
        try:
            values = _evaluate(graph, region, root.source, source, np.arange(256))
        except _OtherLeafError:
            continue
        return Lookup(source, _quantized(values, root).astype(np.uint8))
    return None


class _OtherLeafError(Exception):
    """The region reads something else than the one byte, or computes what has no table."""


def _dequantized(graph: Graph, region: Region) -> list[relax.Var]:
    """Return the dequantize operators that the region reads or holds, in their order.

    The first of which the end is a function leaves the most to the table.
    """
    found: dict[relax.Var, None] = {}
    for var in region.members:
        affine = graph.affines.get(var)
        operands = [affine.source] if affine is not None else list(graph.value[var].args)
        for operand in operands:
            inner = graph.of_kind(operand, "dequantize")
            if inner is not None and inner.in_bytes:
                found[operand] = None
    return sorted(found, key=graph.index.__getitem__)


def _evaluate(
    graph: Graph, region: Region, expr: relax.Expr, source: relax.Var, bytes_: np.ndarray
) -> np.ndarray:
    """Return an expression of the region for every value of the byte `source`, in float32."""
    affine = graph.affines.get(expr) if isinstance(expr, relax.Var) else None
    if affine is not None and affine.kind == "dequantize":
        if isinstance(affine.source, relax.Var) and affine.source.same_as(source):
            centred = bytes_.astype(np.int32) - unsigned_zero(affine)
            return centred.astype(np.float32) * np.float32(affine.scale)
        inner = graph.of_kind(affine.source, "quantize")
        if inner is not None and affine.source in region.members:
            given = _evaluate(graph, region, inner.source, source, bytes_)
            centred = _quantized(given, inner) - unsigned_zero(affine)
            return centred.astype(np.float32) * np.float32(affine.scale)
    constant = graph.constant(expr)
    if constant is not None:
        if constant.size != 1:
            raise _OtherLeafError
        return np.asarray(constant, np.float32).reshape(())
    if not isinstance(expr, relax.Var) or expr not in region.members:
        raise _OtherLeafError
    call = graph.value[expr]
    function = _FUNCTIONS.get(str(op_name(call)))
    if function is None:
        raise _OtherLeafError
    # The bounds of clip are no tensors.
    given = call.args[:1] if function is _clip else call.args
    operands = [_evaluate(graph, region, arg, source, bytes_) for arg in given]
    with np.errstate(all="ignore"):
        return np.broadcast_to(function(call, *operands), bytes_.shape).astype(np.float32)


def _quantized(values: np.ndarray, affine: Affine) -> np.ndarray:
    """Return unsigned bytes of floats, rounded half to even."""
    with np.errstate(all="ignore"):
        steps = np.rint(np.broadcast_to(values, (256,)) / np.float32(affine.scale))
    limited = np.clip(np.nan_to_num(steps, nan=0.0), -(2.0**30), 2.0**30).astype(np.int64)
    low, high = affine.range
    return np.clip(limited + unsigned_zero(affine), 0, high - low)


def _sigmoid(x: np.ndarray) -> np.ndarray:
    return (1 / (1 + np.exp(-x.astype(np.float64)))).astype(np.float32)


def _erf(x: np.ndarray) -> np.ndarray:
    return np.array([erf(float(v)) for v in np.ravel(x)], np.float32).reshape(np.shape(x))


def _gelu(x: np.ndarray) -> np.ndarray:
    return x * (_ONE + _erf(x / np.float32(sqrt(2)))) / 2


def _gelu_tanh(x: np.ndarray) -> np.ndarray:
    return x / 2 * (1 + np.tanh(sqrt(2 / np.pi) * (x + 0.044715 * x**3)))


def _clip(call: relax.Call, x: np.ndarray, *_bounds: Any) -> np.ndarray:
    from tilewright.compiler.quantize.epilogue import plain_number

    low, high = (plain_number(bound) for bound in call.args[1:3])
    return np.minimum(np.maximum(x, np.float32(low)), np.float32(high))


_FUNCTIONS: dict[str, Callable[..., np.ndarray]] = {
    "relax.add": lambda _call, a, b: a + b,
    "relax.subtract": lambda _call, a, b: a - b,
    "relax.multiply": lambda _call, a, b: a * b,
    "relax.divide": lambda _call, a, b: a / b,
    "relax.maximum": lambda _call, a, b: np.maximum(a, b),
    "relax.minimum": lambda _call, a, b: np.minimum(a, b),
    "relax.nn.relu": lambda _call, x: np.maximum(x, np.float32(0)),
    "relax.clip": _clip,
    "relax.sigmoid": lambda _call, x: _sigmoid(x),
    "relax.tanh": lambda _call, x: np.tanh(x),
    "relax.exp": lambda _call, x: np.exp(x),
    "relax.erf": lambda _call, x: _erf(x),
    "relax.nn.silu": lambda _call, x: x * _sigmoid(x),
    "relax.nn.gelu": lambda _call, x: _gelu(x),
    "relax.nn.gelu_tanh": lambda _call, x: _gelu_tanh(x),
    "relax.nn.leakyrelu": lambda call, x: np.where(x > 0, x, x * np.float32(call.attrs.alpha)),
}
