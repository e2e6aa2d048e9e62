"""The input transform of Winograd's convolution: t x t vectors of a tile, padding among them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import reduce
from typing import Any

from tvm import sym, tirx

from tilewright.compiler.schedule.analysis import Stage, inline_loads
from tilewright.compiler.schedule.expressions import (
    Expr,
    dtype_of,
    flat_index,
    loads_in,
    range_from_zero,
    rebuild,
    substitute,
)
from tilewright.compiler.schedule.micro_kernel import constant_like, sequence
from tilewright.compiler.schedule.nests import fused_nest
from tilewright.compiler.schedule.winograd_square import (
    Builder,
    Square,
    transform,
    variants,
    vector,
    vector_blocks,
)

Place = Callable[[int, int, dict[Any, Expr]], tuple[Any, Expr]]
"""(row, column, values of the axes) -> buffer and address of an element of a transformed tile."""


def input_loops(builder: Builder, stages: Sequence[Stage], stage: Stage) -> Any:
    """Loops over tiles and channel vectors; each loads t x t vectors and stores t x t."""
    a, b, *tiles, _channel = stage.spatial

    def place(row: int, column: int, point: dict[Any, Expr]) -> tuple[Any, Expr]:
        at = point | {a.var: row, b.var: column}
        indices = [substitute(index, at) for index in stage.indices]
        return builder.flat[stage.buffer], flat_index(stage.buffer, indices)

    return fused_nest(tiles, input_tile(builder, stages, stage, place), stage.work)


def input_tile(
    builder: Builder, stages: Sequence[Stage], stage: Stage, place: Place
) -> Callable[[dict[Any, Expr]], Any]:
    """Return what makes the statements of one tile from the values of the tile axes.

    Args:
        builder: views of the parameters.
        stages: all stages of the function.
        stage: the transform.
        place: where row and column of the transformed tile are stored, at values of the tile and
            channel axes.
    """
    channel = stage.spatial[-1]
    high, wide = variants(stage.spatial[:2])
    producers = {s.buffer: s for s in stages if s is not stage}
    (data,) = (load for load in loads_in(stage.value) if not load.source.same_as(stage.buffer))
    source_value = inline_loads(data, producers)
    i, j = (axis.var for axis in stage.reduction)
    dtype, numbers = dtype_of(channel.var), str(stage.buffer.dtype)

    def one_vector(values: dict[Any, Expr], start: Expr, lanes: int, is_inside: bool) -> list[Any]:
        source = Square("tile", high.tile, wide.tile, lanes, dtype, numbers)
        middle = Square("half", high.tile, wide.tile, lanes, dtype, numbers)

        def at(lane: Any, row: int, column: int) -> tuple[dict[Any, Expr], sym.Analyzer]:
            analyzer = sym.Analyzer()
            analyzer.bind(lane, range_from_zero(lanes))
            return values | {channel.var: start + lane, i: row, j: column}, analyzer

        def loaded(lane: Any, row: int, column: int) -> Expr:
            point, analyzer = at(lane, row, column)
            value = substitute(source_value, point)
            return builder.flatten(_simplify_conditions(value, analyzer, is_inside), analyzer)

        statements: list[Any] = [tirx.AllocBuffer(source.buffer), tirx.AllocBuffer(middle.buffer)]
        statements += source.filled(loaded)
        more, element = transform(high.data, wide.data, source, middle)
        statements += more
        for row in range(high.tile):
            for column in range(wide.tile):
                lane = tirx.Var("lane", dtype)
                point, analyzer = at(lane, 0, 0)
                buffer, address = place(row, column, point)
                value = element(row, column, lane)
                store = tirx.BufferStore(buffer, value, [analyzer.simplify(address)])
                statements.append(vector(lane, lanes, store))
        return statements

    def corner(values: dict[Any, Expr], row: int, column: int) -> list[Expr]:
        """Return the conditions of the padding at an element of a tile."""
        point = values | {channel.var: constant_like(0, dtype), i: row, j: column}
        return _conditions(substitute(source_value, point))

    def body_of(values: dict[Any, Expr]) -> Any:
        def blocks(is_inside: bool) -> Any:
            return sequence(
                vector_blocks(
                    builder,
                    channel,
                    lambda start, lanes: one_vector(values, start, lanes, is_inside),
                )
            )

        # A tile lies inside the image if its first and last element do.
        ends = ((0, 0), (high.tile - 1, wide.tile - 1))
        conditions = [sym.Analyzer().simplify(c) for place in ends for c in corner(values, *place)]
        if not conditions:
            return blocks(True)
        return tirx.IfThenElse(reduce(tirx.And, conditions), blocks(True), blocks(False))

    return body_of


def _is_if(node: Expr) -> bool:
    return str(getattr(getattr(node, "op", None), "name", "")).endswith("if_then_else")


def _simplify_conditions(expr: Expr, analyzer: sym.Analyzer, is_inside: bool) -> Expr:
    """Simplify the conditions of padding, which do not depend on the lane.

    Args:
        expr: what a tile loads.
        analyzer: knows the lane.
        is_inside: the conditions are known to hold.
    """

    def leaf(node: Expr) -> Expr | None:
        if not _is_if(node):
            return None
        condition, inside, outside = node.args
        if is_inside:
            return rebuild(inside, leaf)
        return tirx.if_then_else(analyzer.simplify(condition), inside, outside)

    return rebuild(expr, leaf)


def _conditions(expr: Expr) -> list[Expr]:
    """Return the conditions of padding in an expression."""
    found: list[Expr] = []

    def leaf(node: Expr) -> Expr | None:
        if _is_if(node):
            found.append(node.args[0])
        return None

    rebuild(expr, leaf)
    return found
