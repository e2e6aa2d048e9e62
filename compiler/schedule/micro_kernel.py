"""Emit one register tile: accumulators in registers over the whole reduction, then the epilogue.

The tile is written out in full (no loops over its rows and columns), because LLVM keeps the
accumulators in registers only where every index into them is a constant.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from math import prod
from typing import Any

from tvm import tirx
from tvm.ir import TensorLoad

from tilewright.compiler.schedule.expressions import Expr, dtype_of, rebuild

_COMBINE = {"add": tirx.Add, "max": tirx.Max, "min": tirx.Min}


@dataclass(frozen=True, eq=False)
class Operand:
    """A load of the term inside a tile, as offsets into a flat buffer, all in elements.

    Attributes:
        load: the load as it stands in the term.
        buffer: flat buffer.
        vector: distance between lanes; 0 broadcasts one element.
        rows: offset of each row of the tile.
        columns: offset of each column vector of the tile.
        steps: reduction axis position -> offset of one step.
    """

    load: TensorLoad
    buffer: Any
    vector: int
    rows: tuple[int, ...]
    columns: tuple[int, ...]
    steps: tuple[int, ...]


@dataclass(frozen=True)
class ReductionLoop:
    """How one reduction axis is walked: steps [first, end), written out or as a loop.

    Attributes:
        position: which reduction axis.
        first: first step, an int or an expression.
        end: step after the last.
        written_out: emit each step; both bounds must then be ints.
        unroll: steps in one round of the loop.
    """

    position: int
    first: Any
    end: Any
    written_out: bool = False
    unroll: int = 1


@dataclass(frozen=True, eq=False)
class Ahead:
    """What a tile asks the second cache level for while it computes: a part of the next weights.

    Attributes:
        buffer: flat buffer.
        firsts: address of the part in each stream, in elements.
        width: elements of a stream that one step of the reduction reads.
        shift: for each element that the tile reads itself, it asks for 1 / 2**shift of one.
        line: elements in a line of the cache.
    """

    buffer: Any
    firsts: tuple[Expr, ...]
    width: int
    shift: int
    line: int


@dataclass(frozen=True, eq=False)
class Point:
    """Where the walk over the reduction of a tile is.

    Attributes:
        bases: address of each operand, without `fixed`.
        fixed: constant part of each address.
        steps: reduction position -> step, for axes written out so far.
        turn: how many steps were unrolled before this one; picks the chain.
        done: steps of the whole reduction before this one.
    """

    bases: tuple[Expr, ...]
    fixed: tuple[int, ...]
    steps: Mapping[int, int] = field(default_factory=dict)
    turn: int = 0
    done: Any = 0


@dataclass(frozen=True, eq=False)
class RegisterTile:
    """Everything that `emit_reduction` needs to know.

    Attributes:
        term: expression that joins the accumulator, over the loads of `operands`.
        skip: tells for (row, reduction steps written out) that the term is neutral there.
        ahead: what to prefetch meanwhile.
        chains: independent accumulators for each output, for tiles too small to hide latency.
        start: what the first chain starts from, row by row; empty: all start from `init`.
    """

    combine: str
    init: Expr
    dtype: str
    term: Expr
    operands: tuple[Operand, ...]
    rows: int
    columns: int
    lanes: int
    loops: tuple[ReductionLoop, ...]
    chains: int = 1
    start: tuple[Expr, ...] = ()
    skip: Callable[[int, Mapping[int, int]], bool] = field(default=lambda row, steps: False)
    ahead: Ahead | None = None


def sequence(statements: Sequence[Any]) -> Any:
    """Return one statement that runs the given ones in order; of none, one that does nothing.

    A step of the window may lie in the padding for every row of a tile.
    """
    if not statements:
        return tirx.Evaluate(0)
    return statements[0] if len(statements) == 1 else tirx.SeqStmt(list(statements))


def local_buffer(name: str, size: int, dtype: str) -> Any:
    """Return a flat buffer that lives in registers or on the stack."""
    return tirx.decl_buffer((size,), dtype, name, scope="local", layout=None)


def constant_like(value: int, like: Expr | str) -> Expr:
    """Return an integer constant with the dtype of `like`."""
    return tirx.const(value, like if isinstance(like, str) else dtype_of(like))


def ramp(base: Expr, stride: int, lanes: int) -> Expr:
    """Return `lanes` indices from `base`; a plain index for one lane."""
    if lanes == 1:
        return base
    return tirx.Ramp(base, constant_like(stride, base), lanes)


def splat(value: Expr, lanes: int) -> Expr:
    """Return a vector with the same value in all lanes; the value itself for one lane."""
    return value if lanes == 1 else tirx.Broadcast(value, lanes)


def prefetch(buffer: Any, address: Expr) -> Any:
    """Return a statement that asks the second cache level for the line of an element.

    It may lie behind the end of the buffer: asking never faults.
    """
    place = tirx.address_of(tirx.BufferLoad(buffer, [address]))
    to_read, second_level, data = 0, 2, 1
    return tirx.Evaluate(
        tirx.call_intrin("void", "tirx.prefetch", place, to_read, second_level, data)
    )


class Emitter:
    """Walks the reduction loops of one tile."""

    def __init__(self, tile: RegisterTile, accumulators: Any, index_dtype: str) -> None:
        self.tile = tile
        self.accumulators = accumulators
        self.index_dtype = index_dtype

    def cell(self, chain: int, row: int, column: int) -> Expr:
        """Return the index of an accumulator vector."""
        tile = self.tile
        number = (chain * tile.rows + row) * tile.columns + column
        return ramp(constant_like(number * tile.lanes, self.index_dtype), 1, tile.lanes)

    def initial(self) -> list[Any]:
        """Return the stores that set all accumulators."""
        tile = self.tile
        value = splat(tile.init, tile.lanes)
        cells = [
            self.cell(chain, row, column)
            for chain in range(tile.chains)
            for row in range(tile.rows)
            for column in range(tile.columns)
        ]
        values = [*tile.start, *([value] * (len(cells) - len(tile.start)))]
        return [
            tirx.BufferStore(self.accumulators, first, [cell])
            for cell, first in zip(cells, values, strict=True)
        ]

    def walk(self, depth: int, at: Point) -> list[Any]:
        """Return the statements of loop `depth`, an index into the tile's, and all inside it."""
        if depth == len(self.tile.loops):
            return self.updates(at)
        return self.looped(depth, self.tile.loops[depth], at)

    def looped(self, depth: int, loop: ReductionLoop, at: Point) -> list[Any]:
        """Return all steps of a loop, written out or rolled."""
        if not loop.written_out:
            return self.rolled(depth, loop, at)
        body = []
        for step in range(loop.first, loop.end):
            done = at.done + (step - loop.first) * self.steps_inside(depth)
            steps = {**at.steps, loop.position: step}
            moved = self.moved(at, loop.position, step)
            body += self.walk(depth + 1, replace(moved, steps=steps, done=done))
        return body

    def rolled(self, depth: int, loop: ReductionLoop, at: Point) -> list[Any]:
        """Return a loop of rounds of `unroll` steps, then the steps that remain."""
        extent = loop.end - loop.first
        if isinstance(extent, int):
            rounds, rest = divmod(extent, loop.unroll)
        else:
            assert loop.unroll == 1, "a loop of unknown length cannot be unrolled"
            rounds, rest = extent, 0
        statements = []
        if not isinstance(rounds, int) or rounds > 0:
            var = tirx.Var(f"k{loop.position}", self.index_dtype)
            statements.append(self.round(depth, loop, var, rounds, at))
        return statements + self.rest(depth, loop, rest, at)

    def round(self, depth: int, loop: ReductionLoop, var: Any, rounds: Any, at: Point) -> Any:
        """Return the rolled loop itself; each operand's address is bound once in a round."""
        body, inner = self.bound(loop, at, var * loop.unroll)
        inside = loop.unroll * self.steps_inside(depth)
        inner = replace(inner, done=at.done + var * inside)
        loops = self.tile.loops
        if self.asks_in(depth) and not any(map(self.asks_in, range(depth + 1, len(loops)))):
            body += self.prefetches(inside, inner.done)
        for i in range(loop.unroll):
            moved = self.moved(inner, loop.position, i)
            body += self.walk(depth + 1, replace(moved, turn=at.turn + i))
        return self.serial(var, rounds, body)

    def rest(self, depth: int, loop: ReductionLoop, count: int, at: Point) -> list[Any]:
        """Return the last steps of a loop, which no round has."""
        statements = []
        for i in range(count):
            moved = self.moved(at, loop.position, loop.end - count + i)
            statements += self.walk(depth + 1, replace(moved, turn=at.turn + i))
        return statements

    def steps_inside(self, depth: int) -> int:
        """Return the steps of the reduction in one step of a loop; where bounds vary, a few."""
        extents = [loop.end - loop.first for loop in self.tile.loops[depth + 1 :]]
        return prod(extent for extent in extents if isinstance(extent, int))

    def asks_in(self, depth: int) -> bool:
        """Tell whether a round of a loop is long enough to ask for a whole line ahead."""
        ahead, loop = self.tile.ahead, self.tile.loops[depth]
        extent = loop.end - loop.first
        is_short = isinstance(extent, int) and extent <= loop.unroll
        if ahead is None or loop.written_out or is_short:
            return False
        elements = loop.unroll * self.steps_inside(depth) * ahead.width
        return elements >= ahead.line << ahead.shift

    def prefetches(self, steps: int, done: Any) -> list[Any]:
        """Return what is asked for ahead in a round of so many steps, after so many others."""
        ahead = self.tile.ahead
        assert ahead is not None
        shift = constant_like(ahead.shift, self.index_dtype)
        at = tirx.shift_right(done * ahead.width, shift)
        lines = -(-(steps * ahead.width) // (ahead.line << ahead.shift))
        return [
            prefetch(ahead.buffer, first + at + line * ahead.line)
            for first in ahead.firsts
            for line in range(lines)
        ]

    def bound(
        self, loop: ReductionLoop, at: Point, step: Expr, name: str = "at"
    ) -> tuple[list[Any], Point]:
        """Return the statements that bind each operand's address at a step, and the point there.

        Args:
            loop: which axis is walked.
            at: before it.
            step: of the axis, from the first one of the loop on.
            name: how the names of the addresses begin.
        """
        binds: list[Any] = []
        inner: list[Expr] = []
        for operand, base in zip(self.tile.operands, at.bases, strict=True):
            distance = operand.steps[loop.position]
            if distance == 0:
                inner.append(base)
                continue
            address = tirx.Var(f"{name}{len(inner)}", self.index_dtype)
            binds.append(tirx.Bind(address, base + (step + loop.first) * distance))
            inner.append(address)
        return binds, replace(at, bases=tuple(inner))

    def serial(self, var: Any, rounds: Any, body: list[Any]) -> Any:
        """Return a loop of a number of rounds, an int or an expression."""
        zero = constant_like(0, self.index_dtype)
        extent = constant_like(rounds, self.index_dtype) if isinstance(rounds, int) else rounds
        return tirx.For(var, zero, extent, tirx.ForKind.SERIAL, sequence(body))

    def factors(self, at: Point) -> tuple[tuple[Operand, Expr, int], tuple[Operand, Expr, int]]:
        """Return the data and the weights of a product, each with its address in two parts."""
        given = list(zip(self.tile.operands, at.bases, at.fixed, strict=True))
        data = next(found for found in given if found[0].vector == 0)
        return data, next(found for found in given if found[0].vector != 0)

    def moved(self, at: Point, position: int, step: int) -> Point:
        """Return a point with its addresses `step` steps further on one axis."""
        fixed = tuple(
            offset + operand.steps[position] * step
            for operand, offset in zip(self.tile.operands, at.fixed, strict=True)
        )
        return replace(at, fixed=fixed)

    def chain(self, at: Point) -> int:
        """Return which of the independent sums a step is added to."""
        return at.turn % self.tile.chains

    def updates(self, at: Point) -> list[Any]:
        """Return one multiply-add for each row and column vector.

        Rows are the outer loop: a broadcast element then serves its columns at once and is dead
        afterwards. The other way round LLVM keeps one register for each row alive and spills.
        """
        tile = self.tile
        statements = []
        for row in range(tile.rows):
            if tile.skip(row, at.steps):
                continue
            for column in range(tile.columns):
                cell = self.cell(self.chain(at), row, column)
                old = tirx.BufferLoad(self.accumulators, [cell])
                new = self.combined(old, row, column, at)
                statements.append(tirx.BufferStore(self.accumulators, new, [cell]))
        return statements

    def combined(self, old: Expr, row: int, column: int, at: Point) -> Expr:
        """Return an accumulator vector after one step."""
        return _COMBINE[self.tile.combine](old, self.term(row, column, at))

    def term(self, row: int, column: int, at: Point) -> Expr:
        """Return the term of one output vector."""
        operands = iter(zip(self.tile.operands, at.bases, at.fixed, strict=True))
        lanes = self.tile.lanes

        def leaf(node: Expr) -> Expr | None:
            if isinstance(node, TensorLoad):
                operand, base, offset = next(operands)
                offset += operand.rows[row] + operand.columns[column]
                address = base + constant_like(offset, self.index_dtype) if offset else base
                if operand.vector == 0:
                    return splat(self.element(operand, row, address), lanes)
                return tirx.BufferLoad(operand.buffer, [ramp(address, operand.vector, lanes)])
            if isinstance(node, tirx.Cast) and lanes > 1:
                return tirx.Cast(f"{dtype_of(node)}x{lanes}", rebuild(node.value, leaf))
            if isinstance(node, tirx.IntImm | tirx.FloatImm):
                return splat(node, lanes)
            return None

        return rebuild(self.tile.term, leaf)

    def element(self, operand: Operand, _row: int, address: Expr) -> Expr:
        """Return the element that all lanes of a row share."""
        return tirx.BufferLoad(operand.buffer, [address])

    def joined(self) -> list[Any]:
        """Return the statements that join all chains into the first."""
        tile = self.tile
        combine = _COMBINE[tile.combine]
        statements = []
        for chain in range(1, tile.chains):
            for row in range(tile.rows):
                for column in range(tile.columns):
                    cell = self.cell(0, row, column)
                    value = combine(
                        tirx.BufferLoad(self.accumulators, [cell]),
                        tirx.BufferLoad(self.accumulators, [self.cell(chain, row, column)]),
                    )
                    statements.append(tirx.BufferStore(self.accumulators, value, [cell]))
        return statements


def emit_reduction(
    tile: RegisterTile,
    bases: Sequence[Expr],
    index_dtype: str,
    emitter_class: Callable[[RegisterTile, Any, str], Emitter] = Emitter,
) -> tuple[Any, list[Any]]:
    """Return the accumulator buffer and the statements that fill it.

    The result of row r and column vector v lies at `(r * columns + v) * lanes` of the buffer.

    Args:
        tile: the tile.
        bases: address of each operand for row 0, column 0 and reduction step 0.
        index_dtype: dtype of addresses.
        emitter_class: what makes the steps, for other instructions than multiply-add.
    """
    size = tile.chains * tile.rows * tile.columns * tile.lanes
    accumulators = local_buffer("accumulators", size, tile.dtype)
    emitter = emitter_class(tile, accumulators, index_dtype)
    statements = [tirx.AllocBuffer(accumulators), *emitter.initial()]
    statements += emitter.walk(0, Point(tuple(bases), (0,) * len(tile.operands)))
    return accumulators, statements + emitter.joined()
