"""Schedule a whole Winograd convolution in strips of tiles, so that its products stay in cache.

    for strip in parallel:
        V[t, t, tiles of the strip, C] = transformed input tiles
        M[t, t, tiles of the strip, O] = V * U
        y = transformed M, with the epilogue

V and M of a large image are several times as large as the image and would go through memory twice;
those of a strip are scratch memory that fits the second cache level. The transformed weights U are
read once for each strip: this pays where they stay in cache.

With a depth, V and M have it before the tiles, and a strip has some tiles of all slices: a slice
of V then serves all slices of M that read it.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from math import prod
from typing import Any

from tvm import sym, te, tirx
from tvm.ir import TensorLoad

from tilewright.compiler.schedule.analysis import Anchor, Axis, find_anchor, read_stages
from tilewright.compiler.schedule.contraction import (
    ContractionDecisions,
    default_contraction,
    plan_contraction,
)
from tilewright.compiler.schedule.expressions import (
    Expr,
    dtype_of,
    loads_in,
    shape_of,
)
from tilewright.compiler.schedule.micro_kernel import constant_like, sequence
from tilewright.compiler.schedule.nests import is_parallel_worth
from tilewright.compiler.schedule.tile_loops import KernelBuilder, TilePlan
from tilewright.compiler.schedule.vector_nest import Loop, serial_nest
from tilewright.compiler.schedule.winograd import find_stage, find_transform
from tilewright.compiler.schedule.winograd_input import input_tile
from tilewright.compiler.schedule.winograd_output import output_tile
from tilewright.compiler.schedule.winograd_square import Builder
from tilewright.compiler.targets import Target
from tilewright.errors import InvalidScheduleError

_FLOAT_BYTES = 4
# The part of the second cache level that V and M of a strip may fill; weights stream through it.
_L2_SHARE = 0.5
# Dimensions of V and M without a depth, and where that is.
_PLANAR_RANK = 6
_DEPTH = 3
# Register tiles of fewer rows would not reach the peak.
_FEWEST_TILES = 8


@dataclass(frozen=True, slots=True)
class StripShape:
    """The sizes of a Winograd convolution.

    Attributes:
        points: elements of a transformed tile.
        tiles: number of tiles of all images.
        inputs: input channels.
        outputs: output channels.
        slices: that are read and written along the depth, padding included; (1, 1) without one.
    """

    points: int
    tiles: int
    inputs: int
    outputs: int
    slices: tuple[int, int] = (1, 1)

    @classmethod
    def read(cls, transformed: Sequence[int], product: Sequence[int]) -> StripShape:
        """Return the sizes by those of V [t, t, N, (D,) TH, TW, C] and M [.., O]."""
        *sides, images, rows, columns, inputs = _without_depth(transformed)
        slices, outputs = (_depth(transformed), _depth(product)), product[-1]
        return cls(prod(sides), images * rows * columns, inputs, outputs, slices)

    @property
    def taps(self) -> int:
        """Slices that one result sums."""
        return self.slices[0] - self.slices[1] + 1

    @property
    def tile_bytes(self) -> int:
        """Size of V and M of one tile."""
        channels = self.slices[0] * self.inputs + self.slices[1] * self.outputs
        return _FLOAT_BYTES * self.points * channels

    @property
    def product_bytes(self) -> int:
        """Size of V and M of all tiles."""
        return self.tiles * self.tile_bytes

    @property
    def weight_bytes(self) -> int:
        """Size of the transformed weights."""
        return _FLOAT_BYTES * self.points * self.taps * self.inputs * self.outputs

    def strip_tiles(self, target: Target) -> int:
        """Return how many tiles one strip has."""
        most = max(_FEWEST_TILES, int(_L2_SHARE * target.l2_bytes) // self.tile_bytes)
        strips = -(-self.tiles // most)
        return -(-self.tiles // strips)


def _depth(shape: Sequence[int]) -> int:
    """Return the slices of V or M."""
    return shape[_DEPTH] if len(shape) > _PLANAR_RANK else 1


def _without_depth(shape: Sequence[int]) -> list[int]:
    return [n for at, n in enumerate(shape) if at != _DEPTH or len(shape) <= _PLANAR_RANK]


def schedule_strips(
    transform_in: tirx.PrimFunc,
    weight: Any,
    transform_out: tirx.PrimFunc,
    target: Target,
    tiles: int | None = None,
    decisions: ContractionDecisions | None = None,
) -> tirx.PrimFunc:
    """Return one function for the input transform, the product and the output transform.

    Args:
        transform_in: unscheduled, its last parameter is V [t, t, N, (D,) TH, TW, C].
        weight: parameter of the packed weights U [t, t, (K,) O / lanes, C, lanes].
        transform_out: unscheduled, with its epilogue; reads M [t, t, N, (D,) TH, TW, O].
        target: what to schedule for.
        tiles: how many tiles a strip has; None chooses by the size of the cache.
        decisions: how the product of all tiles is computed best; each strip follows as far as its
            fewer rows allow.

    Returns:
        A function whose parameters are those of `transform_in` without V, the weights, and those of
        `transform_out` without M.

    Raises:
        InvalidScheduleError: the functions have another form than `LowerWinograd` gives them.
    """
    return _Strips(transform_in, weight, transform_out, target, tiles, decisions).build()


class _ProductBuilder(KernelBuilder):
    """A product between buffers that another kernel has declared."""

    def build_on(self, views: Mapping[Any, Any]) -> Any:
        """Return the loops; `views` are the flat buffers of the parameters."""
        self._flat.update(views)
        return self.build().body


def product_parameter(transform_out: tirx.PrimFunc) -> int | None:
    """Return which parameter of an output transform the product is; None if it is computed."""
    stage = find_transform(transform_out)
    sources = [] if stage is None else [load.source for load in loads_in(stage.value)]
    for position, param in enumerate(transform_out.params):
        if any(source.same_as(param) for source in sources):
            return position
    return None


class _Strips:
    def __init__(
        self,
        transform_in: tirx.PrimFunc,
        weight: Any,
        transform_out: tirx.PrimFunc,
        target: Target,
        tiles: int | None,
        decisions: ContractionDecisions | None,
    ) -> None:
        self.target, self.decisions = target, decisions
        self.lanes = target.lanes("float32")
        self.stages_in = read_stages(transform_in) or ()
        self.stages_out = read_stages(transform_out) or ()
        stage_in, stage_out = find_stage(self.stages_in), find_stage(self.stages_out)
        product = product_parameter(transform_out)
        if stage_in is None or stage_out is None or product is None:
            raise InvalidScheduleError("the functions are not the transforms around a product")
        self.stage_in, self.stage_out = stage_in, stage_out
        self.product = transform_out.params[product]
        kept = [p for i, p in enumerate(transform_out.params) if i != product]
        self.weight = weight
        self.params = [*transform_in.params[:-1], weight, *kept]
        self.shape = StripShape.read(shape_of(transform_in.params[-1]), shape_of(self.product))
        images, *_, rows, columns, _ = shape_of(transform_in.params[-1])[2:]
        self.grid = (images, rows, columns)
        self.tiles = tiles or self.shape.strip_tiles(target)
        # One row more than needed: all points of a tile would else fall into the same cache sets.
        self.rows = self.tiles + 1
        self.dtype = dtype_of(self.stage_in.spatial[-1].var)
        self.builder = Builder(self.params, self.lanes)
        read, written = self.shape.slices
        self.transformed = self._scratch("transformed", read * self.rows * self.shape.inputs)
        self.result = self._scratch("result", written * self.tiles * self.shape.outputs)

    def build(self) -> tirx.PrimFunc:
        strips = -(-self.shape.tiles // self.tiles)
        strip = tirx.Var("strip", self.dtype)
        first = tirx.Var("first", self.dtype)
        count: Expr = self._number(self.tiles)
        if self.shape.tiles % self.tiles:
            count = tirx.min(count, self._number(self.shape.tiles) - first)
        body = sequence(
            [
                tirx.Bind(first, strip * self.tiles),
                tirx.AllocBuffer(self.transformed),
                tirx.AllocBuffer(self.result),
                self._input(first, count),
                self._product(),
                self._output(first, count),
            ]
        )
        work = self.shape.tiles * self.shape.weight_bytes
        parallel = strips > 1 and is_parallel_worth(work)
        kind = tirx.ForKind.PARALLEL if parallel else tirx.ForKind.SERIAL
        loop = tirx.For(strip, self._number(0), self._number(strips), kind, body)
        return tirx.PrimFunc(self.params, sequence([*self.builder.declared, loop]))

    def _number(self, value: int) -> Expr:
        return constant_like(value, self.dtype)

    def _scratch(self, name: str, point_elements: int) -> Any:
        size = self.shape.points * point_elements
        return tirx.decl_buffer((size,), "float32", name, layout=None)

    def _over_tiles(
        self, first: Expr, count: Expr, body_of: Callable[[Any, list[Expr]], Any]
    ) -> Any:
        """Return a loop over the tiles of a strip, with the place of each tile on the grid."""
        number = tirx.Var("tile_of_strip", self.dtype)
        row = (first + number) // self.grid[2]
        place = [row // self.grid[1], row % self.grid[1], (first + number) % self.grid[2]]
        values = [tirx.Var(name, self.dtype) for name in ("image", "tile_row", "tile_column")]
        binds = [tirx.Bind(var, value) for var, value in zip(values, place, strict=True)]
        body = sequence([*binds, body_of(number, values)])
        return tirx.For(number, self._number(0), count, tirx.ForKind.SERIAL, body)

    def _input(self, first: Expr, count: Expr) -> Any:
        _, b, image_axis, *depth, high, wide, channel = self.stage_in.spatial
        slices = self.shape.slices[0]

        def body_of(number: Any, values: list[Expr]) -> Any:
            def place(row: int, column: int, point: dict[Any, Expr]) -> tuple[Any, Expr]:
                at = self._number((row * b.extent + column) * slices)
                for axis in depth:
                    at = at + point[axis.var]
                at = (number + at * self.rows) * self.shape.inputs
                return self.transformed, at + point[channel.var]

            axes = (image_axis, high, wide)
            point = dict(zip((axis.var for axis in axes), values, strict=True))
            tile = input_tile(self.builder, self.stages_in, self.stage_in, place)
            return self._over_slices(depth, point, tile)

        return self._over_tiles(first, count, body_of)

    def _over_slices(
        self, depth: Sequence[Axis], point: dict[Any, Expr], body_of: Callable[..., Any]
    ) -> Any:
        """Return a loop over the depth, if there is one, with its values among the others."""
        if not depth:
            return body_of(point)
        loops = [Loop((axis,)) for axis in depth]

        def inside(values: Sequence[Expr]) -> Any:
            slices = {axis.var: value for axis, value in zip(depth, values, strict=True)}
            return body_of(point | slices)

        return serial_nest(loops, self.dtype, inside)

    def _product(self) -> Any:
        """Return the matrix product of a strip."""
        shape, lanes = self.shape, self.lanes
        vectors = shape.outputs // lanes
        read, written = shape.slices
        deep = shape.slices != (1, 1)
        data_shape = (shape.points, *[read] * deep, self.rows, shape.inputs)
        weight_shape = (shape.points, *[shape.taps] * deep, vectors, shape.inputs, lanes)
        data = te.placeholder(data_shape, name="transformed")
        weight = te.placeholder(weight_shape, name="weights")
        k = te.reduce_axis((0, shape.inputs), "k")
        taps = [te.reduce_axis((0, shape.taps), "tap")] * deep

        def element(p: Expr, *place: Expr) -> Expr:
            *slices, row, o = place
            reads = [at + tap for at, tap in zip(slices, taps, strict=True)]
            factor = weight(p, *taps, o // lanes, k, o % lanes)
            return te.sum(data(p, *reads, row, k) * factor, axis=[*taps, k])

        result = te.compute(
            (shape.points, *[written] * deep, self.tiles, shape.outputs), element, name="product"
        )
        func = te.create_prim_func([data, weight, result])
        stages = read_stages(func) or ()
        anchor = find_anchor(stages, lanes)
        assert anchor is not None
        plan = self._plan(anchor)
        views = [self.transformed, self.builder.flat[self.weight], self.result]
        builder = _ProductBuilder(func, stages, anchor, plan, lanes)
        return _serial(builder.build_on(dict(zip(func.params, views, strict=True))))

    def _plan(self, anchor: Anchor) -> TilePlan:
        """Return the plan of a strip's product: the tuned one, or where it does not fit our own."""
        if self.decisions is not None:
            with contextlib.suppress(InvalidScheduleError):
                return plan_contraction(anchor, self._of_strip(self.decisions), self.target)
        decisions = default_contraction(anchor, replace(self.target, cores=1))
        return plan_contraction(anchor, decisions, self.target)

    def _of_strip(self, decisions: ContractionDecisions) -> ContractionDecisions:
        """Return decisions about all tiles as those about the tiles of a strip."""
        rows = min(decisions.row_tile[1], self.tiles)
        blocks = -(-self.tiles // rows)
        return replace(
            decisions, row_tile=(1, rows), fused_rows=1, row_block=min(decisions.row_block, blocks)
        )

    def _output(self, first: Expr, count: Expr) -> Any:
        side = self.stage_out.reduction[1].extent

        def body_of(number: Any, values: list[Expr]) -> Any:
            def fetch(load: TensorLoad, analyzer: sym.Analyzer) -> Expr:
                row, column, _, *slices, _, _, channel = load.indices
                at = (row * side + column) * self.shape.slices[1]
                for at_slice in slices:
                    at = at + at_slice
                at = (at * self.tiles + number) * self.shape.outputs + channel
                return tirx.BufferLoad(self.result, [analyzer.simplify(at)])

            tile = output_tile(self.builder, self.stages_out, self.stage_out, fetch)
            image, *place = values
            point = dict(zip((axis.var for axis in tile.tiles), place, strict=True))
            # Images come first in every layout.
            images, *depth = tile.batch
            point[images.var] = image

            def channels(at: dict[Any, Expr]) -> Any:
                return serial_nest(
                    [Loop((axis,)) for axis in tile.channels],
                    self.dtype,
                    lambda blocks: tile.body_of(
                        at | {axis.var: v for axis, v in zip(tile.channels, blocks, strict=True)}
                    ),
                )

            return self._over_slices(depth, point, channels)

        return self._over_tiles(first, count, body_of)


def _serial(body: Any) -> Any:
    """Return the loops of a product on one thread: the strips around it are parallel."""
    if isinstance(body, tirx.For) and body.kind == tirx.ForKind.PARALLEL:
        return tirx.For(body.loop_var, body.min, body.extent, tirx.ForKind.SERIAL, body.body)
    return body
