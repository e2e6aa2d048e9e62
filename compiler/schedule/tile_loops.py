"""Build a whole kernel around register tiles: scratch buffers, loops over tiles, epilogue."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import product
from math import prod
from typing import Any

from tvm import sym, tirx
from tvm.ir import Call, TensorLoad

from tilewright.compiler.schedule.analysis import (
    Access,
    Anchor,
    PadStage,
    Stage,
    inline_loads,
)
from tilewright.compiler.schedule.expressions import (
    Expr,
    Linear,
    children,
    dtype_of,
    elements,
    flat_index,
    linear_form,
    loads_in,
    range_from_zero,
    rebuild,
    substitute,
)
from tilewright.compiler.schedule.micro_kernel import (
    Operand,
    ReductionLoop,
    RegisterTile,
    constant_like,
    emit_reduction,
    local_buffer,
    sequence,
)
from tilewright.compiler.schedule.nests import emit_stage, is_parallel_worth
from tilewright.compiler.schedule.tiling import Run, partition, refine
from tilewright.errors import InvalidScheduleError

# An epilogue that costs more than this many operations is emitted as a loop over the tile.
_LIGHT_EPILOGUE = 24
# A call such as exp or erf becomes a polynomial of about this many operations.
_CALL_COST = 20


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


@dataclass(frozen=True, eq=False)
class _TileAxis:
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


@dataclass(frozen=True, eq=False)
class _Clip:
    """Steps of `reduction` (position) count only where first <= position index < end.

    The index is spatial_step * spatial + reduction_step * reduction + constant.
    """

    spatial: int | None
    reduction: int
    spatial_step: int
    reduction_step: int
    constant: int
    first: int
    end: int


def fusable_rows(anchor: Anchor, pads: Sequence[PadStage]) -> int:
    """Return how many trailing row axes can be walked as one axis without padding between."""
    padded = {
        axis
        for pad in pads
        for access in anchor.accesses
        if access.pad is pad
        for dim in pad.bounds
        for axis in _axes_of(access.load.indices[dim], anchor.stage)
    }
    rows = anchor.rows
    count = 1
    while count < len(rows):
        outer, inner = rows[-count - 1], rows[-count]
        axis = anchor.stage.spatial[inner]
        if outer in padded or inner in padded or inner != outer + 1:
            break
        steps = [
            (a.offset.of(anchor.stage.spatial[outer].var), a.offset.of(axis.var))
            for a in anchor.accesses
        ]
        if any(big != small * axis.extent for big, small in steps):
            break
        count += 1
    return min(count, max(1, len(rows)))


def _axes_of(index: Expr, stage: Stage) -> set[int]:
    form = linear_form(index, [axis.var for axis in stage.axes], sym.Analyzer())
    if form is None:
        return set(range(len(stage.spatial)))
    return {i for i, axis in enumerate(stage.axes) if axis.var in form.coefficients}


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
        at = next(i for i, s in enumerate(stages) if s is anchor.stage)
        self.producers = {s.buffer: s for s in stages[:at]}
        self.after = list(stages[at + 1 :])
        self.stages = list(stages)
        self.reduction_index = {axis.var: i for i, axis in enumerate(self.stage.reduction)}

    def build(self) -> tirx.PrimFunc:
        """Return the scheduled function."""
        outputs, inlined, separate = self._split_after()
        self.outputs, self.inlined = outputs, inlined
        accesses = [self._resolve(access) for access in self.anchor.accesses]
        self.accesses = [access for access, _ in accesses]
        self.clips = [clip for _, clips in accesses for clip in clips]
        prologue = self._prologue()
        tiles = self._tile_loops()
        epilogue = [emit_stage(self, stage, self.max_lanes) for stage in separate]
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

    def _split_after(self) -> tuple[list[Stage], dict[Any, Stage], list[Stage]]:
        """Return (stages stored by the tile, stages inlined into them, stages with own loops)."""
        parameters = list(self.func.params)

        def is_output(stage: Stage) -> bool:
            return any(stage.buffer.same_as(param) for param in parameters)

        stored = [s for s in [self.stage, *self.after] if is_output(s)]
        if all(self._maps_one_to_one(stage) for stage in stored):
            inlined = {s.buffer: s for s in self.after}
            return stored, inlined, []
        return [self.stage], {}, self.after

    def _maps_one_to_one(self, stage: Stage) -> bool:
        return stage is self.stage or self._axis_map(stage) is not None

    def _axis_map(self, stage: Stage) -> dict[int, int] | None:
        """Return stage axis position -> anchor axis position, if each output is one anchor output.

        Both must have the same axes, up to order and axes of extent 1 (mapped to -1).
        """
        producers = {s.buffer: s for s in self.after if s is not stage}
        value = inline_loads(stage.value, producers)
        uses = [load for load in loads_in(value) if load.source.same_as(self.stage.buffer)]
        mapping: dict[int, int] | None = None
        for load in uses:
            this: dict[int, int] = {}
            for position, index in enumerate(load.indices):
                found = [i for i, a in enumerate(stage.spatial) if a.var.same_as(index)]
                if found:
                    this[found[0]] = position
                elif self.stage.spatial[position].extent != 1:
                    return None
            if mapping is not None and mapping != this:
                return None
            mapping = this
        if mapping is None:
            return None
        for i, axis in enumerate(stage.spatial):
            if i not in mapping and axis.extent != 1:
                return None
            if i in mapping and self.stage.spatial[mapping[i]].extent != axis.extent:
                return None
        return {i: mapping.get(i, -1) for i in range(len(stage.spatial))}

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
        return [emit_stage(self, stage, self.max_lanes) for stage in self.stages if stage in wanted]

    def _resolve(self, access: Access) -> tuple[Access, list[_Clip]]:
        """Read through a pad where its border can be skipped."""
        if access.pad is None or not self.plan.clip_pad:
            return access, []
        clips = read_clips(access, self.anchor)
        if clips is None:
            raise InvalidScheduleError(
                f"padding of {access.buffer.name!r} cannot be clipped; materialise it"
            )
        return read_through(access, self.anchor), clips

    # -- tiles -------------------------------------------------------------------------------

    def _tile_axes(self) -> tuple[list[_TileAxis], list[_TileAxis], list[_TileAxis]]:
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
            rows.append(_TileAxis(members, extent, self._row_runs(members, extent, tile)))
        rows.reverse()
        columns = [self._plain(position) for position in self.anchor.columns]
        tiled = self.column_axis()
        position = self.anchor.columns[tiled]
        extent = self.column_extent(position)
        columns[tiled] = _TileAxis((position,), extent, partition(extent, plan.column_vectors))
        return batch, rows, columns

    def _plain(self, position: int) -> _TileAxis:
        extent = self.column_extent(position)
        return _TileAxis((position,), extent, (Run(0, extent, 0, 1),))

    def column_extent(self, position: int) -> int:
        """Return an axis extent; for the vector axis, the number of whole vectors."""
        extent = self.stage.spatial[position].extent
        last = len(self.stage.spatial) - 1
        return extent // self.anchor.lanes if position == last else extent

    def column_axis(self) -> int:
        """Return which column axis (index into anchor.columns) the register tile covers."""
        return column_axis(self.anchor)

    def _row_runs(self, members: tuple[int, ...], extent: int, tile: int) -> tuple[Run, ...]:
        runs = partition(extent, tile)
        clips = [c for c in self.clips if c.spatial in members and self._is_static(c)]
        if not clips:
            return runs

        def pattern(start: int, size: int) -> tuple[bool, ...]:
            return tuple(
                self._inside(clip, start + row, step)
                for clip in clips
                for row in range(size)
                for step in range(self.stage.reduction[clip.reduction].extent)
            )

        return refine(runs, pattern)

    def _is_static(self, clip: _Clip) -> bool:
        return clip.reduction in self.plan.written_out

    @staticmethod
    def _inside(clip: _Clip, spatial: int, step: int) -> bool:
        index = clip.spatial_step * spatial + clip.reduction_step * step + clip.constant
        return clip.first <= index < clip.end

    def _tile_loops(self) -> Any:
        """Return the parallel loop over tasks with the loop over row tiles inside."""
        batch, rows, columns = self._tile_axes()
        row_tiles = prod(axis.tiles for axis in rows)
        block = min(self.plan.row_block, row_tiles)
        blocks = -(-row_tiles // block)
        tail = self.stage.spatial[-1].extent % self.anchor.lanes
        column_tiles = prod(axis.tiles for axis in columns)
        outer_columns = prod(axis.tiles for axis in columns[:-1])
        per_batch = column_tiles + (outer_columns if tail else 0)
        tasks = prod(axis.tiles for axis in batch) * blocks * per_batch
        task, inner = (tirx.Var(name, self.index_dtype) for name in ("task", "row_tile"))

        body = self._task_body(task, inner, batch, rows, columns, blocks, block, per_batch)
        analyzer = sym.Analyzer()
        analyzer.bind(task, range_from_zero(tasks))
        if block > 1:
            first = task // per_batch % blocks * block
            extent: Expr = constant_like(block, self.index_dtype)
            if row_tiles % block:
                extent = tirx.min(extent, row_tiles - first)
            extent = analyzer.simplify(extent)
            body = tirx.For(
                inner, constant_like(0, self.index_dtype), extent, tirx.ForKind.SERIAL, body
            )
        kind = tirx.ForKind.SERIAL
        if tasks > 1 and is_parallel_worth(self.stage.work):
            kind = tirx.ForKind.PARALLEL
        zero, count = (constant_like(v, self.index_dtype) for v in (0, tasks))
        return tirx.For(task, zero, count, kind, body)

    def _task_body(
        self,
        task: Any,
        inner: Any,
        batch: list[_TileAxis],
        rows: list[_TileAxis],
        columns: list[_TileAxis],
        blocks: int,
        block: int,
        per_batch: int,
    ) -> Any:
        """Decode the task into tile numbers and choose the code for this kind of tile."""
        row_tile = task // per_batch % blocks * block
        if block > 1:
            row_tile = row_tile + inner
        column_tiles = prod(axis.tiles for axis in columns)
        tail = self.stage.spatial[-1].extent % self.anchor.lanes
        binds: list[Any] = []
        numbers = dict(self._decode(task // (per_batch * blocks), batch, binds))
        numbers |= dict(self._decode(row_tile, rows, binds))
        column = task % per_batch
        head = list(columns)
        numbers_main = numbers | dict(self._decode(column, head, binds))
        main = self._choose([*batch, *rows, *columns], numbers_main, 0, [], tail=False)
        if tail:
            tail_binds: list[Any] = []
            outer = columns[:-1]
            rest = numbers | dict(self._decode(column - column_tiles, outer, tail_binds))
            code = self._choose([*batch, *rows, *outer], rest, 0, [], tail=True)
            code = sequence([*tail_binds, code])
            main = code if column_tiles == 0 else tirx.IfThenElse(column < column_tiles, main, code)
        return sequence([*binds, main])

    def _decode(
        self, number: Expr, axes: list[_TileAxis], binds: list[Any]
    ) -> Iterator[tuple[_TileAxis, Expr]]:
        """Split a tile number into one number for each axis, the last axis fastest."""
        for axis in reversed(axes):
            if axis.tiles <= 1:
                yield axis, constant_like(0, self.index_dtype)
                continue
            var = tirx.Var(f"tile{axis.members[0]}", self.index_dtype)
            binds.append(tirx.Bind(var, number % axis.tiles))
            number = number // axis.tiles
            yield axis, var

    def _choose(
        self,
        axes: list[_TileAxis],
        numbers: dict[_TileAxis, Expr],
        depth: int,
        chosen: list[tuple[_TileAxis, Run, Expr]],
        tail: bool,
    ) -> Any:
        """Return an if-chain over the runs of each axis, with a register tile in each branch."""
        if depth == len(axes):
            return self._register_tile(chosen, tail)
        axis = axes[depth]
        number = numbers[axis]
        result = None
        for run in reversed(axis.runs):
            if run.count == 1:
                start: Expr = constant_like(run.start, self.index_dtype)
            else:
                start = (number - run.first) * run.size + run.start
            branch = self._choose(axes, numbers, depth + 1, [*chosen, (axis, run, start)], tail)
            joined = result is not None
            result = tirx.IfThenElse(number < run.end, branch, result) if joined else branch
        return result

    def _register_tile(self, chosen: list[tuple[_TileAxis, Run, Expr]], tail: bool) -> Any:
        """Return the code of one tile: addresses, reduction, epilogue."""
        geometry = _Geometry(self, chosen, tail)
        statements: list[Any] = []
        bases = []
        for number, access in enumerate(self.accesses):
            base = tirx.Var(f"base{number}", self.index_dtype)
            statements.append(tirx.Bind(base, geometry.base(access)))
            bases.append(base)
        tile = RegisterTile(
            combine=self.anchor.combine,
            init=self.stage.init,
            dtype=self.anchor.dtype,
            term=self.anchor.term,
            operands=tuple(self._operand(access, geometry) for access in self.accesses),
            rows=len(geometry.row_offsets),
            columns=geometry.column_count,
            lanes=self.anchor.lanes,
            loops=self._reduction_loops(geometry),
            chains=self.plan.chains,
            skip=lambda row, steps: self.skips(geometry, row, steps),
        )
        accumulators, body = emit_reduction(tile, bases, self.index_dtype)
        return sequence([*statements, *body, *self._epilogue(accumulators, geometry)])

    def _operand(self, access: Access, geometry: _Geometry) -> Operand:
        return Operand(
            load=access.load,
            buffer=self.flat(access.buffer),
            vector=access.vector,
            rows=tuple(geometry.row_offset(access, row) for row in geometry.row_offsets),
            columns=tuple(
                column * geometry.column_step(access) for column in range(geometry.column_count)
            ),
            steps=tuple(access.offset.of(axis.var) for axis in self.stage.reduction),
        )

    def _reduction_loops(self, geometry: _Geometry) -> tuple[ReductionLoop, ...]:
        plan = self.plan
        written_out = plan.written_out
        if plan.roll_inside and not geometry.is_clipped():
            written_out = ()
        rolled = [p for p in plan.order if p not in written_out]
        loops = []
        for position in plan.order:
            first: Any = 0
            end: Any = self.stage.reduction[position].extent
            for clip in self.clips:
                if clip.reduction == position and not self._is_static(clip):
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

    def skips(self, geometry: _Geometry, row: int, steps: dict[int, int]) -> bool:
        """Tell whether a step written out falls into the padding of a row."""
        for clip in self.clips:
            if clip.reduction not in steps or not self._is_static(clip):
                continue
            spatial = 0 if clip.spatial is None else geometry.fixed_index(clip.spatial, row)
            if not self._inside(clip, spatial, steps[clip.reduction]):
                return True
        return False

    # -- epilogue ----------------------------------------------------------------------------

    def _epilogue(self, accumulators: Any, geometry: _Geometry) -> list[Any]:
        """Return the stores of all outputs of a tile."""
        if sum(self._cost(stage) for stage in self.outputs) <= _LIGHT_EPILOGUE:
            return [
                self._store(stage, accumulators, geometry, row, column)
                for stage in self.outputs
                for row in range(len(geometry.row_offsets))
                for column in range(geometry.column_count)
            ]
        return self._looped_epilogue(accumulators, geometry)

    def _cost(self, stage: Stage) -> int:
        return _cost(self._inlined(stage))

    def _inlined(self, stage: Stage) -> Expr:
        if stage is self.stage:
            return tirx.BufferLoad(stage.buffer, [axis.var for axis in stage.spatial])
        return inline_loads(stage.value, self.inlined | self._cheap_producers())

    def _cheap_producers(self) -> dict[Any, Stage]:
        """Return the producers that only the epilogue reads; they are computed in place."""
        read = {access.buffer for access in self.accesses}
        return {b: s for b, s in self.producers.items() if b not in read}

    def _looped_epilogue(self, accumulators: Any, geometry: _Geometry) -> list[Any]:
        """Copy the tile to the stack, then loop over it, so that code stays small."""
        rows, columns = len(geometry.row_offsets), geometry.column_count
        lanes = self.anchor.lanes
        tile = local_buffer("tile", rows * columns * lanes, self.anchor.dtype)
        statements: list[Any] = [tirx.AllocBuffer(tile)]
        for number in range(rows * columns):
            index = constant_like(number * lanes, self.index_dtype)
            at = tirx.Ramp(index, constant_like(1, index), lanes) if lanes > 1 else index
            statements.append(tirx.BufferStore(tile, tirx.BufferLoad(accumulators, [at]), [at]))
        row, column = (tirx.Var(name, self.index_dtype) for name in ("row", "column"))
        for stage in self.outputs:
            body = self._store(stage, tile, geometry, row, column)
            for var, extent in ((column, columns), (row, rows)):
                zero, count = (constant_like(v, self.index_dtype) for v in (0, extent))
                body = tirx.For(var, zero, count, tirx.ForKind.SERIAL, body)
            statements.append(body)
        return statements

    def _store(self, stage: Stage, results: Any, geometry: _Geometry, row: Any, column: Any) -> Any:
        """Return the vectorised store of one output vector of `stage`."""
        lane = tirx.Var("lane", self.index_dtype)
        analyzer = sym.Analyzer()
        first, count = geometry.stored_lanes
        values = geometry.axis_values(row, column, lane + first)
        if stage is self.stage:
            at = {axis.var: v for axis, v in zip(stage.spatial, values, strict=True)}
        else:
            mapping = self._axis_map(stage)
            assert mapping is not None
            zero = constant_like(0, self.index_dtype)
            at = {
                axis.var: values[mapping[i]] if mapping[i] >= 0 else zero
                for i, axis in enumerate(stage.spatial)
            }
        analyzer.bind(lane, range_from_zero(count))
        cell = (row * geometry.column_count + column) * self.anchor.lanes + lane + first
        result = tirx.BufferLoad(results, [cell])

        def leaf(node: Expr) -> Expr | None:
            if isinstance(node, TensorLoad) and node.source.same_as(self.stage.buffer):
                return result
            return None

        value = rebuild(self._inlined(stage), leaf)
        value = self.flatten(substitute(value, at), analyzer)
        indices = [substitute(index, at) for index in stage.indices]
        address = analyzer.simplify(flat_index(stage.buffer, indices))
        store = tirx.BufferStore(self.flat(stage.buffer), value, [address])
        zero, extent = (constant_like(v, self.index_dtype) for v in (0, count))
        kind = tirx.ForKind.VECTORIZED if count > 1 else tirx.ForKind.SERIAL
        return tirx.For(lane, zero, extent, kind, store)


def _cost(expr: Expr) -> int:
    own = 1
    if isinstance(expr, Call):
        own = 1 if str(expr.op.name).endswith("if_then_else") else _CALL_COST
    elif isinstance(expr, tirx.Div):
        own = 8
    return own + sum(_cost(part) for part in children(expr) if not isinstance(expr, TensorLoad))


def column_axis(anchor: Anchor) -> int:
    """Return which column axis (index into anchor.columns) the register tile covers.

    The vector axis if it is longer than a vector, else the innermost column axis before it.
    """
    if anchor.vector_axis.extent > anchor.lanes or len(anchor.columns) == 1:
        return len(anchor.columns) - 1
    return len(anchor.columns) - 2


class _Geometry:
    """Where one register tile lies: start of each axis, offsets of its rows and columns."""

    def __init__(
        self, builder: KernelBuilder, chosen: list[tuple[_TileAxis, Run, Expr]], tail: bool
    ) -> None:
        self.builder = builder
        self.anchor = builder.anchor
        self.stage = builder.stage
        self.tail = tail
        self.starts = {axis.members: start for axis, _, start in chosen}
        rows = [axis for axis, _, _ in chosen if set(axis.members) <= set(self.anchor.rows)]
        self.runs = {axis.members: run for axis, run, _ in chosen}
        sizes = {members: run.size for members, run in self.runs.items()}
        self.row_axes = [axis.members for axis in rows]
        self.row_sizes = [sizes[axis.members] for axis in rows]
        self.row_offsets = list(product(*(range(size) for size in self.row_sizes)))
        position = self.anchor.columns[builder.column_axis()]
        self.column_position = position
        last = len(self.stage.spatial) - 1
        self.column_count = sizes.get((position,), 1)
        if tail and position == last:
            self.column_count = 1
        self.last = last

    def base(self, access: Access) -> Expr:
        """Return the address of the first element that the tile reads."""
        dtype = self.builder.index_dtype
        address: Expr = constant_like(access.offset.constant, dtype)
        for members, start in self.starts.items():
            address = address + start * self._step(access, members)
        if self.tail:
            address = address + self._tail_offset(access)
        return sym.Analyzer().simplify(address)

    def _step(self, access: Access, members: tuple[int, ...]) -> int:
        return access.offset.of(self.stage.spatial[members[-1]].var)

    def _tail_offset(self, access: Access) -> int:
        """Return the offset of the last vector along the vector axis.

        A packed operand holds a whole last vector; otherwise the vector is moved back, so that
        it ends with the last element and overlaps its neighbour.
        """
        axis = self.anchor.vector_axis
        step = access.offset.of(axis.var)
        if step == access.vector * self.anchor.lanes:
            return access.vector * self.tail_start
        if self.tail_start == axis.extent // self.anchor.lanes * self.anchor.lanes:
            return step * (axis.extent // self.anchor.lanes)
        raise InvalidScheduleError(
            f"axis {axis.name!r} of extent {axis.extent} is packed in one operand of "
            f"{self.stage.name!r} and not in the other"
        )

    @property
    def tail_start(self) -> int:
        """First element of the last, partial vector along the vector axis."""
        axis, lanes = self.anchor.vector_axis, self.anchor.lanes
        packed = any(
            access.offset.of(axis.var) != access.vector * lanes
            for access in self.anchor.accesses
            if access.vector
        )
        return axis.extent // lanes * lanes if packed else axis.extent - lanes

    @property
    def stored_lanes(self) -> tuple[int, int]:
        """First lane that is stored, and how many."""
        lanes = self.anchor.lanes
        if not self.tail:
            return 0, lanes
        rest = self.anchor.vector_axis.extent % lanes
        whole = self.anchor.vector_axis.extent // lanes * lanes
        return whole - self.tail_start, rest

    def row_offset(self, access: Access, row: tuple[int, ...]) -> int:
        """Return how far a row of the tile is from the first, in elements."""
        return sum(
            offset * self._step(access, members)
            for offset, members in zip(row, self.row_axes, strict=True)
        )

    def column_step(self, access: Access) -> int:
        """Return the distance between neighbouring column vectors, in elements."""
        return access.offset.of(self.stage.spatial[self.column_position].var)

    def fixed_index(self, position: int, row: int) -> int:
        """Return the index on a row axis, which must start at a constant or not matter."""
        for members, offset in zip(self.row_axes, self.row_offsets[row], strict=True):
            if members == (position,):
                # All tiles of a run are clipped alike, so its first one speaks for them.
                return self.runs[members].start + offset
        raise AssertionError("clipped axis is not a row axis of the tile")

    def is_clipped(self) -> bool:
        """Tell whether some step written out falls into the padding of some row."""
        builder = self.builder
        return any(
            builder.skips(self, row, {clip.reduction: step})
            for clip in builder.clips
            for step in range(self.stage.reduction[clip.reduction].extent)
            for row in range(len(self.row_offsets))
        )

    def clipped(self, clip: _Clip, first: Any, end: Any) -> tuple[Any, Any]:
        """Return the bounds of a reduction loop that stays inside the data."""
        dtype = self.builder.index_dtype
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
        if self.tail:
            values[last] = self.tail_start + lane
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


def read_through(access: Access, anchor: Anchor) -> Access:
    """Return the access to the data behind a pad."""
    pad = access.pad
    assert pad is not None
    axes = {a.var: i for a, i in zip(pad.stage.spatial, access.load.indices, strict=True)}
    indices = [substitute(index, axes) for index in pad.source.indices]
    analyzer = sym.Analyzer()
    stage = anchor.stage
    vector = stage.spatial[-1].var
    lane = tirx.Var("lane", dtype_of(vector))
    flat = substitute(
        flat_index(pad.source.source, indices), {vector: vector * anchor.lanes + lane}
    )
    variables = [*(axis.var for axis in stage.axes), lane]
    offset = linear_form(flat, variables, analyzer)
    if offset is None:
        raise InvalidScheduleError(f"data behind pad {pad.stage.name!r} is not linear in the axes")
    return Access(access.load, pad.source.source, offset, offset.of(lane))


def read_clips(access: Access, anchor: Anchor) -> list[_Clip] | None:
    """Return the conditions of a pad on the anchor's axes, or None if they cannot be skipped."""
    pad = access.pad
    assert pad is not None
    if not _is_neutral(pad.fill, anchor):
        return None
    stage = anchor.stage
    spatial = {axis.var: i for i, axis in enumerate(stage.spatial)}
    reduction = {axis.var: i for i, axis in enumerate(stage.reduction)}
    clips = []
    for dim, (first, end) in pad.bounds.items():
        form: Linear | None = linear_form(
            access.load.indices[dim], [*spatial, *reduction], sym.Analyzer()
        )
        if form is None:
            return None
        outer = [v for v in form.coefficients if v in spatial]
        inner = [v for v in form.coefficients if v in reduction]
        if len(outer) > 1 or len(inner) != 1 or form.of(inner[0]) < 1:
            return None
        if outer and spatial[outer[0]] == len(stage.spatial) - 1:
            return None
        clips.append(
            _Clip(
                spatial[outer[0]] if outer else None,
                reduction[inner[0]],
                form.of(outer[0]) if outer else 0,
                form.of(inner[0]),
                form.constant,
                first,
                end,
            )
        )
    return clips


def _is_neutral(fill: Expr, anchor: Anchor) -> bool:
    """Tell whether a term of padding leaves the accumulator as it is."""
    value = float(fill.value)
    if anchor.combine == "add":
        return value == 0.0
    init = anchor.stage.init
    if not isinstance(init, tirx.FloatImm | tirx.IntImm):
        return False
    return value <= float(init.value) if anchor.combine == "max" else value >= float(init.value)
