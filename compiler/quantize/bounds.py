"""How great a value of a region can be, from the weights and the scales of what it is made of.

Below 2**22 a float is rounded by adding `affine.MAGIC` as it is; a greater one has to be limited
first, which costs two instructions for each vector of results.
"""

from __future__ import annotations

import numpy as np
from tvm import relax

from tilewright.compiler.quantize.affine import unsigned_zero
from tilewright.compiler.quantize.graph import Graph
from tilewright.compiler.quantize.linear import Linear
from tilewright.compiler.quantize.pooling import Average
from tilewright.compiler.relax_utils import op_name

_BYTE = 255
_SUMS = ("relax.add", "relax.subtract")
_CHOICES = ("relax.maximum", "relax.minimum")


def greatest(
    graph: Graph, expr: relax.Expr, anchor: relax.Var | None, linear: Linear | Average | None
) -> float:
    """Return a bound of the absolute value of an expression; infinity where none is known.

    Args:
        graph: the function.
        expr: what is bounded.
        anchor: variable of the sums.
        linear: what they are.
    """

    def of(expr: relax.Expr) -> float:
        array = graph.constant(expr)
        if array is not None:
            return float(np.abs(array).max(initial=0))
        if anchor is not None and expr.same_as(anchor):
            assert linear is not None
            return linear.bound * float(np.abs(linear.scale).max())
        affine = graph.of_kind(expr, "dequantize")
        if affine is not None:
            if not affine.in_bytes:
                return float("inf")
            zero = unsigned_zero(affine)
            return max(zero, _BYTE - zero) * float(affine.scale)
        call = graph.made_by(expr)
        name = op_name(call)
        if call is None:
            return float("inf")
        if name == "relax.nn.relu":
            return of(call.args[0])
        if name in _SUMS:
            return of(call.args[0]) + of(call.args[1])
        if name in _CHOICES:
            return max(of(call.args[0]), of(call.args[1]))
        return float("inf")

    return of(expr)
