"""How many neighbouring products a kernel of integers sums at once: the forms that a target has.

The number of elements in a group of packed weights says which form computes a contraction, so that
a choice of layout is a choice of form.
"""

from __future__ import annotations

from tilewright.compiler.schedule.bit_packing import CODES, PLANES, TABLES, code_bits
from tilewright.compiler.schedule.cells import Dot
from tilewright.compiler.schedule.code_kernel import code_steps
from tilewright.compiler.schedule.dot_kernel import (
    DATA_DTYPE,
    WIDE_DTYPE,
    has_arm_dot,
    has_mixed_dot,
)
from tilewright.compiler.schedule.low_bit import LowBit
from tilewright.compiler.schedule.matrix_kernel import MATRIX_GROUP
from tilewright.compiler.schedule.quad_kernel import QUAD, has_quads, quad_steps
from tilewright.compiler.schedule.table_kernel import has_tables, table_steps
from tilewright.compiler.targets import Target

_FOUR, _WIDENED_GROUP = 4, 2
SHORT_LANES = 4
_X86_BITS = (256, 512)
# Instructions that decode a vector of weights, and the rows of a tile that share them.
_DECODING, _MANY_ROWS = 2.75, 4
# Registers of a table, the mask of halves, and what is looked up.
_TABLE_TEMPORARIES = 3
# More rows share cutting the indices, 3 instructions of 4 for each row: not worth longer code.
_MOST_TABLE_ROWS = 6
_TABLE_PACKING, _PLANE_PACKING = 12, 4
# And, count and add: of half bytes by vpshufb, in pairs as a multiply-add and an add are; by cnt.
_PLANE_INSTRUCTIONS_X86, _PLANE_INSTRUCTIONS = 8 / 2, 3


def dot_groups(
    target: Target, depth: int, low_bit: LowBit, dtype: str = DATA_DTYPE, products: int = 0
) -> tuple[int, ...]:
    """Return the groups that a target has kernels for, the one for all bytes first.

    Args:
        target: what for.
        depth: extent of the reduction axis that the data's neighbours lie along.
        low_bit: what is known of the factors.
        dtype: of the data.
        products: in a sum; those of the axis if not given.
    """
    if dtype == WIDE_DTYPE:
        return (_WIDENED_GROUP,)
    found = [dot_group(target, depth)]
    if is_widened(target) and has_quads(target) and quad_steps(low_bit) > 0:
        found.append(QUAD)
        if code_steps(low_bit) > 0:
            found.append(CODES)
    if has_tables(target, low_bit, products or depth):
        found.append(TABLES)
    if has_planes(target):
        found.append(PLANES)
    return tuple(found)


def dot_lanes(target: Target, columns: int) -> int:
    """Return how many columns a vector of sums has: on x86 four of four, else a whole vector."""
    lanes = target.lanes("int32")
    return SHORT_LANES if is_x86(target) and columns == SHORT_LANES else lanes


def has_planes(target: Target) -> bool:
    """Tell whether there are kernels by bits for a target."""
    return target.architecture != "x86_64" or target.vector_bits in _X86_BITS


def products_in_a_cell(
    target: Target, group: int, low_bit: LowBit, rows: int = _MANY_ROWS
) -> float:
    """Return how many products one multiply-add of the estimate stands for, by instructions.

    Args:
        target, low_bit: see `dot_groups`.
        group: one of `dot_groups`.
        rows: that share the weights of a tile, at most.
    """
    if group == CODES and is_widened(target):
        # In pairs of instructions too: to shift, cut off and look up four weights of a lane.
        decoding = _DECODING / 2 / min(rows, _MANY_ROWS)
        return QUAD / (1 + 1 / quad_steps(low_bit) + decoding)
    if group == QUAD and is_widened(target):
        # Two instructions a step as for pairs of 16 bits, and as many again for each block.
        return QUAD / (1 + 1 / quad_steps(low_bit))
    if group == PLANES:
        instructions = _PLANE_INSTRUCTIONS_X86 if is_x86(target) else _PLANE_INSTRUCTIONS
        return PLANES / instructions / (low_bit.weight_bits * low_bit.data_bits)
    if group == TABLES and is_x86(target):
        # Lookups and additions; cutting the indices, shared by the rows; to 16 bits, for a block.
        steps = table_steps(low_bit)
        rows = table_rows(target, max(2, low_bit.weight_bits))
        instructions = 4 + 3 / rows + 6 / steps
        return 2 * PLANES / instructions / low_bit.weight_bits
    return group


def narrow_gain(target: Target, depth: int, low_bit: LowBit, products: int) -> float:
    """Return how many times as fast as bytes of all values narrow ones are multiplied.

    Args:
        target, depth, low_bit, products: see `dot_groups`.
    """
    if not low_bit.is_narrow:
        return 1.0
    rates = [
        products_in_a_cell(target, group, low_bit)
        for group in dot_groups(target, depth, low_bit, products=products)
        if depth % group == 0
    ]
    return max(rates, default=1.0) / dot_group(target, depth)


def table_rows(target: Target, vectors: int) -> int:
    """Return the rows of a tile whose sums fit the registers beside a table and all indices.

    Args:
        target: what for.
        vectors: of bytes: bits of a weight, times vectors of outputs.
    """
    free = target.vector_registers - _TABLE_TEMPORARIES - 2 * vectors
    return max(1, min(_MOST_TABLE_ROWS, free // vectors))


def weight_share(group: int, low_bit: LowBit) -> float:
    """Return the share of a byte that a weight takes in memory."""
    if group in (PLANES, TABLES):
        return low_bit.weight_bits / 8
    return code_bits(low_bit) / 8 if group == CODES else 1.0


def packing_instructions(group: int, low_bit: LowBit) -> int:
    """Return about how many instructions pack a group of data, 0 where it stays bytes."""
    if group == TABLES:
        return _TABLE_PACKING
    return _PLANE_PACKING * low_bit.data_bits if group == PLANES else 0


def is_x86(target: Target) -> bool:
    return target.architecture == "x86_64"


def dot_group(target: Target, depth: int = 1) -> int:
    """Return how many neighbouring products the target's dot instruction sums.

    Args:
        target: what for.
        depth: extent of the reduction axis, of which matrix products need a multiple.
    """
    if has_mixed_dot(target) and depth % MATRIX_GROUP == 0:
        return MATRIX_GROUP
    return _FOUR if has_vnni(target) or has_arm_dot(target) else _WIDENED_GROUP


def has_vnni(target: Target) -> bool:
    wide = target.vector_bits == 512
    return ("avx512_vnni" if wide else "avx_vnni") in target.features


def is_widened(target: Target) -> bool:
    """Tell whether pairs of 16 bits are multiplied, by x86 without VNNI."""
    return target.architecture == "x86_64" and not has_vnni(target)


def is_quads(dot: Dot, target: Target) -> bool:
    """Tell whether a contraction is laid out for vpmaddubsw."""
    return dot.group == QUAD and is_widened(target)


def is_packed(dot: Dot, target: Target) -> bool:
    """Tell whether a contraction is laid out in groups of bits."""
    if dot.group == CODES:
        return is_widened(target)
    return dot.group == PLANES or (dot.group == TABLES and is_x86(target))
