"""Schedule windows: depthwise convolutions, max and average pooling."""

from __future__ import annotations

from dataclasses import dataclass
from math import prod

from tvm import DataType, tirx

from tilewright.compiler.schedule.analysis import Anchor, find_anchor, read_stages
from tilewright.compiler.schedule.cost import (
    column_vectors,
    padding_can_be_clipped,
    row_extents,
    sliding_reductions,
    window_reductions,
)
from tilewright.compiler.schedule.decision_json import from_line, to_line
from tilewright.compiler.schedule.expressions import shape_of
from tilewright.compiler.schedule.planar_access import find_planar
from tilewright.compiler.schedule.planar_window import (
    MOST_NEAR_BYTES,
    PlanarKernelBuilder,
    most_rows,
)
from tilewright.compiler.schedule.tile_loops import KernelBuilder, TilePlan
from tilewright.compiler.schedule.tiling import partition, tile_count
from tilewright.compiler.targets import Target
from tilewright.errors import InvalidScheduleError

# Longest window along a row that is written out. All rows of 3x3 windows on blocks of channels take
# 0.82 of the time again and again, but none of it in a network, where every kernel's code is read
# anew (Zen 3: 112 x 112 103 -> 85 us; MobileNet-V2 1.00, EfficientNet-B0 1.02 of the time).
_LONGEST_WINDOW = 7
# Multiply-adds that one written out row of the window may have: bounds code and compile time.
_WRITTEN_OUT = 128
# Output vectors in a tile: enough to hide latency; each reads its own data, so more gain nothing.
_TILE = 14
_TASKS_PER_CORE = 4
# Channels last, the channel vectors of a pixel share lines of memory: where an image is this many
# times the first cache, all of a row's are done before the next row (int8 on Zen 3: 96 channels of
# 112 x 112, stride 2, 342 -> 193 us; 192 of 28 x 28 25.5 -> 22.6; 384 of 14 x 14 36.4 -> 35.0).
_L1_DATA = 2
# Over planes, rows of a tile where a row has so many vectors and its pixels lie side by side, and
# else. On Zen 3: 32 channels of 112 x 112 124 us with 14 rows, 136 with 8; 384 of 14 x 14 30 us
# with 7, 37 with 14.
_LONG_ROW = 3
_SHORT_TILE = 8
# Of what a block of rows over planes reads: half of that is up to 10% faster than all of L1.
_NEAR_BYTES = 12 << 10


@dataclass(frozen=True, slots=True)
class WindowDecisions:
    """How a depthwise convolution or a pooling is cut into register tiles and tasks.

    Attributes:
        row_tile: outputs of the tile along the innermost row axis.
        column_vectors: neighbouring channel vectors of the tile.
        row_block: row tiles in one task.
        written_out: reduction axis positions that are not loops in the code.
        clip_pad: leave padding out of the loops; else data is first copied into a padded buffer.
    """

    row_tile: int
    column_vectors: int
    row_block: int
    written_out: tuple[int, ...]
    clip_pad: bool

    def __post_init__(self) -> None:
        if min(self.row_tile, self.column_vectors, self.row_block) < 1:
            raise InvalidScheduleError(f"every count of {self} must be at least 1")

    def to_json(self) -> str:
        """Return one line of JSON that `from_json` reads back."""
        return to_line("window", self)

    @classmethod
    def from_json(cls, text: str) -> WindowDecisions:
        """Read decisions back.

        Raises:
            InvalidScheduleError: the text holds another kind or other fields.
        """
        return from_line(cls, "window", text)


def default_window(anchor: Anchor, target: Target) -> WindowDecisions:
    """Choose decisions: short tiles with one row of the window written out."""
    if find_planar(anchor) is not None:
        return _default_planar(anchor, target)
    clip = padding_can_be_clipped(anchor, _LONGEST_WINDOW)
    slides = window_reductions(anchor) if clip else sliding_reductions(anchor)
    steps = prod(anchor.stage.reduction[position].extent for position in slides)
    written_out = slides if steps <= _LONGEST_WINDOW else ()
    # Each accumulator wants its data in a register too (measured with AVX2: 14 rows spill).
    most = min(_TILE, target.vector_registers // 2)
    if written_out:
        most = max(4, min(most, _WRITTEN_OUT // steps))
    extent = row_extents(anchor, 1)[1]
    tile = _even_tile(extent, most)
    rows = [anchor.stage.spatial[position].extent for position in anchor.rows]
    tiles = prod(rows[:-1]) * tile_count(extent, tile)
    outer = prod(anchor.stage.spatial[position].extent for position in anchor.batch)
    outer *= column_vectors(anchor)
    wanted = tile_count(_TASKS_PER_CORE * target.cores, outer)
    blocks = max(wanted, prod(rows[:-2])) if target.cores > 1 else 1
    block = tile_count(tiles, blocks)
    if column_vectors(anchor) > 1 and _greatest_bytes(anchor) > _L1_DATA * target.l1_bytes:
        block = min(block, tile_count(extent, tile))
    return WindowDecisions(
        row_tile=tile,
        column_vectors=1,
        row_block=block,
        written_out=written_out,
        clip_pad=clip,
    )


def _default_planar(anchor: Anchor, target: Target) -> WindowDecisions:
    """Choose decisions over planes: tall tiles of one vector, all of the window written out."""
    planar = find_planar(anchor)
    assert planar is not None
    height = anchor.stage.spatial[-2].extent
    is_long = planar.columns.step == 1 and column_vectors(anchor) >= _LONG_ROW
    tile = _even_tile(height, min(_TILE if is_long else _SHORT_TILE, target.vector_registers - 2))
    most = max(1, most_rows(anchor, planar, _NEAR_BYTES) // tile)
    tiles = tile_count(height, tile)
    return WindowDecisions(
        row_tile=tile,
        column_vectors=1,
        row_block=tile_count(tiles, tile_count(tiles, most)),
        written_out=tuple(range(len(anchor.stage.reduction))),
        clip_pad=False,
    )


def _greatest_bytes(anchor: Anchor) -> int:
    """Return the bytes of the largest tensor that is read."""
    buffers = (access.buffer for access in anchor.accesses)
    return max(prod(shape_of(b)) * DataType(str(b.dtype)).bits // 8 for b in buffers)


def _even_tile(extent: int, most: int) -> int:
    """Return a tile of at most `most` that divides the extent, unless it would be short."""
    even = max(size for size in range(1, min(extent, most) + 1) if extent % size == 0)
    return even if even * 2 > min(extent, most) else partition(extent, most)[0].size


def plan_window(anchor: Anchor, decisions: WindowDecisions, target: Target) -> TilePlan:
    """Check decisions against an anchor and return the plan that they stand for.

    Raises:
        InvalidScheduleError: they do not fit.
    """
    name = anchor.stage.name
    reductions = range(len(anchor.stage.reduction))
    if not set(decisions.written_out) <= set(reductions):
        raise InvalidScheduleError(
            f"{name!r} has reduction axes {list(reductions)}, written_out is "
            f"{decisions.written_out}"
        )
    if decisions.row_tile * decisions.column_vectors > 2 * target.vector_registers:
        raise InvalidScheduleError(
            f"a tile of {decisions.row_tile} x {decisions.column_vectors} vectors for {name!r} "
            f"exceeds twice the {target.vector_registers} registers"
        )
    if decisions.clip_pad:
        if not padding_can_be_clipped(anchor, _LONGEST_WINDOW):
            raise InvalidScheduleError(f"{name!r} has no padding that can be clipped")
        if not set(window_reductions(anchor)) <= set(decisions.written_out):
            raise InvalidScheduleError(
                f"padding of {name!r} is only clipped where reduction axes "
                f"{window_reductions(anchor)} are written out, found {decisions.written_out}"
            )
    block = decisions.row_block
    planar = find_planar(anchor)
    if planar is not None:
        if len(decisions.written_out) < len(reductions):
            raise InvalidScheduleError(f"{name!r} is over planes: all its window is written out")
        most = most_rows(anchor, planar, MOST_NEAR_BYTES)
        if decisions.row_tile * block > max(decisions.row_tile, most):
            raise InvalidScheduleError(
                f"blocks of {decisions.row_tile * block} rows of {name!r} do not stay near, at "
                f"most {most} do"
            )
        block *= tile_count(column_vectors(anchor), decisions.column_vectors)
    return TilePlan(
        row_tile=(1, decisions.row_tile),
        fused_rows=1,
        column_vectors=decisions.column_vectors,
        row_block=block,
        order=tuple(reductions),
        written_out=decisions.written_out,
        unroll=1,
        chains=1,
        clip_pad=decisions.clip_pad,
        roll_inside=False,
    )


def schedule_window(
    func: tirx.PrimFunc, target: Target, decisions: WindowDecisions | None = None
) -> tirx.PrimFunc:
    """Return the loops of a depthwise convolution or a pooling with its epilogue.

    Args:
        func: unscheduled function in normal form whose anchor is a window.
        target: what to schedule for.
        decisions: how; None chooses by the analytical model.

    Raises:
        InvalidScheduleError: the decisions do not fit the function, or it is no window.
    """
    stages = read_stages(func)
    lanes = target.lanes("float32")
    anchor = None if stages is None else find_anchor(stages, lanes)
    if stages is None or anchor is None or anchor.kind != "window":
        raise InvalidScheduleError("the function is not a window")
    if decisions is None:
        decisions = default_window(anchor, target)
    plan = plan_window(anchor, decisions, target)
    builder = KernelBuilder if find_planar(anchor) is None else PlanarKernelBuilder
    return builder(func, stages, anchor, plan, lanes).build()
