"""What the cost model sees of a candidate on a GPU; sizes as logarithms."""

from __future__ import annotations

from math import ceil

import numpy as np

from tilewright.compiler.cuda.estimate import estimate_seconds, register_reuse
from tilewright.compiler.cuda.product import Operand, Product
from tilewright.compiler.cuda.targets import WARP, CudaTarget
from tilewright.compiler.cuda.tile import (
    GemmTile,
    resident_blocks,
    tile_dtypes,
    uses_matrix_units,
)
from tilewright.compiler.program import item_bytes

NAMES = (
    *("batch", "rows", "columns", "depth"),
    *("tile_rows", "tile_columns", "tile_depth", "warps", "warp_rows", "warp_columns"),
    *("stages", "split", "registers", "shared_bytes", "occupancy", "waves", "last_wave"),
    *(
        "reuse",
        "wasted",
        "a_contiguous",
        "b_contiguous",
        "bounds",
        "matrix_units",
        "warpgroups",
        "estimate",
    ),
)


def features(tile: GemmTile, product: Product, precision: str, target: CudaTarget) -> np.ndarray:
    """Return float32 [len(NAMES)]."""
    sizes = product.sizes
    batch, rows, columns, _ = sizes
    dtypes = tile_dtypes(product, precision)
    on_tensor_cores = uses_matrix_units(product, precision)
    row_blocks, column_blocks = ceil(rows / tile.rows), ceil(columns / tile.columns)
    blocks = row_blocks * column_blocks * batch * tile.split
    resident = resident_blocks(tile, product, precision, target)
    waves = blocks / (target.sms * max(1, resident))
    computed = row_blocks * tile.rows * column_blocks * tile.columns
    warp_tile = tile.warp_tile
    logarithms = [
        *sizes,
        tile.rows,
        tile.columns,
        tile.depth,
        tile.threads // WARP,
        *warp_tile,
    ]
    values = [
        *(float(np.log2(value)) for value in logarithms),
        tile.stages,
        np.log2(tile.split),
        tile.registers(on_tensor_cores) / target.registers_per_thread,
        tile.shared_bytes(dtypes[0]) / target.block_shared_bytes,
        resident * tile.threads / WARP / target.warps,
        np.log2(waves),
        waves / ceil(waves),
        register_reuse(tile, on_tensor_cores, item_bytes(dtypes[0])),
        computed / (rows * columns),
        _is_contiguous(product.a, product, dtypes[0]),
        _is_contiguous(product.b, product, dtypes[1]),
        len(product.a.bounds),
        on_tensor_cores,
        tile.by_warpgroups,
        np.log2(estimate_seconds(tile, product, precision, target)),
    ]
    return np.array(values, np.float32)


def _is_contiguous(operand: Operand, product: Product, dtype: str) -> bool:
    """Tell whether neighbours along the depth are neighbours in memory (coalesced copies)."""
    if operand.offset is None or operand.dtype != dtype:
        return False
    real = [axis for axis in product.depth if axis.extent > 1]
    return bool(real) and operand.offset.of(real[-1].var) == 1
