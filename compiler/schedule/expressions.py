"""Rewrite TensorIR expressions: substitution, flat addresses, linear forms."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import tvm
from tvm import sym, tirx
from tvm.ir import Call, TensorLoad

_BINARY = (
    tirx.Add,
    tirx.Sub,
    tirx.Mul,
    tirx.Div,
    tirx.Mod,
    tirx.FloorDiv,
    tirx.FloorMod,
    tirx.Min,
    tirx.Max,
    tirx.EQ,
    tirx.NE,
    tirx.LT,
    tirx.LE,
    tirx.GT,
    tirx.GE,
    tirx.And,
    tirx.Or,
    tirx.BitwiseAnd,
    tirx.BitwiseOr,
    tirx.BitwiseXor,
    tirx.LShift,
    tirx.RShift,
)
_BOUNDS = (tirx.Max, tirx.Min, tirx.BitwiseAnd)
_UNARY = (tirx.Not, tirx.BitwiseNot)
Expr = Any
Leaf = Callable[[Expr], Expr | None]


def dtype_of(expr: Expr) -> str:
    """Return the dtype of an expression, for instance "float32"."""
    return str(expr.ty)


def children(expr: Expr) -> tuple[Expr, ...]:
    """Return the sub-expressions of one expression, in order."""
    return _reader(type(expr))(expr)  # type: ignore[arg-type]  # Any's class is hashable


@cache
def _reader(kind: type) -> Callable[[Expr], tuple[Expr, ...]]:
    """Return what reads the sub-expressions of a class: asked once, for isinstance is slow here."""
    if issubclass(kind, _BINARY):
        return lambda expr: (expr.a, expr.b)
    if issubclass(kind, TensorLoad):
        return lambda expr: tuple(expr.indices)
    if issubclass(kind, Call):
        return lambda expr: tuple(expr.args)
    if issubclass(kind, tirx.Select):
        return lambda expr: (expr.condition, expr.true_value, expr.false_value)
    if issubclass(kind, tirx.Cast | tirx.Broadcast):
        return lambda expr: (expr.value,)
    if issubclass(kind, _UNARY):
        return lambda expr: (expr.a,)
    if issubclass(kind, tirx.Let):
        return lambda expr: (expr.value, expr.body)
    return lambda _expr: ()


def rebuild(expr: Expr, leaf: Leaf) -> Expr:
    """Return `expr` with every sub-expression for which `leaf` answers replaced by the answer.

    `leaf` is asked top down; below an answer nothing is visited.
    """
    answer = leaf(expr)
    if answer is not None:
        return answer
    parts = children(expr)
    if not parts:
        return expr
    new = tuple(rebuild(part, leaf) for part in parts)
    if all(a.same_as(b) for a, b in zip(parts, new, strict=True)):
        return expr
    return _with_children(expr, new)


def _with_children(expr: Expr, new: tuple[Expr, ...]) -> Expr:
    if isinstance(expr, _BINARY):
        return type(expr)(*new)
    if isinstance(expr, TensorLoad):
        return tirx.BufferLoad(expr.source, list(new))
    if isinstance(expr, Call):
        return Call(expr.op, list(new), attrs=expr.attrs, ty_args=expr.ty_args, ret_ty=expr.ty)
    if isinstance(expr, tirx.Select):
        return tirx.Select(*new)
    if isinstance(expr, tirx.Cast):
        return tirx.Cast(dtype_of(expr), new[0])
    if isinstance(expr, tirx.Broadcast):
        return tirx.Broadcast(new[0], expr.lanes)
    if isinstance(expr, _UNARY):
        return type(expr)(*new)
    return tirx.Let(expr.var, *new)


def without_range(expr: Expr) -> Expr:
    """Return what is inside casts, and inside constants that bound it or say what bits it has."""
    while True:
        if isinstance(expr, tirx.Cast):
            expr = expr.value
        elif isinstance(expr, _BOUNDS) and isinstance(expr.b, tirx.IntImm):
            expr = expr.a
        elif isinstance(expr, tirx.Select) and (found := _sign_of(expr)) is not None:
            expr = found
        else:
            return expr


def _sign_of(expr: Expr) -> Expr | None:
    """Return what a choice between two constants compares with a constant, if it is one."""
    parts = (expr.true_value, expr.false_value)
    if not isinstance(expr.condition, tirx.GT | tirx.LT):
        return None
    sides = [s for s in children(expr.condition) if not isinstance(s, tirx.IntImm)]
    constants = all(isinstance(part, tirx.IntImm) for part in parts)
    return sides[0] if constants and len(sides) == 1 else None


def substitute(expr: Expr, values: Mapping[Any, Expr]) -> Expr:
    """Return `expr` with variables replaced; a replacement is cast where its dtype differs."""

    def leaf(node: Expr) -> Expr | None:
        if not isinstance(node, tirx.Var) or node not in values:
            return None
        value = values[node]
        if isinstance(value, int):
            return tirx.const(value, dtype_of(node))
        return value if dtype_of(value) == dtype_of(node) else tirx.Cast(dtype_of(node), value)

    return rebuild(expr, leaf)


def loads_in(expr: Expr) -> tuple[TensorLoad, ...]:
    """Return the loads of an expression from left to right, nested ones after their parent."""
    found = [expr] if isinstance(expr, TensorLoad) else []
    for part in children(expr):
        found.extend(loads_in(part))
    return tuple(found)


def shape_of(buffer: Any) -> tuple[int, ...]:
    """Return the static shape of a buffer."""
    return tuple(int(extent) for extent in buffer.shape)


def elements(buffer: Any) -> int:
    """Return how many elements a buffer holds."""
    total = 1
    for extent in shape_of(buffer):
        total *= extent
    return total


def flat_index(buffer: Any, indices: Sequence[Expr]) -> Expr:
    """Return the row-major offset in elements of `buffer[indices]`, not simplified."""
    index: Expr = 0
    for extent, part in zip(shape_of(buffer), indices, strict=True):
        index = index * extent + part
    return index


@dataclass(frozen=True)
class Linear:
    """constant + sum of coefficient * variable; absent variables have coefficient 0."""

    constant: int
    coefficients: dict[Any, int]

    def of(self, variable: Any) -> int:
        """Return the coefficient of one variable."""
        return self.coefficients.get(variable, 0)


def linear_form(expr: Expr, variables: Sequence[Any], analyzer: sym.Analyzer) -> Linear | None:
    """Return `expr` as a linear form with integer coefficients, or None if it is not one."""
    if isinstance(expr, int):
        return Linear(expr, {})
    found = sym.detect_linear_equation(analyzer.simplify(expr), list(variables))
    if not found or not all(isinstance(part, tirx.IntImm) for part in found):
        return None
    *coefficients, constant = (int(part) for part in found)
    return Linear(
        constant,
        {var: c for var, c in zip(variables, coefficients, strict=True) if c != 0},
    )


def conjuncts(condition: Expr) -> tuple[Expr, ...]:
    """Return the terms of a conjunction."""
    if isinstance(condition, tirx.And):
        return conjuncts(condition.a) + conjuncts(condition.b)
    return (condition,)


def range_from_zero(extent: int) -> tvm.ir.Range:
    """Return the range [0, extent)."""
    return tvm.ir.Range(0, extent)
