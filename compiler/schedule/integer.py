"""Schedule integer contractions: u8 data times s8 weights, summed by dot-product instructions.

    out[.., o] += int32(data[.., k * group + i]) * int32(weight[o / 16, k, .., o % 16, i])

The `group` neighbouring elements of one output are summed by one instruction, so the innermost
reduction axis i vanishes, and what remains is an ordinary contraction of 32-bit cells whose
multiply-add is that instruction. Tiles, tasks and padding are those of `schedule.contraction`.

    group 4: vpdpbusd (AVX-512 VNNI, AVX-VNNI); it does not saturate
    group 2: vpmaddwd and an add on data and weights of 16 bits, see `widened`; exact, without VNNI
    group 4: vpmaddubsw, without VNNI, for weights of few bits, see `quad_kernel`
    group 8, 4: usmmla or usdot, sdot, for ARM with i8mm or dot products
    group 2: products in 16 bits, for ARM without dot products
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from math import prod
from typing import Any

from tvm import tirx
from tvm.ir import TensorLoad

from tilewright.compiler.schedule.analysis import Access, Stage, find_anchor, read_stages
from tilewright.compiler.schedule.bit_packing import CODES, PLANES, TABLE_VECTORS, TABLES, Packing
from tilewright.compiler.schedule.cells import CellBuilder, Dot, in_cells
from tilewright.compiler.schedule.contraction import (
    ContractionDecisions,
    default_contraction,
    plan_contraction,
)
from tilewright.compiler.schedule.cost import RowsAs, choose_row_block, row_extents
from tilewright.compiler.schedule.dot_groups import (
    dot_groups,
    dot_lanes,
    has_vnni,
    is_packed,
    is_quads,
    is_widened,
    is_x86,
    table_rows,
)
from tilewright.compiler.schedule.dot_kernel import (
    DATA_DTYPE,
    MADDWD,
    SUM_DTYPE,
    WEIGHT_DTYPE,
    WIDE_DTYPE,
    Accumulate,
    DotEmitter,
    has_arm_dot,
    has_mixed_dot,
    intrinsic,
    is_signed,
    mixed_dot,
    paired_dot,
    signed_dot,
)
from tilewright.compiler.schedule.expressions import Expr
from tilewright.compiler.schedule.long_kernel import LongDotEmitter, long_dot
from tilewright.compiler.schedule.low_bit import read_low_bit
from tilewright.compiler.schedule.matrix_kernel import MATRIX_GROUP, MatrixDotEmitter
from tilewright.compiler.schedule.micro_kernel import (
    Emitter,
    RegisterTile,
    constant_like,
    emit_reduction,
    sequence,
)
from tilewright.compiler.schedule.packed_builder import PackedBuilder
from tilewright.compiler.schedule.quad_kernel import QUAD, QuadEmitter, quad_steps
from tilewright.compiler.schedule.tile_geometry import TileGeometry
from tilewright.compiler.schedule.tile_loops import TaskGrid
from tilewright.compiler.schedule.weight_sums import SignedDotEmitter, WeightSums
from tilewright.compiler.schedule.widened import widen
from tilewright.compiler.targets import Target
from tilewright.errors import InvalidScheduleError

_PLANE_TEMPORARIES_X86, _PLANE_TEMPORARIES = 6, 3
# Registers of a step beyond those of a multiply-add: products in 16 bits, or widened weights.
_PAIRED_TEMPORARIES, _LONG_TEMPORARIES, _WIDENED_TEMPORARIES = 4, 4, 2
# Steps of a block of narrow sums in one round.
_CODE_TEMPORARIES = 7
_UNROLL, _TABLE_UNROLL = 2, 1
_DPBUSD = {bits: f"llvm.x86.avx512.vpdpbusd.{bits}" for bits in (128, 256, 512)}


def find_dot(stages: Sequence[Stage], target: Target) -> Dot | None:
    """Return the integer contraction of a function that dot instructions can compute, if any."""
    if not any(stage.reduction and str(stage.buffer.dtype) == SUM_DTYPE for stage in stages):
        return None
    anchor = find_anchor(tuple(stages), target.lanes(SUM_DTYPE))
    if anchor is None or anchor.kind != "contraction" or anchor.dtype != SUM_DTYPE:
        return None
    if anchor.combine != "add" or len(anchor.accesses) != 2:
        return None
    if anchor.lanes != dot_lanes(target, anchor.vector_axis.extent):
        return None
    weight = next(access for access in anchor.accesses if access.vector)
    data = next(access for access in anchor.accesses if not access.vector)
    dtypes = str(data.buffer.dtype), str(weight.buffer.dtype)
    is_wide = dtypes == (WIDE_DTYPE, WIDE_DTYPE) and is_widened(target)
    if dtypes != (DATA_DTYPE, WEIGHT_DTYPE) and not is_wide:
        return None
    low_bit = read_low_bit(anchor.term)
    for axis in anchor.stage.reduction:
        steps = data.offset.of(axis.var), weight.offset.of(axis.var)
        products = prod(each.extent for each in anchor.stage.reduction)
        groups = dot_groups(target, axis.extent, low_bit, dtypes[0], products)
        if anchor.lanes < target.lanes(SUM_DTYPE):
            groups = groups[:1]
        if steps == (1, 1) and axis.extent in groups and weight.vector == axis.extent:
            return in_cells(anchor, axis.var, axis.extent, low_bit)
    return None


def default_integer(dot: Dot, target: Target) -> ContractionDecisions:
    """Choose decisions by the model of contractions, on cells of 32 bits."""
    long = target.architecture == "armv7"
    paired = target.architecture == "aarch64" and not has_arm_dot(target)
    spare = _LONG_TEMPORARIES if long else _PAIRED_TEMPORARIES if paired else 0
    spare = _WIDENED_TEMPORARIES if is_widened(target) else spare
    if dot.group == CODES and is_widened(target):
        spare = _CODE_TEMPORARIES
    if dot.group == PLANES:
        spare = _PLANE_TEMPORARIES_X86 if is_x86(target) else _PLANE_TEMPORARIES
    registers = target.vector_registers - spare
    rows = RowsAs.LANES if long or target.multiplies_by_lane else RowsAs.ELEMENTS
    rows = RowsAs.PAIRS if dot.group == MATRIX_GROUP else rows
    narrowed = replace(target, vector_registers=registers)
    decisions = default_contraction(dot.cells, narrowed, rows)
    if is_quads(dot, target) or is_packed(dot, target):
        # Blocks of the narrow sums are runs of the longest loop.
        extents = [axis.extent for axis in dot.cells.stage.reduction]
        order = tuple(sorted(range(len(extents)), key=lambda position: extents[position]))
        unroll = min(_UNROLL, extents[order[-1]])
        clip = decisions.clip_pad and dot.group == QUAD
        decisions = replace(
            decisions, chains=1, unroll=unroll, reduction_order=order, clip_pad=clip
        )
        return _by_tables(dot, target, decisions) if dot.group == TABLES else decisions
    # A second set of accumulators would not fit beside the widened data.
    return replace(decisions, chains=1, unroll=1) if long else decisions


def packed_weights(func: tirx.PrimFunc, target: Target) -> dict[int, Packing]:
    """Return how the weights of a function in its layouts are packed for its kernel.

    Args:
        func: unscheduled.
        target: what for.
    """
    stages = read_stages(func)
    dot = None if stages is None else find_dot(stages, target)
    if dot is None or not is_packed(dot, target):
        return {}
    weights = next(access.buffer for access in dot.cells.accesses if access.vector)
    position = next(i for i, param in enumerate(func.params) if param.same_as(weights))
    return {position: Packing(dot.group, dot.low_bit)}


def _by_tables(dot: Dot, target: Target, decisions: ContractionDecisions) -> ContractionDecisions:
    """Return decisions with tiles of bytes: their columns are vectors of 4 times the outputs."""
    vectors = -(-dot.cells.vector_axis.extent // (TABLE_VECTORS * dot.cells.lanes))
    columns = 2 if vectors > 1 and dot.low_bit.weight_bits == 1 else 1
    fused = decisions.fused_rows
    inner = row_extents(dot.cells, fused)[1]
    tile = (1, min(inner, table_rows(target, columns * dot.low_bit.weight_bits)))
    block = choose_row_block(dot.cells, target, fused, tile, TABLE_VECTORS * columns)
    return replace(
        decisions,
        row_tile=tile,
        column_vectors=columns,
        row_block=block,
        unroll=min(_TABLE_UNROLL, decisions.unroll),
    )


def schedule_integer(
    func: tirx.PrimFunc, target: Target, decisions: ContractionDecisions | None = None
) -> tirx.PrimFunc:
    """Return the loops of an integer contraction with its epilogue.

    Args:
        func: unscheduled function in normal form for which `find_dot` finds something.
        target: what to schedule for.
        decisions: how; None chooses by the analytical model.

    Raises:
        InvalidScheduleError: the decisions do not fit the function, or it is no such contraction.
    """
    stages = read_stages(func)
    dot = None if stages is None else find_dot(stages, target)
    if stages is None or dot is None:
        raise InvalidScheduleError("the function is not an integer contraction")
    if decisions is None:
        decisions = default_integer(dot, target)
    plan = plan_contraction(dot.cells, decisions, target)
    if is_packed(dot, target):
        return PackedBuilder(func, stages, dot, plan, target).build()
    if is_quads(dot, target) and plan.chains > 1:
        raise InvalidScheduleError(f"narrow sums have one chain, found {plan.chains}")
    builder = _DotBuilder(func, stages, dot.cells, plan, target.lanes("float32"))
    builder.dot, builder.target = dot, target
    return builder.build()


class _DotBuilder(CellBuilder):
    target: Target
    sums: WeightSums

    def read_from(self, access: Access) -> Access:
        """Return the access to bytes, or to a copy of data in 16 bits."""
        as_it_is = access.vector or not is_widened(self.target) or is_quads(self.dot, self.target)
        is_wide = str(access.buffer.dtype) == WIDE_DTYPE
        return access if as_it_is or is_wide else widen(self, access)

    def task_start(self, task: Any, grid: TaskGrid) -> list[Any]:
        """Return the sums of the weights of a task's column tile, where data must be signed."""
        if not is_signed(self.target):
            return []
        reduction = self.stage.reduction
        clipped = {c.reduction for c in self.clips if not self.is_static(c)}
        self.sums = WeightSums.declare(
            self.plan.column_vectors,
            tuple(axis.extent for axis in reduction),
            tuple(position for position in self.plan.order if position in clipped),
            self.index_dtype,
            self.dot.group,
            accumulate_for(self.target),
        )
        weights = next(access for access in self.accesses if access.vector)

        def fill(geometry: TileGeometry) -> Any:
            operand = self.operand(weights, geometry)
            base = tirx.Var("weights", self.index_dtype)
            filled = self.sums.fill(operand, base, geometry.column_count)
            return sequence([tirx.Bind(base, geometry.base(weights)), filled])

        binds: list[Any] = []
        numbers = self.decode_task(task, grid, binds)
        # Weights are the same in all rows, so those of the first tile serve.
        zero = constant_like(0, self.index_dtype)
        first = tuple((axis, axis.runs[0], zero) for axis in grid.rows)
        filled = self.choose([*grid.batch, *grid.columns], numbers, fill, first)
        return [tirx.AllocBuffer(self.sums.buffer), *binds, filled]

    def emit(self, tile: RegisterTile, bases: Sequence[Expr]) -> tuple[Any, list[Any]]:
        """Return the accumulators of a tile, and the statements that fill them."""

        def emitter(tile: RegisterTile, accumulators: Any, index_dtype: str) -> Emitter:
            arguments = (tile, accumulators, index_dtype, self.dot.group)
            if is_quads(self.dot, self.target):
                extents = [axis.extent for axis in self.stage.reduction]
                return QuadEmitter(*arguments[:-1], extents, quad_steps(self.dot.low_bit))
            if self.dot.group == MATRIX_GROUP:
                return MatrixDotEmitter(*arguments[:-1])
            accumulate = accumulate_for(self.target, self.anchor.lanes)
            if accumulate is long_dot:
                return LongDotEmitter(*arguments, accumulate)
            if not is_signed(self.target):
                return DotEmitter(*arguments, accumulate)
            signed = SignedDotEmitter(*arguments, accumulate)
            signed.sums = self.sums
            return signed

        return emit_reduction(tile, bases, self.index_dtype, emitter)


def accumulate_for(target: Target, lanes: int | None = None) -> Accumulate:
    """Return what adds the products of one cell to an accumulator.

    Args:
        target: what for.
        lanes: of the accumulator, where it is not a whole vector.
    """
    if has_mixed_dot(target):
        return mixed_dot
    if has_arm_dot(target):
        return signed_dot
    if target.architecture != "x86_64":
        return paired_dot if target.architecture == "aarch64" else long_dot
    bits = target.vector_bits if lanes is None else 32 * lanes
    return partial(_dpbusd if has_vnni(target) else _maddwd, bits=bits)


def _dpbusd(old: Expr, data: TensorLoad, weight: TensorLoad, bits: int) -> Expr:
    """Sums of 4 products: u8x4 for all lanes, s8x4 per lane."""
    lanes = bits // 32
    spread = tirx.Broadcast(tirx.reinterpret("int32", data), lanes)
    return intrinsic(
        _DPBUSD[bits], f"int32x{lanes}", old, tirx.reinterpret(f"uint8x{bits // 8}", spread), weight
    )


def _maddwd(old: Expr, data: TensorLoad, weight: TensorLoad, bits: int) -> Expr:
    """Sums of 2 products: s16x2 for all lanes, s8x2 per lane, which are widened when loaded."""
    lanes = bits // 32
    wide = f"int16x{2 * lanes}"
    spread = tirx.Broadcast(tirx.reinterpret("int32", data), lanes)
    pairs = tirx.reinterpret(wide, spread), tirx.Cast(wide, weight)
    return old + intrinsic(MADDWD[bits], f"int32x{lanes}", *pairs)
