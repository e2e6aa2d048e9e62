"""Schedule row operators: softmax, layer norm, mean, sum, max, instance norm and their like.

All stages of a function run row by row, so that what they hand each other stays in the first-level
cache and the whole function is one parallel loop over rows. A row is one assignment of the axes
that all stages share. Where the data is contiguous along a reduced axis, vectors run along it with
several independent accumulators, which are combined lane by lane at the end; the elements that
vectors do not divide are one more vector that overlaps its neighbour, masked for sums. Where the
data is contiguous along a row axis, a vector holds neighbouring rows.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from tvm import tirx

from tilewright.compiler.schedule.analysis import Axis, Stage, inline_loads, read_stages
from tilewright.compiler.schedule.decision_json import from_line, to_line
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
from tilewright.compiler.schedule.micro_kernel import constant_like, sequence
from tilewright.compiler.schedule.row_axes import Rows, find_rows
from tilewright.compiler.schedule.row_reduction import (
    RowReduction,
    RowStage,
    is_supported,
    split_term,
)
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
        return to_line("reduction", self)

    @classmethod
    def from_json(cls, text: str) -> ReductionDecisions:
        """Read decisions back.

        Raises:
            InvalidScheduleError: the text holds another kind or other fields.
        """
        return from_line(cls, "reduction", text)


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
    if stages is None or not all(is_supported(stage) for stage in stages):
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

    def _stage(self, number: int, outer: list[Axis], lane: Axis | None) -> RowStage:
        stage = self.stages[number]
        spatial, reduction = self.rows.inner_axes(number, stage)
        lanes = [] if lane is None else [lane]
        value = stage.value
        if reduction or stage.reduction:
            value = split_term(stage)[1]
        else:
            value = _multiply_by_reciprocals(value, [axis.var for axis in spatial])
        nest = Nest(
            self.kernel, outer, [*spatial, *reduction, *lanes], value, (stage.buffer, stage.indices)
        )
        return RowStage(
            stage,
            nest,
            nest.loops(spatial),
            nest.loops(_by_step(reduction, nest)),
            Loop((lane,)) if lane is not None else None,
        )

    # -- one stage in one row ------------------------------------------------------------------

    def _emit_stage(self, stage: RowStage, row_loops: list[Loop], row: list[Expr]) -> tirx.Stmt:
        loops = [*row_loops, *stage.loops]
        if stage.stage.reduction:
            return serial_nest(
                stage.spatial,
                self.dtype,
                lambda values: RowReduction(
                    stage,
                    loops,
                    [*row, *values],
                    self.decisions.lanes,
                    self.decisions.accumulators,
                ).emit(),
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


def _mentions(expr: Expr, variable: Any) -> bool:
    if isinstance(expr, tirx.Var):
        return expr.same_as(variable)
    return any(_mentions(part, variable) for part in children(expr))


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
