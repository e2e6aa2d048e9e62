"""Schedule the phases of transposed convolutions with few channels: pixels of a row are vectors.

A task makes a block of rows of all phases. The rows that these read, of all channels, are copied
next to each other first, with their borders: in the image a channel's lie a page from the next
one's, which neither caches nor address translation like. A register tile then holds some vectors of
a row for both phases along it and all output channels, so that a vector that was loaded serves up
to two taps of each.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product
from math import prod

from tvm import sym, tirx

from tilewright.compiler.phase_convolution import PHASE_BLOCK, STRIDE
from tilewright.compiler.schedule.analysis import Stage, read_stages
from tilewright.compiler.schedule.decision_json import from_line, to_line
from tilewright.compiler.schedule.expressions import linear_form, loads_in, shape_of
from tilewright.compiler.schedule.phase_kernel import PhaseKernel, RowCopy
from tilewright.compiler.schedule.tiling import tile_count
from tilewright.compiler.targets import Target
from tilewright.errors import InvalidScheduleError

# Of the first cache level for what one row of outputs reads, of the second for a task's copy: the
# rest is for weights and sums.
_NEAREST_SHARE = 0.75
_NEAR_SHARE = 0.5
# That the last ones to finish do not leave others idle.
_TASKS_PER_CORE = 4
# Accumulators that a multiply-add every half cycle needs while one takes four.
_FEWEST_CELLS = 8


@dataclass(frozen=True, slots=True)
class PhaseDecisions:
    """How the phases of a transposed convolution are computed.

    Attributes:
        vectors: of a row in a tile.
        rows: positions of a task along all axes but the last.
        channels: that are copied, and summed for all these rows, before the next ones.
    """

    vectors: int
    rows: tuple[int, ...]
    channels: int

    def to_json(self) -> str:
        """Return one line of JSON that `from_json` reads back."""
        return to_line("phases", self)

    @classmethod
    def from_json(cls, text: str) -> PhaseDecisions:
        """Read decisions back.

        Raises:
            InvalidScheduleError: the text holds another kind or other fields.
        """
        return from_line(cls, "phases", text)


@dataclass(frozen=True)
class PhaseShape:
    """Extents of the operator, by axis where there are several.

    Attributes:
        batch, channels, outputs: extents.
        sizes: of the image.
        positions: outputs of a phase.
        taps: of a phase.
        shifts: how much further phase 1 reads.
        before: inputs in front of the image that are read.
    """

    batch: int
    channels: int
    outputs: int
    sizes: tuple[int, ...]
    positions: tuple[int, ...]
    taps: tuple[int, ...]
    shifts: tuple[int, ...]
    before: tuple[int, ...]

    @classmethod
    def read(cls, stage: Stage) -> PhaseShape:
        rank = (len(stage.spatial) - 2) // 2
        batch, *phases = stage.spatial[: 1 + rank]
        outputs, *positions = stage.spatial[1 + rank :]
        channels, *taps = stage.reduction
        data = next(load for load in loads_in(stage.value) if len(load.indices) == 2 + rank)
        variables = [axis.var for axis in stage.axes]
        shifts, before = [], []
        for index, phase in zip(data.indices[2:], phases, strict=True):
            form = linear_form(index, variables, sym.Analyzer())
            assert form is not None
            shifts.append(form.of(phase.var))
            before.append(-int(form.constant))
        return cls(
            batch.extent,
            channels.extent,
            outputs.extent,
            tuple(int(extent) for extent in shape_of(data.source)[2:]),
            tuple(axis.extent for axis in positions),
            tuple(axis.extent for axis in taps),
            tuple(shifts),
            tuple(before),
        )

    def reach(self, axis: int, positions: int = 1) -> int:
        """Return how many inputs in a row so many positions read along an axis."""
        return positions - 1 + self.taps[axis] + self.shifts[axis]


def find_phases(stages: Sequence[Stage]) -> Stage | None:
    """Return the stage of a convolution by phases, if there is one."""
    return next((stage for stage in stages if stage.name.startswith(PHASE_BLOCK)), None)


def most_vectors(outputs: int, positions: int, rows_read: int, target: Target) -> int:
    """Return how many vectors of a row a tile has at most; 0 where a tile does not pay.

    Args:
        outputs: channels.
        positions: of a phase along a row.
        rows_read: rows of inputs that a row of outputs reads of a channel.
        target: whose registers are filled.
    """
    lanes = target.lanes("float32")
    # A vector of each, and one weight in all lanes.
    fit = (target.vector_registers - 1) // (STRIDE * outputs + 1)
    vectors = min(fit, positions // lanes)
    cells = STRIDE * outputs * vectors
    # With few cells each weight serves few, which pays where it needs no register: 64 channels of
    # 8 x 8 x 16 to one take 0.85 of the time on AVX-512, 1.28 on AVX2.
    parts = chains(cells, rows_read) if target.broadcasts_from_memory else 1
    return vectors if cells * parts >= _FEWEST_CELLS else 0


def chains(cells: int, rows_read: int) -> int:
    """Return in how many parts each sum of a tile is kept: a tile of few waits for its adds.

    Args:
        cells: vectors of sums of a tile.
        rows_read: as above; each is added to one of the parts.
    """
    return min(rows_read, tile_count(_FEWEST_CELLS, max(1, cells)))


def default_phases(stage: Stage, target: Target) -> PhaseDecisions:
    """Return the tile that wastes least, channels that stay near, and rows that share most."""
    shape, lanes = PhaseShape.read(stage), target.lanes("float32")
    most = most_vectors(shape.outputs, shape.positions[-1], prod(shape.taps[:-1]), target)
    most = max(1, most)
    row = tile_count(shape.positions[-1], lanes)
    # The last tile overlaps its neighbour: what both compute is lost.
    full = [n for n in range(1, most + 1) if STRIDE * shape.outputs * n >= _FEWEST_CELLS]
    vectors = min(full or [most], key=lambda count: (tile_count(row, count) * count, -count))
    single = (1,) * (len(shape.sizes) - 1)
    fit = int(target.l1_bytes * _NEAREST_SHARE) // RowCopy.plan(shape, single, 1, lanes).bytes
    channels = _even(shape.channels, max(1, fit))
    tasks = min(_TASKS_PER_CORE * target.cores, prod(shape.positions[:-1])) / shape.batch
    best, fewest = single, _rows_copied(shape, single)
    for rows in product(*(_halves(extent) for extent in shape.positions[:-1])):
        count = prod(map(tile_count, shape.positions[:-1], rows))
        copy = RowCopy.plan(shape, rows, channels, lanes)
        if count < tasks or copy.bytes > target.l2_bytes * _NEAR_SHARE:
            continue
        if _rows_copied(shape, rows) < fewest:
            best, fewest = rows, _rows_copied(shape, rows)
    return PhaseDecisions(vectors, best, channels)


def _even(extent: int, most: int) -> int:
    """Return the size of equal parts of an extent, of at most so many each."""
    return tile_count(extent, tile_count(extent, most))


def _halves(extent: int) -> list[int]:
    """Return the sizes of 1, 2, 4.. equal parts of an extent."""
    return [tile_count(extent, 1 << power) for power in range(extent.bit_length())]


def _rows_copied(shape: PhaseShape, rows: Sequence[int]) -> float:
    """Return how many rows are copied for each that is computed."""
    return prod(shape.reach(axis, count) / count for axis, count in enumerate(rows))


def schedule_phases(
    func: tirx.PrimFunc, target: Target, decisions: PhaseDecisions | None = None
) -> tirx.PrimFunc:
    """Return the loops of a convolution by phases.

    Raises:
        InvalidScheduleError: the decisions do not fit the operator.
    """
    stage = find_phases(read_stages(func) or ())
    assert stage is not None
    plan, shape = decisions or default_phases(stage, target), PhaseShape.read(stage)
    lanes = target.lanes("float32")
    if plan.vectors < 1 or plan.vectors * lanes > shape.positions[-1]:
        raise InvalidScheduleError(
            f"tiles of {plan.vectors} vectors do not fit rows of {shape.positions[-1]} positions"
        )
    if len(plan.rows) != len(shape.sizes) - 1 or min(*plan.rows, plan.channels) < 1:
        raise InvalidScheduleError(
            f"tasks of {list(plan.rows)} rows and {plan.channels} channels do not fit "
            f"{len(shape.sizes)} axes"
        )
    parts = chains(STRIDE * shape.outputs * plan.vectors, prod(shape.taps[:-1]))
    return PhaseKernel(func, stage, shape, plan, lanes, parts).build()
