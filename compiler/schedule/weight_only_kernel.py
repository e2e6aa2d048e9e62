"""Register tiles of products with packed weights; `weight_only` says what they compute."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from tvm import tirx

from tilewright.compiler.schedule.expressions import Expr
from tilewright.compiler.schedule.micro_kernel import (
    Emitter,
    Point,
    RegisterTile,
    constant_like,
    local_buffer,
    ramp,
    splat,
)
from tilewright.compiler.weight_only import WeightWords

# Of float32: where the exponent is, and the exponent of 1.
_MANTISSA_BITS, _ONE = 23, 127


class GroupEmitter(Emitter):
    """Sums the words of a group in accumulators of its own, then adds them up by their scales.

    The operands are the spread data, the words, and the sums of the data in each group.
    """

    def __init__(
        self,
        tile: RegisterTile,
        accumulators: Any,
        index_dtype: str,
        words: WeightWords,
        chains: int,
    ) -> None:
        super().__init__(tile, accumulators, index_dtype)
        self.words, self.chains = words, chains
        size = chains * tile.rows * tile.columns * tile.lanes
        self.sums = local_buffer("group", size, tile.dtype)
        self.count = 0

    def initial(self) -> list[Any]:
        """Return the stores that set all accumulators."""
        return [tirx.AllocBuffer(self.sums), *super().initial()]

    def walk(self, depth: int, at: Point) -> list[Any]:
        """Return the statements of loop `depth` and all inside it."""
        inside = super().walk(depth, at)
        if depth != 1:
            return inside
        return [*self._start(at), *inside, *self._finish(at)]

    def _cells(self) -> list[tuple[int, int]]:
        tile = self.tile
        return [(row, column) for row in range(tile.rows) for column in range(tile.columns)]

    def _head(self, place: int, column: int, at: Point) -> Expr:
        """Return a row of words in front of a group as floats: 0 is the scale, 1 the zero point."""
        lanes = self.tile.lanes
        operand = self.tile.operands[1]
        offset = at.fixed[1] + operand.columns[column] + (place - self.words.head) * lanes
        lies = ramp(at.bases[1] + constant_like(offset, self.index_dtype), 1, lanes)
        return tirx.reinterpret(_vector("float32", lanes), tirx.BufferLoad(operand.buffer, [lies]))

    def _data_sum(self, place: int, row: int, at: Point) -> Expr:
        operand = self.tile.operands[2]
        offset = constant_like(at.fixed[2] + operand.rows[row] + place, self.index_dtype)
        return splat(tirx.BufferLoad(operand.buffer, [at.bases[2] + offset]), self.tile.lanes)

    def _start(self, at: Point) -> list[Any]:
        """Return the stores that set the sums of a group to what zero points take off."""
        zero = splat(tirx.const(0, self.tile.dtype), self.tile.lanes)
        statements = []
        for row, column in self._cells():
            first = self._data_sum(0, row, at)
            if not self.words.symmetric:
                point = self._head(1, column, at)
                first = first + self._data_sum(1, row, at) * point
            for chain in range(self.chains):
                value = zero if chain else first
                cell = self.cell(chain, row, column)
                statements.append(tirx.BufferStore(self.sums, value, [cell]))
        return statements

    def _finish(self, at: Point) -> list[Any]:
        """Return the stores that add the sums of a group, times its scale."""
        statements = []
        for row, column in self._cells():
            total = tirx.BufferLoad(self.sums, [self.cell(0, row, column)])
            for chain in range(1, self.chains):
                total = total + tirx.BufferLoad(self.sums, [self.cell(chain, row, column)])
            cell = self.cell(0, row, column)
            old = tirx.BufferLoad(self.accumulators, [cell])
            new = old + self._head(0, column, at) * total
            statements.append(tirx.BufferStore(self.accumulators, new, [cell]))
        return statements

    def updates(self, at: Point) -> list[Any]:
        """Return the multiply-adds of one word for each row and column."""
        tile, words = self.tile, self.words
        data, packed = tile.operands[:2]
        statements: list[Any] = []
        loaded = []
        for column in range(tile.columns):
            offset = constant_like(at.fixed[1] + packed.columns[column], self.index_dtype)
            lies = ramp(at.bases[1] + offset, 1, tile.lanes)
            loaded.append(self._bind("word", tirx.BufferLoad(packed.buffer, [lies]), statements))
        for place in range(words.in_word):
            wholes = [self._bind("whole", self._whole(word, place), statements) for word in loaded]
            for row in range(tile.rows):
                offset = constant_like(at.fixed[0] + data.rows[row] + place, self.index_dtype)
                element = splat(tirx.BufferLoad(data.buffer, [at.bases[0] + offset]), tile.lanes)
                for column, whole in enumerate(wholes):
                    cell = self.cell(place % self.chains, row, column)
                    old = tirx.BufferLoad(self.sums, [cell])
                    statements.append(tirx.BufferStore(self.sums, old + element * whole, [cell]))
        return statements

    def _bind(self, name: str, value: Expr, statements: list[Any]) -> Any:
        self.count += 1
        var = tirx.Var(f"{name}{self.count}", str(value.ty))
        statements.append(tirx.Bind(var, value))
        return var

    def _whole(self, word: Any, place: int) -> Expr:
        """Return codes `place` and below of words, as floats."""
        lanes, kept = self.tile.lanes, self.words.bits * (place + 1)
        if place < self.words.in_word - 1:
            word = word & splat(tirx.const(2**kept - 1, "int32"), lanes)
        return tirx.Cast(_vector("float32", lanes), word)


def spread_row(spread: Any, sums: Any, row: Expr, words: WeightWords, pitch: int) -> list[Any]:
    """Return the statements that spread a row of data in place, and sum it in each group.

    Args:
        spread: flat buffer, float32; a row holds the data, then zeros.
        sums: flat buffer, float32 [rows * groups * head]: what the sums of a group start from;
            with zero points that without them, and what they are multiplied by.
        row: which row.
        words: how weights are packed.
        pitch: elements between rows of `spread`.
    """
    lanes, dtype = words.in_word, str(row.ty)
    group, word = tirx.Var("group", dtype), tirx.Var("word", dtype)
    parts = local_buffer("parts", words.head * lanes, "float32")
    at = tirx.Var("at", dtype)
    begin = row * pitch + group * words.group + word * lanes
    here = tirx.BufferLoad(spread, [ramp(at, 1, lanes)])
    following = tirx.BufferLoad(spread, [ramp(at + constant_like(1, dtype), 1, lanes)])
    own, others = _powers(words.bits, 0, lanes), _powers(words.bits, 1, lanes)
    highest = _ramp(0, 1, lanes) >= splat(tirx.const(lanes - 1, "int32"), lanes)
    nothing = splat(tirx.const(0, "float32"), lanes)
    taken = tirx.Select(highest, nothing, following * others)

    def places(part: int) -> list[Expr]:
        return [ramp(constant_like(part * lanes, dtype), 1, lanes)]

    def added(part: int, value: Expr) -> Any:
        total = tirx.BufferLoad(parts, places(part)) + value
        return tirx.BufferStore(parts, total, places(part))

    def numbers(low: float, high: float) -> Expr:
        low_, high_ = (splat(tirx.const(value, "float32"), lanes) for value in (low, high))
        return tirx.Select(highest, high_, low_)

    data = tirx.Var("data", _vector("float32", lanes))
    middle = float(words.middle)
    if words.symmetric:
        sides = [data * numbers(-middle, 0.0)]
    else:
        sides = [data * numbers(0.0, middle), data * numbers(-1.0, -1.0)]
    body = [
        tirx.Bind(at, begin),
        tirx.Bind(data, here),
        *(added(part, side) for part, side in enumerate(sides)),
        tirx.BufferStore(spread, data * own - taken, [ramp(at, 1, lanes)]),
    ]
    inner = [
        *(tirx.BufferStore(parts, nothing, places(part)) for part in range(words.head)),
        _loop(word, words.words, body),
    ]
    for part in range(words.head):
        total: Expr = tirx.const(0, "float32")
        for lane in range(lanes):
            number = constant_like(part * lanes + lane, dtype)
            total = total + tirx.BufferLoad(parts, [number])
        target = (row * words.groups + group) * words.head + part
        inner.append(tirx.BufferStore(sums, total, [target]))
    return [tirx.AllocBuffer(parts), _loop(group, words.groups, inner)]


def _loop(var: Any, extent: int, body: Sequence[Any]) -> Any:
    zero, count = (constant_like(value, var) for value in (0, extent))
    return tirx.For(var, zero, count, tirx.ForKind.SERIAL, tirx.SeqStmt(list(body)))


def _vector(dtype: str, lanes: int) -> str:
    return dtype if lanes == 1 else f"{dtype}x{lanes}"


def _ramp(first: int, step: int, lanes: int) -> Expr:
    return tirx.Ramp(tirx.const(first, "int32"), tirx.const(step, "int32"), lanes)


def _powers(bits: int, first: int, lanes: int) -> Expr:
    """Return 2 ** (-bits * (first + lane)) in each lane, made from the exponents."""
    exponent = (_ONE - bits * first) << _MANTISSA_BITS
    return tirx.reinterpret(
        _vector("float32", lanes), _ramp(exponent, -(bits << _MANTISSA_BITS), lanes)
    )
