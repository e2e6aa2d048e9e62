"""Analytical models that choose register tiles, task order and treatment of padding."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from enum import Enum
from math import gcd, inf, prod

from tilewright.compiler.schedule.analysis import Anchor
from tilewright.compiler.schedule.padding import read_clips
from tilewright.compiler.schedule.tile_geometry import column_axis
from tilewright.compiler.schedule.tiling import partition, tile_count
from tilewright.compiler.targets import Target

# Both figures hold for Intel since Haswell and AMD since Zen 2.
_FMA_PER_CYCLE = 2
_LOADS_PER_CYCLE = 2
_FMA_LATENCY = 4
# Cycles around the reduction loop of one tile: addresses, zeroing, branch.
_TILE_OVERHEAD = 30
# Cycles to store one output vector with a short epilogue.
_STORE_CYCLES = 2
# Cycles that a vector of weights costs beyond its load, because it is not in the first level.
_STREAM_CYCLES = 0.5
# With 256-bit vectors loads are half as large, and these two vanish beside a row of data (one more
# stream) and the latency of a small tile. Measured on Zen 3, cycles of a step: 4 x 3 vectors 6.17,
# 6 x 2 6.33, 5 x 2 5.26, 7 x 1 and 6 x 1 4.5.
_ROW_CYCLES = 0.06
_SHORTEST_STEP = 4.5
# Cycles of the loop around a step. With weights from memory, 3 vectors a step (more streams) also
# beat 2 by 12% where an image has 7 rows.
_LOOP_CYCLES = 0.5
# Steps of the tiled reduction axis that are written out; more would make the code too long.
_MAX_WRITTEN_OUT = 3
# Tiles of one vector where a broadcast needs a register: LLVM destroys the broadcast instead of the
# accumulator, and from 8 rows on spills (1152 x 256 x 96 on Zen 3: 7 rows 78 GFLOP/s, 8 rows 42,
# 4 x 3 vectors 100).
_MOST_SINGLE_ROWS = 7
# Tiles of matrix products, column vectors -> rows. LLVM unrolls short loops and holds the operands
# of several steps: with more than 16 accumulators it spills. Share of the usmmla bound of Neoverse
# V1 by llvm-mca, 3x3 of 64 / of 256 channels: 4 x 4 89% / 93%, 6 x 2 86 / 85, 6 x 3 89 (spills) /
# 89, 8 x 2 80 (spills) / 83, 10 x 2 66 (spills) / 83, 6 x 4 69 / 77 (both spill).
_ROWS_OF_PAIRS = {1: (1, 2, 4, 6, 8), 2: (1, 2, 4), 4: (1, 2, 4)}
# Accumulators with 16 registers and no multiply-add from memory: LLVM loads the elements of all
# rows before it multiplies. On armv7, multiply-adds in the instructions of a step: 6 x 2 vectors 12
# in 40 to 44 (spills), 5 x 2 10 in 25; of a matrix product 12 in 26 and 10 in 23.
_MOST_APART = 10
# Steps of the innermost loop, below which written out steps around it do not pay (measured).
_MIN_ROLLED = 8
# Cycles to read a byte from the second and third level and from memory, and the part that is not
# hidden.
_L2_BYTE = 1 / 48
_L3_BYTE = 1 / 20
_MEMORY_BYTE = 1 / 7
_EXPOSED = 0.4
_MOST_BLOCKS = 64
# Shares of the cache levels that a working set may fill.
_L1_SHARE = 0.6
_L2_SHARE = 0.9
# The third level is shared, on rented machines with strangers. 512 channels of 799 with stride 2,
# batch 16 (Zen 3, 32 MiB): blocks that read 0.1 to 6.5 MB again for every tile of columns take 113
# to 115 ms, of 13 MB between 138 and 210 ms.
_L3_SHARE = 0.2
# Of the second level, for the weights of a tile: of 0.86 only a part stays there. 3x3, 512 channels
# of 28 x 28 on Zen 3 (512 KiB): 6 x 2 vectors with 0.58 are 10% faster than 4 x 3; of 7 x 7 on
# Cascade Lake (1 MiB): panels take 0.88 of the time of 7 x 3 vectors without, tuned ones 0.69.
_WEIGHTS_SHARE = 0.65
_FLOAT_BYTES = 4
# Lines that lie a multiple of this apart share a set of the first level, which has room for so many
# of them: 64 sets of 64 bytes in 8 ways, on x86 as long as a page is the index. Rows of 1024 floats
# that are more drive each other out before all of a line is read: 128 x 1024 x 1024 on Cascade Lake
# 13 x 2 vectors 2.49 ms, 8 x 3 2.08 ms; of 1088 floats 2.09 and 2.16 ms.
_SET_DISTANCE = 4096
_WAYS = 8
# What an element of such a line costs more.
_CONFLICT_CYCLES = 0.2


def row_extents(anchor: Anchor, fused: int) -> tuple[int, int]:
    """Return the extents of the last two row axes after fusing; 1 where there is none."""
    extents = [anchor.stage.spatial[position].extent for position in anchor.rows]
    if fused > 1:
        extents = [*extents[:-fused], prod(extents[-fused:])]
    return (extents[-2] if len(extents) > 1 else 1, extents[-1] if extents else 1)


def row_tiles(anchor: Anchor, fused: int, tile: tuple[int, int]) -> int:
    """Return how many tiles of rows all images of one batch index have.

    Args:
        anchor: what is computed.
        fused: trailing row axes walked as one.
        tile: rows of a tile along the last two row axes.
    """
    outer, inner = row_extents(anchor, fused)
    images = prod(anchor.stage.spatial[p].extent for p in anchor.rows) // (outer * inner)
    return images * tile_count(outer, tile[0]) * tile_count(inner, tile[1])


def column_vectors(anchor: Anchor) -> int:
    """Return how many vectors the tiled column axis has (a partial one counts)."""
    position = anchor.columns[column_axis(anchor)]
    extent = anchor.stage.spatial[position].extent
    if position == len(anchor.stage.spatial) - 1:
        return tile_count(extent, anchor.lanes)
    return extent


class RowsAs(Enum):
    """How the rows of a tile are held while they are multiplied by.

    ELEMENTS are read one by one, as broadcasts; LANES are those of one vector for each row; PAIRS
    are vectors of two rows (matrix products).
    """

    ELEMENTS = "elements"
    LANES = "lanes"
    PAIRS = "pairs"


def rows_for(target: Target) -> RowsAs:
    """Return how float tiles hold their rows."""
    return RowsAs.LANES if target.multiplies_by_lane else RowsAs.ELEMENTS


def tiles_that_fit(target: Target, rows_as: RowsAs) -> Iterator[tuple[int, int]]:
    """Yield (rows, column vectors) whose accumulators and operands fit the register file."""
    registers = target.vector_registers
    for vectors in (1, 2, 3, 4, 6, 8, 12):
        if rows_as is RowsAs.PAIRS:
            yield from ((rows, vectors) for rows in _ROWS_OF_PAIRS.get(vectors, ()))
            continue
        if rows_as is RowsAs.LANES:
            # LLVM needs a spare register, else it spills.
            for rows in range(1, (registers - 1 - vectors) // (vectors + 1) + 1):
                yield rows, vectors
            continue
        # One register per column vector, one for the broadcast element; with one column vector
        # the broadcast is folded into the multiply-add, but LLVM needs a spare.
        operands = 3 if vectors == 1 else vectors + 1
        most = (registers - operands) // vectors
        if vectors == 1 and broadcasts_by_register(target):
            most = min(most, _MOST_SINGLE_ROWS)
        if target.keeps_steps_apart:
            most = min(most, _MOST_APART // vectors)
        for rows in range(1, most + 1):
            yield rows, vectors


def broadcasts_by_register(target: Target) -> bool:
    """Say whether an element that all lanes share takes a register: x86 before AVX-512."""
    return target.architecture == "x86_64" and not target.broadcasts_from_memory


def choose_order(anchor: Anchor, target: Target, clip: bool) -> tuple[int, ...]:
    """Return the order of the reduction axes, outermost first.

    As they stand, but with few registers two cases differ. LLVM unrolls a short innermost loop for
    each step of the loop around it and then shares broadcast elements between the steps, which need
    a register each: accumulators spill. So steps of a window that meet the same elements are kept
    far apart. Measured on Zen 3, time / time as the axes stand:

    Where padding is clipped, the window goes outermost: 512 channels of 2 x 7 x 7, 3x3x3, 0.77; 256
    of 4 x 14 x 14 0.92; 512 of 7 x 7, 3x3, 0.90. Where the window along a row is innermost (images
    of a few channels), the order is reversed: 3 channels of 224 x 224, 7x7, 0.88; 3x3 0.81; of
    8 x 112 x 112, 3x7x7, 0.88.
    """
    positions = range(len(anchor.stage.reduction))
    if not broadcasts_by_register(target):
        return tuple(positions)
    if not clip:
        if anchor.dtype != "float32":
            return tuple(positions)  # integer steps take several elements at once
        long = [p for p in positions if anchor.stage.reduction[p].extent > 1]
        slides = bool(long) and _rows_share(anchor, long[-1])
        return tuple(reversed(positions)) if slides else tuple(positions)
    window = {
        found.reduction
        for access in anchor.accesses
        if access.pad is not None and access.pad.bounds
        for found in read_clips(access, anchor) or []
    }
    return (*sorted(window), *(position for position in positions if position not in window))


def sliding_reductions(anchor: Anchor) -> tuple[int, ...]:
    """Return the reduction axes that share an index of the data with the innermost row axis."""
    if not anchor.rows:
        return ()
    row = anchor.stage.spatial[anchor.rows[-1]].var
    found = set()
    for access in anchor.accesses:
        step = access.offset.of(row)
        if step == 0:
            continue
        for position, axis in enumerate(anchor.stage.reduction):
            # The same distance in memory per step, up to stride and dilation.
            other = access.offset.of(axis.var)
            if other and (step % other == 0 or other % step == 0) and other < _row_pitch(anchor):
                found.add(position)
    return tuple(sorted(found))


def _row_pitch(anchor: Anchor) -> int:
    """Return the distance between neighbouring rows of the data, or a huge number."""
    if len(anchor.rows) < 2:
        return 1 << 62
    outer = anchor.stage.spatial[anchor.rows[-2]].var
    pitches = [abs(access.offset.of(outer)) for access in anchor.accesses]
    return max(pitches) or 1 << 62


def _rows_share(anchor: Anchor, reduction: int) -> bool:
    """Say whether neighbouring rows meet the same elements in different steps of a reduction."""
    if reduction not in sliding_reductions(anchor):
        return False
    row, axis = anchor.stage.spatial[anchor.rows[-1]].var, anchor.stage.reduction[reduction]
    return any(
        0 < access.offset.of(row) <= (axis.extent - 1) * access.offset.of(axis.var)
        for access in anchor.accesses
    )


def choose_tile(
    anchor: Anchor, target: Target, fused: int, whole_rows: bool, rows_as: RowsAs
) -> tuple[tuple[int, int], int]:
    """Return (row tile, column vectors) with the least modelled cycles.

    Args:
        anchor: what is computed.
        target: registers and so on.
        fused: trailing row axes walked as one.
        whole_rows: a tile may span several whole rows of the second last row axis.
        rows_as: how the rows of a tile are held.
    """
    outer, inner = row_extents(anchor, fused)
    vectors_total = column_vectors(anchor)
    far, in_sets = data_is_far(anchor, target), _rows_without_conflict(anchor, target)
    cost = _TileCost(target, anchor.depth, far, in_sets)
    slides = target.broadcasts_from_memory and bool(sliding_reductions(anchor))
    differ = _columns_differ_in_data(anchor)
    best: tuple[float, tuple[int, int], int] | None = None
    for rows, vectors in tiles_that_fit(target, rows_as):
        shapes = [(1, rows)] if rows <= inner else []
        if whole_rows and outer > 1 and rows > inner and rows % inner == 0:
            shapes.append((min(rows // inner, outer), inner))
        if vectors > vectors_total:
            continue
        if (
            slides
            and (differ or vectors == 1)
            and rows * vectors > target.vector_registers // 2 - 2
        ):
            # Each element is then used once in a step. LLVM keeps those that the steps of a window
            # share in registers: of 14 x 2 vectors of two groups it spills them and takes twice as
            # long as with 7 x 2 (3x3, 32 groups of 16 channels of 14 x 14, Cascade Lake).
            continue
        for shape in shapes:
            cycles = cost.of_image((outer, inner), shape, vectors_total, vectors)
            if best is None or cycles < best[0] * 0.999:
                best = (cycles, shape, vectors)
    assert best is not None, "a tile of one row and one vector always fits"
    return best[1], best[2]


@dataclass(frozen=True)
class _TileCost:
    """Modelled cycles of register tiles.

    Attributes:
        target: whose registers and caches.
        depth: steps of the reduction.
        far: the data is not in the second cache level.
        most_rows: whose data stays in the first one together.
    """

    target: Target
    depth: int
    far: bool
    most_rows: float

    def of_image(
        self, extents: tuple[int, int], tile: tuple[int, int], vectors: int, per_tile: int
    ) -> float:
        """Return the cycles of all tiles of one image of so many rows and column vectors."""
        total = 0.0
        codes = 0
        for outer in partition(extents[0], tile[0]):
            for inner in partition(extents[1], tile[1]):
                for column in partition(vectors, per_tile):
                    rows = outer.size * inner.size
                    count = outer.count * inner.count * column.count
                    total += count * self._of_tile(rows, column.size)
                    codes += rows * column.size
        # Every tile size is code of its own, which costs compile time and instruction cache.
        return total * (1 + codes * 1e-4)

    def _of_tile(self, rows: int, vectors: int) -> float:
        target, cells = self.target, rows * vectors
        step = max(cells / _FMA_PER_CYCLE, (rows + vectors) / _LOADS_PER_CYCLE)
        if broadcasts_by_register(target):
            step = max(step + _ROW_CYCLES * rows, _SHORTEST_STEP)
        else:
            # A reduction may be split into chains, so latency counts only half.
            step = max(step, _FMA_LATENCY / 2 if cells < _FMA_PER_CYCLE * _FMA_LATENCY else 0)
            # Weights stream from the second cache level and are used once for each row.
            step += _STREAM_CYCLES * vectors + _LOOP_CYCLES
            if vectors == 1:
                # Each multiply-add has a memory operand of its own: measured 4% slower.
                step *= 1.04
        if self.far:
            # Every tile of columns reads the data from the third level: 128 x 3072 x 768 on Cascade
            # Lake takes 0.84 of the time with tiles of 9 x 3 instead of 13 x 2.
            step += _L3_BYTE * rows * _FLOAT_BYTES
        if rows > self.most_rows:
            step += _CONFLICT_CYCLES * rows
        if not weights_fit(self.depth, vectors, target):
            # Every tile of rows reads its weights from the third level.
            step += _EXPOSED * (_L3_BYTE - _L2_BYTE) * vectors * (target.vector_bits // 8)
        return self.depth * step + _TILE_OVERHEAD + _STORE_CYCLES * cells


def _columns_differ_in_data(anchor: Anchor) -> bool:
    """Say whether each column vector of a tile reads data of its own, as several groups do."""
    column = anchor.stage.spatial[anchor.columns[column_axis(anchor)]].var
    return any(access.vector == 0 and access.offset.of(column) for access in anchor.accesses)


def _rows_without_conflict(anchor: Anchor, target: Target) -> float:
    """Return how many rows of a product's data fit the sets of the first level they lie in."""
    if not (anchor.reduces_one_axis and anchor.rows and target.architecture == "x86_64"):
        return inf
    row = anchor.stage.spatial[anchor.rows[-1]].var
    access = next((access for access in anchor.accesses if not access.vector), None)
    if access is None:
        return inf
    step_bytes = access.offset.of(row) * _FLOAT_BYTES
    return _WAYS * _SET_DISTANCE // gcd(step_bytes, _SET_DISTANCE)


def data_is_far(anchor: Anchor, target: Target) -> bool:
    """Say whether each tile of columns of a product reads its data from beyond the second level."""
    if not (anchor.reduces_one_axis and target.prefetches):
        return False
    return _data_elements(anchor) * _FLOAT_BYTES > _L2_SHARE * target.l2_bytes


def weights_fit(depth: int, vectors: int, target: Target) -> bool:
    """Tell whether the float weights of a tile stay in the second cache level.

    Args:
        depth: steps of the reduction.
        vectors: column vectors of the tile.
        target: whose caches and vectors.
    """
    return depth * vectors * target.vector_bits // 8 <= _WEIGHTS_SHARE * target.l2_bytes


def padding_can_be_clipped(anchor: Anchor, longest: int) -> bool:
    """Tell whether padding can be left out of the loops.

    Args:
        anchor: what is computed.
        longest: steps of the window along the innermost row axis that may be written out.
    """
    padded = [a for a in anchor.accesses if a.pad is not None and a.pad.bounds]
    stage = anchor.stage
    if not padded:
        return False
    for access in padded:
        clips = read_clips(access, anchor)
        if not clips:
            return False
        inner = anchor.rows[-1] if anchor.rows else -1
        for clip in clips:
            extent = stage.reduction[clip.reduction].extent
            if clip.spatial == inner and extent > longest:
                return False
            if clip.spatial is not None and clip.spatial not in anchor.rows:
                return False
    return True


def padding_is_clipped(anchor: Anchor) -> bool:
    """Tell whether a contraction should leave padding out rather than materialise it.

    Only where the window is short and a long loop runs inside it: with 3 input channels the
    copy of the data costs less than the longer code (measured).
    """
    inside = anchor.stage.reduction[-1].extent
    last = len(anchor.stage.reduction) - 1
    return (
        padding_can_be_clipped(anchor, _MAX_WRITTEN_OUT)
        and inside >= _MIN_ROLLED
        and last not in window_reductions(anchor)
    )


def window_reductions(anchor: Anchor) -> tuple[int, ...]:
    """Return the reduction axes that slide along the innermost padded row axis."""
    found = set()
    for access in anchor.accesses:
        if access.pad is None or not access.pad.bounds:
            continue
        for clip in read_clips(access, anchor) or []:
            if anchor.rows and clip.spatial == anchor.rows[-1]:
                found.add(clip.reduction)
    return tuple(sorted(found))


def choose_row_block(
    anchor: Anchor, target: Target, fused: int, row_tile: tuple[int, int], vectors: int
) -> int:
    """Return how many row tiles a task has: the number with the least modelled cycles.

    A large block reads the weights rarely and the data once for each column tile; a block of one
    tile reads its data once and all weights again. Tasks should also divide over the cores.
    """
    stage = anchor.stage
    depth = anchor.depth
    tiles = row_tiles(anchor, fused, row_tile)
    rows = prod(stage.spatial[position].extent for position in anchor.rows)
    columns = prod(stage.spatial[position].extent for position in anchor.columns)
    column_tiles = tile_count(columns, vectors * anchor.lanes)
    batch = prod(stage.spatial[position].extent for position in anchor.batch)
    panel = depth * vectors * anchor.lanes * _FLOAT_BYTES
    data = _data_elements(anchor) * _FLOAT_BYTES
    compute = rows * columns * depth / (_FMA_PER_CYCLE * anchor.lanes)

    def cycles(block: int) -> float:
        blocks = tile_count(tiles, block)
        share = data * block / tiles
        weights = _read(panel, panel * column_tiles, target)
        weights += (block - 1) * _read(panel, panel, target)
        reuse = 0.0 if block == 1 else _read(share, share + panel, target)
        memory = blocks * (column_tiles * (weights + reuse) + _read(share, data, target))
        # A last block that is short counts like the others.
        tasks = tile_count(blocks * column_tiles * batch, target.cores) * target.cores
        balance = tasks * block / (tiles * column_tiles * batch)
        return (compute + _EXPOSED * memory) * balance

    blocks = {tile_count(tiles, count) for count in range(1, min(tiles, _MOST_BLOCKS) + 1)}
    # Large images and batches have more blocks than that, if the data of one is to stay near.
    blocks |= {1 << exponent for exponent in range(tiles.bit_length())}
    return min(sorted(blocks, reverse=True), key=cycles)


def _read(size: float, resident: float, target: Target) -> float:
    """Return the cycles to read `size` bytes of a working set of `resident` bytes."""
    if resident <= _L1_SHARE * target.l1_bytes:
        return 0.0
    if resident <= _L2_SHARE * target.l2_bytes:
        return size * _L2_BYTE
    return size * (_L3_BYTE if resident <= _L3_SHARE * target.l3_bytes else _MEMORY_BYTE)


def _data_elements(anchor: Anchor) -> int:
    """Return how many elements one batch index of the data operand has, about."""
    access = next(a for a in anchor.accesses if not a.vector or a is anchor.accesses[0])
    batch = prod(
        anchor.stage.spatial[p].extent
        for p in anchor.batch
        if anchor.stage.spatial[p].var in access.offset.coefficients
    )
    return max(1, prod(int(extent) for extent in access.buffer.shape) // max(1, batch))
