"""What both of Winograd's transforms are made of: small squares of vectors, and their products.

Written out, first along the columns and then along the rows, a product from both sides needs 2 t^3
multiply-adds at most for t^2 vectors; zeros and ones of the matrices cost nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from tvm import sym, tirx
from tvm.ir import TensorLoad

from tilewright.compiler.schedule.analysis import Axis
from tilewright.compiler.schedule.expressions import Expr, dtype_of, elements, flat_index, rebuild
from tilewright.compiler.schedule.micro_kernel import constant_like, local_buffer, sequence
from tilewright.compiler.winograd import BY_TILE, Matrix, Winograd
from tilewright.errors import InvalidScheduleError


@dataclass(eq=False)
class Builder:
    """Flat views of the parameters, and vector statements on them."""

    params: Sequence[Any]
    lanes: int

    def __post_init__(self) -> None:
        self.declared: list[Any] = []
        self.flat: dict[Any, Any] = {}
        for param in self.params:
            view = tirx.decl_buffer(
                (elements(param),), str(param.dtype), f"{param.name}_flat", layout=None
            )
            self.declared.append(tirx.DeclBuffer(view, data=tirx.buffer_data(param)))
            self.flat[param] = view

    def flatten(self, expr: Expr, analyzer: sym.Analyzer) -> Expr:
        """Return `expr` with every load of a parameter going through its flat view."""

        def leaf(node: Expr) -> Expr | None:
            if not isinstance(node, TensorLoad) or node.source not in self.flat:
                return None
            address = analyzer.simplify(flat_index(node.source, node.indices))
            return tirx.BufferLoad(self.flat[node.source], [address])

        return rebuild(expr, leaf)


def vector(lane: Any, lanes: int, statement: Any) -> Any:
    """Return the statement for all lanes at once."""
    kind = tirx.ForKind.VECTORIZED if lanes > 1 else tirx.ForKind.SERIAL
    return tirx.For(lane, constant_like(0, lane), constant_like(lanes, lane), kind, statement)


class Square:
    """A local array of vectors [rows, columns], and statements that fill it lane by lane.

    Args:
        name: of the buffer.
        rows, columns, lanes: its extents.
        dtype: of indices.
        numbers: of the elements.
    """

    def __init__(
        self, name: str, rows: int, columns: int, lanes: int, dtype: str, numbers: str
    ) -> None:
        self.rows, self.columns = rows, columns
        self.lanes, self.dtype, self.numbers = lanes, dtype, numbers
        self.buffer = local_buffer(name, rows * columns * lanes, numbers)

    def load(self, row: int, column: int, lane: Any) -> Expr:
        """Return an element of one of its vectors."""
        base = (row * self.columns + column) * self.lanes
        return tirx.BufferLoad(self.buffer, [lane + constant_like(base, self.dtype)])

    def filled(self, value_of: Callable[..., Expr]) -> list[Any]:
        """Return the statements that store value_of(lane, row=.., column=..) everywhere."""
        return [
            self.store(row, column, partial(value_of, row=row, column=column))
            for column in range(self.columns)
            for row in range(self.rows)
        ]

    def store(self, row: int, column: int, value_of: Callable[[Any], Expr]) -> Any:
        """Return the statement that stores value_of(lane) in one of its vectors."""
        lane = tirx.Var("lane", self.dtype)
        base = (row * self.columns + column) * self.lanes
        index = lane + constant_like(base, self.dtype)
        value = value_of(lane)
        if dtype_of(value) != self.numbers:
            value = tirx.Cast(self.numbers, value)
        store = tirx.BufferStore(self.buffer, value, [index])
        return vector(lane, self.lanes, store)


def _combine(coefficients: Sequence[float], vectors: Sequence[Expr], numbers: str) -> Expr:
    """Return the sum of coefficient * vector; ones and zeros cost nothing."""

    def number(value: float) -> Expr:
        return tirx.const(value if numbers.startswith("float") else int(value), numbers)

    total: Expr | None = None
    for coefficient, vector in zip(coefficients, vectors, strict=True):
        if coefficient == 0:
            continue
        size = abs(coefficient)
        term = vector if size == 1 else vector * number(size)
        if total is None:
            total = term if coefficient > 0 else number(0) - term
        else:
            total = total + term if coefficient > 0 else total - term
    return number(0) if total is None else total


def transform(
    left: Matrix, right: Matrix, source: Square, middle: Square
) -> tuple[list[Any], Callable[[int, int, Any], Expr]]:
    """Return the statements of left * source, and the elements of that times right^T."""
    size, across, numbers = len(left[0]), len(right[0]), source.numbers

    def half(lane: Any, row: int, column: int) -> Expr:
        return _combine(left[row], [source.load(k, column, lane) for k in range(size)], numbers)

    statements = [
        middle.store(row, column, partial(half, row=row, column=column))
        for column in range(across)
        for row in range(len(left))
    ]

    def element(row: int, column: int, lane: Any) -> Expr:
        return _combine(right[column], [middle.load(row, k, lane) for k in range(across)], numbers)

    return statements, element


def vector_blocks(
    builder: Builder, axis: Axis, body_of: Callable[[Expr, int], list[Any]]
) -> list[Any]:
    """Return a loop over the whole vectors of an axis, and the vector that is left."""
    statements = []
    whole, rest = divmod(axis.extent, builder.lanes)
    dtype = dtype_of(axis.var)
    if whole:
        block = tirx.Var("block", dtype)
        inside = sequence(body_of(block * builder.lanes, builder.lanes))
        zero, count = constant_like(0, block), constant_like(whole, block)
        statements.append(tirx.For(block, zero, count, tirx.ForKind.SERIAL, inside))
    if rest:
        statements += body_of(constant_like(whole * builder.lanes, dtype), rest)
    return statements


def variants(axes: Sequence[Axis]) -> tuple[Winograd, Winograd]:
    """Return what is used along height and width, by the two axes over a tile."""
    try:
        height, width = (BY_TILE[axis.extent] for axis in axes)
    except KeyError as error:
        raise InvalidScheduleError(f"no Winograd variant has tiles of {error.args[0]}") from None
    return height, width
