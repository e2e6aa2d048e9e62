"""The output transform of Winograd's convolution: m x m results of a tile, and the epilogue."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from tvm import sym, tirx
from tvm.ir import TensorLoad

from tilewright.compiler.schedule.analysis import Axis, Stage, inline_loads
from tilewright.compiler.schedule.expressions import (
    Expr,
    dtype_of,
    flat_index,
    loads_in,
    range_from_zero,
    rebuild,
    shape_of,
    substitute,
)
from tilewright.compiler.schedule.micro_kernel import sequence
from tilewright.compiler.schedule.nests import fused_nest
from tilewright.compiler.schedule.winograd_square import (
    Builder,
    Square,
    transform,
    variants,
    vector,
    vector_blocks,
)
from tilewright.errors import InvalidScheduleError

# Of the product where the convolution is dilated; see `passes.lower_winograd`.
_DILATED_RANK = 8
_IMAGES, _TILES = ("image_row", "image_column"), ("tile_row", "tile_column")

Fetch = Callable[[TensorLoad, sym.Analyzer], Expr]
"""Turns a load of the product into one from where the product lies."""


@dataclass(frozen=True, eq=False)
class OutputTile:
    """The loops of an output transform, and what is inside them.

    Attributes:
        batch: axes over images.
        channels: axes over channel blocks; the vector of channels is inside.
        tiles: axes over rows and columns of tiles; with dilation, before them those over images.
        body_of: returns the statements of one tile from the values of these axes.
    """

    batch: list[Axis]
    channels: list[Axis]
    tiles: list[Axis]
    body_of: Callable[[dict[Any, Expr]], Any]


def output_loops(builder: Builder, stages: Sequence[Stage], stage: Stage) -> Any:
    """Loops over tiles and channel vectors; each loads t x t vectors, and stores m x m results."""

    def fetch(product: TensorLoad, analyzer: sym.Analyzer) -> Expr:
        return builder.flatten(product, analyzer)

    tile = output_tile(builder, stages, stage, fetch)
    return fused_nest([*tile.batch, *tile.channels, *tile.tiles], tile.body_of, stage.work)


def output_tile(
    builder: Builder, stages: Sequence[Stage], stage: Stage, fetch: Fetch
) -> OutputTile:
    """Return the loops of an output transform.

    Args:
        builder: views of the parameters.
        stages: all stages of the function.
        stage: the transform.
        fetch: turns a load of the product into one from where it lies.
    """
    (product,) = (load for load in loads_in(stage.value) if not load.source.same_as(stage.buffer))
    high, wide = variants(stage.reduction)
    a, b = (axis.var for axis in stage.reduction)
    height, width = (_axis_in(stage, product.indices[dim]) for dim in (-3, -2))
    # In a blocked layout the channel is made of two axes; the inner one comes last.
    *channels, channel = (a for a in stage.spatial if _uses(product.indices[-1], a.var))
    known = (height, width, channel, *channels)
    batch = [axis for axis in stage.spatial if axis not in known]
    shape = shape_of(product.source)
    dilated = len(shape) == _DILATED_RANK
    steps = shape[-5:-3] if dilated else (1, 1)
    image_axes, tile_axes = (
        [
            Axis(tirx.Var(name, dtype_of(height.var)), n)
            for name, n in zip(names, counts, strict=True)
        ]
        for names, counts in ((_IMAGES, steps), (_TILES, shape[-3:-1]))
    )
    grid = [*image_axes, *tile_axes] if dilated else tile_axes
    final = stages[-1]
    producers = {s.buffer: s for s in stages if s is not stage and s is not final}
    epilogue = inline_loads(final.value, producers) if final is not stage else None
    dtype, numbers = dtype_of(channel.var), str(stage.buffer.dtype)

    def one_vector(values: dict[Any, Expr], start: Expr, lanes: int) -> list[Any]:
        source = Square("tile", high.tile, wide.tile, lanes, dtype, numbers)
        middle = Square("half", high.outputs, wide.tile, lanes, dtype, numbers)
        images = [values[axis.var] for axis in image_axes] if dilated else [0, 0]
        first = {
            axis.var: values[tile.var] * (each.outputs * step) + image
            for axis, each, tile, step, image in zip(
                (height, width), (high, wide), tile_axes, steps, images, strict=True
            )
        }

        def loaded(lane: Any, row: int, column: int) -> Expr:
            analyzer = sym.Analyzer()
            analyzer.bind(lane, range_from_zero(lanes))
            for image, step in zip(images, steps, strict=True):
                if isinstance(image, tirx.Var):
                    analyzer.bind(image, range_from_zero(step))
            point = values | first | {channel.var: start + lane, a: row, b: column}
            return fetch(substitute(product, point), analyzer)

        statements: list[Any] = [tirx.AllocBuffer(source.buffer), tirx.AllocBuffer(middle.buffer)]
        statements += source.filled(loaded)
        more, element = transform(high.result, wide.result, source, middle)
        statements += more
        for row in range(high.outputs):
            for column in range(wide.outputs):
                lane = tirx.Var("lane", dtype)
                moved = {
                    height.var: first[height.var] + row * steps[0],
                    width.var: first[width.var] + column * steps[1],
                }
                point = values | moved | {channel.var: start + lane}
                value = element(row, column, lane)
                store = _finish(builder, stage, final, epilogue, point, value, lane, lanes)
                # Where this element of the last tile of the last image lies.
                last = [
                    ((tiles.extent - 1) * each.outputs + offset + 1) * step - 1
                    for tiles, each, offset, step in zip(
                        tile_axes, (high, wide), (row, column), steps, strict=True
                    )
                ]
                guard = _guard(moved, (height, width), last)
                statements.append(store if guard is None else tirx.IfThenElse(guard, store, None))
        return statements

    def body_of(values: dict[Any, Expr]) -> Any:
        blocks = vector_blocks(
            builder, channel, lambda start, lanes: one_vector(values, start, lanes)
        )
        return sequence(blocks)

    return OutputTile(batch, channels, grid, body_of)


def _finish(
    builder: Builder,
    stage: Stage,
    final: Stage,
    epilogue: Expr | None,
    point: dict[Any, Expr],
    value: Expr,
    lane: Any,
    lanes: int,
) -> Any:
    """Return the store of one result vector, after the epilogue."""
    analyzer = sym.Analyzer()
    analyzer.bind(lane, range_from_zero(lanes))
    if epilogue is not None:
        # The epilogue's axes are those of the transform, one to one.
        own = dict(
            zip(
                (axis.var for axis in final.spatial),
                (point[axis.var] for axis in stage.spatial),
                strict=True,
            )
        )
        point = own
        value = _with_result(substitute(epilogue, own), stage.buffer, value)
    indices = [substitute(index, point) for index in final.indices]
    address = analyzer.simplify(flat_index(final.buffer, indices))
    store = tirx.BufferStore(
        builder.flat[final.buffer], builder.flatten(value, analyzer), [address]
    )
    return vector(lane, lanes, store)


def _with_result(expr: Expr, buffer: Any, value: Expr) -> Expr:
    """Return the epilogue with the transform's result in place of its buffer."""

    def leaf(node: Expr) -> Expr | None:
        is_result = isinstance(node, TensorLoad) and node.source.same_as(buffer)
        return value if is_result else None

    return rebuild(expr, leaf)


def _axis_in(stage: Stage, index: Expr) -> Axis:
    """Return the axis that a tile index is made from; one of its own for the row of a signal."""
    if isinstance(index, tirx.IntImm):
        return Axis(tirx.Var("row", dtype_of(stage.spatial[-1].var)), 1)
    found = [axis for axis in stage.spatial if _uses(index, axis.var)]
    if len(found) != 1:
        raise InvalidScheduleError(f"tile index {index} of {stage.name} is not made of one axis")
    return found[0]


def _uses(expr: Expr, var: Any) -> bool:
    marks: list[bool] = []

    def leaf(node: Expr) -> Expr | None:
        if isinstance(node, tirx.Var) and node.same_as(var):
            marks.append(True)
        return None

    rebuild(expr, leaf)
    return bool(marks)


def _guard(at: dict[Any, Expr], axes: Sequence[Axis], last: Sequence[int]) -> Expr | None:
    """Return the condition that a result lies inside the output, where tiles stick out.

    Args:
        at: its place on each axis.
        axes: height and width.
        last: its place in the last tile.
    """
    terms = [
        at[axis.var] < axis.extent
        for axis, place in zip(axes, last, strict=True)
        if place >= axis.extent
    ]
    if not terms:
        return None
    return terms[0] if len(terms) == 1 else tirx.And(terms[0], terms[1])
