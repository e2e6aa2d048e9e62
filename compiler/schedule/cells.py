"""Integer contractions in cells: neighbouring elements of a reduction as one of 32 bits or more."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from tilewright.compiler.schedule.analysis import Access, Anchor
from tilewright.compiler.schedule.expressions import Linear
from tilewright.compiler.schedule.low_bit import LowBit
from tilewright.compiler.schedule.padding import Clip
from tilewright.compiler.schedule.tile_loops import KernelBuilder
from tilewright.errors import InvalidScheduleError


@dataclass(frozen=True, eq=False)
class Dot:
    """An integer contraction.

    Attributes:
        original: the anchor in elements, its grouped reduction axis last.
        cells: the same in cells of `group` elements, without that axis.
        group: elements in a cell.
        low_bit: what is known of the factors.
    """

    original: Anchor
    cells: Anchor
    group: int
    low_bit: LowBit


def in_cells(anchor: Anchor, grouped: Any, group: int, low_bit: LowBit) -> Dot | None:
    """Return the anchor with `group` elements as one, where every other step is whole."""
    stage = anchor.stage
    kept = tuple(axis for axis in stage.reduction if not axis.var.same_as(grouped))
    axis = next(axis for axis in stage.reduction if axis.var.same_as(grouped))
    if not kept:
        return None
    cells = [access_in_cells(access, grouped, group) for access in anchor.accesses]
    if any(cell is None for cell in cells):
        return None
    original = replace(anchor, stage=replace(stage, reduction=(*kept, axis)))
    whole = replace(
        anchor,
        stage=replace(stage, reduction=kept),
        accesses=tuple(cell for cell in cells if cell is not None),
    )
    return Dot(original, whole, group, low_bit)


def access_in_cells(access: Access, grouped: Any, group: int) -> Access | None:
    linear = access.offset
    others = {v: c for v, c in linear.coefficients.items() if not v.same_as(grouped)}
    if any(c % group for c in (linear.constant, access.vector, *others.values())):
        return None
    offset = Linear(linear.constant // group, {v: c // group for v, c in others.items()})
    return replace(access, offset=offset, vector=access.vector // group)


class CellBuilder(KernelBuilder):
    """Tiles of cells; what is behind a pad is found in elements first."""

    dot: Dot

    def _resolve(self, access: Access) -> tuple[Access, list[Clip]]:
        position = self.anchor.accesses.index(access)
        self.anchor = self.dot.original
        resolved, clips = super()._resolve(self.dot.original.accesses[position])
        self.anchor = self.dot.cells
        grouped = self.dot.original.stage.reduction[-1].var
        cells = access_in_cells(resolved, grouped, self.dot.group)
        if cells is None:
            raise InvalidScheduleError(
                f"data behind {access.buffer.name!r} does not come in groups of {self.dot.group}"
            )
        return self.read_from(cells), clips

    def read_from(self, access: Access) -> Access:
        """Return the access to what tiles read, which may be a copy made before."""
        return access
