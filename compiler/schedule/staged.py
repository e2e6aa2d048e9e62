"""Contractions over planes: a task first copies what it reads of them into one piece of memory.

The vectors of a 1x1 convolution over planes are pixels, and each step of the reduction is a plane
away: another page of memory, and often the same few sets of the cache. Every tile of output
channels would walk that way again. With a stride its lanes do not even lie next to each other, and
every tile would gather them again. Here a task copies its few vectors of every step next to each
other, and all of its row tiles read the copy from the first cache level (the packing of B in Goto
and van de Geijn, "Anatomy of high-performance matrix multiplication", 2008, section 5). For windows
of more than one pixel the copy is what im2col would write, one tile of it at a time.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from math import prod
from typing import TYPE_CHECKING, Any

from tvm import tirx

from tilewright.compiler.schedule.analysis import Access, Anchor
from tilewright.compiler.schedule.cost import (
    broadcasts_by_register,
    column_vectors,
    row_extents,
    row_tiles,
)
from tilewright.compiler.schedule.expressions import Expr
from tilewright.compiler.schedule.micro_kernel import (
    Operand,
    constant_like,
    local_buffer,
    ramp,
    sequence,
)
from tilewright.compiler.schedule.tile_geometry import TileGeometry
from tilewright.compiler.schedule.tile_loops import KernelBuilder, TaskGrid
from tilewright.compiler.targets import Target
from tilewright.errors import InvalidScheduleError

if TYPE_CHECKING:
    from tilewright.compiler.schedule.contraction import ContractionDecisions

MOST_STAGED_BYTES = 64 << 10
"""What a task may copy: it lies on the stack of a thread."""

# Steps this far apart are on pages of their own.
_PAGE_BYTES = 4096
# Fewer steps than this find room in the first level where they are: 24 planes of 56 x 56 reach 85%
# of peak without a copy.
_FEWEST_STEPS = 48
# The copy is read again by at least so many tiles of rows.
_FEWEST_TILES = 4
# Rows and vectors of a tile with few registers: with 4 x 3, 128 sequences of 4096 take 4.2 ms
# instead of 3.0 (Zen 3).
_TILE = (6, 2)


def staged_access(anchor: Anchor) -> Access | None:
    """Return the access whose vectors every row of a tile shares, if a copy of it is possible."""
    rows = [anchor.stage.spatial[position].var for position in anchor.rows]
    found = [
        access
        for access in anchor.accesses
        if access.vector > 0 and not any(access.offset.of(row) for row in rows)
    ]
    others = [access for access in anchor.accesses if access.vector == 0]
    return found[0] if len(found) == len(others) == 1 and rows else None


def staged_bytes(anchor: Anchor, vectors: int) -> int:
    """Return the size of what a task copies."""
    return staged_size([a.extent for a in anchor.stage.reduction], vectors, anchor.lanes)


def staged_size(reductions: Sequence[int], column_vectors: int, lanes: int) -> int:
    """Return the bytes of so many vectors of every step of a reduction of these extents."""
    return prod(reductions) * column_vectors * lanes * 4


def check_staged(anchor: Anchor, decisions: ContractionDecisions) -> None:
    """Refuse copies of what has no steps far apart, or is too large for a stack.

    Raises:
        InvalidScheduleError: so it is.
    """
    if not decisions.staged:
        return
    name = anchor.stage.name
    if anchor.dtype != "float32" or staged_access(anchor) is None:
        raise InvalidScheduleError(f"{name!r} has no vectors that all rows of a tile share")
    if decisions.panel or decisions.clip_pad:
        raise InvalidScheduleError(f"tiles of {name!r} that are copied have no panels or borders")
    size = staged_bytes(anchor, decisions.column_vectors)
    if size > MOST_STAGED_BYTES:
        raise InvalidScheduleError(
            f"{size} bytes of {name!r} would be copied, at most {MOST_STAGED_BYTES} can"
        )


def reads_far(anchor: Anchor) -> bool:
    """Say whether what the rows of a tile share is far apart: its lanes, or all steps by a page."""
    access = staged_access(anchor)
    if access is None or anchor.dtype != "float32":
        return False
    if _is_gathered(access):
        return True
    steps = [access.offset.of(axis.var) for axis in anchor.stage.reduction if axis.extent > 1]
    return bool(steps) and 4 * min(steps) >= _PAGE_BYTES


def _is_gathered(access: Access | None) -> bool:
    """Say whether the lanes of a vector do not lie next to each other."""
    return access is not None and access.vector > 1


def with_staging(
    anchor: Anchor, target: Target, decisions: ContractionDecisions
) -> ContractionDecisions:
    """Return decisions that copy what lies far apart, where enough rows use it again.

    A task then has all row tiles. Measured on Zen 3, time / time without: 256 planes of 56 x 56 to
    64 channels 0.47, 24 to 144 (without a copy) 0.85, 128 sequences of 4096 to 256 0.48; lanes 5
    apart, one channel of 16000 to 512 with GELU, 0.75.
    """
    if decisions.clip_pad or decisions.panel or target.multiplies_by_lane or not reads_far(anchor):
        return decisions
    depth = anchor.depth
    _, inner = row_extents(anchor, decisions.fused_rows)
    rows = prod(anchor.stage.spatial[position].extent for position in anchor.rows)
    tile, vectors = decisions.row_tile, decisions.column_vectors
    is_gathered = _is_gathered(staged_access(anchor))
    copies = (is_gathered or depth >= _FEWEST_STEPS) and rows >= _FEWEST_TILES * prod(tile)
    fits = inner >= _TILE[0] and column_vectors(anchor) >= _TILE[1]
    if copies and broadcasts_by_register(target) and fits:
        tile, vectors = (1, _TILE[0]), _TILE[1]
    staged = copies and staged_bytes(anchor, vectors) <= MOST_STAGED_BYTES
    if is_gathered and not staged:
        return decisions
    blocked = row_tiles(anchor, decisions.fused_rows, tile)
    return replace(
        decisions, row_tile=tile, column_vectors=vectors, row_block=blocked, staged=staged
    )


class StagedKernelBuilder(KernelBuilder):
    """Builds a task as a copy of what its tiles share, and the loop over its row tiles."""

    _copy: Any

    def task_start(self, task: Any, grid: TaskGrid) -> list[Any]:
        """Return what a task does once for all its row tiles: the copy."""
        size = staged_bytes(self.anchor, self.plan.column_vectors) // 4
        self._copy = local_buffer("staged", size, self.anchor.dtype)
        binds: list[Any] = []
        numbers = self.decode_task(task, grid, binds)
        copy = self.choose([*grid.batch, *grid.columns], numbers, self._copied)
        return [tirx.AllocBuffer(self._copy), *binds, copy]

    def _copied(self, geometry: TileGeometry) -> Any:
        """Return the copy of the columns of a task, as many as there are in this place."""
        access, axes, lanes = self._shared, self.stage.reduction, self.anchor.lanes
        base = tirx.Var("from", self.index_dtype)
        steps = [tirx.Var(f"step{number}", self.index_dtype) for number in range(len(axes))]
        source: Expr = base
        place: Expr = constant_like(0, self.index_dtype)
        for step, axis, pitch in zip(steps, axes, self._steps(), strict=True):
            source = source + step * access.offset.of(axis.var)
            place = place + step * pitch
        moves = []
        for column in range(geometry.column_count):
            at = ramp(source + geometry.column_offset(access, column), access.vector, lanes)
            vector = tirx.BufferLoad(self.flat(access.buffer), [at])
            moves.append(
                tirx.BufferStore(self._copy, vector, [ramp(place + column * lanes, 1, lanes)])
            )
        body = sequence(moves)
        zero = constant_like(0, self.index_dtype)
        for step, axis in reversed(list(zip(steps, axes, strict=True))):
            extent = constant_like(axis.extent, self.index_dtype)
            body = tirx.For(step, zero, extent, tirx.ForKind.SERIAL, body)
        return sequence([tirx.Bind(base, geometry.base(access)), body])

    @property
    def _shared(self) -> Access:
        """What is copied, as it lies in memory."""
        return next(access for access in self.accesses if access.vector > 0)

    def _steps(self) -> tuple[int, ...]:
        """Return how far a step of each reduction axis is in the copy."""
        step = self.plan.column_vectors * self.anchor.lanes
        steps = [0] * len(self.stage.reduction)
        for position in reversed(self.plan.order):
            steps[position] = step
            step *= self.stage.reduction[position].extent
        return tuple(steps)

    def base(self, access: Access, geometry: TileGeometry) -> Expr:
        """Return the address of the first element that a tile reads."""
        if access is self._shared:
            return constant_like(0, self.index_dtype)
        return super().base(access, geometry)

    def operand(self, access: Access, geometry: TileGeometry) -> Operand:
        """Return what a tile loads through an access; the shared vectors from their copy."""
        found = super().operand(access, geometry)
        if access is not self._shared:
            return found
        columns = tuple(n * self.anchor.lanes for n in range(geometry.column_count))
        return replace(found, buffer=self._copy, vector=1, columns=columns, steps=self._steps())
