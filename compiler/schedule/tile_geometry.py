"""Where one register tile lies: its start on each axis, its rows, columns and lanes."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import product
from math import prod
from typing import Any

from tvm import sym, tirx

from tilewright.compiler.schedule.analysis import Access, Anchor
from tilewright.compiler.schedule.expressions import Expr
from tilewright.compiler.schedule.micro_kernel import constant_like
from tilewright.compiler.schedule.padding import Clip
from tilewright.compiler.schedule.tiling import Run


@dataclass(frozen=True, eq=False)
class TileAxis:
    """A spatial axis (or several row axes walked as one) that tiles are cut from.

    Attributes:
        members: positions of the block axes, outermost first.
        extent: product of their extents; for the vector axis in vectors.
        runs: the tiles.
    """

    members: tuple[int, ...]
    extent: int
    runs: tuple[Run, ...]

    @property
    def tiles(self) -> int:
        """Number of tiles."""
        return self.runs[-1].end


def column_axis(anchor: Anchor) -> int:
    """Return which column axis (index into anchor.columns) the register tile covers.

    The vector axis if it is longer than a vector, else the innermost column axis before it.
    """
    if anchor.vector_axis.extent > anchor.lanes or len(anchor.columns) == 1:
        return len(anchor.columns) - 1
    return len(anchor.columns) - 2


class TileGeometry:
    """Where one register tile lies: start of each axis, offsets of its rows and columns."""

    def __init__(
        self,
        anchor: Anchor,
        index_dtype: str,
        chosen: list[tuple[TileAxis, Run, Expr]],
    ) -> None:
        self.anchor = anchor
        self.stage = anchor.stage
        self.index_dtype = index_dtype
        self.starts = {axis.members: start for axis, _, start in chosen}
        rows = [axis for axis, _, _ in chosen if set(axis.members) <= set(self.anchor.rows)]
        self.runs = {axis.members: run for axis, run, _ in chosen}
        sizes = {members: run.size for members, run in self.runs.items()}
        self.row_axes = [axis.members for axis in rows]
        self.row_sizes = [sizes[axis.members] for axis in rows]
        self.row_offsets = list(product(*(range(size) for size in self.row_sizes)))
        self.column_position = self.anchor.columns[column_axis(anchor)]
        self.column_count = sizes[(self.column_position,)]
        self.last = len(self.stage.spatial) - 1
        run = self.runs[(self.column_position,)]
        whole = anchor.vector_axis.extent // anchor.lanes
        self.partial = None
        if self.column_position == self.last and run.start + run.count * run.size > whole:
            self.partial = run.size - 1

    def base(self, access: Access) -> Expr:
        """Return the address of the first element that the tile reads."""
        dtype = self.index_dtype
        address: Expr = constant_like(access.offset.constant, dtype)
        for members, start in self.starts.items():
            address = address + start * self._step(access, members)
        return sym.Analyzer().simplify(address)

    def _step(self, access: Access, members: tuple[int, ...]) -> int:
        return access.offset.of(self.stage.spatial[members[-1]].var)

    @property
    def whole_columns(self) -> int:
        """Number of column vectors of which every lane is an output."""
        return self.column_count if self.partial is None else self.partial

    def column_offset(self, access: Access, column: int) -> int:
        """Return how far a column vector is from the first, in elements.

        A packed operand holds a whole last vector. Otherwise a partial vector is moved back, so
        that it ends with the last element and overlaps its neighbour.
        """
        step = access.offset.of(self.stage.spatial[self.column_position].var)
        if column == self.partial and access.vector and not self._packed():
            start = self.runs[(self.column_position,)].start
            return access.vector * self._partial_start() - start * step
        return column * step

    def _packed(self) -> bool:
        """Tell whether operands hold a whole last vector."""
        axis, lanes = self.anchor.vector_axis, self.anchor.lanes
        return any(
            access.offset.of(axis.var) != access.vector * lanes
            for access in self.anchor.accesses
            if access.vector
        )

    def _partial_start(self) -> int:
        """Return the output of lane 0 of the partial vector."""
        extent, lanes = self.anchor.vector_axis.extent, self.anchor.lanes
        return extent // lanes * lanes if self._packed() else extent - lanes

    def stored_lanes(self, column: Any) -> tuple[int, int]:
        """Return the first lane of a column vector that is stored, and how many."""
        extent, lanes = self.anchor.vector_axis.extent, self.anchor.lanes
        if self.partial is None or not isinstance(column, int) or column != self.partial:
            return 0, lanes
        return extent // lanes * lanes - self._partial_start(), extent % lanes

    def row_offset(self, access: Access, row: tuple[int, ...]) -> int:
        """Return how far a row of the tile is from the first, in elements."""
        return sum(
            offset * self._step(access, members)
            for offset, members in zip(row, self.row_axes, strict=True)
        )

    def fixed_index(self, position: int, row: int) -> int:
        """Return the index on a row axis, which must start at a constant or not matter."""
        for members, offset in zip(self.row_axes, self.row_offsets[row], strict=True):
            if members == (position,):
                # All tiles of a run are clipped alike, so its first one speaks for them.
                return self.runs[members].start + offset
        raise AssertionError("clipped axis is not a row axis of the tile")

    def clipped(self, clip: Clip, first: Any, end: Any) -> tuple[Any, Any]:
        """Return the bounds of a reduction loop that stays inside the data."""
        dtype = self.index_dtype
        offset: Expr = constant_like(clip.constant, dtype)
        if clip.spatial is not None:
            offset = offset + self.starts[(clip.spatial,)] * clip.spatial_step
        step = clip.reduction_step
        analyzer = sym.Analyzer()
        low = analyzer.simplify((clip.first - offset + (step - 1)) // step)
        high = analyzer.simplify((clip.end - offset + (step - 1)) // step)
        lower = analyzer.simplify(tirx.max(constant_like(0, dtype) + first, low))
        upper = analyzer.simplify(tirx.min(constant_like(0, dtype) + end, high))
        if isinstance(lower, tirx.IntImm) and isinstance(upper, tirx.IntImm):
            return int(lower), int(upper)
        return lower, upper

    def axis_values(self, row: Any, column: Any, lane: Expr) -> list[Expr]:
        """Return the value of each spatial axis at a row, column vector and lane of the tile."""
        values: dict[int, Expr] = {}
        for members, start in self.starts.items():
            offset: Any = 0
            if members in self.row_axes:
                offset = self._along(self.row_axes.index(members), row)
            elif members == (self.column_position,):
                offset = column
            self._spread(members, start + offset, values)
        last = self.last
        if self.partial is not None and isinstance(column, int) and column == self.partial:
            values[last] = self._partial_start() + lane
        else:
            values[last] = values[last] * self.anchor.lanes + lane
        return [values[position] for position in range(last + 1)]

    def _along(self, depth: int, row: Any) -> Any:
        """Return the offset of row number `row` along one row axis."""
        if isinstance(row, int):
            return self.row_offsets[row][depth]
        inner = prod(self.row_sizes[depth + 1 :])
        return row // inner % self.row_sizes[depth]

    def _spread(self, members: tuple[int, ...], value: Expr, values: dict[int, Expr]) -> None:
        """Undo the fusing of row axes."""
        for i, position in enumerate(reversed(members)):
            extent = self.stage.spatial[position].extent
            values[position] = value % extent if i < len(members) - 1 else value
            value = value // extent
