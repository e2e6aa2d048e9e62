"""Schedule products of floats with weights in 2, 4 or 8 bits, which are unpacked in registers.

A step of a tile is one word for each column: 8 codes of 4 bits. Each takes one conversion and one
multiply-add for each row and, all but the highest, one `and`:

    whole[s] = float(word & (2 ** (bits * (s + 1)) - 1))        codes s and below
    sum over s of x[s] * code[s] = sum over s of y[s] * whole[s]
    y[s] = x[s] * 2 ** (-bits * s) - x[s + 1] * 2 ** (-bits * (s + 1))

so no code is shifted, and none is cut off from those below it: the data, which has been made y once
for the whole kernel, takes them out again. (Telescoping; all powers of two, so y rounds once, and
what a conversion of 32 bits rounds is below the 24th bit of the code it is for.) The highest code
needs no mask, for conversions take signed words: with its top bit flipped it stands for code - 2 **
(bits - 1). Per 8 weights of 4 bits that is 7/8 and, 1 convert and 1 multiply-add, where shift, and,
convert, multiply-add would be 4; subtracting the zero point and multiplying by the scale would be 2
more. Those wait until the end of a group:

    total += scale * (sums of the group - zero * sum of x + 2 ** (bits - 1) * sum of highest x)

where the sums of x are made with y and are what the sums of a group start from.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import prod
from typing import Any

from tvm import tirx
from tvm.ir import TensorLoad

from tilewright.compiler.schedule.analysis import Access, Anchor, Axis, Stage, read_stages
from tilewright.compiler.schedule.contraction import ContractionDecisions, plan_contraction
from tilewright.compiler.schedule.cost import choose_row_block
from tilewright.compiler.schedule.expressions import (
    Expr,
    Linear,
    dtype_of,
    loads_in,
    shape_of,
)
from tilewright.compiler.schedule.micro_kernel import (
    Emitter,
    RegisterTile,
    constant_like,
    emit_reduction,
    sequence,
)
from tilewright.compiler.schedule.nests import emit_stage, fused_nest
from tilewright.compiler.schedule.tile_loops import KernelBuilder
from tilewright.compiler.schedule.tiling import tile_count
from tilewright.compiler.schedule.weight_only_kernel import GroupEmitter, spread_row
from tilewright.compiler.targets import Target
from tilewright.compiler.weight_only import WeightWords, read_words
from tilewright.errors import InvalidScheduleError

# Registers beside sums and words of a tile: an element of the data, masks, floats on their way.
_SPARE = 6
# Vectors of a tile with one row. Microseconds of 4096 x 4096 in groups of 32 from memory (Zen 3):
# 3 vectors 703, 4 748, 5 656, 6 1225 and 7 1085 (sums spilled). Packed so that the vectors of a
# tile make one stream, 4 take 931: several streams are fetched sooner.
_MOST_VECTORS = 8
# The same on ARM, where LLVM keeps the data of a step in registers to multiply by its lanes.
_LANE_VECTORS = 4
# Vectors of a tile with several rows.
_TILE_VECTORS = 2
# Sums under way that hide the latency of multiply-add.
_IN_FLIGHT = 8


@dataclass(frozen=True, eq=False)
class WeightOnly:
    """A product with packed weights.

    Attributes:
        anchor: the product in words: reduction axes are groups and the words of a group; accesses
            are those of the spread data, the words, and the sums of the data in each group.
        words: how the weights are packed.
        data: what is multiplied.
        pitch: elements between rows of the spread data.
    """

    anchor: Anchor
    words: WeightWords
    data: Any
    pitch: int


def find_weight_only(stages: Sequence[Stage]) -> WeightOnly | None:
    """Return the product with packed weights of a function, if it has one."""
    for stage in stages:
        if not stage.reduction:
            continue
        loads = loads_in(stage.value)
        packed = next((load for load in loads if _is_packed(load)), None)
        if packed is None:
            continue
        words = read_words(stage.name, shape_of(packed.source), stage.spatial[-1].extent)
        if words is not None:
            data = next(load for load in loads if _is_data(load, stage))
            return _in_words(stage, words, data, packed)
    return None


def _in_words(stage: Stage, words: WeightWords, data: TensorLoad, packed: TensorLoad) -> WeightOnly:
    lead, column = stage.spatial[:-1], stage.spatial[-1]
    index_dtype = dtype_of(column.var)
    group = Axis(tirx.Var("group", index_dtype), words.groups)
    word = Axis(tirx.Var("word", index_dtype), words.words)
    pitch = words.groups * words.group + words.in_word
    extents = [axis.extent for axis in lead]

    def rows(step: int) -> dict[Any, int]:
        return {
            axis.var: step * prod(extents[position + 1 :]) for position, axis in enumerate(lead)
        }

    spread = _scratch("spread", prod(extents), pitch)
    sums = _scratch("group_sums", prod(extents), words.groups * words.head)
    height = (words.head + words.words) * words.lanes
    linear = [
        Linear(0, {**rows(pitch), group.var: words.group, word.var: words.in_word}),
        Linear(
            words.head * words.lanes,
            {column.var: words.groups * height, group.var: height, word.var: words.lanes},
        ),
        Linear(0, {**rows(words.groups * words.head), group.var: words.head}),
    ]
    accesses = tuple(
        Access(load, buffer, offset, vector)
        for load, buffer, offset, vector in zip(
            (data, packed, data), (spread, packed.source, sums), linear, (0, 1, 0), strict=True
        )
    )
    anchor = Anchor(
        stage=replace(stage, reduction=(group, word)),
        combine="add",
        term=stage.value,
        accesses=accesses,
        rows=tuple(range(len(lead))),
        columns=(len(lead),),
        batch=(),
        lanes=words.lanes,
        kind="contraction",
    )
    return WeightOnly(anchor, words, data.source, pitch)


def _is_packed(load: TensorLoad) -> bool:
    return str(load.source.dtype) == "int32" and len(load.indices) == 4


def _is_data(load: TensorLoad, stage: Stage) -> bool:
    return str(load.source.dtype) == "float32" and not load.source.same_as(stage.buffer)


def _scratch(name: str, rows: int, width: int) -> Any:
    return tirx.decl_buffer((rows, width), "float32", name, layout=None)


def default_weight_only(found: WeightOnly, target: Target) -> ContractionDecisions:
    """Choose the largest tile whose words, and sums of a group, stay in registers.

    With one row many vectors hide the latency of multiply-add, and read memory in many streams;
    with more rows the weights of a step, once unpacked, serve as many as fit. The sums over all
    groups wait in memory between groups.
    """
    anchor = found.anchor
    rows = prod(anchor.stage.spatial[position].extent for position in anchor.rows)
    vectors_in_all = tile_count(anchor.vector_axis.extent, anchor.lanes)
    if rows == 1:
        most = min(_MOST_VECTORS, (target.vector_registers - _SPARE) // 2)
        if _holds_data(target):
            most = min(most, _LANE_VECTORS)
        vectors, row_tile = min(vectors_in_all, most), (1, 1)
        chains = max(1, min(_IN_FLIGHT // vectors // 2 * 2, found.words.in_word))
    else:
        vectors, chains = min(vectors_in_all, _TILE_VECTORS), 1
        # Where elements are lanes, a row's data of a step is in registers too.
        held = found.words.in_word // anchor.lanes if _holds_data(target) else 0
        most = max(1, (target.vector_registers - _SPARE) // (vectors + held))
        row_tile = (1, tile_count(rows, tile_count(rows, most)))
    fused = max(1, len(anchor.rows))
    return ContractionDecisions(
        row_tile=row_tile,
        column_vectors=vectors,
        fused_rows=fused,
        row_block=choose_row_block(anchor, target, fused, row_tile, vectors),
        reduction_order=(0, 1),
        chains=chains,
    )


def _holds_data(target: Target) -> bool:
    """Tell whether LLVM keeps the data of a step in registers: on ARM."""
    return target.multiplies_by_lane or target.keeps_steps_apart


def schedule_weight_only(
    func: tirx.PrimFunc, target: Target, decisions: ContractionDecisions | None = None
) -> tirx.PrimFunc:
    """Return the loops of a product with packed weights, with its epilogue.

    Args:
        func: unscheduled function in normal form for which `find_weight_only` finds something.
        target: what to schedule for.
        decisions: how; None chooses by the analytical model.

    Raises:
        InvalidScheduleError: the decisions do not fit the function, or it is no such product.
    """
    stages = read_stages(func)
    found = None if stages is None else find_weight_only(stages)
    if stages is None or found is None:
        raise InvalidScheduleError("the function is no product with packed weights")
    if decisions is None:
        decisions = default_weight_only(found, target)
    if decisions.panel or decisions.reduction_order != (0, 1):
        raise InvalidScheduleError(
            f"groups of {found.anchor.stage.name!r} are summed in order and without panels"
        )
    # Its chains are codes of one word, not steps.
    plan = plan_contraction(found.anchor, replace(decisions, chains=1), target)
    builder = WeightOnlyBuilder(func, stages, found.anchor, plan, target.lanes("float32"))
    builder.found, builder.chains = found, decisions.chains
    return builder.build()


class WeightOnlyBuilder(KernelBuilder):
    """Builds tiles of words; the data is spread over the codes of a word first."""

    found: WeightOnly
    chains: int

    def _prologue(self) -> list[Any]:
        """Return what makes the data: its producer if it has one, a padded copy, its spreading."""
        found = self.found
        producer = self.producers.get(found.data)
        made = [] if producer is None else [emit_stage(self, producer, self.max_lanes)]
        spread, _, sums = (access.buffer for access in self.accesses)
        lead = self.stage.spatial[:-1]
        pad = self._padded(lead, spread)
        buffers = self.flat(spread), self.flat(sums)

        def body_of(values: dict[Any, Expr]) -> Any:
            row: Expr = constant_like(0, self.index_dtype)
            for axis in lead:
                row = row * axis.extent + values[axis.var]
            return sequence(spread_row(*buffers, row, found.words, found.pitch))

        work = found.words.rows * prod(axis.extent for axis in lead)
        return [*made, emit_stage(self, pad, self.max_lanes), fused_nest(lead, body_of, work)]

    def _padded(self, lead: Sequence[Axis], spread: Any) -> Stage:
        """Return the stage that copies rows of data and fills them up with zeros."""
        k = Axis(tirx.Var("k", self.index_dtype), self.found.pitch)
        axes = tuple(Axis(tirx.Var(axis.name, self.index_dtype), axis.extent) for axis in lead)
        shape = [axis.extent for axis in axes]
        wide = tirx.decl_buffer((*shape, self.found.pitch), "float32", "padded", layout=None)
        self._flat[wide] = self.flat(spread)
        indices = tuple(axis.var for axis in (*axes, k))
        load = tirx.BufferLoad(self.found.data, list(indices))
        inside = k.var < constant_like(self.found.words.rows, self.index_dtype)
        value = tirx.if_then_else(inside, load, tirx.const(0, "float32"))
        return Stage("padded", (*axes, k), (), wide, indices, value, None)

    def emit(self, tile: RegisterTile, bases: Sequence[Expr]) -> tuple[Any, list[Any]]:
        """Return the accumulators of a tile, and the statements that fill them."""

        def emitter(tile: RegisterTile, accumulators: Any, index_dtype: str) -> Emitter:
            return GroupEmitter(tile, accumulators, index_dtype, self.found.words, self.chains)

        return emit_reduction(tile, bases, self.index_dtype, emitter)
