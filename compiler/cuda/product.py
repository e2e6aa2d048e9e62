"""Read a reduction as a product of matrices: which axes are rows, columns, depth and batch.

conv[n, h, w, co] += data[n, h * s + kh, w * s + kw, c] * weight[co, kh, kw, c]
    rows n h w, columns co, depth kh kw c: an implicit matrix product
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from math import prod
from typing import Any

from tvm import sym, tirx
from tvm.ir import TensorLoad

from tilewright.compiler.access import variables
from tilewright.compiler.cuda.parts import Part
from tilewright.compiler.schedule.analysis import Axis, Stage, split_grouped_axes
from tilewright.compiler.schedule.expressions import (
    Expr,
    Linear,
    conjuncts,
    dtype_of,
    flat_index,
    linear_form,
    range_from_zero,
)

FLOATS = ("float16", "bfloat16", "float32")
_BYTES = ("int8", "uint8")
# Below these a tile would be mostly empty: one thread or warp for a result is better.
_LEAST_ROWS, _LEAST_COLUMNS, _LEAST_DEPTH = 8, 8, 8
_MOST_BATCHES = 65535  # blocks of a grid in y


@dataclass(frozen=True, eq=False)
class Bound:
    """A condition 0 <= form <= last on where an operand has data."""

    form: Linear
    last: int


@dataclass(frozen=True, eq=False)
class Operand:
    """One factor.

    Attributes:
        value: the factor as an expression over the axes.
        load: what it is where it is a plain load, maybe inside of `bounds` only; else None.
        offset: flat index of the load.
        bounds: where the load has data.
        fill: what stands for data elsewhere: bytes are padded with their zero point.
    """

    value: Expr
    load: TensorLoad | None
    offset: Linear | None
    bounds: tuple[Bound, ...] = ()
    fill: int = 0

    @cached_property
    def dtype(self) -> str:
        """Dtype in memory of a plain load, else of the value."""
        return dtype_of(self.value) if self.load is None else str(self.load.source.dtype)


@dataclass(frozen=True, eq=False)
class Product:
    """C[batch, row, column] = sum over depth of A[batch, row, depth] * B[batch, column, depth].

    Attributes:
        stage: the reduction, with grouped axes split.
        a, b: the factors; the last axis of the result is a column where it can be.
        batch, rows, columns, depth: axes, outermost first.
        dtype: of the factors when they are multiplied.
    """

    stage: Stage
    a: Operand
    b: Operand
    batch: tuple[Axis, ...]
    rows: tuple[Axis, ...]
    columns: tuple[Axis, ...]
    depth: tuple[Axis, ...]
    dtype: str

    @cached_property
    def sizes(self) -> tuple[int, int, int, int]:
        """Extents of batch, rows, columns and depth."""
        groups = (self.batch, self.rows, self.columns, self.depth)
        batch, rows, columns, depth = (prod(axis.extent for axis in axes) for axes in groups)
        return batch, rows, columns, depth

    @cached_property
    def half(self) -> str | None:
        """The 16-bit float that both factors are in memory or when they are multiplied, if any."""
        if self.dtype in ("float16", "bfloat16"):
            return self.dtype
        kinds = {o.dtype if o.load is not None else "" for o in (self.a, self.b)}
        return next(iter(kinds)) if kinds in ({"float16"}, {"bfloat16"}) else None

    @cached_property
    def is_integer(self) -> bool:
        """Whether both factors are bytes in memory and the sum is exact in 32 bits."""
        return (
            all(o.load is not None and o.dtype in _BYTES for o in (self.a, self.b))
            and str(self.stage.buffer.dtype) == "int32"
        )


def read_product(part: Part) -> Product | None:
    """Return a part of kind "reduction" as a product, or None where it is none, or too small."""
    if part.kind != "reduction" or part.reductions[0].combine != "add":
        return None
    (reduction,) = part.reductions
    if not isinstance(reduction.init, tirx.IntImm | tirx.FloatImm) or float(reduction.init.value):
        return None
    whole = Stage(
        reduction.stage.name,
        reduction.stage.spatial,
        reduction.stage.reduction,
        reduction.stage.buffer,
        reduction.stage.indices,
        reduction.term,
        reduction.init,
    )
    stage = split_grouped_axes(whole, include_last=True)
    term = stage.value
    while isinstance(term, tirx.Cast):
        term = term.value
    if not isinstance(term, tirx.Mul):
        return None
    dtype = dtype_of(term)
    if dtype not in (*FLOATS, "int32"):
        return None
    left, right = term.a, term.b
    uses = [variables(left), variables(right)]
    real = [axis for axis in stage.spatial if axis.extent > 1]
    if real and real[-1].var in uses[0] and real[-1].var not in uses[1]:
        left, right, uses = right, left, uses[::-1]
    groups: dict[str, list[Axis]] = {"batch": [], "rows": [], "columns": []}
    for axis in stage.spatial:
        in_a, in_b = axis.var in uses[0], axis.var in uses[1]
        kind = "batch" if in_a == in_b else "rows" if in_a else "columns"
        groups[kind].append(axis)
    a, b = _operand(left, stage), _operand(right, stage)
    depth = tuple(sorted(stage.reduction, key=lambda axis: -_step(axis, a, b)))
    product = Product(
        stage,
        a,
        b,
        tuple(groups["batch"]),
        tuple(groups["rows"]),
        tuple(groups["columns"]),
        depth,
        dtype,
    )
    batch, rows, columns, length = product.sizes
    if rows < _LEAST_ROWS or columns < _LEAST_COLUMNS or length < _LEAST_DEPTH:
        return None
    if batch > _MOST_BATCHES:
        return None
    return product


def _step(axis: Axis, a: Operand, b: Operand) -> int:
    """Return how far an axis moves in memory: the closest comes last."""
    steps = [abs(o.offset.of(axis.var)) for o in (a, b) if o.offset is not None]
    return steps[0] if steps else 0


def _operand(factor: Expr, stage: Stage) -> Operand:
    inner = factor
    while isinstance(inner, tirx.Cast):
        inner = inner.value
    condition = None
    load: Any = inner
    if isinstance(inner, tirx.Select):
        condition, load, other = inner.condition, inner.true_value, inner.false_value
    elif str(getattr(getattr(inner, "op", None), "name", "")).endswith("if_then_else"):
        condition, load, other = inner.args
    while isinstance(load, tirx.Cast):
        load = load.value
    if not isinstance(load, TensorLoad):
        return Operand(factor, None, None)
    fill = 0
    if condition is not None:
        found = _fill(other, str(load.source.dtype))
        if found is None:
            return Operand(factor, None, None)
        fill = found
    names = [axis.var for axis in stage.axes]
    analyzer = sym.Analyzer()
    for axis in stage.axes:
        analyzer.bind(axis.var, range_from_zero(axis.extent))
    offset = linear_form(flat_index(load.source, load.indices), names, analyzer)
    bounds = () if condition is None else _bounds(condition, names, analyzer)
    if offset is None or bounds is None:
        return Operand(factor, None, None)
    return Operand(_raw(condition, load, fill), load, offset, bounds, fill)


def _raw(condition: Expr | None, load: TensorLoad, fill: int) -> Expr:
    """Return the load without casts, and the fill value where it has no data."""
    if condition is None:
        return load
    return tirx.Select(condition, load, tirx.const(fill, str(load.source.dtype)))


def _fill(expr: Expr, dtype: str) -> int | None:
    """Return the constant that stands for data of a type, or None where it is none that copies do:
    zero for all types, any number for bytes.
    """
    while isinstance(expr, tirx.Cast):
        expr = expr.value
    if not isinstance(expr, tirx.IntImm | tirx.FloatImm):
        return None
    value = float(expr.value)
    return int(value) if value == 0.0 or dtype in _BYTES else None


def _bounds(condition: Expr, names: list[Any], analyzer: sym.Analyzer) -> tuple[Bound, ...] | None:
    """Read a conjunction of comparisons as bounds of linear forms; None where it is not one."""
    lower: dict[tuple, list[int]] = {}
    upper: dict[tuple, list[int]] = {}
    forms: dict[tuple, dict[Any, int]] = {}
    for term in conjuncts(condition):
        if not isinstance(term, tirx.LT | tirx.LE | tirx.GT | tirx.GE):
            return None
        form = linear_form(term.a - term.b, names, analyzer)
        if form is None or not form.coefficients:
            return None
        below = isinstance(term, tirx.LT | tirx.LE)
        strict = isinstance(term, tirx.LT | tirx.GT)
        sign = 1 if next(iter(form.coefficients.values())) > 0 else -1
        direction = {var: sign * c for var, c in form.coefficients.items()}
        key = tuple(sorted((str(names.index(var)), c) for var, c in direction.items()))
        forms[key] = direction
        # direction + sign * constant (op) 0, the comparison turned around where sign is -1
        limit = -sign * form.constant
        if below == (sign > 0):
            upper.setdefault(key, []).append(limit - strict)
        else:
            lower.setdefault(key, []).append(limit + strict)
    found = []
    for key, direction in forms.items():
        extents = {var: analyzer.const_int_bound(var) for var in direction}
        least = sum(
            c * (extents[v].min_value if c > 0 else extents[v].max_value)
            for v, c in direction.items()
        )
        most = sum(
            c * (extents[v].max_value if c > 0 else extents[v].min_value)
            for v, c in direction.items()
        )
        first = max([least, *lower.get(key, [])])
        last = min([most, *upper.get(key, [])])
        found.append(Bound(Linear(-first, direction), last - first))
    return tuple(found)
