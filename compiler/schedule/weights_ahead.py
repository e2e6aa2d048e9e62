"""Which weights a tile asks the second cache level for while it computes.

At batch 1 weights are read once, from memory. Each tile of a task asks for a part of what the next
task multiplies by, so that memory is read all the time, not only while the first tile of that task
waits for it. The hardware's own prefetching ends at each page.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import tvm

from tilewright.compiler.schedule.micro_kernel import Ahead
from tilewright.compiler.schedule.tile_geometry import column_axis

if TYPE_CHECKING:
    from tilewright.compiler.schedule.analysis import Access
    from tilewright.compiler.schedule.expressions import Expr
    from tilewright.compiler.schedule.tile_loops import KernelBuilder, TaskGrid

_LINE_BYTES = 64
# Tiles that share the prefetching of a task, as a power of 2: with more of them each asks for less
# than a line in a round.
_MOST_PARTS = 3
# How often a part may be asked for: where rounds are short, there are fewer parts than tiles.
_MOST_REPEATS = 2
# Where a task has more tiles, its weights are few beside what it computes.
_MOST_TILES = 16


def weights_ahead(
    builder: KernelBuilder,
    bases: Sequence[Expr],
    number: Expr,
    grid: TaskGrid,
    steps: int,
    distance: Callable[[Access], Any],
) -> Ahead | None:
    """Return which part of the weights that follow a tile prefetches; None: of none.

    Args:
        builder: of the kernel.
        bases: addresses of the tile's operands.
        number: of the tile in its task.
        grid: what the tasks are.
        steps: of the reduction in the tile.
        distance: returns how far the next weights are from those of the tile, in elements.
    """
    plan = builder.plan
    many_tasks = grid.column_tiles > 1 or plan.panel
    if not (plan.prefetch and many_tasks and 1 < grid.block <= _MOST_TILES):
        return None
    for base, access in zip(bases, builder.accesses, strict=True):
        streams = _streams(builder, access)
        if not streams:
            continue
        starts, width = streams
        line = _LINE_BYTES * 8 // tvm.DataType(str(access.buffer.dtype)).bits
        shift = min(grid.block.bit_length() - 1, _MOST_PARTS)
        if builder.anchor.reduces_one_axis:
            shift = min(shift, (plan.unroll * width // line).bit_length() - 1)
        if shift < 0 or grid.block >> shift > _MOST_REPEATS:
            return None
        part = number % (1 << shift) * (steps * width >> shift)
        first = base + distance(access) + part
        firsts = tuple(first + start for start in starts)
        return Ahead(builder.flat(access.buffer), firsts, width, shift, line)
    return None


def _streams(builder: KernelBuilder, access: Access) -> tuple[tuple[int, ...], int] | None:
    """Return where the weights of a tile lie: starts of dense streams, elements in a step."""
    if access.vector != 1:
        return None
    anchor, count = builder.anchor, builder.plan.column_vectors
    lanes, depth = anchor.lanes, anchor.depth
    position = anchor.columns[column_axis(anchor)]
    step = access.offset.of(anchor.stage.spatial[position].var)
    reach = max(access.offset.of(axis.var) * axis.extent for axis in anchor.stage.reduction)
    if step == lanes and reach == depth * count * lanes:
        return (0,), count * lanes
    if reach == depth * lanes:
        return tuple(column * step for column in range(count)), lanes
    return None


def next_columns(builder: KernelBuilder, grid: TaskGrid, access: Access) -> int:
    """Return how far the columns of the next task are from those of a task, in elements."""
    for axis in reversed(grid.columns):
        if axis.tiles > 1:
            step = access.offset.of(builder.stage.spatial[axis.members[-1]].var)
            return step * axis.runs[0].size
    return 0
