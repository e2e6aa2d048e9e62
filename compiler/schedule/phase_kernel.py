"""The loops of a convolution by phases; why they are like this is told in `schedule/phases.py`.

for each task: an image and a block of rows
    for each piece of the channels
        copy the rows that the block reads, with borders, of these channels
        for each row of the block, phases of all axes but the last, and tile of the row
            sums += pixels * weights, in registers, for both phases along the row
    for each of these tiles: store the sums
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import reduce
from itertools import product
from math import prod
from typing import TYPE_CHECKING, Any

from tvm import tirx

from tilewright.compiler.phase_convolution import STRIDE
from tilewright.compiler.schedule.expressions import Expr, dtype_of, elements
from tilewright.compiler.schedule.micro_kernel import (
    constant_like,
    local_buffer,
    ramp,
    sequence,
    splat,
)
from tilewright.compiler.schedule.nests import emit_row, is_parallel_worth
from tilewright.compiler.schedule.tiling import tile_count

if TYPE_CHECKING:
    from tilewright.compiler.schedule.analysis import Stage
    from tilewright.compiler.schedule.phases import PhaseDecisions, PhaseShape

_FLOAT_BYTES = 4
_NUMBER = "float32"


@dataclass(frozen=True)
class RowCopy:
    """Where the rows that a task reads lie in their copy: [channel, rows.., pixels].

    Attributes:
        rows: along each axis but the last.
        shift: elements before the first pixel, so that the image's own are aligned.
        width: pixels of a row that are read.
        pitch: elements of a row.
        channels: how many.
    """

    rows: tuple[int, ...]
    shift: int
    width: int
    pitch: int
    channels: int

    @classmethod
    def plan(cls, shape: PhaseShape, rows: Sequence[int], channels: int, lanes: int) -> RowCopy:
        """Return the copy for so many rows of outputs along each axis, and so many channels."""
        last = len(shape.sizes) - 1
        counts = tuple(shape.reach(axis, count) for axis, count in enumerate(rows))
        width = shape.reach(last, shape.positions[last])
        shift = -shape.before[last] % lanes
        pitch = tile_count(shift + width, lanes) * lanes
        return cls(counts, shift, width, pitch, channels)

    @property
    def steps(self) -> tuple[int, ...]:
        """Elements from one row to the next along each axis but the last."""
        return tuple(self.pitch * prod(self.rows[axis + 1 :]) for axis in range(len(self.rows)))

    @property
    def channel_step(self) -> int:
        """Elements from one channel to the next."""
        return self.pitch * prod(self.rows)

    @property
    def elements(self) -> int:
        """Elements of the whole copy."""
        return self.channel_step * self.channels

    @property
    def bytes(self) -> int:
        """Size of the whole copy."""
        return self.elements * _FLOAT_BYTES


@dataclass(frozen=True)
class _Block:
    """What a task computes.

    Attributes:
        image: number of the image.
        first: its first row along each axis but the last.
        counts: its rows along each.
    """

    image: Any
    first: tuple[Any, ...]
    counts: tuple[Any, ...]


@dataclass(frozen=True)
class _Tile:
    """One register tile.

    Attributes:
        phases: number of the phases along all axes but the last.
        near: address of its pixels in the copy, of the first channel there and tap.
        sums: address of its sums.
        out: address of its first output in the plane of a phase and channel.
    """

    phases: Any
    near: Any
    sums: Any
    out: Any


class PhaseKernel:
    """Writes the loops out for one function.

    Args:
        func: with data, packed weights and output.
        stage: its only one.
        shape: of the operator.
        plan: decisions that fit it.
        lanes: floats of a vector.
        chains: parts that each sum is kept in; rows of taps are dealt out to them.
    """

    def __init__(
        self,
        func: tirx.PrimFunc,
        stage: Stage,
        shape: PhaseShape,
        plan: PhaseDecisions,
        lanes: int,
        chains: int,
    ) -> None:
        self.func, self.shape, self.plan, self.lanes = func, shape, plan, lanes
        self.chains = chains
        self.parallel = is_parallel_worth(stage.work)
        self.dtype = dtype_of(stage.spatial[0].var)
        self.copy = RowCopy.plan(shape, plan.rows, plan.channels, lanes)
        # (phase along the row, output channel, vector) of each sum of a tile.
        self.cells = list(product(range(STRIDE), range(shape.outputs), range(plan.vectors)))
        self.tiles = tile_count(shape.positions[-1], plan.vectors * lanes)
        self.choices = STRIDE ** (len(shape.sizes) - 1)
        sums = prod(plan.rows) * self.choices * self.tiles * len(self.cells) * lanes
        self.near = tirx.decl_buffer((self.copy.elements,), _NUMBER, "near", layout=None)
        self.sums = tirx.decl_buffer((sums,), _NUMBER, "sums", layout=None)
        self.data, self.weight, self.out = (
            tirx.decl_buffer((elements(param),), _NUMBER, f"{param.name}_flat", layout=None)
            for param in func.params
        )

    def build(self) -> tirx.PrimFunc:
        """Return the scheduled function."""
        params = list(self.func.params)
        views = [
            tirx.DeclBuffer(flat, data=tirx.buffer_data(param))
            for flat, param in zip((self.data, self.weight, self.out), params, strict=True)
        ]
        blocks = list(map(tile_count, self.shape.positions[:-1], self.plan.rows))
        total = self.shape.batch * prod(blocks)
        kind = tirx.ForKind.PARALLEL if self.parallel and total > 1 else tirx.ForKind.SERIAL
        loop = self._loop("task", total, lambda task: self._task(task, blocks), kind)
        return tirx.PrimFunc(params, sequence([*views, loop]), attrs=self.func.attrs)

    def _number(self, value: int) -> Expr:
        return constant_like(value, self.dtype)

    def _loop(
        self,
        name: str,
        count: int | Expr,
        body_of: Callable[[Any], list[Any]],
        kind: tirx.ForKind = tirx.ForKind.SERIAL,
    ) -> Any:
        var = tirx.Var(name, self.dtype)
        end = self._number(count) if isinstance(count, int) else count
        return tirx.For(var, self._number(0), end, kind, sequence(body_of(var)))

    def _bind(self, name: str, value: Expr, statements: list[Any]) -> Any:
        """Return a variable for a value, bound by a statement that is added."""
        var = tirx.Var(name, self.dtype)
        statements.append(tirx.Bind(var, value))
        return var

    def _digits(
        self, name: str, number: Expr, extents: Sequence[int], binds: list[Any]
    ) -> list[Any]:
        """Return the place of a number on a grid, row by row; the first digit is what is left."""
        found = []
        for extent in reversed(extents):
            found.append(number % extent)
            number = number // extent
        return [self._bind(name, value, binds) for value in (number, *reversed(found))]

    def _left(self, first: Expr, extent: int, most: int) -> Expr:
        """Return how many of `extent` there are from `first` on, at most so many."""
        if extent % most == 0:
            return self._number(most)
        return tirx.min(self._number(extent) - first, self._number(most))

    def _task(self, task: Any, blocks: Sequence[int]) -> list[Any]:
        statements: list[Any] = []
        image, *places = self._digits("place", task, blocks, statements)
        first = [
            self._bind("first", place * rows, statements)
            for place, rows in zip(places, self.plan.rows, strict=True)
        ]
        counts = [
            self._bind("count", self._left(at, extent, rows), statements)
            for at, extent, rows in zip(
                first, self.shape.positions[:-1], self.plan.rows, strict=True
            )
        ]
        block = _Block(image, tuple(first), tuple(counts))
        pieces = tile_count(self.shape.channels, self.plan.channels)
        return [
            *statements,
            tirx.AllocBuffer(self.near),
            tirx.AllocBuffer(self.sums),
            self._loop("piece", pieces, lambda piece: self._piece(piece, pieces, block)),
            self._over_tiles(block, lambda tile: self._stored(tile, image)),
        ]

    def _piece(self, piece: Any, pieces: int, block: _Block) -> list[Any]:
        """Return what adds some channels to the sums of a block."""
        statements: list[Any] = []
        first = self._bind("first_channel", piece * self.plan.channels, statements)
        left = self._left(first, self.shape.channels, self.plan.channels)
        count = self._bind("channels", left, statements)
        statements.append(
            self._loop("channel", count, lambda channel: self._copied(block, first, channel))
        )
        is_first = None if pieces == 1 else piece <= self._number(0)
        statements.append(
            self._over_tiles(block, lambda tile: self._summed(tile, first, count, is_first))
        )
        return statements

    def _copied(self, block: _Block, first: Any, channel: Any) -> list[Any]:
        """Return the copy of all rows of a channel, zeros where they lie beside the image."""
        shape, copy = self.shape, self.copy

        def row(number: Any) -> list[Any]:
            statements: list[Any] = []
            _, *places = self._digits("at", number, copy.rows, statements)
            inside, source = [], block.image * shape.channels + first + channel
            for at, place, before, size in zip(
                block.first, places, shape.before, shape.sizes, strict=False
            ):
                read = self._bind("read", at + place - before, statements)
                inside += [read >= self._number(0), read < self._number(size)]
                source = source * size + read
            target = channel * copy.channel_step + number * copy.pitch
            target = self._bind("target", target, statements)
            source = self._bind("source", source * shape.sizes[-1], statements)
            begin = copy.shift + shape.before[-1]
            end = min(begin + shape.sizes[-1], copy.shift + copy.width)
            pixels = [
                *self._row(target, 0, begin),
                *self._row(target + begin, 0, end - begin, (self.data, source)),
                *self._row(target, end, copy.pitch),
            ]
            zeros = sequence(self._row(target, 0, copy.pitch))
            statements.append(tirx.IfThenElse(tirx.all(*inside), sequence(pixels), zeros))
            return statements

        return [self._loop("row", prod(copy.rows), row)]

    def _row(
        self, target: Expr, first: int, end: int, source: tuple[Any, Expr] | None = None
    ) -> list[Any]:
        zero = tirx.const(0, _NUMBER)
        return emit_row(self.near, target, first, end, self.lanes, source, zero)

    def _over_tiles(self, block: _Block, body_of: Callable[[_Tile], list[Any]]) -> Any:
        """Return the loops over the rows of a block, all phases but those along them, and tiles."""
        shape, width = self.shape, self.plan.vectors * self.lanes
        per_tile = len(self.cells) * self.lanes
        outer = len(shape.sizes) - 1

        def row(places: list[Any]) -> list[Any]:
            statements: list[Any] = []
            near, number, out = (self._number(n) for n in (self.copy.shift, 0, 0))
            for place, step, rows in zip(places, self.copy.steps, self.plan.rows, strict=True):
                near, number = near + place * step, number * rows + place
            for place, first, extent in zip(places, block.first, shape.positions, strict=False):
                out = out * extent + first + place
            near = self._bind("near_row", near, statements)
            number = self._bind("row_number", number * self.choices, statements)
            out = self._bind("out_row", out * shape.positions[-1], statements)

            def phases(choice: Any) -> list[Any]:
                inside: list[Any] = []
                _, *bits = self._digits("phase", choice, [STRIDE] * outer, inside)
                at = near
                for bit, shift, step in zip(bits, shape.shifts, self.copy.steps, strict=False):
                    at = at + bit * (shift * step)
                at = self._bind("near_phase", at, inside)

                def tile(index: Any) -> list[Any]:
                    found: list[Any] = []
                    # The last tile overlaps the one before.
                    last = self._number(shape.positions[-1] - width)
                    column = self._bind("column", tirx.min(index * width, last), found)
                    sums = ((number + choice) * self.tiles + index) * per_tile
                    sums = self._bind("sums_at", sums, found)
                    return [*found, *body_of(_Tile(choice, at + column, sums, out + column))]

                return [*inside, self._loop("tile", self.tiles, tile)]

            return [*statements, self._loop("phases", self.choices, phases)]

        def nest(places: list[Any]) -> list[Any]:
            if len(places) == outer:
                return row(places)
            count = block.counts[len(places)]
            return [self._loop("row", count, lambda place: nest([*places, place]))]

        return sequence(nest([]))

    def _at(self, base: Expr | None, cell: int) -> Expr:
        """Return where a sum of a tile lies, in registers or from an address on."""
        place = self._number(cell * self.lanes)
        return ramp(place if base is None else base + place, 1, self.lanes)

    def _summed(self, tile: _Tile, first: Any, count: Any, is_first: Expr | None) -> list[Any]:
        """Return what adds the channels of a piece to the sums of a tile."""
        shape, numbers = self.shape, range(len(self.cells))
        kept = range(len(self.cells) * self.chains)
        registers = local_buffer("registers", len(kept) * self.lanes, _NUMBER)
        zero = splat(tirx.const(0, _NUMBER), self.lanes)

        def start(value_of: Callable[[int], Expr]) -> Any:
            return sequence(
                [tirx.BufferStore(registers, value_of(n), [self._at(None, n)]) for n in kept]
            )

        def so_far(number: int) -> Expr:
            if number in numbers:
                return tirx.BufferLoad(self.sums, [self._at(tile.sums, number)])
            return zero

        def total(number: int) -> Expr:
            parts = [
                tirx.BufferLoad(registers, [self._at(None, part)])
                for part in kept[number :: len(numbers)]
            ]
            return reduce(lambda left, right: left + right, parts)

        begin = start(lambda _: zero)
        if is_first is not None:
            begin = tirx.IfThenElse(is_first, begin, start(so_far))
        per_channel = prod(shape.taps) * STRIDE * shape.outputs

        def channel(number: Any) -> list[Any]:
            statements: list[Any] = []
            near = self._bind("near_at", tile.near + number * self.copy.channel_step, statements)
            weights = (tile.phases * shape.channels + first + number) * per_channel
            weights = self._bind("weights_at", weights, statements)
            return [*statements, *self._steps(registers, near, weights)]

        ends = [tirx.BufferStore(self.sums, total(n), [self._at(tile.sums, n)]) for n in numbers]
        return [tirx.AllocBuffer(registers), begin, self._loop("channel", count, channel), *ends]

    def _steps(self, registers: Any, near: Expr, weights: Expr) -> list[Any]:
        """Return the multiply-adds of one channel, each vector of pixels for all that it serves."""
        shape, lanes, statements = self.shape, self.lanes, list[Any]()
        for number, taps in enumerate(product(*(range(count) for count in shape.taps[:-1]))):
            row = sum(tap * step for tap, step in zip(taps, self.copy.steps, strict=True))
            for place in range(shape.reach(len(shape.sizes) - 1)):
                for cell, (phase, output, vector) in enumerate(self.cells):
                    tap = place - phase * shape.shifts[-1]
                    if not 0 <= tap < shape.taps[-1]:
                        continue
                    step = (number * shape.taps[-1] + tap) * STRIDE + phase
                    factor = tirx.BufferLoad(
                        self.weight, [weights + (step * shape.outputs + output)]
                    )
                    at = ramp(near + (row + place + vector * lanes), 1, lanes)
                    term = tirx.BufferLoad(self.near, [at]) * splat(factor, lanes)
                    register = self._at(None, number % self.chains * len(self.cells) + cell)
                    old = tirx.BufferLoad(registers, [register])
                    statements.append(tirx.BufferStore(registers, old + term, [register]))
        return statements

    def _stored(self, tile: _Tile, image: Any) -> list[Any]:
        """Return what writes the sums of a tile to [N, phases.., O, positions..]."""
        planes = (image * self.choices + tile.phases) * (STRIDE * self.shape.outputs)
        found = []
        for cell, (phase, output, vector) in enumerate(self.cells):
            plane = (planes + (phase * self.shape.outputs + output)) * prod(self.shape.positions)
            value = tirx.BufferLoad(self.sums, [self._at(tile.sums, cell)])
            at = ramp(plane + tile.out + vector * self.lanes, 1, self.lanes)
            found.append(tirx.BufferStore(self.out, value, [at]))
        return found
