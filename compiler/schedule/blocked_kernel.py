"""Register tiles whose accumulators are too narrow for a whole reduction.

    wide[row, column] = 0                            int32, on the stack
    for each block of the reduction:
        narrow[row, column] = 0                      16 or 8 bits, in registers
        for each step of the block:  narrow += ..
        wide += narrow

A block is as many steps as the narrow sums bear: whole inner loops where they fit, else a part of
the innermost one.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import prod
from typing import Any

from tvm import tirx

from tilewright.compiler.schedule.expressions import Expr
from tilewright.compiler.schedule.micro_kernel import (
    Emitter,
    Point,
    ReductionLoop,
    RegisterTile,
    constant_like,
    local_buffer,
)

# What ends a block is worth little beside so many steps: no loop is cut for more.
_ENOUGH_STEPS = 8


@dataclass(frozen=True)
class Blocks:
    """How a reduction is cut into blocks.

    Attributes:
        depth: loops from there on lie inside a block.
        chunk: steps of loop `depth - 1` in a block, 0 for one step after the other.
    """

    depth: int
    chunk: int


def cut(extents: Sequence[int], most: int) -> Blocks:
    """Cut nested loops into blocks of at most `most` steps, as even as they can be.

    Args:
        extents: steps of each loop, outermost first.
        most: at least 1.
    """
    depth = len(extents)
    while depth > 0 and prod(extents[depth - 1 :]) <= most:
        depth -= 1
    if depth == 0 or prod(extents[depth:]) >= _ENOUGH_STEPS:
        return Blocks(depth, 0)
    each = most // prod(extents[depth:])
    if each < 2:
        return Blocks(depth, 0)
    extent = extents[depth - 1]
    return Blocks(depth, -(-extent // -(-extent // each)))


class BlockedEmitter(Emitter):
    """Walks the reduction in blocks.

    Args:
        tile: what is summed.
        accumulators: int32, wide.
        index_dtype: dtype of addresses.
        extents: steps of every reduction axis by its position; bounds of a loop may be fewer.
        most: steps that the narrow sums bear.
        narrow: dtype of the narrow sums, for instance "int16".
        lanes: of a vector of them.
        vectors: of them; one for each row and column of the tile if not given.
    """

    def __init__(
        self,
        tile: RegisterTile,
        accumulators: Any,
        index_dtype: str,
        extents: Sequence[int],
        most: int,
        narrow: str,
        lanes: int,
        vectors: int | None = None,
    ) -> None:
        super().__init__(tile, accumulators, index_dtype)
        self.narrow_dtype, self.narrow_lanes = narrow, lanes
        self.vectors = tile.rows * tile.columns if vectors is None else vectors
        count = self.vectors * lanes
        self.narrow = local_buffer("narrow", count, narrow)
        self.blocks = cut([extents[loop.position] for loop in tile.loops], most)

    def narrow_cell(self, number: int) -> Expr:
        """Return the index of a vector of narrow sums."""
        at = constant_like(number * self.narrow_lanes, self.index_dtype)
        return tirx.Ramp(at, constant_like(1, at), self.narrow_lanes)

    def add(self, number: int, value: Expr) -> Any:
        """Return the statement that adds to a vector of narrow sums."""
        cell = self.narrow_cell(number)
        return tirx.BufferStore(self.narrow, tirx.BufferLoad(self.narrow, [cell]) + value, [cell])

    def initial(self) -> list[Any]:
        """Return the stores that set all accumulators."""
        return [*super().initial(), tirx.AllocBuffer(self.narrow)]

    def widened(self) -> list[Any]:
        """Return the statements that add the narrow sums to the wide ones."""
        raise NotImplementedError

    def walk(self, depth: int, at: Point) -> list[Any]:
        """Return the statements of loop `depth` and all inside it."""
        if depth == self.blocks.depth and not self.blocks.chunk:
            return self._block(super().walk(depth, at))
        if depth == self.blocks.depth - 1 and self.blocks.chunk:
            return self._chunks(depth, at)
        return super().walk(depth, at)

    def _block(self, body: list[Any]) -> list[Any]:
        zero = tirx.Broadcast(tirx.const(0, self.narrow_dtype), self.narrow_lanes)
        stores = [
            tirx.BufferStore(self.narrow, zero, [self.narrow_cell(number)])
            for number in range(self.vectors)
        ]
        return [*stores, *body, *self.widened()]

    def _chunks(self, depth: int, at: Point) -> list[Any]:
        """Return a loop over whole blocks of one loop, then the block that remains."""
        loop, chunk = self.tile.loops[depth], self.blocks.chunk
        if not (isinstance(loop.first, int) and isinstance(loop.end, int)):
            # How many steps there are is known at run time only: one block for each.
            return self._single(depth, loop, at)
        if loop.written_out:
            return [
                statement
                for first in range(loop.first, loop.end, chunk)
                for statement in self._part(depth, loop, first, min(loop.end, first + chunk), at)
            ]
        full, rest = divmod(loop.end - loop.first, chunk)
        statements = []
        if full > 0:
            statements += self._loop(depth, loop, full, at)
        if rest:
            statements += self._part(depth, loop, loop.end - rest, loop.end, at)
        return statements

    def _part(self, depth: int, loop: ReductionLoop, first: int, end: int, at: Point) -> list[Any]:
        """Return the block of some steps of a loop."""
        part = replace(loop, first=first, end=end, unroll=min(loop.unroll, end - first))
        return self._block(self.looped(depth, part, at))

    def _loop(self, depth: int, loop: ReductionLoop, full: int, at: Point) -> list[Any]:
        if full == 1:
            end = loop.first + self.blocks.chunk
            return self._part(depth, loop, loop.first, end, at)
        var = tirx.Var(f"block{loop.position}", self.index_dtype)
        body, inner = self.bound(loop, at, var * self.blocks.chunk, "from")
        body += self._part(depth, loop, 0, self.blocks.chunk, inner)
        return [self.serial(var, full, body)]

    def _single(self, depth: int, loop: ReductionLoop, at: Point) -> list[Any]:
        before = self.blocks
        self.blocks = Blocks(depth + 1, 0)
        found = self.rolled(depth, loop, at)
        self.blocks = before
        return found
