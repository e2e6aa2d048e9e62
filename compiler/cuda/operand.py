"""Text that brings a tile of one factor from device memory into shared memory.

The tile is [rows][depth] with the depth innermost, in 16-byte chunks that `tw_swizzle` places. A
plain load whose depth is contiguous is copied in the background, 16 bytes at a time ("copy"); one
whose rows are contiguous is read 16 bytes at a time and scattered ("rows"); anything else is
computed element by element ("scalar").
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any, Literal

from tilewright.compiler.cuda.ctext import STORED, Printer, stored
from tilewright.compiler.cuda.kernel import decompose
from tilewright.compiler.cuda.product import Operand, Product
from tilewright.compiler.cuda.tile import VECTOR_BYTES, GemmTile
from tilewright.compiler.program import item_bytes
from tilewright.compiler.schedule.analysis import Axis
from tilewright.compiler.schedule.expressions import Linear

# Elements that a thread computes at once: all of their addresses need registers.
_AT_ONCE = 8

Mode = Literal["copy", "rows", "scalar"]


@dataclass(frozen=True, eq=False)
class Loader:
    """One factor of a product in a tile.

    Attributes:
        letter: "a" or "b": the prefix of its names.
        rows: its axes that are not depth: the product's rows, or columns.
        extent: rows of the block's tile.
        dtype: of the tile.
        base: byte offset of its tile in a stage.
    """

    letter: str
    operand: Operand
    product: Product
    rows: tuple[Axis, ...]
    extent: int
    dtype: str
    base: int
    tile: GemmTile
    buffers: Mapping[Any, str]
    batch_names: Mapping[Any, str]

    @property
    def lanes(self) -> int:
        """Elements of 16 bytes."""
        return VECTOR_BYTES // item_bytes(self.dtype)

    @property
    def chunks(self) -> int:
        """Chunks of 16 bytes in a row of the tile."""
        return self.tile.depth // self.lanes

    @property
    def mode(self) -> Mode:
        """How the tile is filled."""
        if self.operand.load is None or self.operand.dtype != self.dtype:
            return "scalar"
        if self._is_contiguous(self.product.depth):
            return "copy"
        return "rows" if self._is_contiguous(self.rows) else "scalar"

    def _is_contiguous(self, axes: Sequence[Axis]) -> bool:
        """Tell whether 16 bytes along the last of `axes` are neighbours, aligned and all valid."""
        offset = self.operand.offset
        real = [axis for axis in axes if axis.extent > 1]
        if offset is None or not real or offset.of(real[-1].var) != 1:
            return False
        inner = real[-1]
        others = [axis for axis in self.product.stage.axes if axis is not inner]
        aligned = all(offset.of(a.var) % self.lanes == 0 for a in others if a.extent > 1)
        return (
            aligned
            and inner.extent % self.lanes == 0
            and offset.constant % self.lanes == 0
            and all(bound.form.of(inner.var) == 0 for bound in self.operand.bounds)
        )

    @property
    def _pointer(self) -> str:
        assert self.operand.load is not None
        return self.buffers[self.operand.load.source]

    @property
    def _pattern(self) -> str:
        """The argument that says what to store where there is no data, in every byte."""
        return f", {(self.operand.fill & 255) * 0x01010101}u" if self.operand.fill else ""

    def _place(self, row: str, depth: str) -> str:
        """Return the index of an element in the tile, which is seen as an array of its dtype."""
        chunk = f"tw_swizzle<{self.chunks}>({row}, ({depth}) / {self.lanes})"
        return f"{chunk} * {self.lanes} + ({depth}) % {self.lanes}"

    def _start(self, slot: str) -> str:
        return f"tw_shared + ({slot}) * {_stage_bytes(self)} + {self.base}"

    def prologue(self) -> list[str]:
        """Return the statements before the loop over the depth."""
        if self.mode != "copy":
            return []
        return self._copy_prologue()

    def _copy_prologue(self) -> list[str]:
        """For each row that a thread copies: offset and bounds, as far as they depend on it."""
        x, threads = self.letter, self.tile.threads
        count = -(-self.extent * self.chunks // threads)
        total = prod(axis.extent for axis in self.rows)
        head, names = decompose("at", self.rows, f"{x}r")
        names = {**self.batch_names, **names}
        lines = [
            f"const int {x}_chunk = threadIdx.x % {self.chunks};",
            f"const int {x}_row = threadIdx.x / {self.chunks};",
            f"int {x}_offset[{count}];",
            f"bool {x}_inside[{count}];",
        ]
        bounds = self.operand.bounds
        lines += [f"int {x}_bound{i}[{count}];" for i in range(len(bounds))]
        lines += ["#pragma unroll", f"for (int i = 0; i < {count}; ++i) {{"]
        lines.append(f"const int row = {x}_row + i * {threads // self.chunks};")
        inside = f"{x}_first + row < {total}"
        if self.extent * self.chunks % threads:
            inside += f" && row < {self.extent}"
        lines += [
            f"{x}_inside[i] = {inside};",
            f"const int at = {x}_inside[i] ? {x}_first + row : 0;",
        ]
        assert self.operand.offset is not None
        lines += [*head, f"{x}_offset[i] = {_linear(self.operand.offset, names, True)};"]
        lines += [
            f"{x}_bound{i}[i] = {_linear(bound.form, names, True)};"
            for i, bound in enumerate(bounds)
        ]
        return [*lines, "}"]

    def load(self) -> list[str]:
        """Return the function that fills the tile of step `step` in `slot`."""
        head = [f"auto load_{self.letter} = [&](int step, int slot) {{"]
        body = {"copy": self._copy, "rows": self._rows, "scalar": self._scalar}[self.mode]()
        return [*head, *body, "};"]

    def _copy(self) -> list[str]:
        x, threads = self.letter, self.tile.threads
        count = -(-self.extent * self.chunks // threads)
        head, names = decompose("at", self.product.depth, "k")
        lines = [
            f"const int k = k_first + step * {self.tile.depth} + {x}_chunk * {self.lanes};",
            "const bool k_inside = k < k_last;",
            "const int at = k_inside ? k : 0;",
            *head,
        ]
        assert self.operand.offset is not None
        lines.append(f"const int offset = {_linear(self.operand.offset, names)};")
        for i, bound in enumerate(self.operand.bounds):
            lines.append(f"const int bound{i} = {_linear(bound.form, names)};")
        lines += ["#pragma unroll", f"for (int i = 0; i < {count}; ++i) {{"]
        lines.append(f"const int row = {x}_row + i * {threads // self.chunks};")
        if self.extent * self.chunks % threads:
            lines.append(f"if (row >= {self.extent}) continue;")
        valid = [f"{x}_inside[i]", "k_inside"]
        for i, bound in enumerate(self.operand.bounds):
            valid.append(f"(unsigned)({x}_bound{i}[i] + bound{i}) <= {bound.last}u")
        lines += [
            f"const bool valid = {' && '.join(valid)};",
            f"tw_copy16{'' if not self.operand.fill else '_or_fill'}({self._start('slot')} + "
            f"tw_swizzle<{self.chunks}>(row, {x}_chunk) * 16, "
            f"{self._pointer} + (valid ? {x}_offset[i] + offset : 0), valid{self._pattern});",
            "}",
        ]
        return lines

    def _rows(self) -> list[str]:
        """Read 16 bytes along the rows, and scatter them."""
        x, threads, lanes = self.letter, self.tile.threads, self.lanes
        groups = self.extent // lanes
        count = -(-groups * self.tile.depth // threads)
        total = prod(axis.extent for axis in self.rows)
        row_head, row_names = decompose("row_at", self.rows, "r")
        depth_head, depth_names = decompose("depth_at", self.product.depth, "k")
        names = {**self.batch_names, **row_names, **depth_names}
        ctype = STORED[self.dtype]
        lines = [f"{ctype} *tile = reinterpret_cast<{ctype} *>({self._start('slot')});"]
        lines += ["#pragma unroll", f"for (int i = 0; i < {count}; ++i) {{"]
        lines.append(f"const int element = threadIdx.x + i * {threads};")
        if groups * self.tile.depth % threads:
            lines.append(f"if (element >= {groups * self.tile.depth}) continue;")
        lines += [
            f"const int row = element % {groups} * {lanes}, depth = element / {groups};",
            f"const int k = k_first + step * {self.tile.depth} + depth;",
            f"const bool is_row = {x}_first + row < {total}, is_depth = k < k_last;",
            f"const int row_at = is_row ? {x}_first + row : 0, depth_at = is_depth ? k : 0;",
            *row_head,
            *depth_head,
        ]
        valid = ["is_row", "is_depth"]
        valid += [
            f"(unsigned)({_linear(bound.form, names, True)}) <= {bound.last}u"
            for bound in self.operand.bounds
        ]
        assert self.operand.offset is not None
        lines += [
            f"__align__(16) {ctype} values[{lanes}] = "
            f"{{{', '.join([str(self.operand.fill)] * lanes)}}};",
            f"if ({' && '.join(valid)}) tw_read<{lanes}>(values, "
            f"&{self._pointer}[{_linear(self.operand.offset, names, True)}]);",
            "#pragma unroll",
            f"for (int j = 0; j < {lanes}; ++j) "
            f"tile[{self._place('row + j', 'depth')}] = values[j];",
            "}",
        ]
        return lines

    def _scalar(self) -> list[str]:
        x, threads, depth = self.letter, self.tile.threads, self.tile.depth
        count = -(-self.extent * depth // threads)
        total = prod(axis.extent for axis in self.rows)
        row_head, row_names = decompose("row_at", self.rows, "r")
        depth_head, depth_names = decompose("depth_at", self.product.depth, "k")
        names = {**self.batch_names, **row_names, **depth_names}
        value = Printer(self.product.stage.axes, names, self.buffers).text(self.operand.value)
        ctype = STORED[self.dtype]
        offset = self.operand.offset
        along_rows = offset is not None and any(
            offset.of(axis.var) == 1 for axis in self.rows if axis.extent > 1
        )
        place = (
            f"row = element % {self.extent}, depth = element / {self.extent}"
            if along_rows
            else f"row = element / {depth}, depth = element % {depth}"
        )
        lines = [f"{ctype} *tile = reinterpret_cast<{ctype} *>({self._start('slot')});"]
        lines += [f"#pragma unroll {min(count, _AT_ONCE)}", f"for (int i = 0; i < {count}; ++i) {{"]
        lines.append(f"const int element = threadIdx.x + i * {threads};")
        if self.extent * depth % threads:
            lines.append(f"if (element >= {self.extent * depth}) continue;")
        return [
            *lines,
            f"const int {place};",
            f"const int k = k_first + step * {depth} + depth;",
            f"const bool is_inside = {x}_first + row < {total} && k < k_last;",
            f"const int row_at = is_inside ? {x}_first + row : 0, depth_at = is_inside ? k : 0;",
            *row_head,
            *depth_head,
            f"tile[{self._place('row', 'depth')}] = is_inside ? {stored(value, self.dtype)} "
            f": ({ctype})0;",
            "}",
        ]


def _stage_bytes(loader: Loader) -> int:
    tile = loader.tile
    return (tile.rows + tile.columns) * tile.depth * item_bytes(loader.dtype)


def _linear(form: Linear, names: Mapping[Any, str], with_constant: bool = False) -> str:
    """Return the part of a linear form that depends on named axes."""
    terms = [
        names[var] if factor == 1 else f"{names[var]} * {factor}"
        for var, factor in form.coefficients.items()
        if var in names
    ]
    if with_constant and form.constant:
        terms.append(str(form.constant))
    return " + ".join(terms) or "0"
