"""Schedule row operators: softmax, layer norm, mean, sum, max, instance norm and their like.

All stages of a function run row by row, so that what they hand each other stays in the first-level
cache and the whole function is one parallel loop over rows. A row is one assignment of the axes
that all stages share. Where the data is contiguous along a reduced axis, vectors run along it with
several independent accumulators, which are combined lane by lane at the end; the elements that
vectors do not divide are one more vector that overlaps its neighbour, masked for sums. Where the
data is contiguous along a row axis, a vector holds neighbouring rows.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from tvm import tirx
from tvm.ir import TensorLoad

from tilewright.compiler.schedule.analysis import Axis, Stage, inline_loads, read_stages
from tilewright.compiler.schedule.elementwise import (
    ElementwiseDecisions,
    emit_elementwise,
    operations,
)
from tilewright.compiler.schedule.expressions import (
    Expr,
    children,
    dtype_of,
    loads_in,
    rebuild,
    substitute,
)
from tilewright.compiler.schedule.fallback import schedule_fallback
from tilewright.compiler.schedule.micro_kernel import constant_like, local_buffer, ramp, sequence
from tilewright.compiler.schedule.row_axes import Rows, find_rows
from tilewright.compiler.schedule.vector_nest import (
    KeptDim,
    Kernel,
    Loop,
    Nest,
    fuse,
    serial,
    serial_nest,
    tasks,
    vector,
    vector_width,
)
from tilewright.compiler.targets import Target
from tilewright.errors import InvalidScheduleError

# Rows are split into about this many tasks, enough to balance any number of cores.
_TASKS = 64
_COMBINERS = {tirx.Add: 0, tirx.Mul: 1, tirx.Max: None, tirx.Min: None}


@dataclass(frozen=True, slots=True)
class ReductionDecisions:
    """How a row operator becomes loops.

    Attributes:
        lanes: elements of a vector for 4-byte data.
        accumulators: independent accumulator vectors of a reduction.
        parallel_work: element operations from which threads are woken.
    """

    lanes: int
    accumulators: int = 4
    parallel_work: int = 1 << 15

    def __post_init__(self) -> None:
        if self.lanes < 1 or self.lanes & (self.lanes - 1):
            raise InvalidScheduleError(f"lanes must be a power of two, found {self.lanes}")
        if self.accumulators < 1:
            raise InvalidScheduleError(f"accumulators must be positive, found {self.accumulators}")

    def to_json(self) -> str:
        """Return one line of JSON that `from_json` reads back."""
        return json.dumps({"kind": "reduction", **asdict(self)}, separators=(",", ":"))

    @classmethod
    def from_json(cls, text: str) -> ReductionDecisions:
        """Read decisions back.

        Raises:
            InvalidScheduleError: the text holds other fields or another kind.
        """
        values = json.loads(text)
        if values.pop("kind", None) != "reduction" or set(values) != set(cls.__slots__):
            raise InvalidScheduleError(f"not decisions of a reduction: {text}")
        return cls(**values)


def default_reduction_decisions(func: tirx.PrimFunc, target: Target) -> ReductionDecisions:
    """Return the decisions of the untuned path."""
    del func  # the same for all: four accumulators hide the latency of an addition
    return ReductionDecisions(target.lanes("float32"))


def schedule_reduction(
    func: tirx.PrimFunc, target: Target, decisions: ReductionDecisions | None = None
) -> tirx.PrimFunc:
    """Return vectorised, parallel loops over rows for a function with reductions.

    A function that is not a sequence of blocks with one store each, or that reduces in another
    way than by +, *, max or min, is only made parallel.
    """
    stages = read_stages(func)
    chosen = decisions or default_reduction_decisions(func, target)
    if stages is None or not all(_is_supported(stage) for stage in stages):
        return schedule_fallback(func, chosen.parallel_work)
    kernel = Kernel(func)
    stages = _inline(func, stages)
    intermediates = [s.buffer for s in stages if not _is_parameter(func, s.buffer)]
    rows = find_rows(stages, intermediates)
    if rows is not None:
        return kernel.finish(_RowKernel(kernel, stages, rows, chosen).emit())
    return kernel.finish(_emit_apart(kernel, stages, chosen))


def _is_parameter(func: tirx.PrimFunc, buffer: Any) -> bool:
    return any(buffer.same_as(param) for param in func.params)


def _inline(func: tirx.PrimFunc, stages: Sequence[Stage]) -> tuple[Stage, ...]:
    """Inline stages without reduction that are read once, are mere loads, or are constants."""
    uses: dict[Any, int] = {}
    for stage in stages:
        for load in loads_in(stage.value):
            uses[load.source] = uses.get(load.source, 0) + 1
    reduced: set[Any] = set()
    inlined: dict[Any, Stage] = {}
    for stage in stages:
        sources = [load.source for load in loads_in(stage.value)]
        if stage.reduction or any(source in reduced for source in sources):
            reduced.add(stage.buffer)
        if stage.reduction or _is_parameter(func, stage.buffer):
            continue
        cheap = operations(stage.value) <= 2
        # What no reduction feeds may lack the row axes that the other stages share.
        if uses.get(stage.buffer, 0) <= 1 or cheap:
            inlined[stage.buffer] = stage
    return tuple(
        replace(stage, value=inline_loads(stage.value, inlined))
        for stage in stages
        if stage.buffer not in inlined
    )


def _emit_apart(
    kernel: Kernel, stages: Sequence[Stage], decisions: ReductionDecisions
) -> tirx.Stmt:
    """Return the stages one after the other, each over its whole buffer in memory."""
    elementwise = ElementwiseDecisions(decisions.lanes, decisions.parallel_work)
    nests = []
    for stage in stages:
        if stage.reduction:
            rows = find_rows([stage], [])
            assert rows is not None  # there are no intermediates to disagree about
            nests.append(_RowKernel(kernel, [stage], rows, decisions).emit())
        else:
            nests.append(emit_elementwise(kernel, stage, elementwise))
    return sequence(nests)


@dataclass(frozen=True, eq=False)
class _RowStage:
    """A stage inside a row: its nest and its loops, the row loops not among them.

    Attributes:
        spatial: loops over what the row keeps of the stage's output.
        reduction: loops that are reduced over.
        lane: the loop over neighbouring rows, where a vector holds rows.
    """

    stage: Stage
    nest: Nest
    spatial: list[Loop]
    reduction: list[Loop]
    lane: Loop | None

    @property
    def loops(self) -> list[Loop]:
        """All loops inside the row, in the order of their values."""
        return [*self.spatial, *self.reduction, *([] if self.lane is None else [self.lane])]


class _RowKernel:
    """Emits the stages of a function row by row."""

    def __init__(
        self, kernel: Kernel, stages: Sequence[Stage], rows: Rows, decisions: ReductionDecisions
    ) -> None:
        self.kernel = kernel
        self.rows = rows
        self.decisions = decisions
        self.dtype = dtype_of(stages[0].axes[0].var) if stages[0].axes else "int64"
        self.stages = [self._rename(number, stage) for number, stage in enumerate(stages)]
        self.work = sum(stage.work * operations(stage.value) for stage in stages)

    def _rename(self, number: int, stage: Stage) -> Stage:
        """Let a stage use the shared variables of the row axes."""
        own = self.rows.of_stage[number]
        at = {axis.var: constant_like(0, axis.var) for axis in stage.axes if axis.extent == 1}
        at |= {own[i].var: axis.var for i, axis in enumerate(self.rows.axes)}
        return replace(
            stage,
            value=substitute(stage.value, at),
            indices=tuple(substitute(index, at) for index in stage.indices),
        )

    def emit(self) -> tirx.Stmt:
        """Return the loop over rows."""
        lane_axis = self._lane_axis()
        if lane_axis is None:
            return self._emit(list(self.rows.axes), None, None)
        # Neighbouring rows of one vector (or of several, as independent accumulators).
        lanes, extent = self.decisions.lanes, lane_axis.extent
        width = vector_width(extent, lanes)
        while width >= lanes and width < lanes * self.decisions.accumulators:
            if 2 * width > extent:
                break
            width *= 2
        lane = Axis(tirx.Var("lane", self.dtype), width)
        start = Axis(tirx.Var("start", self.dtype), extent - width + 1)
        others = [axis for axis in self.rows.axes if axis is not lane_axis]
        at = {lane_axis.var: lane.var if start.extent == 1 else start.var + lane.var}
        self.stages = [
            replace(
                stage,
                value=substitute(stage.value, at),
                indices=tuple(substitute(index, at) for index in stage.indices),
            )
            for stage in self.stages
        ]
        return self._emit(others, lane, (lane_axis, start))

    def _lane_axis(self) -> Axis | None:
        """Return the row axis that the first reduction's data is contiguous along, if any."""
        for number, stage in enumerate(self.stages):
            if not stage.reduction:
                continue
            spatial, reduction = self.rows.inner_axes(number, stage)
            nest = Nest(self.kernel, self.rows.axes, [*spatial, *reduction], stage.value, None)
            forms = [access.form for _, access in nest.loads() if access.form is not None]
            largest = max(forms, key=lambda form: len(form.coefficients), default=None)
            if largest is None:
                return None
            for axis in self.rows.axes:
                if largest.of(axis.var) == 1 and axis.extent > 1:
                    return axis
            return None
        return None

    def _emit(
        self, row_axes: list[Axis], lane: Axis | None, chunk: tuple[Axis, Axis] | None
    ) -> tirx.Stmt:
        outer = [*row_axes, *([] if chunk is None else [chunk[1]])]
        allocations = self._allocate(lane, chunk)
        stages = [self._stage(number, outer, lane) for number in range(len(self.stages))]
        accesses = [access for stage in stages for access in stage.nest.accesses]
        pinned = set().union(*(stage.nest.pinned() for stage in stages))
        row_loops = fuse([a for a in row_axes if a.extent > 1], accesses, pinned)
        count = _TASKS if self.work >= self.decisions.parallel_work else 1

        if chunk is None or lane is None:

            def row(values: list[Expr]) -> tirx.Stmt:
                bodies = [self._emit_stage(s, row_loops, values) for s in stages]
                return sequence(bodies)

            return tasks(row_loops, self.dtype, count, row, allocations)

        axis, start = chunk
        number = Loop((Axis(tirx.Var("chunk", self.dtype), -(-axis.extent // lane.extent)),))
        begin = [] if start.extent == 1 else [Loop((start,))]

        def rows(values: list[Expr]) -> tirx.Stmt:
            *others, index = values
            first = tirx.min(
                index * constant_like(lane.extent, self.dtype),
                constant_like(axis.extent - lane.extent, self.dtype),
            )
            at = [*others, *([start.var] if begin else [])]
            bodies = [self._emit_stage(s, [*row_loops, *begin], at) for s in stages]
            bind = [tirx.Bind(start.var, first)] if begin else []
            return sequence([*bind, *bodies])

        return tasks([*row_loops, number], self.dtype, count, rows, allocations)

    def _allocate(self, lane: Axis | None, chunk: tuple[Axis, Axis] | None) -> list[tirx.Stmt]:
        allocations = []
        for buffer, dims in self.rows.dims.items():
            kept = [KeptDim(dim, int(buffer.shape[dim])) for dim in dims]
            if lane is not None and chunk is not None:
                stage = next(s for s in self.stages if s.buffer.same_as(buffer))
                dim = next(d for d, index in enumerate(stage.indices) if _mentions(index, lane.var))
                first = None if chunk[1].extent == 1 else chunk[1].var
                kept.append(KeptDim(dim, lane.extent, first))
            allocations.append(self.kernel.keep_privately(buffer, kept))
        return allocations

    def _stage(self, number: int, outer: list[Axis], lane: Axis | None) -> _RowStage:
        stage = self.stages[number]
        spatial, reduction = self.rows.inner_axes(number, stage)
        lanes = [] if lane is None else [lane]
        value = stage.value
        if reduction or stage.reduction:
            value = _term(stage)[1]
        else:
            value = _multiply_by_reciprocals(value, [axis.var for axis in spatial])
        nest = Nest(
            self.kernel, outer, [*spatial, *reduction, *lanes], value, (stage.buffer, stage.indices)
        )
        return _RowStage(
            stage,
            nest,
            nest.loops(spatial),
            nest.loops(_by_step(reduction, nest)),
            Loop((lane,)) if lane is not None else None,
        )

    # -- one stage in one row ------------------------------------------------------------------

    def _emit_stage(self, stage: _RowStage, row_loops: list[Loop], row: list[Expr]) -> tirx.Stmt:
        loops = [*row_loops, *stage.loops]
        if stage.stage.reduction:
            return serial_nest(
                stage.spatial,
                self.dtype,
                lambda values: _Reduction(self, stage, loops, [*row, *values]).emit(),
            )

        def store(values: list[Expr]) -> tirx.Stmt:
            access = stage.nest.store
            assert access is not None
            at = [*row, *values]
            offset = stage.nest.at(loops, at, access)
            return tirx.BufferStore(access.buffer, stage.nest.value_at(loops, at), [offset])

        if not stage.loops:
            return store([])
        *around, inner = stage.loops
        return serial_nest(
            around,
            self.dtype,
            lambda values: self._row(inner.extent, lambda at: store([*values, at])),
        )

    def _row(self, extent: int, store: Callable[[Expr], tirx.Stmt]) -> tirx.Stmt:
        """Return a loop of vectors, the last one overlapping its neighbour."""
        width = vector_width(extent, self.decisions.lanes)

        def at(first: Expr) -> tirx.Stmt:
            return vector(width, self.dtype, lambda lane: store(first + lane))

        size = constant_like(width, self.dtype)
        body = serial("vector", extent // width, self.dtype, lambda index: at(index * size))
        if extent % width:
            return sequence([body, at(constant_like(extent - width, self.dtype))])
        return body


class _Reduction:
    """Emits one reduction in one row, for fixed values of the loops around it."""

    def __init__(
        self, kernel: _RowKernel, stage: _RowStage, loops: list[Loop], values: list[Expr]
    ) -> None:
        self.stage = stage
        self.nest = stage.nest
        self.loops = loops
        self.values = values
        self.dtype = kernel.dtype
        self.combiner, _ = _term(stage.stage)
        self.element = str(stage.stage.buffer.dtype)
        self.lanes = kernel.decisions.lanes
        self.accumulators = kernel.decisions.accumulators

    def emit(self) -> tirx.Stmt:
        """Return the accumulators, the loops and the store of the result."""
        if self.stage.lane is not None:
            return self._across_rows(self.stage.lane.extent)
        return self._along_row()

    def _neutral(self) -> Expr:
        neutral = _COMBINERS[self.combiner]
        return self.stage.stage.init if neutral is None else tirx.const(neutral, self.element)

    def _finish(self, result: Expr) -> Expr:
        """Join the stage's initial value where the accumulators did not start from it."""
        init, neutral = self.stage.stage.init, _COMBINERS[self.combiner]
        if neutral is None or _is_number(init, neutral):
            return result
        return self.combiner(result, init)

    def _along_row(self) -> tirx.Stmt:
        """Vectors along the last reduced loop, one result."""
        if not self.stage.reduction:
            term = self.nest.value_at(self.loops, self.values)
            return self._store([], self.combiner(self._as_init(), term))
        *around, inner = self.stage.reduction
        width = vector_width(inner.extent, self.lanes)
        vectors, rest = divmod(inner.extent, width)
        count = min(self.accumulators, vectors)
        buffer = local_buffer("partial", count * width, self.element)

        def step(number: int, values: list[Expr], first: Expr, skip: int = 0) -> tirx.Stmt:
            def lane_body(lane: Expr) -> tirx.Stmt:
                at = [constant_like(number * width, self.dtype) + lane]
                term = self.nest.value_at(self.loops, [*self.values, *values, first + lane])
                if skip and _COMBINERS[self.combiner] is not None:
                    kept = lane >= constant_like(skip, self.dtype)
                    term = tirx.Select(kept, term, self._neutral())
                total = self.combiner(tirx.BufferLoad(buffer, at), term)
                return tirx.BufferStore(buffer, total, at)

            return vector(width, self.dtype, lane_body)

        def sweep(values: list[Expr]) -> tirx.Stmt:
            size = constant_like(count * width, self.dtype)

            def round_(index: Expr) -> tirx.Stmt:
                firsts = [index * size + constant_like(n * width, self.dtype) for n in range(count)]
                return sequence([step(n, values, first) for n, first in enumerate(firsts)])

            rounds = vectors // count
            parts = [serial("round", rounds, self.dtype, round_)]
            for number in range(rounds * count, vectors):
                first = constant_like(number * width, self.dtype)
                parts.append(step(number - rounds * count, values, first))
            if rest:
                first = constant_like(inner.extent - width, self.dtype)
                parts.append(step(0, values, first, width - rest))
            return sequence(parts)

        return sequence(
            [
                tirx.AllocBuffer(buffer),
                *self._fill(buffer, count, width),
                serial_nest(around, self.dtype, sweep),
                *self._join(buffer, count, width),
                *self._fold(buffer, width),
                self._store([], self._finish(_element(buffer, 0))),
            ]
        )

    def _as_init(self) -> Expr:
        return self.stage.stage.init

    def _across_rows(self, width: int) -> tirx.Stmt:
        """Vectors of neighbouring rows, one result in each lane."""
        loops = self.stage.reduction
        inner_extent = loops[-1].extent if loops else 1
        pieces = max(1, width // self.lanes)
        count = min(max(1, self.accumulators // pieces), inner_extent)
        buffer = local_buffer("partial", count * width, self.element)
        piece = width // pieces

        def step(number: int, values: list[Expr]) -> tirx.Stmt:
            def at_piece(index: int) -> tirx.Stmt:
                def lane_body(lane: Expr) -> tirx.Stmt:
                    at = [constant_like(number * width + index * piece, self.dtype) + lane]
                    column = constant_like(index * piece, self.dtype) + lane
                    term = self.nest.value_at(self.loops, [*self.values, *values, column])
                    total = self.combiner(tirx.BufferLoad(buffer, at), term)
                    return tirx.BufferStore(buffer, total, at)

                return vector(piece, self.dtype, lane_body)

            return sequence([at_piece(index) for index in range(pieces)])

        def sweep(values: list[Expr]) -> tirx.Stmt:
            if not loops:
                return step(0, [])
            size = constant_like(count, self.dtype)

            def round_(index: Expr) -> tirx.Stmt:
                return sequence(
                    [
                        step(n, [*values, index * size + constant_like(n, self.dtype)])
                        for n in range(count)
                    ]
                )

            rounds = inner_extent // count
            parts = [serial("round", rounds, self.dtype, round_)]
            parts += [
                step(n - rounds * count, [*values, constant_like(n, self.dtype)])
                for n in range(rounds * count, inner_extent)
            ]
            return sequence(parts)

        reduced = [constant_like(0, self.dtype)] * len(loops)
        stores = [
            vector(
                piece,
                self.dtype,
                lambda lane, index=index: self._store(
                    [*reduced, constant_like(index * piece, self.dtype) + lane],
                    self._finish(
                        tirx.BufferLoad(buffer, [constant_like(index * piece, self.dtype) + lane])
                    ),
                ),
            )
            for index in range(pieces)
        ]
        return sequence(
            [
                tirx.AllocBuffer(buffer),
                *self._fill(buffer, count * pieces, piece),
                serial_nest(loops[:-1], self.dtype, sweep),
                *self._join(buffer, count, width),
                *stores,
            ]
        )

    def _store(self, values: list[Expr], result: Expr) -> tirx.Stmt:
        access = self.nest.store
        assert access is not None
        missing = len(self.loops) - len(self.values) - len(values)
        at = [*self.values, *values, *([constant_like(0, self.dtype)] * missing)]
        return tirx.BufferStore(access.buffer, result, [self.nest.at(self.loops, at, access)])

    def _fill(self, buffer: Any, count: int, width: int) -> list[tirx.Stmt]:
        value = self._neutral()
        wide = value if width == 1 else tirx.Broadcast(value, width)
        return [
            tirx.BufferStore(buffer, wide, [ramp(self._at(n * width), 1, width)])
            for n in range(count)
        ]

    def _join(self, buffer: Any, count: int, width: int) -> list[tirx.Stmt]:
        """Add accumulators 1, 2, ... to the first one, in pieces of one vector."""
        piece = min(width, self.lanes)
        statements = []
        for number in range(1, count):
            for first in range(0, width, piece):
                target = [ramp(self._at(first), 1, piece)]
                other = [ramp(self._at(number * width + first), 1, piece)]
                total = self.combiner(
                    tirx.BufferLoad(buffer, target), tirx.BufferLoad(buffer, other)
                )
                statements.append(tirx.BufferStore(buffer, total, target))
        return statements

    def _fold(self, buffer: Any, width: int) -> list[tirx.Stmt]:
        """Combine the lanes of the first vector into its first element, by halves."""
        statements = []
        while width > 1:
            width //= 2
            low, high = ([ramp(self._at(first), 1, width)] for first in (0, width))
            total = self.combiner(tirx.BufferLoad(buffer, low), tirx.BufferLoad(buffer, high))
            statements.append(tirx.BufferStore(buffer, total, low))
        return statements

    def _at(self, index: int) -> Expr:
        return constant_like(index, self.dtype)


def _element(buffer: Any, index: int) -> Expr:
    return tirx.BufferLoad(buffer, [tirx.const(index, "int32")])


def _is_number(expr: Expr, value: int) -> bool:
    return isinstance(expr, tirx.FloatImm | tirx.IntImm) and float(expr.value) == value


def _mentions(expr: Expr, variable: Any) -> bool:
    if isinstance(expr, tirx.Var):
        return expr.same_as(variable)
    return any(_mentions(part, variable) for part in children(expr))


def _is_supported(stage: Stage) -> bool:
    if not stage.reduction:
        return bool(stage.axes)
    return type(stage.value) in _COMBINERS and _own_side(stage) is not None


def _own_side(stage: Stage) -> str | None:
    """Return which operand ("a" or "b") of a reduction's combiner is the accumulator."""
    for side in ("a", "b"):
        own = getattr(stage.value, side)
        if isinstance(own, TensorLoad) and own.source.same_as(stage.buffer):
            return side
    return None


def _term(stage: Stage) -> tuple[Any, Expr]:
    """Return (combiner, what joins the accumulator) of `out = combine(out, term)`."""
    return type(stage.value), stage.value.b if _own_side(stage) == "a" else stage.value.a


def _by_step(axes: list[Axis], nest: Nest) -> list[Axis]:
    """Order reduced axes so that the one with the smallest step in memory is innermost."""
    forms = [access.form for _, access in nest.loads() if access.form is not None]
    largest = max(forms, key=lambda form: len(form.coefficients), default=None)
    if largest is None:
        return axes
    return sorted(axes, key=lambda axis: -abs(largest.of(axis.var)))


def _multiply_by_reciprocals(value: Expr, inner: list[Any]) -> Expr:
    """Turn x / row into x * (1 / row): one division in a row instead of one for each element."""

    def leaf(node: Expr) -> Expr | None:
        if not isinstance(node, tirx.Div) or dtype_of(node) != "float32":
            return None
        varies = [any(_mentions(part, variable) for variable in inner) for part in (node.a, node.b)]
        if varies != [True, False]:
            return None
        return rebuild(node.a, leaf) * (tirx.const(1.0, "float32") / rebuild(node.b, leaf))

    return rebuild(value, leaf)
