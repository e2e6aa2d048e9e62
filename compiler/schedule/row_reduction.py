"""Emit one reduction inside a row: accumulator vectors, their loops, and the final fold."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from tvm import tirx
from tvm.ir import TensorLoad

from tilewright.compiler.schedule.analysis import Stage
from tilewright.compiler.schedule.expressions import Expr
from tilewright.compiler.schedule.micro_kernel import constant_like, local_buffer, ramp, sequence
from tilewright.compiler.schedule.vector_nest import (
    Loop,
    Nest,
    serial,
    serial_nest,
    vector,
    vector_width,
)

# Combiner -> its neutral number; None where joining a term twice is harmless.
COMBINERS = {tirx.Add: 0, tirx.Mul: 1, tirx.Max: None, tirx.Min: None}


def is_supported(stage: Stage) -> bool:
    """Tell whether a stage is a plain store, or reduces by one of the known combiners."""
    if not stage.reduction:
        return bool(stage.axes)
    return type(stage.value) in COMBINERS and _own_side(stage) is not None


def _own_side(stage: Stage) -> str | None:
    """Return which operand ("a" or "b") of a reduction's combiner is the accumulator."""
    for side in ("a", "b"):
        own = getattr(stage.value, side)
        if isinstance(own, TensorLoad) and own.source.same_as(stage.buffer):
            return side
    return None


def split_term(stage: Stage) -> tuple[Any, Expr]:
    """Return (combiner, what joins the accumulator) of `out = combine(out, term)`."""
    return type(stage.value), stage.value.b if _own_side(stage) == "a" else stage.value.a


@dataclass(frozen=True, eq=False)
class RowStage:
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


class RowReduction:
    """Emits one reduction in one row, for fixed values of the loops around it."""

    def __init__(
        self,
        stage: RowStage,
        loops: Sequence[Loop],
        values: Sequence[Expr],
        lanes: int,
        accumulators: int,
    ) -> None:
        self.stage = stage
        self.nest = stage.nest
        self.loops = loops
        self.values = values
        self.dtype = stage.nest.dtype
        self.combiner, _ = split_term(stage.stage)
        self.element = str(stage.stage.buffer.dtype)
        self.lanes = lanes
        self.accumulators = accumulators

    def emit(self) -> tirx.Stmt:
        """Return the accumulators, the loops and the store of the result."""
        if self.stage.lane is not None:
            return self._across_rows(self.stage.lane.extent)
        return self._along_row()

    def _neutral(self) -> Expr:
        neutral = COMBINERS[self.combiner]
        return self.stage.stage.init if neutral is None else tirx.const(neutral, self.element)

    def _finish(self, result: Expr) -> Expr:
        """Join the stage's initial value where the accumulators did not start from it."""
        init, neutral = self.stage.stage.init, COMBINERS[self.combiner]
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
                if skip and COMBINERS[self.combiner] is not None:
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

        def store(index: int) -> tirx.Stmt:
            def lane_body(lane: Expr) -> tirx.Stmt:
                column = constant_like(index * piece, self.dtype) + lane
                result = self._finish(tirx.BufferLoad(buffer, [column]))
                return self._store([*reduced, column], result)

            return vector(piece, self.dtype, lane_body)

        return sequence(
            [
                tirx.AllocBuffer(buffer),
                *self._fill(buffer, count * pieces, piece),
                serial_nest(loops[:-1], self.dtype, sweep),
                *self._join(buffer, count, width),
                *(store(index) for index in range(pieces)),
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
