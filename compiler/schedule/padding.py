"""Padding as seen by the anchor: conditions on its axes, and ways to leave it out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from tvm import sym, tirx

from tilewright.compiler.schedule.analysis import Access, Anchor, PadStage, Stage
from tilewright.compiler.schedule.expressions import (
    Expr,
    Linear,
    dtype_of,
    flat_index,
    linear_form,
    range_from_zero,
    substitute,
)
from tilewright.errors import InvalidScheduleError


@dataclass(frozen=True, eq=False)
class Clip:
    """Steps of `reduction` (position) count only where first <= position index < end.

    The index is spatial_step * spatial + reduction_step * reduction + constant.
    """

    spatial: int | None
    reduction: int
    spatial_step: int
    reduction_step: int
    constant: int
    first: int
    end: int

    def contains(self, spatial: int, step: int) -> bool:
        """Tell whether a step counts at a place on the spatial axis."""
        index = self.spatial_step * spatial + self.reduction_step * step + self.constant
        return self.first <= index < self.end


def fusable_rows(anchor: Anchor, pads: Sequence[PadStage]) -> int:
    """Return how many trailing row axes can be walked as one axis without padding between."""
    padded = {
        axis
        for pad in pads
        for access in anchor.accesses
        if access.pad is pad
        for dim in pad.bounds
        for axis in _axes_of(access.load.indices[dim], anchor.stage)
    }
    rows = anchor.rows
    count = 1
    while count < len(rows):
        outer, inner = rows[-count - 1], rows[-count]
        axis = anchor.stage.spatial[inner]
        if outer in padded or inner in padded or inner != outer + 1:
            break
        steps = [
            (a.offset.of(anchor.stage.spatial[outer].var), a.offset.of(axis.var))
            for a in anchor.accesses
        ]
        if any(big != small * axis.extent for big, small in steps):
            break
        count += 1
    return min(count, max(1, len(rows)))


def _axes_of(index: Expr, stage: Stage) -> set[int]:
    form = linear_form(index, [axis.var for axis in stage.axes], sym.Analyzer())
    if form is None:
        return set(range(len(stage.spatial)))
    return {i for i, axis in enumerate(stage.axes) if axis.var in form.coefficients}


def read_through(access: Access, anchor: Anchor) -> Access:
    """Return the access to the data behind a pad."""
    pad = access.pad
    assert pad is not None
    axes = {a.var: i for a, i in zip(pad.stage.spatial, access.load.indices, strict=True)}
    indices = [substitute(index, axes) for index in pad.source.indices]
    analyzer = sym.Analyzer()
    stage = anchor.stage
    vector = stage.spatial[-1].var
    lane = tirx.Var("lane", dtype_of(vector))
    flat = substitute(
        flat_index(pad.source.source, indices), {vector: vector * anchor.lanes + lane}
    )
    variables = [*(axis.var for axis in stage.axes), lane]
    for axis in stage.axes:
        analyzer.bind(axis.var, range_from_zero(axis.extent))
    analyzer.bind(lane, range_from_zero(anchor.lanes))
    offset = linear_form(flat, variables, analyzer)
    if offset is None:
        raise InvalidScheduleError(f"data behind pad {pad.stage.name!r} is not linear in the axes")
    return Access(access.load, pad.source.source, offset, offset.of(lane))


def read_clips(access: Access, anchor: Anchor) -> list[Clip] | None:
    """Return the conditions of a pad on the anchor's axes, or None if they cannot be skipped."""
    pad = access.pad
    assert pad is not None
    if not _is_neutral(pad.fill, anchor):
        return None
    stage = anchor.stage
    spatial = {axis.var: i for i, axis in enumerate(stage.spatial)}
    reduction = {axis.var: i for i, axis in enumerate(stage.reduction)}
    clips = []
    for dim, (first, end) in pad.bounds.items():
        form: Linear | None = linear_form(
            access.load.indices[dim], [*spatial, *reduction], sym.Analyzer()
        )
        if form is None:
            return None
        outer = [v for v in form.coefficients if v in spatial]
        inner = [v for v in form.coefficients if v in reduction]
        if len(outer) > 1 or len(inner) != 1 or form.of(inner[0]) < 1:
            return None
        if outer and spatial[outer[0]] == len(stage.spatial) - 1:
            return None
        clips.append(
            Clip(
                spatial[outer[0]] if outer else None,
                reduction[inner[0]],
                form.of(outer[0]) if outer else 0,
                form.of(inner[0]),
                form.constant,
                first,
                end,
            )
        )
    return clips


def _is_neutral(fill: Expr, anchor: Anchor) -> bool:
    """Tell whether a term of padding leaves the accumulator as it is."""
    value = float(fill.value)
    if anchor.combine == "add":
        return value == 0.0
    init = anchor.stage.init
    if not isinstance(init, tirx.FloatImm | tirx.IntImm):
        return False
    return value <= float(init.value) if anchor.combine == "max" else value >= float(init.value)
