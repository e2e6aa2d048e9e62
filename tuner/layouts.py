"""The layouts among which the tuner searches: the compiler's choices, and other split factors.

The compiler blocks channels by the lanes of a vector. ALT's templates leave the factor open: here
every blocked choice also comes with channels blocked by other factors, its weights packed to match,
and with weights whose columns are packed by the output's factor, so that a tile of several vectors
reads them as one stream.
"""

from __future__ import annotations

from dataclasses import replace

from tilewright.compiler.layout.choices import operator_choices
from tilewright.compiler.layout.formats import CHANNEL, packed_weight
from tilewright.compiler.layout.operator import Choice, Operator
from tilewright.compiler.layout.primitives import Layout, blocked
from tilewright.compiler.targets import Target

_FACTORS = (4, 8, 16, 32, 64)


def layout_choices(operator: Operator, target: Target) -> tuple[Choice, ...]:
    """Return every layout choice that a task is tuned in; the first is all-logical."""
    lanes = target.lanes("float32")
    found: dict[tuple[Layout, ...], Choice] = {}
    choices = operator_choices(operator, target)
    for choice in choices:
        found.setdefault(choice.layouts, choice)
    for choice in choices:
        for factor in _factors(operator, lanes):
            for wide_columns in (False, True):
                variant = _with_factor(choice, lanes, factor, wide_columns)
                if variant is not None:
                    found.setdefault(variant.layouts, variant)
    return tuple(found.values())


def _factors(operator: Operator, lanes: int) -> list[int]:
    """Return the channel factors besides `lanes` that divide what they block.

    Below the lanes only where those leave a remainder: a shorter vector then wastes less.
    """
    channels = [
        operator.shapes[position][CHANNEL]
        for position in operator.images
        if len(operator.shapes[position]) > CHANNEL
    ]
    if not channels:
        return []
    ragged = any(count % lanes for count in channels)
    wanted = [factor for factor in _FACTORS if factor > lanes or (ragged and factor < lanes)]
    return [
        factor for factor in wanted if all(count % factor == 0 for count in channels if count > 4)
    ]


def _with_factor(choice: Choice, lanes: int, factor: int, wide_columns: bool) -> Choice | None:
    """Return the choice with channels blocked by another factor, or None where none are."""
    layouts = []
    changed = False
    for layout in choice.layouts:
        other = _replaced(layout, lanes, factor, wide_columns)
        changed = changed or other != layout
        layouts.append(other)
    if not changed:
        return None
    suffix = f"{factor}{'w' if wide_columns else ''}"
    return replace(choice, name=f"{choice.name} /{suffix}", layouts=tuple(layouts))


def _replaced(layout: Layout, lanes: int, factor: int, wide_columns: bool) -> Layout:
    shape = layout.shape
    rank = len(shape)
    if not layout.primitives:
        return layout
    for dim in (0, CHANNEL):
        if dim < rank and layout == blocked(shape, dim, lanes):
            return blocked(shape, dim, factor)
    columns = factor if wide_columns else lanes
    for column in range(min(rank, 2)):
        if layout == packed_weight(shape, column, lanes):
            return packed_weight(shape, column, columns)
        for reduction in range(min(rank, 2)):
            if reduction != column and layout == packed_weight(
                shape, column, lanes, reduction, lanes
            ):
                return packed_weight(shape, column, columns, reduction, factor)
    return layout
