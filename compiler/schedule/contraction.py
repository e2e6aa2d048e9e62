"""Schedule contractions: dense and grouped convolutions, matrix products, matrix times vector."""

from __future__ import annotations

from dataclasses import dataclass
from math import prod

from tvm import tirx

from tilewright.compiler.schedule.analysis import Anchor, find_anchor, read_stages
from tilewright.compiler.schedule.cost import (
    RowsAs,
    broadcasts_by_register,
    choose_order,
    choose_row_block,
    choose_tile,
    padding_can_be_clipped,
    padding_is_clipped,
    rows_for,
    window_reductions,
)
from tilewright.compiler.schedule.decision_json import from_line, to_line
from tilewright.compiler.schedule.lane_kernel import LaneKernelBuilder
from tilewright.compiler.schedule.padding import fusable_rows
from tilewright.compiler.schedule.panels import (
    PanelKernelBuilder,
    check_panel,
    panel_axis,
    with_panels,
)
from tilewright.compiler.schedule.staged import StagedKernelBuilder, check_staged, with_staging
from tilewright.compiler.schedule.tile_loops import KernelBuilder, TilePlan
from tilewright.compiler.targets import Target
from tilewright.errors import InvalidScheduleError

# Multiply-adds in one round of the innermost loop: enough to hide its counter and address.
_ROUND = 24
# The same where a 1x1 convolution walks its channels in one loop and broadcasts take registers:
# where LLVM unrolls by itself, or two steps are written out, it spills accumulators of 4 x 3 (116
# channels of 14 x 14 on Zen 3: 57% of the peak; four steps 97%).
_POINTWISE_ROUND = 48
# Steps in a round of products and pointwise convolutions on AVX-512, for tiles of up to so many
# vectors: 4 read enough weights for eight tiles to ask for a line of the next task's each. Of tiles
# of 14 x 2 LLVM then spills vectors, because it loads weights ahead.
_STEPS_IN_ROUND = ((27, 4), (28, 2))
# Steps of a clipped window that may be written out; more would make the code too long.
_LONGEST_WINDOW = 7
# Independent accumulators that hide the latency of multiply-add (4 cycles on 2 pipes).
_IN_FLIGHT = 8


@dataclass(frozen=True, slots=True)
class ContractionDecisions:
    """How a contraction is cut into register tiles and tasks.

    Attributes:
        row_tile: rows of the register tile along the last two row axes (after fusing).
        column_vectors: vectors of the register tile.
        fused_rows: trailing row axes that are walked as one axis.
        row_block: row tiles in one task. All row tiles: a task keeps its weights in cache while
            the data streams; 1: it keeps its data.
        reduction_order: reduction axis positions, outermost first; every axis once.
        unroll: steps of the innermost reduction loop in one round.
        chains: independent accumulators per output, summed at the end.
        clip_pad: leave padding out of the loops; else data is first copied into a padded buffer.
        panel: steps of the longest reduction axis after which a task goes on to its next tile, and
            comes back for the next panel; 0: a tile runs over the whole reduction.
        staged: copy what the row tiles of a task share before they read it.
    """

    row_tile: tuple[int, int]
    column_vectors: int
    fused_rows: int
    row_block: int
    reduction_order: tuple[int, ...]
    unroll: int = 1
    chains: int = 1
    clip_pad: bool = False
    panel: int = 0
    staged: bool = False

    def __post_init__(self) -> None:
        sizes = (*self.row_tile, self.column_vectors, self.fused_rows, self.row_block)
        if len(self.row_tile) != 2 or min(*sizes, self.unroll, self.chains, self.panel + 1) < 1:
            raise InvalidScheduleError(f"every count of {self} must be at least 1")
        if sorted(self.reduction_order) != list(range(len(self.reduction_order))):
            raise InvalidScheduleError(
                f"reduction_order {self.reduction_order} is not an order of axes 0, 1, .."
            )

    def to_json(self) -> str:
        """Return one line of JSON that `from_json` reads back."""
        return to_line("contraction", self)

    @classmethod
    def from_json(cls, text: str) -> ContractionDecisions:
        """Read decisions back.

        Raises:
            InvalidScheduleError: the text holds another kind or other fields.
        """
        return from_line(cls, "contraction", text)


def default_contraction(
    anchor: Anchor, target: Target, rows_as: RowsAs | None = None
) -> ContractionDecisions:
    """Choose decisions by a model of registers, divisibility and caches.

    Args:
        anchor: what is computed.
        target: what for.
        rows_as: how the rows of a tile are held; by default as float ones are.
    """
    pads = [access.pad for access in anchor.accesses if access.pad is not None]
    fused = fusable_rows(anchor, pads)
    clip = padding_is_clipped(anchor)
    row_tile, vectors = choose_tile(anchor, target, fused, not clip, rows_as or rows_for(target))
    clip = clip and row_tile[0] == 1
    tile = row_tile[0] * row_tile[1] * vectors
    extents = [axis.extent for axis in anchor.stage.reduction]
    order = choose_order(anchor, target, clip)
    inner = extents[-1]
    is_pointwise = len(extents) > 1 and anchor.reduces_one_axis
    if is_pointwise:  # a single step is no loop that could be written out
        order = tuple(sorted(order, key=lambda position: extents[position]))
        inner = extents[order[-1]]
    chains = 1
    while chains * tile < _IN_FLIGHT and inner % (2 * chains) == 0:
        chains *= 2
    unroll = max(chains, _ROUND // tile // chains * chains, 1)
    if is_pointwise and broadcasts_by_register(target):
        unroll = max(unroll, _POINTWISE_ROUND // tile // chains * chains)
    if anchor.reduces_one_axis and target.prefetches:
        steps = next((count for most, count in _STEPS_IN_ROUND if tile <= most), 1)
        unroll = max(unroll, steps if inner % steps == 0 else 1)
    if target.keeps_steps_apart:
        # LLVM itself writes out short loops, so the longest is the innermost.
        unroll = chains
        order = tuple(sorted(order, key=lambda position: extents[position]))
        inner = extents[order[-1]]
    return ContractionDecisions(
        row_tile=row_tile,
        column_vectors=vectors,
        fused_rows=fused,
        row_block=choose_row_block(anchor, target, fused, row_tile, vectors),
        reduction_order=order,
        unroll=min(unroll, inner),
        chains=chains,
        clip_pad=clip,
    )


def usual_contraction(anchor: Anchor, target: Target) -> ContractionDecisions:
    """Return what is done without a record: the model's choice, with panels or copies."""
    decisions = with_panels(anchor, target, default_contraction(anchor, target))
    return with_staging(anchor, target, decisions)


def plan_contraction(anchor: Anchor, decisions: ContractionDecisions, target: Target) -> TilePlan:
    """Check decisions against an anchor and return the plan that they stand for.

    Raises:
        InvalidScheduleError: they do not fit.
    """
    reduction = anchor.stage.reduction
    name = anchor.stage.name
    if len(decisions.reduction_order) != len(reduction):
        raise InvalidScheduleError(
            f"{name!r} has {len(reduction)} reduction axes, reduction_order has "
            f"{len(decisions.reduction_order)}"
        )
    tile = prod(decisions.row_tile) * decisions.column_vectors * decisions.chains
    if tile > 2 * target.vector_registers:
        raise InvalidScheduleError(
            f"{tile} accumulators for {name!r} exceed twice the {target.vector_registers} registers"
        )
    pads = [access.pad for access in anchor.accesses if access.pad is not None]
    if decisions.fused_rows > fusable_rows(anchor, pads):
        raise InvalidScheduleError(
            f"{decisions.fused_rows} row axes of {name!r} cannot be walked as one, at most "
            f"{fusable_rows(anchor, pads)}"
        )
    if decisions.clip_pad and not padding_can_be_clipped(anchor, _LONGEST_WINDOW):
        raise InvalidScheduleError(f"{name!r} has no padding that can be clipped")
    if decisions.clip_pad and decisions.row_tile[0] != 1:
        raise InvalidScheduleError(
            f"padding of {name!r} is only clipped for tiles within one row, found row_tile "
            f"{decisions.row_tile}"
        )
    if decisions.unroll % decisions.chains:
        raise InvalidScheduleError(
            f"unroll {decisions.unroll} is not a multiple of chains {decisions.chains}"
        )
    check_panel(anchor, decisions)
    check_staged(anchor, decisions)
    return TilePlan(
        row_tile=decisions.row_tile,
        fused_rows=decisions.fused_rows,
        column_vectors=decisions.column_vectors,
        row_block=decisions.row_block,
        order=decisions.reduction_order,
        written_out=window_reductions(anchor) if decisions.clip_pad else (),
        unroll=decisions.unroll,
        chains=decisions.chains,
        clip_pad=decisions.clip_pad,
        panel=decisions.panel,
        panel_axis=panel_axis(anchor) if decisions.panel else 0,
        prefetch=target.prefetches,
    )


def schedule_contraction(
    func: tirx.PrimFunc, target: Target, decisions: ContractionDecisions | None = None
) -> tirx.PrimFunc:
    """Return the loops of a contraction with its epilogue.

    Args:
        func: unscheduled function in normal form whose anchor is a contraction.
        target: what to schedule for.
        decisions: how; None chooses by the analytical model.

    Raises:
        InvalidScheduleError: the decisions do not fit the function, or it is no contraction.
    """
    stages = read_stages(func)
    lanes = target.lanes("float32")
    anchor = None if stages is None else find_anchor(stages, lanes)
    if stages is None or anchor is None or anchor.kind != "contraction":
        raise InvalidScheduleError("the function is not a contraction")
    if decisions is None:
        decisions = usual_contraction(anchor, target)
    plan = plan_contraction(anchor, decisions, target)
    builder = LaneKernelBuilder if target.multiplies_by_lane else KernelBuilder
    if decisions.panel:
        if target.multiplies_by_lane:
            raise InvalidScheduleError("tiles that multiply by lanes have no panels")
        builder = PanelKernelBuilder
    if decisions.staged:
        if target.multiplies_by_lane:
            raise InvalidScheduleError("tiles that multiply by lanes read what is not copied")
        builder = StagedKernelBuilder
    return builder(func, stages, anchor, plan, lanes).build()
