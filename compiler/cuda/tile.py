"""Tiles of a matrix product on a GPU: the decisions, what they need, and which are allowed."""

from __future__ import annotations

import json
from dataclasses import dataclass, fields

from tilewright.compiler.cuda import warpgroup
from tilewright.compiler.cuda.product import Product
from tilewright.compiler.cuda.targets import WARP, CudaTarget
from tilewright.compiler.program import item_bytes
from tilewright.errors import InvalidScheduleError

VECTOR_BYTES = 16
_STEP_BYTES = 32  # of depth that one matrix instruction takes from each row
# Of registers that are neither accumulators nor fragments: addresses, bounds, loop counters.
_OTHER_REGISTERS = 40


@dataclass(frozen=True, slots=True, order=True)
class GemmTile:
    """How a product is cut into blocks, warps and steps; sizes in elements.

    Attributes:
        rows, columns: of the result that a block computes.
        depth: elements of each row and column that are in shared memory at once.
        warp_rows, warp_columns: warps of a block along rows and columns.
        stages: tiles in shared memory: one is computed with, the others are on their way.
        split: parts of the depth that different blocks sum up; above 1 a second kernel adds them.
        by_warpgroups: Hopper's instructions, which four warps along the rows issue together.
    """

    rows: int
    columns: int
    depth: int
    warp_rows: int
    warp_columns: int
    stages: int
    split: int = 1
    by_warpgroups: bool = False

    @property
    def threads(self) -> int:
        """Threads of a block."""
        return WARP * self.warp_rows * self.warp_columns

    @property
    def warp_tile(self) -> tuple[int, int]:
        """Rows and columns that a warp computes."""
        return self.rows // self.warp_rows, self.columns // self.warp_columns

    def shared_bytes(self, tile_dtype: str) -> int:
        """Return the shared memory of a block."""
        return self.stages * (self.rows + self.columns) * self.depth * item_bytes(tile_dtype)

    def registers(self, uses_matrix_units: bool) -> int:
        """Estimate the registers of a thread: accumulators, fragments of one step, addresses."""
        rows, columns = self.warp_tile
        accumulators = rows * columns // WARP
        if self.by_warpgroups:
            return accumulators + _OTHER_REGISTERS
        if uses_matrix_units:
            fragments = rows // 16 * 4 + columns // 8 * 2
        else:
            fragments = 4 * (columns // 8) + 4 * 2
        return accumulators + fragments + _OTHER_REGISTERS

    def to_json(self) -> str:
        """Return one line of JSON that `from_json` reads back."""
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        return json.dumps({"kind": "cuda_gemm", **values}, separators=(",", ":"))

    @classmethod
    def from_json(cls, text: str) -> GemmTile:
        """Read decisions back.

        Raises:
            InvalidScheduleError: the text is no tile.
        """
        values = json.loads(text)
        expected = {field.name for field in fields(cls)}
        if not isinstance(values, dict) or values.pop("kind", None) != "cuda_gemm":
            raise InvalidScheduleError("the text is not the tile of a matrix product on a GPU")
        if set(values) != expected:
            raise InvalidScheduleError(
                f"a tile has the fields {sorted(expected)}, found {sorted(values)}"
            )
        return cls(**values)


def uses_matrix_units(product: Product, precision: str) -> bool:
    """Say whether a product runs on tensor cores in a precision."""
    if product.is_integer or product.half is not None:
        return True
    return product.dtype != "int32" and precision in ("tf32", "fp16", "bf16")


def tile_dtypes(product: Product, precision: str) -> tuple[str, str]:
    """Return the dtypes of the tiles of both factors in shared memory.

    Factors that are 16-bit floats in memory keep their type, which is exact; others take the
    precision's.
    """
    if product.is_integer:
        return product.a.dtype, product.b.dtype
    if product.dtype == "int32":
        return "int32", "int32"
    chosen = {"fp16": "float16", "bf16": "bfloat16"}.get(precision, "float32")
    chosen = product.half or chosen
    return chosen, chosen


def check_tile(tile: GemmTile, product: Product, precision: str, target: CudaTarget) -> None:
    """Refuse a tile before anything is built for it.

    Raises:
        InvalidScheduleError: it does not fit the instructions or the resources; the message says
            which.
    """
    dtype = tile_dtypes(product, precision)[0]
    on_tensor_cores = uses_matrix_units(product, precision)
    lanes = VECTOR_BYTES // item_bytes(dtype)
    numbers = (tile.rows, tile.columns, tile.depth, tile.warp_rows, tile.warp_columns, tile.split)
    if min(numbers) < 1 or tile.stages < 2:
        raise InvalidScheduleError(f"{tile}: sizes start at 1, stages at 2")
    if tile.rows % tile.warp_rows or tile.columns % tile.warp_columns:
        raise InvalidScheduleError(f"{tile}: the warps do not divide the block")
    rows, columns = tile.warp_tile
    unit = (16, 16) if on_tensor_cores else (4, 8)
    if rows % unit[0] or columns % unit[1]:
        raise InvalidScheduleError(
            f"{tile}: a warp's {rows}x{columns} is not a multiple of {unit[0]}x{unit[1]}"
        )
    chunks = tile.depth // lanes
    if tile.depth % lanes or chunks & (chunks - 1) or not 2 <= chunks <= 32:
        raise InvalidScheduleError(
            f"{tile}: a depth of {tile.depth} {dtype} is not 2, 4, .. 32 times 16 bytes"
        )
    if on_tensor_cores and tile.depth * item_bytes(dtype) % _STEP_BYTES:
        raise InvalidScheduleError(f"{tile}: the depth is not a multiple of {_STEP_BYTES} bytes")
    if tile.by_warpgroups:
        _check_warpgroups(tile, product, precision, target)
    if tile.threads > 1024:
        raise InvalidScheduleError(f"{tile}: {tile.threads} threads, but a block has 1024 at most")
    shared = tile.shared_bytes(dtype)
    if shared > target.block_shared_bytes:
        raise InvalidScheduleError(
            f"{tile}: {shared} bytes of shared memory, but a block of {target.name} has "
            f"{target.block_shared_bytes}"
        )
    registers = tile.registers(on_tensor_cores)
    available = min(target.registers_per_thread, target.registers // tile.threads)
    if registers > available:
        raise InvalidScheduleError(
            f"{tile}: about {registers} registers a thread, but {available} are available"
        )
    if tile.split > 1 and len(product.stage.spatial) != len(product.stage.indices):
        raise InvalidScheduleError(f"{tile}: the depth of grouped products is not split")
    steps = -(-product.sizes[3] // tile.depth)
    if tile.split > steps:
        raise InvalidScheduleError(f"{tile}: {steps} steps cannot be split {tile.split} times")


def _check_warpgroups(tile: GemmTile, product: Product, precision: str, target: CudaTarget) -> None:
    dtypes = tile_dtypes(product, precision)
    if not (uses_matrix_units(product, precision) and warpgroup.supports(dtypes)):
        raise InvalidScheduleError(f"{tile}: warpgroups do not multiply {dtypes[0]}")
    if not target.has_warpgroups:
        raise InvalidScheduleError(f"{tile}: {target.name} has no instructions of warpgroups")
    _, columns = tile.warp_tile
    if tile.warp_rows % warpgroup.WARPS or columns > warpgroup.MAX_COLUMNS:
        raise InvalidScheduleError(
            f"{tile}: a warpgroup is {warpgroup.WARPS} warps along the rows, with "
            f"{warpgroup.MAX_COLUMNS} columns at most"
        )
    if tile.depth * item_bytes(dtypes[0]) // VECTOR_BYTES not in warpgroup.CHUNKS:
        raise InvalidScheduleError(f"{tile}: a depth that warpgroups do not read")


def resident_blocks(tile: GemmTile, product: Product, precision: str, target: CudaTarget) -> int:
    """Return how many blocks run on one multiprocessor at once (occupancy)."""
    dtype = tile_dtypes(product, precision)[0]
    registers = min(255, tile.registers(uses_matrix_units(product, precision)))
    return max(
        0,
        min(
            target.blocks,
            target.warps // (tile.threads // WARP),
            target.registers // (registers * tile.threads),
            target.shared_bytes // (tile.shared_bytes(dtype) + 1024),
        ),
    )
