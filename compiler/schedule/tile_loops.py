"""Build a whole kernel around register tiles: scratch buffers, loops over tiles, epilogue."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from math import prod
from typing import Any, TypeAlias

from tvm import sym, tirx
from tvm.ir import TensorLoad

from tilewright.compiler.schedule.analysis import (
    Access,
    Anchor,
    Stage,
)
from tilewright.compiler.schedule.epilogue import Epilogue
from tilewright.compiler.schedule.expressions import (
    Expr,
    dtype_of,
    elements,
    flat_index,
    loads_in,
    range_from_zero,
    rebuild,
)
from tilewright.compiler.schedule.micro_kernel import (
    Operand,
    ReductionLoop,
    RegisterTile,
    constant_like,
    emit_reduction,
    sequence,
)
from tilewright.compiler.schedule.nests import emit_stage, is_parallel_worth
from tilewright.compiler.schedule.padding import Clip, read_clips, read_through
from tilewright.compiler.schedule.tile_geometry import TileAxis, TileGeometry, column_axis
from tilewright.compiler.schedule.tiling import Run, partition, refine, tile_count
from tilewright.compiler.schedule.weights_ahead import next_columns, weights_ahead
from tilewright.errors import InvalidScheduleError

Chosen: TypeAlias = tuple[TileAxis, Run, Expr]
"""An axis, a run of its tiles, and the first element of one of them."""


@dataclass(frozen=True, slots=True)
class TilePlan:
    """How the loops around an anchor are cut; what every decision class boils down to.

    Attributes:
        row_tile: rows of the register tile along the last two row axes, after fusing.
        fused_rows: how many trailing row axes are walked as one.
        column_vectors: column vectors of the register tile.
        row_block: row tiles in one task; its column tiles lie outside of them.
        order: reduction axis positions from outermost to innermost.
        written_out: reduction axis positions that are not loops in the code.
        unroll: steps of the innermost loop in one round.
        chains: independent accumulators for each output.
        clip_pad: skip the padding instead of copying the data into a padded buffer.
        roll_inside: tiles that no padding touches have loops for the axes written out elsewhere.
        panel: steps of reduction axis `panel_axis` in a panel; 0 if the reduction is not cut.
        prefetch: ask the second cache level for the weights of the next task meanwhile.
    """

    row_tile: tuple[int, int]
    fused_rows: int
    column_vectors: int
    row_block: int
    order: tuple[int, ...]
    written_out: tuple[int, ...]
    unroll: int
    chains: int
    clip_pad: bool
    roll_inside: bool = True
    panel: int = 0
    panel_axis: int = 0
    prefetch: bool = False


@dataclass(frozen=True, eq=False)
class TaskGrid:
    """What the tasks of a kernel are: column tiles fastest, then blocks of row tiles, then batch.

    Attributes:
        batch, rows, columns: the axes that tiles are cut from.
        block: row tiles in one task; the last one may have fewer.
        blocks: blocks of row tiles.
    """

    batch: list[TileAxis]
    rows: list[TileAxis]
    columns: list[TileAxis]
    block: int
    blocks: int

    @property
    def column_tiles(self) -> int:
        """Number of tiles along all columns."""
        return prod(axis.tiles for axis in self.columns)

    @property
    def tasks(self) -> int:
        """Number of tasks."""
        return prod(axis.tiles for axis in self.batch) * self.blocks * self.column_tiles

    def block_number(self, task: Any) -> Expr:
        """Return which block of row tiles a task has."""
        return task // self.column_tiles % self.blocks


class KernelBuilder:
    """Turns a function with an anchor into loops over register tiles."""

    def __init__(
        self,
        func: tirx.PrimFunc,
        stages: Sequence[Stage],
        anchor: Anchor,
        plan: TilePlan,
        max_lanes: int,
    ) -> None:
        self.max_lanes = max_lanes
        self.func = func
        self.anchor = anchor
        self.plan = plan
        self.stage = anchor.stage
        self.index_dtype = dtype_of(self.stage.spatial[-1].var)
        self.declared: list[Any] = []
        self._flat: dict[Any, Any] = {}
        at = next(i for i, s in enumerate(stages) if s.buffer.same_as(anchor.stage.buffer))
        self.producers = {s.buffer: s for s in stages[:at]}
        self.after = list(stages[at + 1 :])
        self.stages = list(stages)
        self.reduction_index = {axis.var: i for i, axis in enumerate(self.stage.reduction)}

    def build(self) -> tirx.PrimFunc:
        """Return the scheduled function."""
        self.epilogue = Epilogue(self, self.after, self.producers)
        accesses = [self._resolve(access) for access in self.anchor.accesses]
        self.accesses = [access for access, _ in accesses]
        self.clips = [clip for _, clips in accesses for clip in clips]
        prologue = self._prologue()
        tiles = self._tile_loops()
        epilogue = [emit_stage(self, stage, self.max_lanes) for stage in self.epilogue.separate]
        body = sequence([*self.declared, *prologue, tiles, *epilogue])
        attrs = self.func.attrs
        return tirx.PrimFunc(list(self.func.params), body, attrs=attrs)

    # -- buffers ---------------------------------------------------------------------------

    def flat(self, buffer: Any) -> Any:
        """Return a one-dimensional view of a parameter, or the scratch buffer of a stage."""
        if buffer not in self._flat:
            is_parameter = any(buffer.same_as(param) for param in self.func.params)
            flat = tirx.decl_buffer(
                (elements(buffer),), str(buffer.dtype), f"{buffer.name}_flat", layout=None
            )
            if is_parameter:
                self.declared.append(tirx.DeclBuffer(flat, data=tirx.buffer_data(buffer)))
            else:
                self.declared.append(tirx.AllocBuffer(flat))
            self._flat[buffer] = flat
        return self._flat[buffer]

    def flatten(self, expr: Expr, analyzer: sym.Analyzer) -> Expr:
        """Return `expr` with every load going through the flat view of its buffer."""

        def leaf(node: Expr) -> Expr | None:
            if not isinstance(node, TensorLoad) or len(node.indices) == 0:
                return None
            if node.source in self._flat.values() or node.source.scope() == "local":
                return None
            indices = [rebuild(index, leaf) for index in node.indices]
            address = analyzer.simplify(flat_index(node.source, indices))
            return tirx.BufferLoad(self.flat(node.source), [address])

        return rebuild(expr, leaf)

    # -- stages around the anchor ------------------------------------------------------------

    def _prologue(self) -> list[Any]:
        """Return the loop nests of producers that the anchor reads from memory."""
        needed = [access.buffer for access in self.accesses if access.buffer in self.producers]
        wanted: list[Stage] = []
        while needed:
            buffer = needed.pop()
            stage = self.producers.get(buffer)
            if stage is None or stage in wanted:
                continue
            wanted.append(stage)
            needed += [load.source for load in loads_in(stage.value)]
        return [self.emit_producer(stage) for stage in self.stages if stage in wanted]

    def emit_producer(self, stage: Stage) -> Any:
        """Return the loops that compute a stage before the tiles read it."""
        return emit_stage(self, stage, self.max_lanes)

    def _resolve(self, access: Access) -> tuple[Access, list[Clip]]:
        """Read through a pad where its border can be skipped."""
        if access.pad is None:
            return access, []
        if not access.pad.bounds:
            through = read_through(access, self.anchor)
            # A copy that turns lanes around (a transpose) is worth its memory.
            return (through if through.vector == access.vector else access), []
        if not self.plan.clip_pad:
            return access, []
        clips = read_clips(access, self.anchor)
        if clips is None:
            raise InvalidScheduleError(
                f"padding of {access.buffer.name!r} cannot be clipped; materialise it"
            )
        return read_through(access, self.anchor), clips

    # -- tiles -------------------------------------------------------------------------------

    def _tile_axes(self) -> tuple[list[TileAxis], list[TileAxis], list[TileAxis]]:
        """Return (batch, row, column) axes; the innermost rows and columns carry the tile."""
        spatial, plan = self.stage.spatial, self.plan
        batch = [self._plain(position) for position in self.anchor.batch]
        groups: list[tuple[int, ...]] = [(position,) for position in self.anchor.rows]
        if plan.fused_rows > 1:
            groups = [*groups[: -plan.fused_rows], self.anchor.rows[-plan.fused_rows :]]
        rows = []
        for depth, members in enumerate(reversed(groups)):
            extent = prod(spatial[position].extent for position in members)
            tile = plan.row_tile[1 - depth] if depth < 2 else 1
            rows.append(TileAxis(members, extent, self._row_runs(members, extent, tile)))
        rows.reverse()
        columns = [self._plain(position) for position in self.anchor.columns]
        tiled = column_axis(self.anchor)
        position = self.anchor.columns[tiled]
        extent = self.column_extent(position)
        runs = partition(extent, plan.column_vectors)
        if self.stage.spatial[position].extent % self.anchor.lanes and tiled == len(columns) - 1:
            # The tile with the partial vector has code of its own.
            runs = refine(runs, lambda start, size: start + size == extent)
        columns[tiled] = TileAxis((position,), extent, runs)
        return batch, rows, columns

    def _plain(self, position: int) -> TileAxis:
        extent = self.column_extent(position)
        return TileAxis((position,), extent, (Run(0, extent, 0, 1),))

    def column_extent(self, position: int) -> int:
        """Return an axis extent; for the vector axis, the number of vectors."""
        extent = self.stage.spatial[position].extent
        last = len(self.stage.spatial) - 1
        return tile_count(extent, self.anchor.lanes) if position == last else extent

    def _row_runs(self, members: tuple[int, ...], extent: int, tile: int) -> tuple[Run, ...]:
        runs = partition(extent, tile)
        clips = [c for c in self.clips if c.spatial in members and self.is_static(c)]
        if not clips:
            return runs

        def pattern(start: int, size: int) -> tuple[bool, ...]:
            return tuple(
                clip.contains(start + row, step)
                for clip in clips
                for row in range(size)
                for step in range(self.stage.reduction[clip.reduction].extent)
            )

        return refine(runs, pattern)

    def is_static(self, clip: Clip) -> bool:
        """Tell whether the code of a tile leaves out the steps in the padding."""
        return clip.reduction in self.plan.written_out

    def _tile_loops(self) -> Any:
        """Return the parallel loop over tasks with the loop over row tiles inside."""
        batch, rows, columns = self._tile_axes()
        row_tiles = prod(axis.tiles for axis in rows)
        block = min(self.plan.row_block, row_tiles)
        grid = TaskGrid(batch, rows, columns, block, -(-row_tiles // block))
        tasks = grid.tasks
        task = tirx.Var("task", self.index_dtype)
        body = sequence([*self.task_start(task, grid), *self.task_loops(task, grid)])
        kind = tirx.ForKind.SERIAL
        if tasks > 1 and is_parallel_worth(self.stage.work):
            kind = tirx.ForKind.PARALLEL
        zero, count = (constant_like(v, self.index_dtype) for v in (0, tasks))
        return tirx.For(task, zero, count, kind, body)

    def task_start(self, task: Any, grid: TaskGrid) -> list[Any]:
        """Return what a task does once for all its row tiles: nothing."""
        return []

    def task_loops(self, task: Any, grid: TaskGrid) -> list[Any]:
        """Return what a task does: each of its row tiles, once."""
        return self.row_loop(task, grid, partial(self._whole_tile, grid))

    def row_loop(
        self, task: Any, grid: TaskGrid, leaf: Callable[[TileGeometry, Expr], Any]
    ) -> list[Any]:
        """Return the loop over the row tiles of a task.

        Args:
            task: number of the task.
            grid: what the tasks are.
            leaf: returns the code of a tile of one kind, whose number in the task it is given.
        """
        zero = constant_like(0, self.index_dtype)
        if grid.block == 1:
            return [self._task_body(task, zero, grid, lambda found: leaf(found, zero))]
        inner = tirx.Var("row_tile", self.index_dtype)
        body = self._task_body(task, inner, grid, lambda found: leaf(found, inner))
        row_tiles = prod(axis.tiles for axis in grid.rows)
        extent: Expr = constant_like(grid.block, self.index_dtype)
        if row_tiles % grid.block:
            extent = tirx.min(extent, row_tiles - grid.block_number(task) * grid.block)
        analyzer = sym.Analyzer()
        analyzer.bind(task, range_from_zero(grid.tasks))
        return [tirx.For(inner, zero, analyzer.simplify(extent), tirx.ForKind.SERIAL, body)]

    def _task_body(
        self, task: Any, inner: Any, grid: TaskGrid, leaf: Callable[[TileGeometry], Any]
    ) -> Any:
        """Decode the task into tile numbers and choose the code for this kind of tile."""
        row_tile = grid.block_number(task) * grid.block
        if grid.block > 1:
            row_tile = row_tile + inner
        binds: list[Any] = []
        numbers = self.decode_task(task, grid, binds)
        numbers |= dict(self.decode(row_tile, grid.rows, binds))
        axes = [*grid.batch, *grid.rows, *grid.columns]
        return sequence([*binds, self.choose(axes, numbers, leaf)])

    def decode_task(self, task: Any, grid: TaskGrid, binds: list[Any]) -> dict[TileAxis, Expr]:
        """Return the tile numbers on the batch and column axes; binds their variables."""
        numbers = dict(self.decode(task // (grid.column_tiles * grid.blocks), grid.batch, binds))
        return numbers | dict(self.decode(task % grid.column_tiles, grid.columns, binds))

    def decode(
        self, number: Expr, axes: Sequence[TileAxis], binds: list[Any]
    ) -> Iterator[tuple[TileAxis, Expr]]:
        """Split a tile number into one number for each axis, the last axis fastest."""
        for axis in reversed(axes):
            if axis.tiles <= 1:
                yield axis, constant_like(0, self.index_dtype)
                continue
            var = tirx.Var(f"tile{axis.members[0]}", self.index_dtype)
            binds.append(tirx.Bind(var, number % axis.tiles))
            number = number // axis.tiles
            yield axis, var

    def choose(
        self,
        axes: list[TileAxis],
        numbers: dict[TileAxis, Expr],
        leaf: Callable[[TileGeometry], Any],
        chosen: tuple[Chosen, ...] = (),
    ) -> Any:
        """Return an if-chain over the runs of each axis.

        Args:
            axes: what is still to be chosen.
            numbers: number of the tile on each axis.
            leaf: returns the code of one branch.
            chosen: the run and first element on axes before.
        """
        if not axes:
            geometry = TileGeometry(self.anchor, self.index_dtype, list(chosen))
            return leaf(geometry)
        axis, *others = axes
        number = numbers[axis]
        result = None
        for run in reversed(axis.runs):
            if run.count == 1:
                start: Expr = constant_like(run.start, self.index_dtype)
            else:
                start = (number - run.first) * run.size + run.start
            branch = self.choose(others, numbers, leaf, (*chosen, (axis, run, start)))
            joined = result is not None
            result = tirx.IfThenElse(number < run.end, branch, result) if joined else branch
        return result

    def _whole_tile(self, grid: TaskGrid, geometry: TileGeometry, number: Expr) -> Any:
        """Return the code of a task's tile with that number: addresses, reduction, epilogue."""
        statements: list[Any] = []
        bases = []
        for position, access in enumerate(self.accesses):
            base = tirx.Var(f"base{position}", self.index_dtype)
            statements.append(tirx.Bind(base, self.base(access, geometry)))
            bases.append(base)
        tile = self.register_tile(geometry)
        following = partial(next_columns, self, grid)
        ahead = weights_ahead(self, bases, number, grid, self.anchor.depth, following)
        accumulators, body = self.emit(replace(tile, ahead=ahead), bases)
        return sequence([*statements, *body, *self.epilogue.stores(accumulators, geometry)])

    def base(self, access: Access, geometry: TileGeometry) -> Expr:
        """Return the address of the first element that a tile reads through an access."""
        return geometry.base(access)

    def register_tile(self, geometry: TileGeometry) -> RegisterTile:
        """Return what is summed in the registers of a tile."""
        return RegisterTile(
            combine=self.anchor.combine,
            init=self.stage.init,
            dtype=self.anchor.dtype,
            term=self.anchor.term,
            operands=tuple(self.operand(access, geometry) for access in self.accesses),
            rows=len(geometry.row_offsets),
            columns=geometry.column_count,
            lanes=self.anchor.lanes,
            loops=self.reduction_loops(geometry),
            chains=self.plan.chains,
            skip=lambda row, steps: self._skips(geometry, row, steps),
        )

    def emit(self, tile: RegisterTile, bases: Sequence[Expr]) -> tuple[Any, list[Any]]:
        """Return the accumulators of a tile, and the statements that fill them."""
        return emit_reduction(tile, bases, self.index_dtype)

    def operand(self, access: Access, geometry: TileGeometry) -> Operand:
        """Return what a tile loads through an access."""
        return Operand(
            load=access.load,
            buffer=self.flat(access.buffer),
            vector=access.vector,
            rows=tuple(geometry.row_offset(access, row) for row in geometry.row_offsets),
            columns=tuple(
                geometry.column_offset(access, column) for column in range(geometry.column_count)
            ),
            steps=tuple(access.offset.of(axis.var) for axis in self.stage.reduction),
        )

    def reduction_loops(self, geometry: TileGeometry) -> tuple[ReductionLoop, ...]:
        """Return how a tile walks the reduction."""
        plan = self.plan
        written_out = plan.written_out
        if plan.roll_inside and not self._is_clipped(geometry):
            written_out = ()
        rolled = [p for p in plan.order if p not in written_out]
        loops = []
        for position in plan.order:
            first: Any = 0
            end: Any = self.stage.reduction[position].extent
            for clip in self.clips:
                if clip.reduction == position and not self.is_static(clip):
                    first, end = geometry.clipped(clip, first, end)
            fixed = isinstance(first, int) and isinstance(end, int)
            innermost = bool(rolled) and position == rolled[-1]
            loops.append(
                ReductionLoop(
                    position,
                    first,
                    end,
                    written_out=position in written_out,
                    unroll=min(plan.unroll, max(1, end - first)) if innermost and fixed else 1,
                )
            )
        return tuple(loops)

    def _is_clipped(self, geometry: TileGeometry) -> bool:
        """Tell whether some step written out falls into the padding of some row."""
        return any(
            self._skips(geometry, row, {clip.reduction: step})
            for clip in self.clips
            for step in range(self.stage.reduction[clip.reduction].extent)
            for row in range(len(geometry.row_offsets))
        )

    def _skips(self, geometry: TileGeometry, row: int, steps: Mapping[int, int]) -> bool:
        """Tell whether a step written out falls into the padding of a row."""
        for clip in self.clips:
            if clip.reduction not in steps or not self.is_static(clip):
                continue
            spatial = 0 if clip.spatial is None else geometry.fixed_index(clip.spatial, row)
            if not clip.contains(spatial, steps[clip.reduction]):
                return True
        return False
