"""Windows over planes: which functions are some, and how they read their image."""

from __future__ import annotations

from dataclasses import dataclass
from math import prod
from typing import TYPE_CHECKING, Any

from tvm import sym

from tilewright.compiler.schedule.expressions import linear_form

if TYPE_CHECKING:
    from tilewright.compiler.schedule.analysis import Access, Anchor, Stage

# Steps of a window: all of them are written out.
_MOST_STEPS = 49
_STRIDES = (1, 2)


@dataclass(frozen=True)
class Walk:
    """An index of the image: step * output + dilation * window + constant.

    Attributes:
        window: position of the reduction axis.
    """

    window: int
    step: int
    dilation: int
    constant: int


@dataclass(frozen=True)
class PlanarAccess:
    """How a window over planes reads its image: the last two dimensions, all else whole planes."""

    rows: Walk
    columns: Walk


def read_planar(access: Access, stage: Stage) -> PlanarAccess | None:
    """Return how an access walks over planes, or None where it is no window over some.

    The last two spatial axes walk over the last two dimensions, each with a reduction axis; no
    other dimension has one of more than one step.

    Args:
        access: of the image.
        stage: of the anchor.
    """
    indices = access.load.indices
    if len(indices) < 3 or len(stage.spatial) != len(indices):
        return None
    if prod(axis.extent for axis in stage.reduction) > _MOST_STEPS:
        return None
    walks = []
    for place in (-2, -1):
        walk = _read_walk(indices[place], stage, len(stage.spatial) + place)
        if walk is None:
            return None
        walks.append(walk)
    rows, columns = walks
    used = {rows.window, columns.window}
    others = [a for p, a in enumerate(stage.reduction) if p not in used]
    is_padded = access.pad is not None and bool(access.pad.bounds)
    if len(used) != 2 or any(axis.extent > 1 for axis in others):
        return None
    if columns.step not in _STRIDES or (columns.step > 1 and not is_padded):
        return None
    return PlanarAccess(rows, columns)


def image_of(anchor: Anchor) -> Access:
    """Return the access of the image; the other one, where there is one, is of the filter."""
    return max(anchor.accesses, key=lambda access: len(access.offset.coefficients))


def find_planar(anchor: Anchor) -> PlanarAccess | None:
    """Return how a window walks over planes, or None where it does not.

    There must be rows to walk: those of one row are no blocks of rows.
    """
    if anchor.kind != "window" or anchor.dtype != "float32":
        return None
    row = len(anchor.stage.spatial) - 2
    if anchor.rows[-1:] != (row,) or anchor.stage.spatial[row].extent == 1:
        return None
    image = image_of(anchor)
    return read_planar(image, anchor.stage) if image.vector else None


def _read_walk(index: Any, stage: Stage, position: int) -> Walk | None:
    """Read an index as a walk of one spatial axis with one reduction axis."""
    variables = [axis.var for axis in stage.axes]
    form = linear_form(index, variables, sym.Analyzer())
    if form is None or not form.of(stage.spatial[position].var):
        return None
    windows = [p for p, a in enumerate(stage.reduction) if form.of(a.var) and a.extent > 1]
    if len(windows) != 1 or len(form.coefficients) != 2:
        return None
    step = form.of(stage.spatial[position].var)
    dilation = form.of(stage.reduction[windows[0]].var)
    if min(step, dilation) < 1:
        return None
    return Walk(windows[0], step, dilation, form.constant)
