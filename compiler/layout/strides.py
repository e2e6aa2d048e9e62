"""How an injective operator walks through what it reads, in given layouts.

The operator is read once: its stages are inlined and its domain is cut into the boxes that are
scheduled (pieces of a concatenation, borders). For layouts of its parameters the walk then follows
from the layouts' maps alone, so a choice is priced without rewriting the function for it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import prod
from typing import Any

import tvm
from tvm import tirx
from tvm.tirx import PrimFunc

from tilewright.compiler.access import variables as used_variables
from tilewright.compiler.layout.primitives import Layout
from tilewright.compiler.schedule.analysis import Stage, inline_loads, read_stages
from tilewright.compiler.schedule.boxes import cut
from tilewright.compiler.schedule.expressions import Expr, linear_form, loads_in, substitute

# What fits in a few cache lines may be read in any order.
_SMALL_ELEMENTS = 64
_CONTIGUOUS, _TRANSPOSED, _GATHERED = "contiguous", "transposed", "gathered"


@dataclass(frozen=True)
class _Read:
    """One load in one box: where it reads, as a linear map of where the box writes.

    Attributes:
        parameter: position of what is read.
        start: logical index that is read where the box begins.
        steps: [dimension of the output][dimension read]: how far the index moves; None where it
            does not move evenly (a gather, a reshape).
    """

    parameter: int
    start: tuple[int, ...]
    steps: tuple[tuple[int | None, ...], ...]


@dataclass(frozen=True)
class _Box:
    """A part of an output's domain: its logical first index and extents, and what it reads."""

    output: int
    start: tuple[int, ...]
    extents: tuple[int, ...]
    reads: tuple[_Read, ...]


@dataclass(frozen=True)
class Walk:
    """The boxes of an injective function."""

    boxes: tuple[_Box, ...]

    def strided_shares(self, layouts: Sequence[Layout], lanes: int) -> tuple[float, float]:
        """Return the shares of the points that wait for a load which is not contiguous.

        A load is contiguous where the innermost physical dimension of the output that is longer
        than 1 moves its address by one element, or not at all.

        Returns:
            (transposed, gathered): in the first, another dimension of at least `lanes` elements
            moves the address by one, so that square tiles can be transposed in registers.
        """
        total = transposed = gathered = 0
        for box in self.boxes:
            points = prod(box.extents)
            total += points
            found = {_kind(box, read, layouts, lanes) for read in box.reads}
            if _GATHERED in found:
                gathered += points
            elif _TRANSPOSED in found:
                transposed += points
        return transposed / max(total, 1), gathered / max(total, 1)


def read_walk(func: PrimFunc) -> Walk | None:
    """Return how a function without reductions walks, or None where it has another form."""
    stages = read_stages(func)
    if stages is None or any(stage.reduction for stage in stages):
        return None
    params = list(func.params)
    producers = {stage.buffer: stage for stage in stages}
    boxes: list[_Box] = []
    for stage in stages:
        output = next((i for i, p in enumerate(params) if p.same_as(stage.buffer)), None)
        if output is None:
            continue
        others = {buffer: made for buffer, made in producers.items() if made is not stage}
        value = inline_loads(stage.value, others)
        boxes += [_read_box(box, output, params) for box in cut(replace(stage, value=value))]
    return Walk(tuple(boxes))


def _read_box(box: Stage, output: int, params: Sequence[object]) -> _Box:
    analyzer = tvm.sym.Analyzer()
    for axis in box.spatial:
        analyzer.bind(axis.var, tvm.ir.Range(0, axis.extent))
    variables = [axis.var for axis in box.spatial]
    written = [linear_form(index, variables, analyzer) for index in box.indices]
    assert all(form is not None for form in written), "a stage writes at its axes"
    extents = []
    movers = []  # per dimension of the output: the axis that moves it by one element
    for form in written:
        assert form is not None
        movers.append(next((a.var for a in box.spatial if abs(form.of(a.var)) == 1), None))
        extents.append(1 + sum((axis.extent - 1) * abs(form.of(axis.var)) for axis in box.spatial))
    reads = []
    for load in loads_in(box.value):
        position = next((i for i, p in enumerate(params) if load.source.same_as(p)), None)
        if position is None:
            continue
        origin = {axis.var: tirx.const(0, str(axis.var.ty)) for axis in box.spatial}
        start = [analyzer.simplify(substitute(index, origin)) for index in load.indices]
        steps = tuple(
            tuple(_step(index, mover, variables, analyzer) for index in load.indices)
            for mover in movers
        )
        known = all(isinstance(at, tirx.IntImm) for at in start)
        reads.append(_Read(position, tuple(int(at) if known else 0 for at in start), steps))
    starts = tuple(form.constant for form in written if form is not None)
    return _Box(output, starts, tuple(extents), tuple(dict.fromkeys(reads)))


def _step(
    index: Expr, mover: Any, variables: Sequence[Any], analyzer: tvm.sym.Analyzer
) -> int | None:
    """Return how far an index moves along an axis, or None where that varies."""
    if mover is None or mover not in used_variables(index):
        return 0
    form = linear_form(index, variables, analyzer)
    return None if form is None else form.of(mover)


def _kind(box: _Box, read: _Read, layouts: Sequence[Layout], lanes: int) -> str:
    layout = layouts[read.parameter]
    inner = _innermost_move(box, layouts[box.output])
    if prod(layout.physical_shape) < _SMALL_ELEMENTS or inner is None:
        return _CONTIGUOUS
    if _distance(layout, read, inner) in (0, 1):
        return _CONTIGUOUS
    longs = [dim for dim, extent in enumerate(box.extents) if extent >= lanes]
    if inner in longs and any(_distance(layout, read, dim) == 1 for dim in longs):
        return _TRANSPOSED
    return _GATHERED


def _distance(layout: Layout, read: _Read, dim: int) -> int | None:
    """Return how far one element along a dimension of the output moves the address of a load."""
    steps = [0 if step is None else step for step in read.steps[dim]]
    if None in read.steps[dim]:
        return None
    there = tuple(at + step for at, step in zip(read.start, steps, strict=True))
    return _address(layout, there) - _address(layout, read.start)


def _innermost_move(box: _Box, out: Layout) -> int | None:
    """Return the logical dimension along which the output's elements are neighbours in memory.

    None where a box has only one element along it.
    """
    for dim, extent in enumerate(box.extents):
        if extent < 2:
            continue
        there = tuple(at + (i == dim) for i, at in enumerate(box.start))
        if _address(out, there) - _address(out, box.start) == 1:
            return dim
    return None


def _address(layout: Layout, index: tuple[int, ...]) -> int:
    address = 0
    for at, extent in zip(layout.map_index(index), layout.physical_shape, strict=True):
        address = address * extent + at
    return address
