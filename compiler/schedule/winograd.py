"""Schedule Winograd's transforms: one tile and one vector of channels at a time, written out.

A transform multiplies a small square of vectors by a constant matrix from both sides. Written out,
first along the columns and then along the rows, it needs 2 t^3 multiply-adds at most for t^2
vectors; zeros and ones of the matrices cost nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial, reduce
from typing import Any

from tvm import sym, tirx
from tvm.ir import TensorLoad

from tilewright.compiler.schedule.analysis import Axis, Stage, inline_loads, read_stages
from tilewright.compiler.schedule.decision_json import from_line, to_line
from tilewright.compiler.schedule.expressions import (
    Expr,
    dtype_of,
    elements,
    flat_index,
    loads_in,
    range_from_zero,
    rebuild,
    shape_of,
    substitute,
)
from tilewright.compiler.schedule.micro_kernel import constant_like, local_buffer, sequence
from tilewright.compiler.schedule.nests import fused_nest
from tilewright.compiler.targets import Target
from tilewright.compiler.winograd import BY_TILE, INPUT_BLOCK, OUTPUT_BLOCK, Matrix, Winograd
from tilewright.errors import InvalidScheduleError

# Of the product where the convolution is dilated; see `passes.lower_winograd`.
_DILATED_RANK = 8
_IMAGES, _TILES = ("image_row", "image_column"), ("tile_row", "tile_column")

Place = Callable[[int, int, dict[Any, Expr]], tuple[Any, Expr]]
"""(row, column, values of the axes) -> buffer and address of an element of a transformed tile."""

Fetch = Callable[[TensorLoad, sym.Analyzer], Expr]
"""Turns a load of the product into one from where the product lies."""


def find_transform(func: tirx.PrimFunc) -> Stage | None:
    """Return the stage of a Winograd transform in an unscheduled function, if there is one."""
    return find_stage(read_stages(func) or ())


def find_stage(stages: Sequence[Stage]) -> Stage | None:
    """Return the stage of a Winograd transform, if there is one."""
    return next((s for s in stages if s.name.startswith((INPUT_BLOCK, OUTPUT_BLOCK))), None)


@dataclass(frozen=True, slots=True)
class WinogradDecisions:
    """There is one way to write a transform out; nothing is left to decide."""

    def to_json(self) -> str:
        """Return one line of JSON that `from_json` reads back."""
        return to_line("winograd", self)

    @classmethod
    def from_json(cls, text: str) -> WinogradDecisions:
        """Read decisions back.

        Raises:
            InvalidScheduleError: the text holds another kind or other fields.
        """
        return from_line(cls, "winograd", text)


def schedule_winograd(
    func: tirx.PrimFunc, target: Target, _decisions: WinogradDecisions | None = None
) -> tirx.PrimFunc:
    """Return the loops of a transform and of what was fused around it.

    Raises:
        InvalidScheduleError: the function has another form than `LowerWinograd` gives it.
    """
    stages = read_stages(func) or ()
    stage = find_stage(stages)
    assert stage is not None
    builder = Builder(func.params, target.lanes(str(stage.buffer.dtype)))
    if stage.name.startswith(INPUT_BLOCK):
        body = _input(builder, stages, stage)
    else:
        body = _output(builder, stages, stage)
    return tirx.PrimFunc(list(func.params), sequence([*builder.declared, body]), attrs=func.attrs)


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


def _vector(lane: Any, lanes: int, statement: Any) -> Any:
    kind = tirx.ForKind.VECTORIZED if lanes > 1 else tirx.ForKind.SERIAL
    return tirx.For(lane, constant_like(0, lane), constant_like(lanes, lane), kind, statement)


class _Square:
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
        lane = tirx.Var("lane", self.dtype)
        base = (row * self.columns + column) * self.lanes
        index = lane + constant_like(base, self.dtype)
        value = value_of(lane)
        if dtype_of(value) != self.numbers:
            value = tirx.Cast(self.numbers, value)
        store = tirx.BufferStore(self.buffer, value, [index])
        return _vector(lane, self.lanes, store)


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


def _transform(
    left: Matrix, right: Matrix, source: _Square, middle: _Square
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


def _vector_blocks(
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


def _variants(axes: Sequence[Axis]) -> tuple[Winograd, Winograd]:
    """Return what is used along height and width, by the two axes over a tile."""
    try:
        height, width = (BY_TILE[axis.extent] for axis in axes)
    except KeyError as error:
        raise InvalidScheduleError(f"no Winograd variant has tiles of {error.args[0]}") from None
    return height, width


def _input(builder: Builder, stages: Sequence[Stage], stage: Stage) -> Any:
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
    high, wide = _variants(stage.spatial[:2])
    producers = {s.buffer: s for s in stages if s is not stage}
    (data,) = (load for load in loads_in(stage.value) if not load.source.same_as(stage.buffer))
    source_value = inline_loads(data, producers)
    i, j = (axis.var for axis in stage.reduction)
    dtype, numbers = dtype_of(channel.var), str(stage.buffer.dtype)

    def one_vector(values: dict[Any, Expr], start: Expr, lanes: int, is_inside: bool) -> list[Any]:
        source = _Square("tile", high.tile, wide.tile, lanes, dtype, numbers)
        middle = _Square("half", high.tile, wide.tile, lanes, dtype, numbers)

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
        more, element = _transform(high.data, wide.data, source, middle)
        statements += more
        for row in range(high.tile):
            for column in range(wide.tile):
                lane = tirx.Var("lane", dtype)
                point, analyzer = at(lane, 0, 0)
                buffer, address = place(row, column, point)
                value = element(row, column, lane)
                store = tirx.BufferStore(buffer, value, [analyzer.simplify(address)])
                statements.append(_vector(lane, lanes, store))
        return statements

    def corner(values: dict[Any, Expr], row: int, column: int) -> list[Expr]:
        """Return the conditions of the padding at an element of a tile."""
        point = values | {channel.var: constant_like(0, dtype), i: row, j: column}
        return _conditions(substitute(source_value, point))

    def body_of(values: dict[Any, Expr]) -> Any:
        def blocks(is_inside: bool) -> Any:
            return sequence(
                _vector_blocks(
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


def _output(builder: Builder, stages: Sequence[Stage], stage: Stage) -> Any:
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
    high, wide = _variants(stage.reduction)
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
        source = _Square("tile", high.tile, wide.tile, lanes, dtype, numbers)
        middle = _Square("half", high.outputs, wide.tile, lanes, dtype, numbers)
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
        more, element = _transform(high.result, wide.result, source, middle)
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
        blocks = _vector_blocks(
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
    return _vector(lane, lanes, store)


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
