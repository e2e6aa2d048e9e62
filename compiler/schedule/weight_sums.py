"""Dot products of signed bytes for unsigned data: what is lacking is a sum of weights.

    sum u w = sum (u - 128) w + 128 sum w

Data is moved down by flipping the highest bit of each byte, many bytes at once. The sums of weights
depend on the column only, so that a task makes them once for all its row tiles. Where a tile leaves
out steps of an axis because they fall into the padding, so do the sums: there is one for each step
of such an axis.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import prod
from typing import Any

from tvm import tirx

from tilewright.compiler.schedule.dot_kernel import (
    DOT_LANES,
    SUM_DTYPE,
    Accumulate,
    DotEmitter,
    repeated_byte,
    whole_cell,
)
from tilewright.compiler.schedule.expressions import Expr, dtype_of
from tilewright.compiler.schedule.micro_kernel import (
    Operand,
    Point,
    constant_like,
    local_buffer,
    ramp,
    sequence,
)

_OFFSET = 128
_HIGHEST_BIT = 0x80


@dataclass(frozen=True, eq=False)
class WeightSums:
    """Sums of the weights of one column tile.

    Attributes:
        columns: vectors of the widest tile.
        extents: steps of every reduction axis.
        clipped: reduction axes of which a tile may take some steps only, outermost first.
        index_dtype: dtype of addresses.
        group: bytes in a cell.
        accumulate: adds the products of one cell to sums.
        buffer: int32 [steps of clipped axes.., columns, lanes], flat.
    """

    columns: int
    extents: tuple[int, ...]
    clipped: tuple[int, ...]
    index_dtype: str
    group: int
    accumulate: Accumulate
    buffer: Any

    @classmethod
    def declare(
        cls,
        columns: int,
        extents: tuple[int, ...],
        clipped: tuple[int, ...],
        index_dtype: str,
        group: int,
        accumulate: Accumulate,
    ) -> WeightSums:
        """Return sums that lie in a buffer of their own."""
        size = prod(extents[position] for position in clipped) * columns * DOT_LANES
        buffer = local_buffer("weight_sums", size, SUM_DTYPE)
        return cls(columns, extents, clipped, index_dtype, group, accumulate, buffer)

    def fill(self, weights: Operand, base: Expr, columns: int) -> Any:
        """Return the loops that sum the weights of one column tile.

        Args:
            weights: steps and columns in cells of `group` bytes.
            base: address of the first cell.
            columns: vectors of this tile.
        """
        total = local_buffer("total", columns * DOT_LANES, SUM_DTYPE)
        inner = [p for p in range(len(self.extents)) if p not in self.clipped]
        steps = {p: tirx.Var(f"sum{p}", self.index_dtype) for p in (*self.clipped, *inner)}
        address = base
        for position, step in steps.items():
            address = address + step * weights.steps[position]
        ones = repeated_byte(1, self.group)
        adds = []
        for column, offset in enumerate(weights.columns[:columns]):
            at = ramp((address + offset) * self.group, 1, self.group * DOT_LANES)
            weight = tirx.BufferLoad(weights.buffer, [at])
            added = self.accumulate(self._load(total, column), ones, weight)
            adds.append(tirx.BufferStore(total, added, [self._at(column)]))
        zero = tirx.Broadcast(tirx.const(0, SUM_DTYPE), DOT_LANES)
        place = self._place(steps)
        body = sequence(
            [
                *(tirx.BufferStore(total, zero, [self._at(c)]) for c in range(columns)),
                self._nest(sequence(adds), {p: (steps[p], 0, self.extents[p]) for p in inner}),
                *(
                    tirx.BufferStore(self.buffer, self._load(total, c), [self._at(place + c)])
                    for c in range(columns)
                ),
            ]
        )
        nest = {p: (steps[p], 0, self.extents[p]) for p in self.clipped}
        return sequence([tirx.AllocBuffer(total), self._nest(body, nest)])

    def lacking(self, columns: int, bounds: dict[int, tuple[Any, Any]]) -> tuple[Any, list[Any]]:
        """Return what to add to every row of a tile, in a buffer, and the statements that fill it.

        Args:
            columns: vectors of the tile.
            bounds: first step and step after the last of each clipped axis.
        """
        total = local_buffer("lacking", columns * DOT_LANES, SUM_DTYPE)
        steps = {p: tirx.Var(f"part{p}", self.index_dtype) for p in self.clipped}
        zero = tirx.Broadcast(tirx.const(0, SUM_DTYPE), DOT_LANES)
        place = self._place(steps)
        offset = tirx.Broadcast(tirx.const(_OFFSET, SUM_DTYPE), DOT_LANES)
        adds = [
            tirx.BufferStore(
                total,
                self._load(total, c) + self._load(self.buffer, place + c) * offset,
                [self._at(c)],
            )
            for c in range(columns)
        ]
        nest = self._nest(sequence(adds), {p: (steps[p], *bounds[p]) for p in self.clipped})
        stores = [tirx.BufferStore(total, zero, [self._at(c)]) for c in range(columns)]
        return total, [tirx.AllocBuffer(total), *stores, nest]

    def _place(self, steps: dict[int, Any]) -> Expr:
        """Return the first column vector at given steps of the clipped axes."""
        place: Expr = constant_like(0, self.index_dtype)
        for position in self.clipped:
            place = place * self.extents[position] + steps[position]
        return place * self.columns

    def _nest(self, body: Any, loops: dict[int, tuple[Any, Any, Any]]) -> Any:
        """Return a body inside loops over [first, end), the first one outermost."""
        for var, first, end in reversed(loops.values()):
            start, extent = (
                constant_like(v, self.index_dtype) if isinstance(v, int) else v
                for v in (first, end - first)
            )
            body = tirx.For(var, start, extent, tirx.ForKind.SERIAL, body)
        return body

    def _at(self, vector: Any) -> Expr:
        if isinstance(vector, int):
            return ramp(constant_like(vector * DOT_LANES, self.index_dtype), 1, DOT_LANES)
        return ramp(vector * DOT_LANES, 1, DOT_LANES)

    def _load(self, buffer: Any, vector: Any) -> Expr:
        return tirx.BufferLoad(buffer, [self._at(vector)])


class SignedDotEmitter(DotEmitter):
    """Dot products of signed bytes; a row that skips a step takes u = 0 there.

    Attributes:
        sums: of the weights of this tile.
    """

    sums: WeightSums

    def load_group(self, operand: Operand, address: Expr) -> Expr:
        """Return the data of 4 steps, moved down, as one vector of cells."""
        cells = super().load_group(operand, address)
        flips = repeated_byte(_HIGHEST_BIT, self.group)
        same = dtype_of(flips) == dtype_of(cells)
        return cells ^ (flips if same else tirx.Broadcast(flips, DOT_LANES))

    def loaded(self, row: int, column: int, at: Point) -> tuple[Expr, Expr]:
        """Return the data, moved down, and the weights of one step."""
        data, weight = super().loaded(row, column, at)
        if not self.lanes_of_rows:
            data = whole_cell(data, self.group) ^ repeated_byte(_HIGHEST_BIT, self.group)
        return data, weight

    def updates(self, at: Point) -> list[Any]:
        """Return one dot product for each row and column vector."""
        statements = super().updates(at)
        rows = range(self.tile.rows)
        skipped = [row for row in rows if self.tile.skip(row, at.steps)]
        for column in range(self.tile.columns):
            for row in skipped:
                weight = self.weights(column, at)
                cell = self.cell(self.chain(at), row, column)
                old = tirx.BufferLoad(self.accumulators, [cell])
                new = self.accumulate(old, repeated_byte(-_OFFSET, self.group), weight)
                statements.append(tirx.BufferStore(self.accumulators, new, [cell]))
        return statements

    def joined(self) -> list[Any]:
        """Return the statements that join all chains into the first and add what data lacks."""
        bounds = {loop.position: (loop.first, loop.end) for loop in self.tile.loops}
        lacking, statements = self.sums.lacking(self.tile.columns, bounds)
        statements = [*super().joined(), *statements]
        for row in range(self.tile.rows):
            for column in range(self.tile.columns):
                cell = self.cell(0, row, column)
                lies = ramp(constant_like(column * DOT_LANES, self.index_dtype), 1, DOT_LANES)
                new = tirx.BufferLoad(self.accumulators, [cell]) + tirx.BufferLoad(lacking, [lies])
                statements.append(tirx.BufferStore(self.accumulators, new, [cell]))
        return statements
