"""Register tiles for processors that multiply a vector by one lane of another (NEON).

Four steps of the reduction come with one load for each row; each step then multiplies by a lane of
it. That is a quarter of the loads of the plain tile, which matters where one load goes with one or
two multiply-adds in a cycle, and leaves LLVM nothing to pair and spill.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from tvm import tirx

from tilewright.compiler.schedule.expressions import Expr, dtype_of
from tilewright.compiler.schedule.micro_kernel import (
    Emitter,
    Operand,
    Point,
    ReductionLoop,
    constant_like,
    emit_reduction,
    ramp,
)
from tilewright.compiler.schedule.tile_loops import KernelBuilder

LANE_STEPS = 4
"""Steps of the reduction that come with one load: 32-bit lanes in a vector of NEON."""


class LaneKernelBuilder(KernelBuilder):
    """Builds register tiles that multiply by lanes."""

    def emit(self, tile: Any, bases: Sequence[Expr]) -> tuple[Any, list[Any]]:
        """Return the accumulators of a tile, and the statements that fill them."""
        return emit_reduction(tile, bases, self.index_dtype, LaneEmitter)


class LaneEmitter(Emitter):
    """Walks the innermost reduction loop in groups of steps where the data lies together."""

    def __init__(self, tile: Any, accumulators: Any, index_dtype: str) -> None:
        super().__init__(tile, accumulators, index_dtype)
        self.lanes_of_rows: dict[tuple[Operand, int], Expr] = {}

    def rolled(self, depth: int, loop: ReductionLoop, at: Point) -> list[Any]:
        """Return a loop of rounds of `LANE_STEPS` steps, then the steps that remain."""
        if depth + 1 < len(self.tile.loops) or not self._lies_together(loop):
            return super().rolled(depth, loop, at)
        rounds, rest = divmod(loop.end - loop.first, LANE_STEPS)
        statements = []
        if rounds == 1:
            moved = self.moved(at, loop.position, loop.first)
            statements += self._grouped(loop.position, moved)
        elif rounds > 1:
            var = tirx.Var(f"k{loop.position}", self.index_dtype)
            body, inner = self.bound(loop, at, var * LANE_STEPS)
            body += self._grouped(loop.position, inner)
            statements.append(self.serial(var, rounds, body))
        return statements + self.rest(depth, loop, rest, at)

    def _lies_together(self, loop: ReductionLoop) -> bool:
        """Tell whether the steps of a loop read neighbouring elements of the data."""
        if not (isinstance(loop.first, int) and isinstance(loop.end, int)):
            return False
        data = [operand for operand in self.tile.operands if operand.vector == 0]
        return (
            len(data) == 1
            and self.has_lanes(data[0])
            and data[0].steps[loop.position] == 1
            and len(set(data[0].columns)) == 1
            and self.tile.lanes == LANE_STEPS
            and loop.end - loop.first >= LANE_STEPS
        )

    def has_lanes(self, data: Operand) -> bool:
        """Tell whether what a row multiplies by can be a lane of a vector."""
        return self.tile.dtype == "float32" and str(data.buffer.dtype) == "float32"

    def load_group(self, operand: Operand, address: Expr) -> Expr:
        """Return the data of `LANE_STEPS` steps as one vector."""
        return tirx.BufferLoad(operand.buffer, [ramp(address, 1, LANE_STEPS)])

    def bind_row(self, row: int, operand: Operand, address: Expr) -> tuple[list[Any], Any]:
        """Return the statements that load a group of steps of a row, and what `lane` takes."""
        load = self.load_group(operand, address)
        vector = tirx.Var(f"row{row}", dtype_of(load))
        return [tirx.Bind(vector, load)], vector

    def lane(self, vector: Any, step: int) -> Any:
        """Return the data of one step out of those of a group."""
        return tirx.Shuffle([vector], [tirx.const(step, "int32")])

    def _grouped(self, position: int, at: Point) -> list[Any]:
        """Return `LANE_STEPS` steps: the loads of all rows, then the multiply-adds by lanes."""
        statements: list[Any] = []
        vectors: dict[tuple[Operand, int], Any] = {}
        for operand, base, offset in zip(self.tile.operands, at.bases, at.fixed, strict=True):
            if operand.vector != 0:
                continue
            for row in range(self.tile.rows):
                if self.tile.skip(row, at.steps):
                    continue
                offset_of_row = offset + operand.rows[row] + operand.columns[0]
                address = base + constant_like(offset_of_row, self.index_dtype)
                binds, vectors[operand, row] = self.bind_row(row, operand, address)
                statements += binds
        for step in range(LANE_STEPS):
            self.lanes_of_rows = {key: self.lane(vector, step) for key, vector in vectors.items()}
            moved = self.moved(at, position, step)
            statements += self.updates(replace(moved, turn=at.turn + step))
        self.lanes_of_rows = {}
        return statements

    def element(self, operand: Operand, row: int, address: Expr) -> Expr:
        """Return the element that a row of the tile multiplies by: a lane where it is loaded."""
        lane = self.lanes_of_rows.get((operand, row))
        return super().element(operand, row, address) if lane is None else lane
