"""The few Relax accessors whose names move between TVM versions, in one place."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import tvm
from tvm import relax, te

OP_PATTERN = "op_pattern"
"""Attribute by which FuseOps knows what it may fuse a PrimFunc with."""


def is_constant(expr: object) -> bool:
    """Say whether the expression is a tensor constant."""
    return isinstance(expr, tvm.ir.GenericConst)


def constant_array(expr: tvm.ir.GenericConst) -> np.ndarray:
    """Return the constant's data as a numpy array of the same shape and dtype."""
    return expr.value.numpy()


def op_name(expr: object) -> str | None:
    """Return the operator's name of a call of a Relax operator, else None."""
    if isinstance(expr, relax.Call) and isinstance(expr.op, tvm.ir.Op):
        return str(expr.op.name)
    return None


def call_marked(
    builder: relax.BlockBuilder,
    name: str,
    compute: Callable[..., te.Tensor],
    operands: Sequence[relax.Expr],
    marks: Mapping[str, str | int],
) -> relax.Call:
    """Return a call of a tensor expression as a PrimFunc with attributes, added to the module.

    Args:
        builder: where the PrimFunc goes.
        name: its name, to which the builder may add a number.
        compute: of tensors like the operands.
        operands: of the call.
        marks: attributes; see `read_mark`, and `OP_PATTERN`.
    """
    call = builder.call_te(compute, *operands, primfunc_name_hint=name)
    func = builder.get()[call.args[0]]
    for attribute, value in marks.items():
        func = func.with_attr(attribute, value)
    builder.update_func(call.args[0], func)
    return call


def read_mark(mod: tvm.IRModule, expr: object, attribute: str) -> dict[str, Any] | None:
    """Return what an attribute of the PrimFunc that is called says in JSON, or None."""
    if op_name(expr) != "relax.call_tir":
        return None
    attrs = mod[expr.args[0]].attrs  # type: ignore[attr-defined]
    if attrs is None or attribute not in attrs:
        return None
    return dict(json.loads(str(attrs[attribute])))


def static_shape(expr: relax.Expr) -> tuple[int, ...]:
    """Return the static shape of a tensor expression."""
    return tuple(int(extent) for extent in expr.ty.shape)


def bindings(function: relax.Function) -> list[relax.VarBinding]:
    """Return all bindings of a function in order."""
    return [binding for block in function.body.blocks for binding in block.bindings]


def variables(expr: relax.Expr) -> list[relax.Var]:
    """Return every occurrence of a variable in an expression."""
    found: list[relax.Var] = []
    relax.analysis.post_order_visit(
        expr, lambda node: found.append(node) if isinstance(node, relax.Var) else None
    )
    return found


def use_counts(function: relax.Function) -> dict[relax.Var, int]:
    """Count the uses of each variable in a function, its result included."""
    counts: dict[relax.Var, int] = {}
    for expr in [*(binding.value for binding in bindings(function)), function.body.body]:
        for var in variables(expr):
            counts[var] = counts.get(var, 0) + 1
    return counts
