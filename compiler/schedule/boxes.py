"""Cut the domain of a stage so that conditions and divisions of its axes vanish."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import pairwise
from typing import Any

from tvm import sym, tirx
from tvm.ir import Call, TensorLoad

from tilewright.compiler.schedule.analysis import Axis, Stage
from tilewright.compiler.schedule.expressions import (
    Expr,
    children,
    dtype_of,
    linear_form,
    loads_in,
    range_from_zero,
    rebuild,
    substitute,
)
from tilewright.compiler.schedule.micro_kernel import constant_like

# More boxes than this are more code than the conditions are worth.
_MAX_BOXES = 64
# Dividing an axis by less than this leaves an inner axis too short for vectors.
_MIN_DIVISOR = 4


def cut(stage: Stage) -> list[Stage]:
    """Cut a stage's domain into boxes in which its conditions are constant.

    Axes of a box start at 0; its indices and value are shifted. A condition over several axes is
    cut along the axis with the largest step first. Where the index of a load divides an axis
    (`c // 16`), the axis is cut at multiples of the divisor and split by it. Conditions and
    divisions of anything but linear terms stay.
    """
    done: list[Stage] = []
    open_boxes = [stage]
    while open_boxes:
        box = open_boxes.pop()
        points = None
        if len(done) + len(open_boxes) < _MAX_BOXES:
            points = _cut_points(box) or _division_points(box)
        if points is None:
            done.append(box)
            continue
        position, starts, divisor = points
        axis = box.spatial[position]
        if not starts:
            open_boxes.append(_split(box, position, divisor))
            continue
        for first, end in pairwise([0, *starts, axis.extent]):
            open_boxes.append(_restrict(box, position, first, end))
    return done


def _cut_points(box: Stage) -> tuple[int, list[int], int] | None:
    """Return (axis position, where to cut, 0) for the first condition that varies in the box."""
    for term in _conditions(box.value):
        form = linear_form(
            term.a - term.b, [axis.var for axis in box.spatial], _analyzer(box.spatial)
        )
        if form is None or not form.coefficients:
            continue
        largest = max(form.coefficients, key=lambda var: abs(form.coefficients[var]))
        position = next(i for i, a in enumerate(box.spatial) if a.var.same_as(largest))
        step, extent = form.of(largest), box.spatial[position].extent
        others = [
            form.of(axis.var) * (axis.extent - 1)
            for i, axis in enumerate(box.spatial)
            if i != position
        ]
        low = form.constant + sum(min(0, other) for other in others)
        high = form.constant + sum(max(0, other) for other in others)
        signs = (
            [_outcome(term, step * at + low, step * at + high) for at in range(extent)]
            if extent <= 1 << 16
            else []
        )
        starts = [at for at in range(1, len(signs)) if signs[at] is not signs[at - 1]]
        if starts:
            return position, starts, 0
    return None


def _division_points(box: Stage) -> tuple[int, list[int], int] | None:
    """Return (axis position, where to cut, divisor) for the first division of an axis.

    Nowhere to cut means that the axis can be split by the divisor.
    """
    for node in _divisions(box.value):
        divisor = int(node.b)
        form = linear_form(node.a, [axis.var for axis in box.spatial], _analyzer(box.spatial))
        if form is None or len(form.coefficients) != 1 or divisor < _MIN_DIVISOR:
            continue
        ((variable, step),) = form.coefficients.items()
        position = next(i for i, a in enumerate(box.spatial) if a.var.same_as(variable))
        extent = box.spatial[position].extent
        if step != 1:
            continue
        first = -form.constant % divisor
        last = first + max(0, extent - first) // divisor * divisor
        starts = sorted({at for at in (first, last) if 0 < at < extent})
        if starts or extent > divisor:
            return position, starts, divisor
    return None


def _divisions(expr: Expr) -> Iterator[Any]:
    """Yield the divisions by constants in the indices of loads."""
    for load in loads_in(expr):
        for index in load.indices:
            yield from _divisions_in(index)


def _divisions_in(index: Expr) -> Iterator[Any]:
    if isinstance(index, tirx.FloorDiv | tirx.FloorMod) and isinstance(index.b, tirx.IntImm):
        yield index
    for part in children(index):
        yield from _divisions_in(part)


def _outcome(term: Expr, low: int, high: int) -> bool | None:
    """Return what `difference (op) 0` is for differences in [low, high]; None if it varies."""
    tests = {
        tirx.LT: lambda d: d < 0,
        tirx.LE: lambda d: d <= 0,
        tirx.GT: lambda d: d > 0,
        tirx.GE: lambda d: d >= 0,
    }
    test = tests[type(term)]
    return test(low) if test(low) == test(high) else None


def _conditions(expr: Expr) -> list[Expr]:
    """Return the comparisons of indices that if_then_else and Select test, outermost first."""
    found: list[Expr] = []

    def comparisons(condition: Expr) -> None:
        if isinstance(condition, tirx.LT | tirx.LE | tirx.GT | tirx.GE):
            if dtype_of(condition.a).startswith("int") and not loads_in(condition):
                found.append(condition)
        elif isinstance(condition, tirx.And | tirx.Or | tirx.Not):
            for part in children(condition):
                comparisons(part)

    def visit(node: Expr) -> None:
        if isinstance(node, tirx.Select):
            comparisons(node.condition)
        elif isinstance(node, Call) and str(getattr(node.op, "name", "")).endswith("if_then_else"):
            comparisons(node.args[0])
        for part in children(node):
            visit(part)

    visit(expr)
    return found


def _analyzer(axes: Sequence[Axis]) -> sym.Analyzer:
    analyzer = sym.Analyzer()
    for axis in axes:
        analyzer.bind(axis.var, range_from_zero(axis.extent))
    return analyzer


def _restrict(box: Stage, position: int, first: int, end: int) -> Stage:
    """Return the part of a box where one axis is in [first, end)."""
    old = box.spatial[position]
    axis = Axis(tirx.Var(old.name, dtype_of(old.var)), end - first)
    value = constant_like(first, old.var) + (axis.var if end - first > 1 else 0)
    return _replace_axis(box, position, (axis,), value)


def _split(box: Stage, position: int, divisor: int) -> Stage:
    """Return a box with one axis split in two, the inner one of extent `divisor`."""
    old = box.spatial[position]
    dtype = dtype_of(old.var)
    outer = Axis(tirx.Var(f"{old.name}_outer", dtype), old.extent // divisor)
    inner = Axis(tirx.Var(f"{old.name}_inner", dtype), divisor)
    value = outer.var * constant_like(divisor, old.var) + inner.var
    return _replace_axis(box, position, (outer, inner), value)


def _replace_axis(box: Stage, position: int, axes: tuple[Axis, ...], value: Expr) -> Stage:
    spatial = (*box.spatial[:position], *axes, *box.spatial[position + 1 :])
    at = {box.spatial[position].var: value}
    analyzer = _analyzer(spatial)
    return replace(
        box,
        spatial=spatial,
        indices=tuple(analyzer.simplify(substitute(index, at)) for index in box.indices),
        value=_simplify(substitute(box.value, at), analyzer),
    )


def _simplify(value: Expr, analyzer: sym.Analyzer) -> Expr:
    """Resolve conditions that the analyzer decides, and indices; data is not touched."""

    def leaf(node: Expr) -> Expr | None:
        if isinstance(node, TensorLoad):
            indices = [analyzer.simplify(rebuild(index, leaf)) for index in node.indices]
            return tirx.BufferLoad(node.source, indices)
        if isinstance(node, tirx.Select):
            condition, yes, no = node.condition, node.true_value, node.false_value
        elif isinstance(node, Call) and str(getattr(node.op, "name", "")).endswith("if_then_else"):
            condition, yes, no = node.args
        else:
            return None
        condition = analyzer.simplify(rebuild(condition, leaf))
        if isinstance(condition, tirx.IntImm):
            return rebuild(yes if int(condition) else no, leaf)
        yes, no = rebuild(yes, leaf), rebuild(no, leaf)
        if isinstance(node, tirx.Select):
            return tirx.Select(condition, yes, no)
        return tirx.if_then_else(condition, yes, no)

    return rebuild(value, leaf)
