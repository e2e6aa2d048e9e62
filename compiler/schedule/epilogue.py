"""Stages after the anchor: stored by the register tile where each output is one anchor output."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from tvm import sym, tirx
from tvm.ir import Call, TensorLoad

from tilewright.compiler.schedule.analysis import Stage, inline_loads
from tilewright.compiler.schedule.expressions import (
    Expr,
    children,
    flat_index,
    loads_in,
    range_from_zero,
    rebuild,
    shape_of,
    substitute,
)
from tilewright.compiler.schedule.micro_kernel import constant_like, local_buffer, sequence
from tilewright.compiler.schedule.tile_geometry import TileGeometry

if TYPE_CHECKING:
    from tilewright.compiler.schedule.tile_loops import KernelBuilder

# An epilogue that costs more than this many operations is emitted as a loop over the tile.
_LIGHT_EPILOGUE = 24
# A call such as exp or erf becomes a polynomial of about this many operations.
_CALL_COST = 20
_FREE_CALLS = ("if_then_else", "reinterpret")


class Epilogue:
    """Stores the outputs of a register tile.

    Attributes:
        separate: stages that do not map one to one to the anchor and need loops of their own.
    """

    def __init__(
        self, builder: KernelBuilder, after: Sequence[Stage], producers: Mapping[Any, Stage]
    ) -> None:
        self.builder = builder
        self.stage = builder.stage
        self.anchor = builder.anchor
        self.index_dtype = builder.index_dtype
        self.after = list(after)
        self.producers = dict(producers)
        self.outputs, self.inlined, self.separate = self._split_after()

    def _split_after(self) -> tuple[list[Stage], dict[Any, Stage], list[Stage]]:
        """Return (stages stored by the tile, stages inlined into them, stages with own loops)."""
        parameters = list(self.builder.func.params)

        def is_output(stage: Stage) -> bool:
            return any(stage.buffer.same_as(param) for param in parameters)

        stored = [s for s in [self.stage, *self.after] if is_output(s)]
        if all(self._maps_one_to_one(stage) for stage in stored):
            inlined = {s.buffer: s for s in self.after}
            return stored, inlined, []
        return [self.stage], {}, self.after

    def _maps_one_to_one(self, stage: Stage) -> bool:
        return stage is self.stage or self._axis_map(stage) is not None

    def _axis_map(self, stage: Stage) -> dict[int, int] | None:
        """Return stage axis position -> dimension of the anchor's buffer that it indexes.

        None unless each output is made of one anchor output: the same axes, up to order and
        axes of extent 1 (mapped to -1).
        """
        producers = {s.buffer: s for s in self.after if s is not stage}
        value = inline_loads(stage.value, producers)
        uses = [load for load in loads_in(value) if load.source.same_as(self.stage.buffer)]
        shape = shape_of(self.stage.buffer)
        mapping: dict[int, int] | None = None
        for load in uses:
            this: dict[int, int] = {}
            for position, index in enumerate(load.indices):
                found = [i for i, a in enumerate(stage.spatial) if a.var.same_as(index)]
                if found:
                    this[found[0]] = position
                elif shape[position] != 1:
                    return None
            if mapping is not None and mapping != this:
                return None
            mapping = this
        if mapping is None:
            return None
        for i, axis in enumerate(stage.spatial):
            if i not in mapping and axis.extent != 1:
                return None
            if i in mapping and shape[mapping[i]] != axis.extent:
                return None
        return {i: mapping.get(i, -1) for i in range(len(stage.spatial))}

    def stores(self, accumulators: Any, geometry: TileGeometry) -> list[Any]:
        """Return the stores of all outputs of a tile."""
        if sum(self._cost(stage) for stage in self.outputs) <= _LIGHT_EPILOGUE:
            return [
                self._store(stage, accumulators, geometry, row, column)
                for stage in self.outputs
                for row in range(len(geometry.row_offsets))
                for column in range(geometry.column_count)
            ]
        return self._looped_epilogue(accumulators, geometry)

    def _cost(self, stage: Stage) -> int:
        return _cost(self._inlined(stage))

    def _inlined(self, stage: Stage) -> Expr:
        if stage is self.stage:
            return tirx.BufferLoad(stage.buffer, list(stage.indices))
        return inline_loads(stage.value, self.inlined | self._cheap_producers())

    def _cheap_producers(self) -> dict[Any, Stage]:
        """Return the producers that only the epilogue reads; they are computed in place."""
        read = {access.buffer for access in self.builder.accesses}
        return {b: s for b, s in self.producers.items() if b not in read}

    def _looped_epilogue(self, accumulators: Any, geometry: TileGeometry) -> list[Any]:
        """Copy the tile to the stack, then loop over it, so that code stays small."""
        rows, columns = len(geometry.row_offsets), geometry.column_count
        lanes = self.anchor.lanes
        tile = local_buffer("tile", rows * columns * lanes, self.anchor.dtype)
        statements: list[Any] = [tirx.AllocBuffer(tile)]
        for number in range(rows * columns):
            index = constant_like(number * lanes, self.index_dtype)
            at = tirx.Ramp(index, constant_like(1, index), lanes) if lanes > 1 else index
            statements.append(tirx.BufferStore(tile, tirx.BufferLoad(accumulators, [at]), [at]))
        row, column = (tirx.Var(name, self.index_dtype) for name in ("row", "column"))
        for stage in self.outputs:
            body = []
            if geometry.whole_columns:
                store = self._store(stage, tile, geometry, row, column)
                body.append(self._loop(column, geometry.whole_columns, store))
            if geometry.partial is not None:
                body.append(self._store(stage, tile, geometry, row, geometry.partial))
            statements.append(self._loop(row, rows, sequence(body)))
        return statements

    def _loop(self, var: Any, extent: int, body: Any) -> Any:
        zero, count = (constant_like(v, self.index_dtype) for v in (0, extent))
        return tirx.For(var, zero, count, tirx.ForKind.SERIAL, body)

    def _store(
        self, stage: Stage, results: Any, geometry: TileGeometry, row: Any, column: Any
    ) -> Any:
        """Return the vectorised store of one output vector of `stage`."""
        lane = tirx.Var("lane", self.index_dtype)
        analyzer = sym.Analyzer()
        first, count = geometry.stored_lanes(column)
        values = geometry.axis_values(row, column, lane + first)
        at = {axis.var: v for axis, v in zip(self.stage.spatial, values, strict=True)}
        if stage is not self.stage:
            cells = [substitute(index, at) for index in self.stage.indices]
            mapping = self._axis_map(stage)
            assert mapping is not None
            zero = constant_like(0, self.index_dtype)
            at = {
                axis.var: cells[mapping[i]] if mapping[i] >= 0 else zero
                for i, axis in enumerate(stage.spatial)
            }
        analyzer.bind(lane, range_from_zero(count))
        cell = (row * geometry.column_count + column) * self.anchor.lanes + lane + first
        result = tirx.BufferLoad(results, [cell])

        def leaf(node: Expr) -> Expr | None:
            if isinstance(node, TensorLoad) and node.source.same_as(self.stage.buffer):
                return result
            return None

        value = rebuild(self._inlined(stage), leaf)
        value = self.builder.flatten(substitute(value, at), analyzer)
        indices = [substitute(index, at) for index in stage.indices]
        address = analyzer.simplify(flat_index(stage.buffer, indices))
        store = tirx.BufferStore(self.builder.flat(stage.buffer), value, [address])
        zero, extent = (constant_like(v, self.index_dtype) for v in (0, count))
        kind = tirx.ForKind.VECTORIZED if count > 1 else tirx.ForKind.SERIAL
        return tirx.For(lane, zero, extent, kind, store)


def _cost(expr: Expr) -> int:
    own = 1
    if isinstance(expr, Call):
        own = 1 if str(expr.op.name).endswith(_FREE_CALLS) else _CALL_COST
    elif isinstance(expr, tirx.Div):
        own = 8
    return own + sum(_cost(part) for part in children(expr) if not isinstance(expr, TensorLoad))
