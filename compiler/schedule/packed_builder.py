"""Kernels of integer contractions whose weights are packed bits, and data is packed before them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from math import prod
from typing import Any

from tvm import tirx

from tilewright.compiler.schedule.analysis import Access, Axis, Stage
from tilewright.compiler.schedule.bit_packing import (
    CODES,
    PLANES,
    TABLE_VECTORS,
    TABLES,
    Packing,
    code_bits,
    with_packed,
)
from tilewright.compiler.schedule.cells import CellBuilder, Dot
from tilewright.compiler.schedule.code_kernel import CodesEmitter
from tilewright.compiler.schedule.data_planes import data_planes, plane_word
from tilewright.compiler.schedule.expressions import Expr, Linear, elements
from tilewright.compiler.schedule.micro_kernel import (
    Emitter,
    RegisterTile,
    constant_like,
    emit_reduction,
    ramp,
    sequence,
)
from tilewright.compiler.schedule.nests import fused_nest
from tilewright.compiler.schedule.plane_kernel import PlanesEmitter
from tilewright.compiler.schedule.table_kernel import TABLE_BYTES, TablesEmitter, table_bytes
from tilewright.compiler.schedule.tile_geometry import TileAxis, TileGeometry, column_axis
from tilewright.compiler.schedule.tile_loops import TilePlan
from tilewright.compiler.schedule.tiling import Run, partition
from tilewright.compiler.targets import Target
from tilewright.errors import InvalidScheduleError


class PackedBuilder(CellBuilder):
    """Turns a contraction in groups of packed bits into loops over register tiles."""

    def __init__(
        self,
        func: tirx.PrimFunc,
        stages: Sequence[Stage],
        dot: Dot,
        plan: TilePlan,
        target: Target,
    ) -> None:
        if plan.clip_pad or plan.chains > 1:
            raise InvalidScheduleError(
                "packed bits have a border that is written out and one chain of sums"
            )
        self.dot, self.target = dot, target
        self.packing = Packing(dot.group, dot.low_bit)
        weights = next(access.buffer for access in dot.cells.accesses if access.vector)
        position = next((i for i, p in enumerate(func.params) if p.same_as(weights)), None)
        if position is None:
            raise InvalidScheduleError("weights that are packed must be constants")
        func, self.packed = with_packed(func, position, self.packing)
        self.packed_from: dict[Any, Any] = {}
        super().__init__(func, stages, dot.cells, plan, target.lanes("float32"))

    def read_from(self, access: Access) -> Access:
        """Return the access to packed weights, or to a copy of the data that is packed before."""
        if access.vector:
            return replace(access, buffer=self.packed, offset=self._weight_offset(access.offset))
        if self.dot.group == CODES:
            return replace(access, offset=_times(access.offset, CODES))
        count = self._units
        source = access.buffer
        cells = elements(source) // self.dot.group
        packed = tirx.decl_buffer(
            (cells * count,), self.packing.dtype, f"{source.name}_bits", layout=None
        )
        cell = Axis(tirx.Var("cell", self.index_dtype), cells)
        # What it loads says what must be there before; `emit_producer` writes it.
        zero = constant_like(0, self.index_dtype)
        load = tirx.BufferLoad(source, [zero] * len(source.shape))
        stage = Stage("bits", (cell,), (), packed, (cell.var,), load, None)
        self.packed_from[packed] = source
        self.producers[packed] = stage
        self.stages.append(stage)
        return replace(access, buffer=packed, offset=_times(access.offset, count))

    @property
    def _units(self) -> int:
        """Words or bytes of packed data in a cell."""
        if self.dot.group == TABLES:
            return TABLE_BYTES
        return len(data_planes(self.dot.low_bit.mask))

    def _weight_offset(self, offset: Linear) -> Linear:
        """Return an offset in cells as one in words or bytes of packed weights."""
        planes = self.packing.planes
        if self.dot.group == CODES:
            return _times(offset, CODES * code_bits(self.dot.low_bit) // 8)
        if self.dot.group == PLANES:
            return _times(offset, planes)
        # A step of the reduction passes the indices of several vectors of outputs.
        column = self.anchor.vector_axis.var
        scaled = _times(offset, TABLE_VECTORS * planes)
        return replace(
            scaled, coefficients=scaled.coefficients | {column: offset.of(column) * planes}
        )

    def emit_producer(self, stage: Stage) -> Any:
        """Return the loops that compute a stage before the tiles read it."""
        if stage.buffer not in self.packed_from:
            return super().emit_producer(stage)
        source, target = self.flat(self.packed_from[stage.buffer]), self.flat(stage.buffer)
        (cell,) = stage.spatial

        def body_of(values: dict[Any, Expr]) -> Any:
            return sequence(self._pack_cell(source, target, values[cell.var]))

        return fused_nest(stage.spatial, body_of, cell.extent * self.dot.group)

    def _pack_cell(self, source: Any, target: Any, cell: Expr) -> list[Any]:
        address = cell * self.dot.group
        if self.dot.group == TABLES:
            tables = table_bytes(source, address, self.dot.low_bit)
            at = ramp(cell * TABLE_BYTES, 1, TABLE_BYTES)
            return [tirx.BufferStore(target, tables, [at])]
        planes = data_planes(self.dot.low_bit.mask)
        return [
            tirx.BufferStore(
                *(target, plane_word(source, address, bit, self.target)),
                [cell * len(planes) + constant_like(number, cell)],
            )
            for number, bit in enumerate(planes)
        ]

    def _tile_axes(self) -> tuple[list[TileAxis], list[TileAxis], list[TileAxis]]:
        batch, rows, columns = super()._tile_axes()
        if self.dot.group == TABLES:
            tiled = column_axis(self.anchor)
            axis = columns[tiled]
            columns[tiled] = replace(axis, runs=self._byte_runs(axis.extent))
        return batch, rows, columns

    def _byte_runs(self, extent: int) -> tuple[Run, ...]:
        """Return tiles of whole vectors of bytes; the last one may have fewer outputs."""
        tiles = partition(-(-extent // TABLE_VECTORS), self.plan.column_vectors)
        sizes = [
            min(run.size * TABLE_VECTORS, extent - first * TABLE_VECTORS)
            for run in tiles
            for first in range(run.start, run.start + run.count * run.size, run.size)
        ]
        runs: list[Run] = []
        start = 0
        for number, size in enumerate(sizes):
            known = runs[-1] if runs else None
            # The tile with the partial vector has code of its own.
            if known is not None and known.size == size and number < len(sizes) - 1:
                runs[-1] = replace(known, count=known.count + 1)
            else:
                runs.append(Run(number, 1, start, size))
            start += size
        return tuple(runs)

    def register_tile(self, geometry: TileGeometry) -> RegisterTile:
        """Return what is summed in the registers of a tile."""
        tile = super().register_tile(geometry)
        low_bit = self.dot.low_bit
        if self.dot.group != PLANES or not low_bit.is_sign:
            return tile
        lanes = tile.lanes
        cells = prod(int(n) for n in self.packed.shape) - self._outputs
        first = geometry.starts[(geometry.column_position,)]
        factor = low_bit.high * sum(1 << bit for bit in data_planes(low_bit.mask))
        scale = tirx.Broadcast(tirx.const(factor, tile.dtype), lanes)
        starts = [
            tirx.BufferLoad(
                self.flat(self.packed), [ramp((first + column) * lanes + cells, 1, lanes)]
            )
            * scale
            for column in range(tile.columns)
        ]
        return replace(tile, start=tuple(starts * tile.rows))

    @property
    def _outputs(self) -> int:
        """Outputs that packed weights have counts for."""
        weights = next(access.buffer for access in self.dot.cells.accesses if access.vector)
        shape = [int(n) for n in weights.shape]
        return shape[0] * shape[-2]

    def emit(self, tile: RegisterTile, bases: Sequence[Expr]) -> tuple[Any, list[Any]]:
        """Return the accumulators of a tile, and the statements that fill them."""
        extents = [axis.extent for axis in self.stage.reduction]

        def emitter(tile: RegisterTile, accumulators: Any, index_dtype: str) -> Emitter:
            arguments = (tile, accumulators, index_dtype, extents, self.dot.low_bit)
            if self.dot.group == CODES:
                return CodesEmitter(*arguments)
            if self.dot.group == TABLES:
                return TablesEmitter(*arguments, prod(extents))
            return PlanesEmitter(*arguments)

        return emit_reduction(tile, bases, self.index_dtype, emitter)


def _times(offset: Linear, count: int) -> Linear:
    return Linear(
        offset.constant * count, {var: step * count for var, step in offset.coefficients.items()}
    )
