"""Register tiles of products by tables: 4 weights of one bit are an index into 16 sums of data.

    table[e] = sum over t of bit t of e ? x_t : 0               a weight's bit
    table[e] = sum over t of m + (bit t of e ? x_t : -x_t)      a weight's sign; m the greatest x

For each cell of 8 channels the data has two tables of 16 bytes, made once for the whole kernel. The
indices of 32 outputs (64 with AVX-512) are halves of the bytes of a vector: vpshufb looks all of
them up, which is 128 products, and vpaddb adds them, for as many steps as bytes hold. Data needs no
planes of its own. (T-MAC, arXiv 2407.00088, section 3, with tables of exact bytes.)
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from tvm import tirx

from tilewright.compiler.schedule.bit_packing import TABLE_VECTORS
from tilewright.compiler.schedule.blocked_kernel import BlockedEmitter
from tilewright.compiler.schedule.data_planes import data_planes
from tilewright.compiler.schedule.dot_kernel import SUM_DTYPE, intrinsic
from tilewright.compiler.schedule.expressions import Expr
from tilewright.compiler.schedule.low_bit import LowBit
from tilewright.compiler.schedule.micro_kernel import (
    Operand,
    Point,
    RegisterTile,
    constant_like,
    local_buffer,
    ramp,
)
from tilewright.compiler.targets import Target

TABLE_BYTES = 32
"""Bytes of the two tables of a cell of 8 channels."""

_CHANNELS = 4
_ENTRIES = 16
_LOOKUPS = 2
_BYTE_MOST, _WORD_MOST = 255, 65535
SHUFFLE = {256: "llvm.x86.avx2.pshuf.b", 512: "llvm.x86.avx512.pshuf.b.512"}
_NOTHING = 0x80


def has_tables(target: Target, low_bit: LowBit, depth: int) -> bool:
    """Tell whether a target looks sums of this many products up without overflow."""
    if target.architecture != "x86_64" or target.vector_bits not in SHUFFLE:
        return False
    return table_steps(low_bit) > 0 and depth // _CHANNELS * _greatest(low_bit) <= _WORD_MOST


def table_steps(low_bit: LowBit) -> int:
    """Return for how many cells bytes hold the sums of what is looked up."""
    return _BYTE_MOST // (_LOOKUPS * _greatest(low_bit))


def _most(low_bit: LowBit) -> int:
    """Return the greatest byte of data, its lowest bit that can be set as the first."""
    planes = data_planes(low_bit.mask)
    return (1 << len(planes)) - 1


def _greatest(low_bit: LowBit) -> int:
    return (2 if low_bit.is_sign else 1) * _CHANNELS * _most(low_bit)


class TablesEmitter(BlockedEmitter):
    """Emits two lookups for each cell of 8 channels, vector of bytes and bit of the weights.

    Between blocks sums are kept in 16 bits, those of even and of odd outputs apart.
    """

    def __init__(
        self,
        tile: RegisterTile,
        accumulators: Any,
        index_dtype: str,
        extents: Sequence[int],
        low_bit: LowBit,
        cells: int,
    ) -> None:
        self.low_bit, self.cells = low_bit, cells
        self.planes = low_bit.weight_bits
        self.byte_columns = -(-tile.columns // TABLE_VECTORS)
        lanes = TABLE_VECTORS * tile.lanes
        vectors = tile.rows * self.byte_columns * self.planes
        most = table_steps(low_bit)
        super().__init__(tile, accumulators, index_dtype, extents, most, "uint8", lanes, vectors)
        self.bits = 8 * lanes
        self.words = local_buffer("words", vectors * lanes, "uint16")

    def number(self, row: int, column: int, plane: int) -> int:
        """Return which vector of bytes holds some sums."""
        return (row * self.byte_columns + column) * self.planes + plane

    def half(self, number: int, odd: int) -> Expr:
        """Return the index of the sums in 16 bits of the even or the odd outputs of a vector."""
        lanes = self.narrow_lanes // 2
        return ramp(constant_like((2 * number + odd) * lanes, self.index_dtype), 1, lanes)

    def initial(self) -> list[Any]:
        """Return the stores that set all accumulators."""
        zero = tirx.Broadcast(tirx.const(0, "uint16"), self.narrow_lanes // 2)
        stores = [
            tirx.BufferStore(self.words, zero, [self.half(number, odd)])
            for number in range(self.vectors)
            for odd in range(2)
        ]
        return [*super().initial(), tirx.AllocBuffer(self.words), *stores]

    def updates(self, at: Point) -> list[Any]:
        """Return the lookups of one cell."""
        (data, d_base, d_offset), (weight, w_base, w_offset) = self.factors(at)
        statements: list[Any] = []
        halves = {}
        for column in range(self.byte_columns):
            for plane in range(self.planes):
                offset = weight.columns[TABLE_VECTORS * column] + plane * self.narrow_lanes
                lies = w_base + constant_like(w_offset + offset, self.index_dtype)
                loaded = tirx.BufferLoad(weight.buffer, [ramp(lies, 1, self.narrow_lanes)])
                binds, halves[column, plane] = self._indices(loaded, f"{column}_{plane}")
                statements += binds
        # Rows outside: a table is read once, and dead when its indices have been looked up.
        for row in range(self.tile.rows):
            address = d_base + constant_like(d_offset + data.rows[row], self.index_dtype)
            for part in range(_LOOKUPS):
                table = self._table(data, address, part)
                for (column, plane), indices in halves.items():
                    dtype = f"uint8x{self.narrow_lanes}"
                    found = intrinsic(SHUFFLE[self.bits], dtype, table, indices[part])
                    statements.append(self.add(self.number(row, column, plane), found))
        return statements

    def _indices(self, loaded: Expr, name: str) -> tuple[list[Any], list[Any]]:
        """Return the statements that cut bytes into halves, and the halves."""
        lanes = self.narrow_lanes
        dtype = f"uint8x{lanes}"
        both = tirx.Var(f"both{name}", dtype)
        low, high = (tirx.Var(f"{part}{name}", dtype) for part in ("low", "high"))
        mask = tirx.Broadcast(tirx.const(_ENTRIES - 1, "uint8"), lanes)
        words = tirx.reinterpret(f"uint16x{lanes // 2}", both)
        moved = words >> tirx.Broadcast(tirx.const(4, "uint16"), lanes // 2)
        binds = [
            tirx.Bind(both, loaded),
            tirx.Bind(low, both & mask),
            tirx.Bind(high, tirx.reinterpret(dtype, moved) & mask),
        ]
        return binds, [low, high]

    def _table(self, data: Operand, address: Expr, part: int) -> Expr:
        """Return a table of a cell in every 16 bytes of a vector."""
        at = address + constant_like(part * _ENTRIES, self.index_dtype)
        table = tirx.BufferLoad(data.buffer, [ramp(at, 1, _ENTRIES)])
        lanes = self.narrow_lanes
        places = [tirx.const(lane, "int32") for lane in range(lanes)]
        return tirx.Shuffle([table] * (lanes // _ENTRIES), places)

    def widened(self) -> list[Any]:
        """Return the statements that add the bytes to the sums in 16 bits."""
        lanes = self.narrow_lanes // 2
        statements = []
        for number in range(self.vectors):
            bytes_ = tirx.BufferLoad(self.narrow, [self.narrow_cell(number)])
            words = tirx.reinterpret(f"uint16x{lanes}", bytes_)
            parts = (
                words & tirx.Broadcast(tirx.const(_BYTE_MOST, "uint16"), lanes),
                words >> tirx.Broadcast(tirx.const(8, "uint16"), lanes),
            )
            for odd, part in enumerate(parts):
                at = self.half(number, odd)
                total = tirx.BufferLoad(self.words, [at]) + part
                statements.append(tirx.BufferStore(self.words, total, [at]))
        return statements

    def joined(self) -> list[Any]:
        """Return the statements that make sums of 32 bits in the order of the outputs."""
        lanes = self.tile.lanes
        statements = []
        for row in range(self.tile.rows):
            for column in range(self.tile.columns):
                total: Expr = tirx.Broadcast(tirx.const(self._start(), SUM_DTYPE), lanes)
                for plane in range(self.planes):
                    factor = tirx.const(self._factor(plane), SUM_DTYPE)
                    sums = self._outputs(row, column, plane)
                    total = total + sums * tirx.Broadcast(factor, lanes)
                cell = self.cell(0, row, column)
                statements.append(tirx.BufferStore(self.accumulators, total, [cell]))
        return statements

    def _outputs(self, row: int, column: int, plane: int) -> Expr:
        """Return the sums of one vector of outputs, in 32 bits."""
        number = self.number(row, column // TABLE_VECTORS, plane)
        halves = [tirx.BufferLoad(self.words, [self.half(number, odd)]) for odd in range(2)]
        lanes, count = self.tile.lanes, self.narrow_lanes // 2
        first = column % TABLE_VECTORS * lanes
        places = [
            tirx.const((first + lane) // 2 + (first + lane) % 2 * count, "int32")
            for lane in range(lanes)
        ]
        return tirx.Cast(f"{SUM_DTYPE}x{lanes}", tirx.Shuffle(halves, places))

    def _factor(self, plane: int) -> int:
        first = data_planes(self.low_bit.mask)[0]
        if self.low_bit.is_sign:
            return self.low_bit.high << first
        sign = -1 if plane == self.planes - 1 else 1
        return sign * (1 << (plane + first))

    def _start(self) -> int:
        """Return what the tables of signs have too much, in all."""
        if not self.low_bit.is_sign:
            return 0
        return -self._factor(0) * self.cells * _LOOKUPS * _CHANNELS * _most(self.low_bit)


def table_bytes(source: Any, address: Expr, low_bit: LowBit) -> Expr:
    """Return the two tables of 8 neighbouring bytes, as uint8x32.

    Args:
        source: flat buffer of bytes.
        address: of the first.
        low_bit: what is known of the factors.
    """
    lanes, dtype = TABLE_BYTES, f"uint8x{TABLE_BYTES}"
    first = data_planes(low_bit.mask)[0]
    eight = tirx.reinterpret("int64", tirx.BufferLoad(source, [ramp(address, 1, 8)]))
    data: Expr = tirx.Broadcast(eight, lanes // 8)
    if first:
        data = tirx.reinterpret(f"uint64x{lanes // 8}", data) >> tirx.Broadcast(
            tirx.const(first, "uint64"), lanes // 8
        )
    most = _most(low_bit)
    data = tirx.reinterpret(dtype, data) & tirx.Broadcast(tirx.const(most, "uint8"), lanes)
    if low_bit.is_sign:
        # In every 16 bytes m + x, then m - x.
        turned = [0] * 8 + [_BYTE_MOST] * 8
        added = [most] * 8 + [most + 1] * 8
        data = (data ^ constant_bytes(turned * 2)) + constant_bytes(added * 2)
    total: Expr | None = None
    for channel in range(_CHANNELS):
        other = 8 + channel if low_bit.is_sign else _NOTHING
        places = [
            (channel if entry >> channel & 1 else other) + (part * _CHANNELS)
            for part in range(_LOOKUPS)
            for entry in range(_ENTRIES)
        ]
        found = intrinsic(SHUFFLE[256], dtype, data, constant_bytes(places))
        total = found if total is None else total + found
    assert total is not None
    return total


def constant_bytes(values: Sequence[int]) -> Expr:
    """Return a constant vector of bytes."""
    constants = [tirx.const(value, "uint8") for value in values]
    return tirx.Shuffle(constants, [tirx.const(i, "int32") for i in range(len(values))])
