"""Contractions whose weights outgrow the cache: the reduction is walked panel by panel.

A tile that runs over the whole reduction reads every weight of its columns. Where these are more
than the second cache level holds, each of a few rows of tiles reads them again from the third, and
an image of 7 x 7 with 512 channels waits for that. Here a task walks a panel of the reduction for
all its tiles before the next one, so that a panel is read once from far and then from near; between
two panels the sums of a tile wait in memory (the loop around the micro-kernel over k_c in Goto and
van de Geijn, "Anatomy of high-performance matrix multiplication", 2008, section 4).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from math import prod
from typing import TYPE_CHECKING, Any

from tvm import tirx

from tilewright.compiler.schedule.analysis import Access, Anchor
from tilewright.compiler.schedule.cost import (
    choose_tile,
    data_is_far,
    row_tiles,
    rows_for,
    weights_fit,
)
from tilewright.compiler.schedule.expressions import Expr
from tilewright.compiler.schedule.micro_kernel import (
    ReductionLoop,
    constant_like,
    local_buffer,
    ramp,
    sequence,
    splat,
)
from tilewright.compiler.schedule.padding import read_clips
from tilewright.compiler.schedule.tile_geometry import TileGeometry
from tilewright.compiler.schedule.tile_loops import KernelBuilder, TaskGrid
from tilewright.compiler.schedule.tiling import tile_count
from tilewright.compiler.schedule.weights_ahead import next_columns, weights_ahead
from tilewright.compiler.targets import Target
from tilewright.errors import InvalidScheduleError

if TYPE_CHECKING:
    from tilewright.compiler.schedule.contraction import ContractionDecisions

# Sums of one task that wait between panels, by default and at most. They stream, a tile at a time.
_PARTIAL_BYTES = 24 << 10
MOST_PARTIAL_BYTES = 64 << 10
# Steps between two of the window: 8 instead of 32 cost 17% with 512 channels of 2 x 7 x 7.
_SHORTEST_RUN = 32
# Fewer steps than this do not pay for loading and storing the sums.
_FEWEST_STEPS = 128


def panel_axis(anchor: Anchor) -> int:
    """Return the reduction axis that panels cut: the longest that no padding bounds."""
    free = _unbounded(anchor) or range(len(anchor.stage.reduction))
    return max(free, key=lambda position: anchor.stage.reduction[position].extent)


def _unbounded(anchor: Anchor) -> list[int]:
    """Return the reduction axes that no padding bounds: channels, not the window."""
    bounded = {
        clip.reduction
        for access in anchor.accesses
        if access.pad is not None and access.pad.bounds
        for clip in read_clips(access, anchor) or []
    }
    return [position for position in range(len(anchor.stage.reduction)) if position not in bounded]


def _inner_steps(anchor: Anchor) -> int:
    """Return the steps of the other channel axes for each step of the one that panels cut."""
    cut = panel_axis(anchor)
    others = (position for position in _unbounded(anchor) if position != cut)
    return prod(anchor.stage.reduction[position].extent for position in others)


def check_panel(anchor: Anchor, decisions: ContractionDecisions) -> None:
    """Refuse panels that do not divide their axis, or leave too many sums in memory.

    Raises:
        InvalidScheduleError: so it is.
    """
    if not decisions.panel:
        return
    extent = anchor.stage.reduction[panel_axis(anchor)].extent
    name = anchor.stage.name
    if decisions.panel >= extent or extent % decisions.panel:
        raise InvalidScheduleError(
            f"panels of {decisions.panel} do not cut the {extent} steps of {name!r} evenly"
        )
    waiting = prod(decisions.row_tile) * decisions.column_vectors * anchor.lanes * 4
    waiting *= decisions.row_block
    if waiting > MOST_PARTIAL_BYTES:
        raise InvalidScheduleError(
            f"{waiting} bytes of sums of {name!r} would wait between panels, at most "
            f"{MOST_PARTIAL_BYTES} may"
        )


def panel_options(anchor: Anchor, target: Target) -> list[int]:
    """Return panels worth trying, in steps: with two vectors, from the first to the second level.

    Empty where there are none: tiles multiply by lanes, or there is nothing to cut.
    """
    if target.multiplies_by_lane or anchor.dtype != "float32":
        return []
    extents = [axis.extent for axis in anchor.stage.reduction]
    extent = extents[panel_axis(anchor)]
    step_bytes = prod(extents) // extent * 2 * anchor.lanes * 4
    return [
        steps
        for steps in range(1, extent)
        if extent % steps == 0
        and target.l1_bytes // 4 <= steps * step_bytes <= target.l2_bytes
        and steps * (prod(extents) // extent) >= _FEWEST_STEPS
    ]


def with_panels(
    anchor: Anchor, target: Target, decisions: ContractionDecisions
) -> ContractionDecisions:
    """Return decisions with panels where the weights of a tile outgrow the second cache level."""
    if decisions.chains > 1:
        return decisions
    far = data_is_far(anchor, target)
    row_tile, vectors = decisions.row_tile, decisions.column_vectors
    depth = anchor.depth
    if not far:
        near = replace(target, l2_bytes=1 << 40)  # no tile reads its weights from far any more
        whole_rows = not decisions.clip_pad
        fused, rows_as = decisions.fused_rows, rows_for(target)
        row_tile, vectors = choose_tile(anchor, near, fused, whole_rows, rows_as)
        if weights_fit(depth, vectors, target):
            return decisions
    tiles = row_tiles(anchor, decisions.fused_rows, row_tile)
    cell_bytes = prod(row_tile) * vectors * anchor.lanes * 4
    block = tile_count(tiles, tile_count(tiles * cell_bytes, _PARTIAL_BYTES))
    extent = anchor.stage.reduction[panel_axis(anchor)].extent
    step_bytes = depth // extent * vectors * anchor.lanes * 4
    options = [
        steps
        for steps in panel_options(anchor, target)
        if steps * _inner_steps(anchor) >= _SHORTEST_RUN
    ]
    if block < 2 or not options:
        return decisions
    # About the first level. Measured on Zen 3, 28 x 28 dilated by 4: 27 KiB 32.1 ms, 55 KiB
    # 33.9 ms, 110 KiB 33.9 ms, no panels 39.9 ms; 7 x 7: 2.13, 2.28, 2.25 and 2.90 ms.
    # Where data passes through the second level, an eighth of that: 128 x 3072 x 768 on Cascade
    # Lake, 24 KiB 5.08 ms, 98 KiB 4.84 ms, 196 KiB 5.13 ms, no panels 5.13 ms.
    # Two of them do not pay: 512 x 512 x 512 2.42 ms, without 2.12 ms; 512 x 768 x 768 1.05 times.
    most = target.l2_bytes // 8 if far else target.l1_bytes
    if extent * step_bytes <= 2 * most:
        return decisions
    near_ones = [steps for steps in options if steps * step_bytes <= most]
    panel = near_ones[-1] if near_ones else options[0]
    return replace(
        decisions,
        row_tile=row_tile,
        column_vectors=vectors,
        row_block=block,
        panel=panel,
        unroll=min(decisions.unroll, panel),
    )


class PanelKernelBuilder(KernelBuilder):
    """Builds a task as a loop over panels around the loop over its row tiles."""

    panel: Any
    partial: Any
    at: Any

    def task_loops(self, task: Any, grid: TaskGrid) -> list[Any]:
        """Return what a task does: sums of nothing, panel by panel on them, then the epilogue."""
        cells = prod(self.plan.row_tile) * self.plan.column_vectors
        lanes = self.anchor.lanes
        self.partial = local_buffer("partial", grid.block * cells * lanes, self.anchor.dtype)
        zero = constant_like(0, self.index_dtype)
        cell = tirx.Var("cell", self.index_dtype)
        value = splat(self.stage.init, lanes)
        start = tirx.BufferStore(self.partial, value, [ramp(cell * lanes, 1, lanes)])
        count = constant_like(grid.block * cells, self.index_dtype)
        self.panel = tirx.Var("panel", self.index_dtype)
        extent = self.stage.reduction[self.plan.panel_axis].extent // self.plan.panel
        panels = constant_like(extent, self.index_dtype)
        serial = tirx.ForKind.SERIAL
        add = partial(self._add_panel, grid)
        sums = sequence(self.row_loop(task, grid, add))
        return [
            tirx.AllocBuffer(self.partial),
            tirx.For(cell, zero, count, serial, start),
            tirx.For(self.panel, zero, panels, serial, sums),
            *self.row_loop(task, grid, self._finish),
        ]

    def _add_panel(self, grid: TaskGrid, geometry: TileGeometry, number: Expr) -> Any:
        """Return the code of one tile and panel."""
        axis = self.stage.reduction[self.plan.panel_axis]
        statements: list[Any] = []
        bases = []
        for position, access in enumerate(self.accesses):
            base = tirx.Var(f"base{position}", self.index_dtype)
            step = access.offset.of(axis.var) * self.plan.panel
            begin = geometry.base(access)
            statements.append(tirx.Bind(base, begin + self.panel * step if step else begin))
            bases.append(base)
        depth = self.anchor.depth // axis.extent * self.plan.panel
        next_panel = partial(self._next_panel, grid)
        ahead = weights_ahead(self, bases, number, grid, depth, next_panel)
        start = self._load(geometry, number)
        tile = replace(self.register_tile(geometry), start=start, ahead=ahead)
        accumulators, body = self.emit(tile, bases)
        return sequence([*statements, *body, *self._store(accumulators, geometry, number)])

    def _next_panel(self, grid: TaskGrid, access: Access) -> Expr:
        """Return how far the next panel is: of these columns, after the last one of the next."""
        axis = self.stage.reduction[self.plan.panel_axis]
        step = access.offset.of(axis.var) * self.plan.panel
        last = axis.extent // self.plan.panel - 1
        begin = next_columns(self, grid, access) - last * step
        first, others = (constant_like(value, self.index_dtype) for value in (begin, step))
        return tirx.Select(self.panel < last, others, first)

    def reduction_loops(self, geometry: TileGeometry) -> tuple[ReductionLoop, ...]:
        """Return the loops of one panel."""
        loops = super().reduction_loops(geometry)
        steps = self.plan.panel
        return tuple(
            replace(loop, end=steps, unroll=min(loop.unroll, steps))
            if loop.position == self.plan.panel_axis
            else loop
            for loop in loops
        )

    def _finish(self, geometry: TileGeometry, number: Expr) -> Any:
        """Return the epilogue of one tile."""
        cells = len(geometry.row_offsets) * geometry.column_count
        accumulators = local_buffer("accumulators", cells * self.anchor.lanes, self.anchor.dtype)
        loads = self._load(geometry, number)
        statements = [
            tirx.BufferStore(accumulators, load, [self._cell(cell)])
            for cell, load in enumerate(loads)
        ]
        stores = self.epilogue.stores(accumulators, geometry)
        return sequence([tirx.AllocBuffer(accumulators), *statements, *stores])

    def _cell(self, cell: int) -> Expr:
        lanes = self.anchor.lanes
        return ramp(constant_like(cell * lanes, self.index_dtype), 1, lanes)

    def _places(self, geometry: TileGeometry, number: Expr) -> list[Expr]:
        """Return where the sums of a tile wait, row by row as in its accumulators."""
        lanes = self.anchor.lanes
        cells = prod(self.plan.row_tile) * self.plan.column_vectors
        used = len(geometry.row_offsets) * geometry.column_count
        return [ramp(number * (cells * lanes) + cell * lanes, 1, lanes) for cell in range(used)]

    def _load(self, geometry: TileGeometry, number: Expr) -> tuple[Expr, ...]:
        places = self._places(geometry, number)
        return tuple(tirx.BufferLoad(self.partial, [place]) for place in places)

    def _store(self, accumulators: Any, geometry: TileGeometry, number: Expr) -> Sequence[Any]:
        return [
            tirx.BufferStore(
                self.partial, tirx.BufferLoad(accumulators, [self._cell(cell)]), [place]
            )
            for cell, place in enumerate(self._places(geometry, number))
        ]
