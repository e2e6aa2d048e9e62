"""Schedule functions without reductions: arithmetic, broadcasts, transposes, copies, gathers.

All stages are inlined into those that write outputs. The domain of an output is cut where a
condition on its axes changes (pieces of a concatenation, borders of a pad), so that conditions
vanish; each piece is a nest with vectors along its innermost axis, or, where a load has its unit
stride along another axis, with square tiles transposed in registers.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import prod
from typing import Any

from tvm import tirx
from tvm.ir import Call, TensorLoad

from tilewright.compiler.schedule.analysis import Axis, Stage, inline_loads, read_stages
from tilewright.compiler.schedule.boxes import cut
from tilewright.compiler.schedule.decision_json import from_line, to_line
from tilewright.compiler.schedule.expressions import (
    Expr,
    children,
    dtype_of,
    loads_in,
)
from tilewright.compiler.schedule.fallback import schedule_fallback
from tilewright.compiler.schedule.micro_kernel import constant_like, sequence
from tilewright.compiler.schedule.register_transpose import transpose_rows
from tilewright.compiler.schedule.vector_nest import (
    Access,
    Kernel,
    Loop,
    Nest,
    serial,
    serial_nest,
    tasks,
    vector,
    vector_width,
)
from tilewright.compiler.targets import Target
from tilewright.errors import InvalidScheduleError

# A call such as exp or erf becomes a polynomial of about this many operations.
_CALL_COST = 16
# Parallel loops are split into about this many tasks, enough to balance any number of cores.
_TASKS = 64


@dataclass(frozen=True, slots=True)
class ElementwiseDecisions:
    """How a function without reductions becomes loops.

    Attributes:
        lanes: elements of a vector for 4-byte data; wider data gets fewer.
        parallel_work: element operations from which threads are woken.
        transpose: transpose tiles in registers where a load needs it.
    """

    lanes: int
    parallel_work: int = 1 << 15
    transpose: bool = True

    def __post_init__(self) -> None:
        if self.lanes < 1 or self.lanes & (self.lanes - 1):
            raise InvalidScheduleError(f"lanes must be a power of two, found {self.lanes}")

    def to_json(self) -> str:
        """Return one line of JSON that `from_json` reads back."""
        return to_line("elementwise", self)

    @classmethod
    def from_json(cls, text: str) -> ElementwiseDecisions:
        """Read decisions back.

        Raises:
            InvalidScheduleError: the text holds another kind or other fields.
        """
        return from_line(cls, "elementwise", text)


def default_elementwise_decisions(func: tirx.PrimFunc, target: Target) -> ElementwiseDecisions:
    """Return the decisions of the untuned path."""
    del func  # the same for all: these functions are bound by memory
    return ElementwiseDecisions(target.lanes("float32"))


def schedule_elementwise(
    func: tirx.PrimFunc, target: Target, decisions: ElementwiseDecisions | None = None
) -> tirx.PrimFunc:
    """Return vectorised, parallel loops for a function without reductions.

    A function that is not a sequence of blocks with one store each is only made parallel.
    """
    stages = read_stages(func)
    chosen = decisions or default_elementwise_decisions(func, target)
    if stages is None:
        return schedule_fallback(func, chosen.parallel_work)
    kernel = Kernel(func)
    producers = {stage.buffer: stage for stage in stages}
    bodies = []
    for stage in stages:
        if any(stage.buffer.same_as(param) for param in func.params):
            others = {b: s for b, s in producers.items() if s is not stage}
            value = inline_loads(stage.value, others)
            bodies.append(emit_elementwise(kernel, replace(stage, value=value), chosen))
    return kernel.finish(sequence(bodies))


def emit_elementwise(kernel: Kernel, stage: Stage, decisions: ElementwiseDecisions) -> tirx.Stmt:
    """Return the loops of one stage without reduction, which reads only buffers in memory."""
    return sequence(
        [
            _emit_box(
                kernel, box, decisions, box.work * operations(box.value) >= decisions.parallel_work
            )
            for box in cut(stage)
        ]
    )


def operations(expr: Expr) -> int:
    """Return about how many vector operations an expression costs."""
    own = _CALL_COST if isinstance(expr, Call) else 1
    if isinstance(expr, TensorLoad):
        return 1
    return own + sum(operations(part) for part in children(expr))


# -- one box ---------------------------------------------------------------------------------


def _emit_box(
    kernel: Kernel, box: Stage, decisions: ElementwiseDecisions, parallel: bool
) -> tirx.Stmt:
    axes = [axis for axis in box.spatial if axis.extent > 1]
    nest = Nest(kernel, [], box.spatial, box.value, (box.buffer, box.indices))
    if not axes:
        return _store(nest, [], [])
    loops = nest.loops()
    bits = _bits(dtype_of(box.value), *(str(load.source.dtype) for load in loads_in(box.value)))
    lanes = max(1, decisions.lanes * 32 // max(bits, 8))
    if decisions.transpose:
        tile = _transposed_axis(nest, loops, decisions.lanes)
        if tile is not None:
            return _emit_transposed(nest, loops, tile, decisions.lanes, parallel)
    *outer, inner = _with_chunks(loops, lanes, parallel)
    return _around(
        outer, nest.dtype, parallel, lambda values: _emit_row(nest, loops, values, inner, lanes)
    )


def _bits(*dtypes: str) -> int:
    return max(int("".join(c for c in name if c.isdigit()) or 8) for name in dtypes)


def _with_chunks(loops: list[Loop], lanes: int, parallel: bool) -> list[Any]:
    """Give the innermost loop an outer part where the loops around it are too few for threads."""
    *outer, inner = loops
    around = prod(loop.extent for loop in outer)
    if not parallel or around >= _TASKS // 4:
        return [*outer, _Span(inner.extent, None)]
    unit = 4 * lanes
    chunks = max(1, min(_TASKS // around, inner.extent // (8 * unit)))
    if chunks == 1:
        return [*outer, _Span(inner.extent, None)]
    size = -(-inner.extent // (chunks * unit)) * unit
    count = -(-inner.extent // size)
    return [
        *outer,
        Loop((Axis(tirx.Var("chunk", dtype_of(inner.last)), count),)),
        _Span(size, inner.extent),
    ]


@dataclass(frozen=True)
class _Span:
    """A stretch of the innermost loop: `size` elements, starting at a chunk of `total`."""

    size: int
    total: int | None


def _around(loops: Sequence[Loop], dtype: str, parallel: bool, body: Any) -> tirx.Stmt:
    """Return loops: the outermost ones as one parallel loop of tasks, the rest serial inside."""
    if not parallel:
        return serial_nest(loops, dtype, body)
    count, split = 1, 0
    while split < len(loops) and count < _TASKS:
        count *= loops[split].extent
        split += 1

    def inside(values: list[Expr]) -> tirx.Stmt:
        return serial_nest(loops[split:], dtype, lambda rest: body([*values, *rest]))

    return tasks(loops[:split], dtype, count, inside)


def _emit_row(
    nest: Nest, loops: list[Loop], values: list[Expr], span: _Span, lanes: int
) -> tirx.Stmt:
    """Return the vectors along the innermost loop."""
    dtype = nest.dtype
    if span.total is None:
        return _row(nest, loops, values, constant_like(0, dtype), span.size, lanes)
    *outer, chunk = values
    # The last chunk is moved back to end with the axis; what it shares is stored twice.
    limit = constant_like(span.total - span.size, dtype)
    start = tirx.Var("start", dtype)
    first = tirx.min(chunk * constant_like(span.size, dtype), limit)
    body = _row(nest, loops, outer, start, span.size, lanes)
    return sequence([tirx.Bind(start, first), body])


def _row(
    nest: Nest, loops: list[Loop], values: list[Expr], start: Expr, extent: int, lanes: int
) -> tirx.Stmt:
    dtype = nest.dtype
    width = vector_width(extent, lanes)

    def at(offset: Expr) -> tirx.Stmt:
        return vector(
            width, dtype, lambda lane: _store(nest, loops, [*values, start + offset + lane])
        )

    size = constant_like(width, dtype)
    body = serial("vector", extent // width, dtype, lambda index: at(index * size))
    if extent % width:
        return sequence([body, at(constant_like(extent - width, dtype))])
    return body


def _store(nest: Nest, loops: list[Loop], values: list[Expr]) -> tirx.Stmt:
    store = nest.store
    assert store is not None
    offset = nest.at(loops, values, store)
    return tirx.BufferStore(store.buffer, nest.value_at(loops, values), [offset])


# -- transposes ------------------------------------------------------------------------------


def _transposed_axis(nest: Nest, loops: list[Loop], lanes: int) -> int | None:
    """Return which loop has the unit stride of a load that the innermost loop strides through.

    Both loops must fill a tile, and data must be 4 bytes wide.
    """
    store, inner = nest.store, loops[-1]
    if store is None or store.form is None or store.form.of(inner.last) != 1:
        return None
    if inner.extent < lanes or lanes < 4:
        return None
    for _, access in nest.loads():
        if not _strides(access, inner) or _bits(str(access.buffer.dtype)) != 32:
            continue
        for position, loop in enumerate(loops[:-1]):
            if access.form is not None and access.form.of(loop.last) == 1 and loop.extent >= lanes:
                return position
    return None


def _strides(access: Access, loop: Loop) -> bool:
    return access.form is not None and access.form.of(loop.last) not in (0, 1)


def _emit_transposed(
    nest: Nest, loops: list[Loop], position: int, lanes: int, parallel: bool
) -> tirx.Stmt:
    """Walk tiles of `lanes` x `lanes` over the innermost loop and the one at `position`."""
    dtype = nest.dtype
    row, column = loops[position], loops[-1]
    row_tiles, column_tiles = -(-row.extent // lanes), -(-column.extent // lanes)
    outer = [loop for i, loop in enumerate(loops[:-1]) if i != position]
    tiles = [
        Loop((Axis(tirx.Var("row_tile", dtype), row_tiles),)),
        Loop((Axis(tirx.Var("column_tile", dtype), column_tiles),)),
    ]

    def start(tile: Expr, loop: Loop) -> Expr:
        first = tile * constant_like(lanes, dtype)
        if loop.extent % lanes:
            first = tirx.min(first, constant_like(loop.extent - lanes, dtype))
        return first

    def body(values: list[Expr]) -> tirx.Stmt:
        *around, row_tile, column_tile = values
        first_row, first_column = tirx.Var("row", dtype), tirx.Var("column", dtype)

        def at(row_value: Expr, column_value: Expr) -> list[Expr]:
            return [*around[:position], row_value, *around[position:], column_value]

        return sequence(
            [
                tirx.Bind(first_row, start(row_tile, row)),
                tirx.Bind(first_column, start(column_tile, column)),
                _tile(nest, loops, at, first_row, first_column, position, lanes),
            ]
        )

    return _around([*outer, *tiles], dtype, parallel, body)


def _tile(
    nest: Nest,
    loops: list[Loop],
    at: Any,
    first_row: Expr,
    first_column: Expr,
    position: int,
    lanes: int,
) -> tirx.Stmt:
    """Transpose every load that needs it, then compute and store row by row."""
    dtype = nest.dtype
    row = loops[position]
    statements: list[tirx.Stmt] = []
    buffers: dict[Any, list[Any]] = {}
    for load, access in nest.loads():
        if access.form is None or access.form.of(row.last) != 1:
            continue
        if not _strides(access, loops[-1]) or _bits(str(access.buffer.dtype)) != 32:
            continue
        vectors = []
        for lane in range(lanes):
            column = first_column + constant_like(lane, dtype)
            base = nest.at(loops, at(first_row, column), access)
            ramp = tirx.Ramp(base, constant_like(1, dtype), lanes)
            vectors.append(tirx.BufferLoad(access.buffer, [ramp]))
        shuffles, buffers[load] = transpose_rows(vectors, str(access.buffer.dtype))
        statements += shuffles

    def store(step: int) -> tirx.Stmt:
        def lane_body(lane: Expr) -> tirx.Stmt:
            values = at(first_row + constant_like(step, dtype), first_column + lane)

            def replaced(load: TensorLoad) -> Expr | None:
                if load not in buffers:
                    return None
                return tirx.BufferLoad(buffers[load][step], [lane])

            assert nest.store is not None
            offset = nest.at(loops, values, nest.store)
            return tirx.BufferStore(
                nest.store.buffer, nest.value_at(loops, values, replaced), [offset]
            )

        return vector(lanes, dtype, lane_body)

    return sequence([*statements, *(store(step) for step in range(lanes))])
