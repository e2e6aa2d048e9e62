"""Copy rows of a padded plane with their borders, pixels in the order in which a window reads."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from tvm import sym, tirx

from tilewright.compiler.schedule.analysis import PadStage
from tilewright.compiler.schedule.expressions import Expr, dtype_of, flat_index, substitute
from tilewright.compiler.schedule.micro_kernel import constant_like, ramp, sequence
from tilewright.compiler.schedule.nests import emit_row
from tilewright.compiler.schedule.tiling import tile_count

# Fewer pixels than this are copied one by one.
_FEWEST_APART = 8


@dataclass(frozen=True)
class CopiedRow:
    """Where the pixels of a padded row lie in its copy.

    Attributes:
        step: pixels are kept apart by their place within so many.
        part: elements of each such part.
        shift: elements before the first pixel, so that vectors of the data are aligned.
    """

    step: int
    part: int
    shift: int

    @classmethod
    def plan(cls, width: int, border: int, step: int, lanes: int) -> CopiedRow:
        """Return how a row is copied.

        Args:
            width: pixels of the padded row.
            border: of them before the data.
            step: 1 or 2; 2 keeps even and odd pixels apart.
            lanes: elements in a vector.
        """
        shift = -border % lanes if step == 1 else 0
        part = tile_count(shift + tile_count(width, step), lanes) * lanes
        return cls(step, part, shift)

    @property
    def pitch(self) -> int:
        """Elements from one row to the next."""
        return self.part * self.step

    def place(self, x: int) -> int:
        """Return where pixel x lies."""
        return x % self.step * self.part + x // self.step + self.shift


class PlaneCopy:
    """Copies rows of what a pad would have written.

    Args:
        pad: the pad; its last two dimensions are the plane.
        source: flat view of the buffer behind it.
        target: flat buffer that rows are written to.
        at: value of each axis of the pad before the plane's.
        copied: where pixels lie in a row of the target.
        lanes: elements in a vector.
    """

    def __init__(
        self,
        pad: PadStage,
        source: Any,
        target: Any,
        at: Mapping[Any, Expr],
        copied: CopiedRow,
        lanes: int,
    ) -> None:
        self.pad, self.source, self.target, self.at = pad, source, target, dict(at)
        self.copied, self.lanes = copied, lanes
        rank = len(pad.stage.spatial)
        self.height, self.width = (axis.extent for axis in pad.stage.spatial[-2:])
        self.tall = pad.bounds.get(rank - 2, (0, self.height))
        self.wide = pad.bounds.get(rank - 1, (0, self.width))

    def row(self, number: Expr, y: Expr) -> Any:
        """Return the statement that writes one row.

        Args:
            number: of the row in the target.
            y: the same in the padded plane; beyond it rows are filled.
        """
        pitch = self.copied.pitch
        base = number * pitch
        first, end = self.wide
        inside = [*self._fill(base, 0, first), *self._copied(base, y), *self._fill(base, end)]
        border = emit_row(self.target, base, 0, pitch, self.lanes, None, self.pad.fill)
        condition = tirx.And(y >= self.tall[0], y < self.tall[1])
        return tirx.IfThenElse(condition, sequence(inside), sequence(border))

    def _fill(self, base: Expr, first: int, end: int | None = None) -> list[Any]:
        """Return the stores of the border's pixels [first, end)."""
        return [
            tirx.BufferStore(self.target, self.pad.fill, [base + self.copied.place(x)])
            for x in range(first, self.width if end is None else end)
        ]

    def _copied(self, base: Expr, y: Expr) -> list[Any]:
        """Return the stores of the data's pixels."""
        *_, rows, columns = self.pad.stage.spatial
        values = {**self.at, rows.var: y, columns.var: constant_like(0, y)}
        indices = [substitute(index, values) for index in self.pad.source.indices]
        address = sym.Analyzer().simplify(flat_index(self.pad.source.source, indices))
        first, end = self.wide
        if self.copied.step == 1:
            target = base + self.copied.shift
            source = (self.source, address)
            return emit_row(self.target, target, first, end, self.lanes, source, self.pad.fill)
        return self._apart(base, address, first, end)

    def _apart(self, base: Expr, address: Expr, first: int, end: int) -> list[Any]:
        """Return the stores of pixels [first, end), even and odd ones apart."""
        size = 2 * self.lanes
        whole = (end - first) // size
        statements: list[Any] = []
        if whole:
            block = tirx.Var("block", dtype_of(base))
            zero, count = constant_like(0, block), constant_like(whole, block)
            body = sequence(self._pair(base, address, first, size, block))
            statements.append(tirx.For(block, zero, count, tirx.ForKind.SERIAL, body))
        x = first + whole * size
        while size > _FEWEST_APART:
            size //= 2
            if x + size <= end:
                statements += self._pair(base, address, x, size, constant_like(0, address))
                x += size
        for rest in range(x, end):
            value = tirx.BufferLoad(self.source, [address + rest])
            statements.append(
                tirx.BufferStore(self.target, value, [base + self.copied.place(rest)])
            )
        return statements

    def _pair(self, base: Expr, address: Expr, x: int, size: int, block: Expr) -> list[Any]:
        """Return the stores of `size` pixels, `block` such blocks behind pixel x."""
        half = size // 2
        start = address + block * size + x
        loads = [
            tirx.BufferLoad(self.source, [ramp(start + part * half, 1, half)]) for part in (0, 1)
        ]
        stores = []
        for odd in (0, 1):
            lanes = [tirx.const(2 * lane + odd, "int32") for lane in range(half)]
            at = base + block * half + self.copied.place(x + odd)
            value = tirx.Shuffle(loads, lanes)
            stores.append(tirx.BufferStore(self.target, value, [ramp(at, 1, half)]))
        return stores
