"""Estimate how long a product takes in a tile, and choose the best: where nothing was measured.

A wave is as many blocks as run at once. A step of a block takes the longest of its arithmetic at
the rate that it gets of a multiprocessor, of its traffic from the second-level cache, and of the
latency that its stages do not hide; the chip takes at least the traffic with device memory. The
constants are from the data sheets of the chips and have not been fitted to measurements.
"""

from __future__ import annotations

from collections.abc import Iterator
from math import ceil

from tilewright.compiler.cuda.product import Product
from tilewright.compiler.cuda.targets import CudaTarget
from tilewright.compiler.cuda.tile import (
    GemmTile,
    check_tile,
    resident_blocks,
    tile_dtypes,
    uses_matrix_units,
)
from tilewright.compiler.program import item_bytes
from tilewright.errors import InvalidScheduleError

_LAUNCH_S = 3e-6
# What a schedule of this kind is taken to reach of the peak, before its tile's own losses.
_REACHED = 0.7
# Cache traffic of one multiprocessor and clock, bytes.
_CACHE_BYTES_PER_CLOCK = 48
# From asking the second-level cache for a tile until it can be computed with.
_LATENCY_S = 0.7e-6
# Clocks of shared memory for a 16-byte read by a whole warp; less where lanes share rows.
_READ_CLOCKS, _SHARED_READ_CLOCKS = 4.0, 1.0
# How much of these reads arithmetic does not hide.
_READS_SEEN = 0.5
# Multiply-adds of one clock on tensor cores, of the instructions used here (mma.sync).
_INSTRUCTION_MACS = 1024
# What these reach of the rate where four warps can issue a product together (Luo et al.,
# "Benchmarking and Dissecting the Nvidia Hopper GPU Architecture via Microbenchmarking", 2024).
_INSTRUCTION_SHARE = 0.62
# Shared memory that a multiprocessor reads in a clock.
_SHARED_BYTES_PER_CLOCK = 128
# Fewer warps than this on a multiprocessor leave its pipelines waiting.
_FULL_WARPS = 8
# Steps that pass before the first arithmetic, and after the last.
_OVERHEAD_STEPS = 3


def estimate_seconds(tile: GemmTile, product: Product, precision: str, target: CudaTarget) -> float:
    """Return the estimated time of a product on the target's chip."""
    batch, rows, columns, depth = product.sizes
    on_tensor_cores = uses_matrix_units(product, precision)
    element = item_bytes(tile_dtypes(product, precision)[0])
    rate_name = precision if on_tensor_cores else "fp32"
    if product.is_integer:
        rate_name = "int8"
    elif product.half is not None:
        rate_name = "fp16"
    rate = target.macs_per_second(rate_name) / target.sms * _REACHED
    if on_tensor_cores and target.has_warpgroups and not tile.by_warpgroups:
        rate *= _INSTRUCTION_SHARE
    blocks = ceil(rows / tile.rows) * ceil(columns / tile.columns) * batch * tile.split
    resident = max(1, resident_blocks(tile, product, precision, target))
    together = min(resident, ceil(blocks / target.sms))
    waves = ceil(blocks / (target.sms * together))
    busy = min(1.0, together * tile.threads / 32 / _FULL_WARPS)
    steps = ceil(ceil(depth / tile.depth) / tile.split)
    macs = tile.rows * tile.columns * tile.depth
    loaded = (tile.rows + tile.columns) * tile.depth * element
    reuse = register_reuse(tile, on_tensor_cores, element)
    arithmetic = macs * together / (rate * busy * reuse)
    traffic = loaded * together / (_CACHE_BYTES_PER_CLOCK * target.clock_hz)
    latency = _LATENCY_S / (tile.stages - 1)
    step = max(arithmetic, traffic, latency)
    seconds = waves * (steps + _OVERHEAD_STEPS) * step + _LAUNCH_S
    moved = batch * (rows * depth + columns * depth) * element + batch * rows * columns * 4
    if tile.split > 1:
        partial = 4 * batch * rows * columns * tile.split
        seconds += _LAUNCH_S + 2 * partial / target.bandwidth_bytes_s
    return max(seconds, moved / target.bandwidth_bytes_s + _LAUNCH_S)


def register_reuse(tile: GemmTile, on_tensor_cores: bool, element_bytes: int) -> float:
    """Return the share of time that a warp computes, and does not read shared memory: 0 to 1."""
    rows, columns = tile.warp_tile
    if tile.by_warpgroups:
        # 32 bytes of depth of 64 rows and the columns are read for each instruction.
        compute, read = columns / 2, (64 + columns) * 32 / _SHARED_BYTES_PER_CLOCK
        return min(1.0, compute / read)
    if on_tensor_cores:
        high, wide = rows / 16, columns / 8
        # An instruction takes 32 bytes of depth, for 16 rows and 8 columns.
        compute = high * wide * 16 * 8 * (32 / element_bytes) / _INSTRUCTION_MACS
        reads = _READ_CLOCKS * (high + wide / 2)
    else:
        high, wide = rows / 4, columns / 8
        compute = high * wide
        reads = _READ_CLOCKS * wide + _SHARED_READ_CLOCKS * high
    return compute / (compute + _READS_SEEN * reads)


def tiles(product: Product, precision: str, target: CudaTarget) -> Iterator[GemmTile]:
    """Yield the tiles that are allowed for a product."""
    on_tensor_cores = uses_matrix_units(product, precision)
    element = item_bytes(tile_dtypes(product, precision)[0])
    for rows, columns, warps, by_warpgroups in _SHAPES:
        for depth_bytes in (64, 128):
            for stages in (2, 3, 4):
                for split in (1, 2, 3, 4, 6, 8, 12, 16):
                    warp_rows, warp_columns = warps
                    if not on_tensor_cores and depth_bytes == 128:
                        continue
                    tile = GemmTile(
                        rows,
                        columns,
                        depth_bytes // element,
                        warp_rows,
                        warp_columns,
                        stages,
                        split,
                        by_warpgroups,
                    )
                    try:
                        check_tile(tile, product, precision, target)
                    except InvalidScheduleError:
                        continue
                    yield tile


# Rows, columns, warps along both, whether four of them work together.
_SHAPES = (
    (16, 64, (1, 2), False),
    (16, 128, (1, 4), False),
    (32, 32, (1, 2), False),
    (32, 64, (2, 2), False),
    (32, 128, (1, 4), False),
    (64, 32, (2, 2), False),
    (64, 64, (2, 2), False),
    (64, 128, (2, 2), False),
    (64, 128, (2, 4), False),
    (128, 32, (4, 1), False),
    (128, 64, (2, 2), False),
    (128, 64, (4, 2), False),
    (128, 128, (2, 2), False),
    (128, 128, (2, 4), False),
    (128, 128, (4, 2), False),
    (256, 64, (4, 2), False),
    (256, 128, (4, 2), False),
    (64, 64, (4, 1), True),
    (64, 128, (4, 1), True),
    (64, 128, (4, 2), True),
    (64, 256, (4, 2), True),
    (128, 64, (8, 1), True),
    (128, 128, (4, 1), True),
    (128, 128, (8, 1), True),
    (128, 256, (8, 1), True),
    (256, 128, (8, 1), True),
)


def choose_tile(product: Product, precision: str, target: CudaTarget) -> GemmTile:
    """Return the tile with the least estimated time.

    Raises:
        InvalidScheduleError: none is allowed.
    """
    found = list(tiles(product, precision, target))
    if not found:
        raise InvalidScheduleError(f"no tile fits a product of {product.sizes} on {target.name}")
    return min(found, key=lambda tile: (estimate_seconds(tile, product, precision, target), tile))
