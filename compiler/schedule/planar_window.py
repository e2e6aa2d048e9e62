"""Register tiles of windows over planes: neighbouring pixels are the vectors.

A plane is walked in blocks of rows. What a block reads is first copied with its borders into a
small buffer that stays in the first cache level, so that no vector tests for the border; where the
window moves by two pixels, even and odd ones come to lie apart, so that no vector is gathered.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from tvm import tirx

from tilewright.compiler.schedule.analysis import Access, Anchor
from tilewright.compiler.schedule.cost import column_vectors
from tilewright.compiler.schedule.expressions import (
    Expr,
    Linear,
    elements,
    substitute,
)
from tilewright.compiler.schedule.micro_kernel import (
    Emitter,
    Point,
    RegisterTile,
    constant_like,
    emit_reduction,
    local_buffer,
)
from tilewright.compiler.schedule.padding import Clip
from tilewright.compiler.schedule.planar_access import PlanarAccess, find_planar, image_of
from tilewright.compiler.schedule.plane_copy import CopiedRow, PlaneCopy
from tilewright.compiler.schedule.tile_geometry import TileAxis, TileGeometry
from tilewright.compiler.schedule.tile_loops import KernelBuilder, TaskGrid
from tilewright.compiler.schedule.tiling import partition, tile_count

_FLOAT_BYTES = 4
MOST_NEAR_BYTES = 32 << 10
"""Most that a block of rows may read, with its borders; one tile may read more."""


def copied_row(anchor: Anchor, planar: PlanarAccess) -> CopiedRow | None:
    """Return how rows of the image are copied, or None where they are read as they lie."""
    pad = image_of(anchor).pad
    if pad is None or not pad.bounds:
        return None
    last = len(pad.stage.spatial) - 1
    width = pad.stage.spatial[last].extent
    border = pad.bounds.get(last, (0, width))[0]
    return CopiedRow.plan(width, border, planar.columns.step, anchor.lanes)


def rows_read(planar: PlanarAccess, window: int, rows: int) -> int:
    """Return how many rows of a plane so many rows of outputs read."""
    return (rows - 1) * planar.rows.step + (window - 1) * planar.rows.dilation + 1


def most_rows(anchor: Anchor, planar: PlanarAccess, near_bytes: int) -> int:
    """Return how many rows of outputs a block may have that reads at most so many bytes."""
    copied = copied_row(anchor, planar)
    extent = anchor.stage.spatial[-2].extent
    if copied is None:
        return extent
    window = anchor.stage.reduction[planar.rows.window].extent
    row_bytes = copied.pitch * _FLOAT_BYTES
    fit = [
        rows
        for rows in range(1, extent + 1)
        if rows_read(planar, window, rows) * row_bytes <= near_bytes
    ]
    return fit[-1] if fit else 0


class PlanarEmitter(Emitter):
    """Emits a whole window at once, each vector of the image loaded for all that it serves.

    Args:
        tile, accumulators, index_dtype: as for `Emitter`.
        planar: how the image is read.
        places: of the image in the copy, for each step along a row; empty: as it lies.
    """

    def __init__(
        self,
        tile: RegisterTile,
        accumulators: Any,
        index_dtype: str,
        planar: PlanarAccess,
        places: Sequence[int],
    ) -> None:
        super().__init__(tile, accumulators, index_dtype)
        self.planar, self.places = planar, places
        self.image = max(
            range(len(tile.operands)), key=lambda index: abs(tile.operands[index].vector)
        )

    def moved(self, at: Point, position: int, step: int) -> Point:
        """Return a point with its addresses `step` steps further on one axis."""
        moved = super().moved(at, position, step)
        if not self.places or position != self.planar.columns.window:
            return moved
        fixed = list(moved.fixed)
        fixed[self.image] = at.fixed[self.image] + self.places[step]
        return replace(moved, fixed=tuple(fixed))

    def walk(self, depth: int, at: Point) -> list[Any]:
        """Return the multiply-adds of the tile, by columns of the window, then by image row."""
        tile, image = self.tile, self.tile.operands[self.image]
        loops = {loop.position: loop for loop in tile.loops}
        assert all(loop.written_out for loop in tile.loops), "the window is written out"
        rows, columns = (loops[w.window] for w in (self.planar.rows, self.planar.columns))
        found = []
        for x in range(columns.first, columns.end):
            beside = self.moved(at, columns.position, x)
            for y in range(rows.first, rows.end):
                here = self.moved(beside, rows.position, y)
                for row in range(tile.rows):
                    for column in range(tile.columns):
                        place = here.fixed[self.image] + image.rows[row]
                        found.append((x, place, column, row, here))
        found.sort(key=lambda term: term[:4])
        statements = []
        for _, _, column, row, here in found:
            cell = self.cell(0, row, column)
            old = tirx.BufferLoad(self.accumulators, [cell])
            new = self.combined(old, row, column, here)
            statements.append(tirx.BufferStore(self.accumulators, new, [cell]))
        return statements


class PlanarKernelBuilder(KernelBuilder):
    """Builds a task as a block of rows of one plane: a copy with borders, then its tiles."""

    planar: PlanarAccess
    row: CopiedRow
    copied: Access | None = None
    first_row: Any = None

    def _resolve(self, access: Access) -> tuple[Access, list[Clip]]:
        """Read the image from the copy that a task makes."""
        planar = find_planar(self.anchor)
        assert planar is not None
        self.planar = planar
        pad, rank = access.pad, len(self.stage.spatial)
        row = copied_row(self.anchor, planar)
        if access is not image_of(self.anchor) or pad is None or row is None:
            return super()._resolve(access)
        if set(pad.bounds) - {rank - 2, rank - 1} or pad.source.source in self.producers:
            return super()._resolve(access)  # not planes alone are padded, or they are made first
        spatial, reduction = self.stage.spatial, self.stage.reduction
        self.row = row
        coefficients = {
            spatial[-2].var: planar.rows.step * self.row.pitch,
            spatial[-1].var: self.anchor.lanes,
            reduction[planar.rows.window].var: planar.rows.dilation * self.row.pitch,
        }
        if planar.columns.step == 1:
            coefficients[reduction[planar.columns.window].var] = planar.columns.dilation
        window = reduction[planar.rows.window].extent
        count = rows_read(planar, window, self._block_rows())
        near = local_buffer("near", count * self.row.pitch, str(access.buffer.dtype))
        self._flat[near] = near
        offset = Linear(self._places()[0], coefficients)
        self.copied = replace(access, buffer=near, offset=offset, vector=1, pad=None)
        return self.copied, []

    def _block_rows(self) -> int:
        """Return the most rows of outputs that a block has."""
        extent = self.stage.spatial[-2].extent
        tiles = partition(extent, self.plan.row_tile[1])
        columns = tile_count(column_vectors(self.anchor), self.plan.column_vectors)
        return min(extent, self.plan.row_block // columns * max(run.size for run in tiles))

    def _places(self) -> list[int]:
        """Return where in a row of the copy each step of the window finds the first pixel."""
        walk = self.planar.columns
        extent = self.stage.reduction[walk.window].extent
        return [self.row.place(step * walk.dilation + walk.constant) for step in range(extent)]

    def _tile_axes(self) -> tuple[list[TileAxis], list[TileAxis], list[TileAxis]]:
        """Return (batch, row, column) axes: a block has whole rows, so columns count as rows."""
        batch, (*planes, rows), columns = super()._tile_axes()
        return [*planes, *batch], [rows, *columns], []

    def task_start(self, task: Any, grid: TaskGrid) -> list[Any]:
        """Return the copy of what a block of rows reads."""
        if self.copied is None:
            return []
        rows, columns = grid.rows
        image, near = image_of(self.anchor), self.copied.buffer
        assert image.pad is not None
        self.first_row = tirx.Var("first_row", self.index_dtype)
        binds: list[Any] = []
        numbers = self.decode_task(task, grid, binds)
        first = self._row_start(rows, grid.block_number(task) * (grid.block // columns.tiles))
        at = {self.stage.spatial[axis.members[0]].var: n for axis, n in numbers.items()}
        at |= {axis.var: constant_like(0, self.index_dtype) for axis in self.stage.reduction}
        outer = {
            axis.var: substitute(index, at)
            for axis, index in zip(image.pad.stage.spatial[:-2], image.load.indices, strict=False)
        }
        copy = PlaneCopy(
            *(image.pad, self.flat(image.pad.source.source), near, outer),
            *(self.row, self.max_lanes),
        )
        row = tirx.Var("row", self.index_dtype)
        y = self.first_row * self.planar.rows.step + row + self.planar.rows.constant
        zero = constant_like(0, self.index_dtype)
        count = constant_like(elements(near) // self.row.pitch, self.index_dtype)
        return [
            *binds,
            tirx.Bind(self.first_row, first),
            tirx.AllocBuffer(near),
            tirx.For(row, zero, count, tirx.ForKind.SERIAL, copy.row(row, y)),
        ]

    def _row_start(self, rows: TileAxis, number: Expr) -> Expr:
        """Return the first row of a tile: longer tiles come first, see `tiling.partition`."""
        first = rows.runs[0]
        if len(rows.runs) == 1:
            return number * first.size
        return number * rows.runs[1].size + tirx.min(
            number, constant_like(first.count, self.index_dtype)
        )

    def base(self, access: Access, geometry: TileGeometry) -> Expr:
        """Return the address of the first element that a tile reads, in the copy or not."""
        address = super().base(access, geometry)
        if access is not self.copied:
            return address
        return address - self.first_row * (self.planar.rows.step * self.row.pitch)

    def emit(self, tile: RegisterTile, bases: Sequence[Expr]) -> tuple[Any, list[Any]]:
        """Return the accumulators of a tile, and the statements that fill them."""
        places: list[int] = []
        if self.copied is not None and self.planar.columns.step > 1:
            places = [place - self._places()[0] for place in self._places()]

        def emitter(tile: RegisterTile, accumulators: Any, dtype: str) -> Emitter:
            return PlanarEmitter(tile, accumulators, dtype, self.planar, places)

        return emit_reduction(tile, bases, self.index_dtype, emitter)
