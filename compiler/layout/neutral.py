"""Decides whether a value is zero in the padded lanes, because all that it reads there is.

The padding of every tensor holds zeros. So ``data * weight`` and ``max(x + bias, 0)`` are zero in a
padded lane by themselves, and ``exp(x)`` is not: a stage that computes it must select.

Values outside of the padding are taken to be finite: zero times infinity would not be zero.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import tvm
from tvm import tirx
from tvm.ir import TensorLoad
from tvm.sym import Analyzer

from tilewright.compiler.layout.primitives import Layout, Pad

_ODD_FUNCTIONS = frozenset(
    {"abs", "fabs", "asin", "asinh", "atan", "atanh", "ceil", "erf", "floor", "nearbyint"}
    | {"round", "sin", "sinh", "sqrt", "tan", "tanh", "trunc"}
)
"""Functions of one argument that are zero at zero."""


def vanishes(value: Any, valid: Any, layouts: Mapping[Any, Layout], analyzer: Analyzer) -> bool:
    """Whether a rewritten value is proven to be zero wherever the condition `valid` is false.

    Args:
        value: the value on physical buffers.
        valid: a condition on the loops, such as ``co * 16 + ci < 24``.
        layouts: the layouts of the physical buffers.
        analyzer: knows the ranges of the loop variables.
    """
    with analyzer.constraint_scope(tirx.Not(valid)):
        return _is_zero(value, layouts, analyzer)


def _is_zero(value: Any, layouts: Mapping[Any, Layout], analyzer: Analyzer) -> bool:
    def zero(part: Any) -> bool:
        return _is_zero(part, layouts, analyzer)

    if isinstance(value, tirx.IntImm | tirx.FloatImm):
        return float(value.value) == 0.0
    if isinstance(value, TensorLoad):
        return _reads_padding(value, layouts, analyzer)
    if isinstance(value, tirx.Mul):
        return zero(value.a) or zero(value.b)
    if isinstance(value, tirx.Add | tirx.Sub | tirx.Max | tirx.Min):
        return zero(value.a) and zero(value.b)
    if isinstance(value, tirx.Div | tirx.FloorDiv):
        return zero(value.a) and isinstance(value.b, tirx.IntImm | tirx.FloatImm)
    if isinstance(value, tirx.Cast):
        return zero(value.value)
    if isinstance(value, tirx.Select):
        return _choice_is_zero(
            value.condition, value.true_value, value.false_value, layouts, analyzer
        )
    if isinstance(value, tvm.ir.Call) and isinstance(value.op, tvm.ir.Op):
        name = value.op.name.rpartition(".")[2]
        if name == "if_then_else":
            condition, then, other = value.args
            return _choice_is_zero(condition, then, other, layouts, analyzer)
        return name in _ODD_FUNCTIONS and zero(value.args[0])
    return False


def _choice_is_zero(
    condition: Any, a: Any, b: Any, layouts: Mapping[Any, Layout], analyzer: Analyzer
) -> bool:
    known = analyzer.simplify(condition)
    if isinstance(known, tirx.IntImm):
        return _is_zero(a if int(known) else b, layouts, analyzer)
    return _is_zero(a, layouts, analyzer) and _is_zero(b, layouts, analyzer)


def _reads_padding(load: Any, layouts: Mapping[Any, Layout], analyzer: Analyzer) -> bool:
    layout = layouts.get(load.source)
    if layout is None:
        return False
    index = tuple(load.indices)
    for step, shape in reversed(layout.steps):
        index, conditions = step.unmap_index(index, shape)
        # what is outside of a StoreAt's host is its guest, not padding
        if isinstance(step, Pad) and any(
            analyzer.can_prove(tirx.Not(condition)) for condition in conditions
        ):
            return True
    return False
