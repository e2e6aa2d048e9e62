"""Kernels with several reductions over the same rows: softmax, layer norm and their like.

A warp or a block has one row; each reduction goes over it once more, from cache.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import prod

from tvm.ir import TensorLoad

from tilewright.compiler.cuda.combine import (
    accumulator_type,
    across_block,
    across_lanes,
    combined,
    identity,
)
from tilewright.compiler.cuda.ctext import Printer, stored
from tilewright.compiler.cuda.kernel import Kernel, block, buffer_names, decompose, signature
from tilewright.compiler.cuda.parts import Part
from tilewright.compiler.cuda.targets import WARP
from tilewright.compiler.schedule.analysis import Axis

_THREADS = 128
# A warp goes over rows up to this length alone; a block is faster at starting longer ones.
_WARP_ROW = 1024
_MAX_THREADS = 512
_PER_THREAD = 8


def rows_kernel(part: Part, name: str) -> Kernel:
    """Return the kernel of a part of kind "rows"."""
    rows = part.reductions[0].stage.spatial
    count = prod(axis.extent for axis in rows)
    longest = max(prod(a.extent for a in r.stage.reduction) for r in part.reductions)
    team = WARP
    if longest > _WARP_ROW:
        while team < _MAX_THREADS and team * _PER_THREAD < longest:
            team *= 2
    threads = max(team, _THREADS)
    buffers = buffer_names(part)
    lines = [f"{signature(name, threads, part)} {{"]
    if team > WARP:
        lines.append("TW_SHARED;")
    lines += [
        f"const int member = threadIdx.x % {team};",
        f"const int row = blockIdx.x * {threads // team} + threadIdx.x / {team};",
        # All threads of a warp stay, or leave; a block has one row where it has barriers.
        f"if (row >= {count}) return;",
    ]
    head, _ = decompose("row", rows, "r")
    lines += head
    writer = _Writer(part, buffers, team)
    for index in range(len(part.reductions)):
        lines += writer.reduction(index)
    for index in range(len(part.stores)):
        lines += writer.store(index)
    lines.append("}")
    grid = (-(-count // (threads // team)), 1, 1)
    shared = 8 * (threads // WARP) if team > WARP else 0
    return Kernel(name, block(lines), grid, threads, shared, f"rows, {team} threads each")


class _Writer:
    def __init__(self, part: Part, buffers: dict, team: int) -> None:
        self.part, self.buffers, self.team = part, buffers, team

    def _printer(
        self, spatial: Sequence[Axis], others: Sequence[Axis]
    ) -> tuple[list[str], Printer]:
        """Return the statements that place a thread at `flat`, and a printer for that place."""
        rank = len(self.part.reductions[0].stage.spatial)
        head, names = decompose("flat", [*spatial[rank:], *others], "c")
        names |= {axis.var: f"r{position}" for position, axis in enumerate(spatial[:rank])}
        known = {r.stage.buffer: f"result{i}" for i, r in enumerate(self.part.reductions)}

        def override(load: TensorLoad) -> str | None:
            return known.get(load.source)

        return head, Printer([*spatial, *others], names, self.buffers, override)

    def _loop(self, total: int) -> str:
        unroll = "" if total > 4 * self.team else "#pragma unroll\n"
        return f"{unroll}for (int flat = member; flat < {total}; flat += {self.team}) {{"

    def reduction(self, index: int) -> list[str]:
        reduction = self.part.reductions[index]
        stage, result = reduction.stage, f"result{index}"
        head, printer = self._printer(stage.spatial, stage.reduction)
        kind = accumulator_type(reduction)
        lines = [f"{kind} {result} = {identity(reduction)};"]
        lines.append(self._loop(prod(axis.extent for axis in stage.reduction)))
        lines += head
        term = printer.text(reduction.term)
        lines += [f"{result} = {combined(reduction, result, term)};", "}"]
        if self.team == WARP:
            lines += across_lanes(reduction, result, WARP)
        else:
            lines += across_block(reduction, result, self.team)
        lines.append(f"{result} = {combined(reduction, printer.text(reduction.init), result)};")
        own = [b for b in self.part.writes if b.same_as(stage.buffer)]
        if own:
            place = f"{self.buffers[own[0]]}[{printer.index(own[0], stage.indices)}]"
            lines.append(f"if (member == 0) {place} = {stored(result, reduction.dtype)};")
        return lines

    def store(self, index: int) -> list[str]:
        stage = self.part.stores[index]
        head, printer = self._printer(stage.spatial, ())
        rank = len(self.part.reductions[0].stage.spatial)
        total = prod(axis.extent for axis in stage.spatial[rank:])
        place = f"{self.buffers[stage.buffer]}[{printer.index(stage.buffer, stage.indices)}]"
        value = stored(printer.text(stage.value), str(stage.buffer.dtype))
        return [self._loop(total), *head, f"{place} = {value};", "}"]
