"""The zero borders of tensors: written by stages of their own, read in place of pad stages."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import tvm
import tvm_ffi
from tvm import tirx
from tvm.ir import Range, TensorLoad

from tilewright.compiler.layout.indexing import linear_terms
from tilewright.compiler.layout.kinds import Pad, Reorder, extent_change
from tilewright.compiler.layout.nest import SPATIAL, Axis, Nests, Stage, loads_of, shape_of
from tilewright.compiler.layout.primitives import Layout
from tilewright.compiler.layout.stage import Placement, dimension_names


def border_stages(stage: Stage, places: Mapping[Any, Placement], index_dtype: str) -> list[Stage]:
    """Return the stages that write zeros to the borders of what a stage writes."""
    stages: list[Stage] = []
    names = [axis.name for axis in stage.spatial]
    for buffer in stage.written:
        place = places[buffer]
        inner = [
            n - before - after
            for n, (before, after) in zip(place.layout.physical_shape, place.border, strict=True)
        ]
        loop_names = dimension_names(place.core, _padded_names(names, len(place.core.shape)))
        for dim, (before, after) in enumerate(place.border):
            for start, extent in ((0, before), (before + inner[dim], after)):
                if extent:
                    box = _border_box(place, inner, dim, start, extent)
                    name = f"{stage.name}_border{f'_{len(stages)}' if stages else ''}"
                    stages.append(_zero_stage(name, place.physical, box, loop_names, index_dtype))
    return stages


def _padded_names(names: Sequence[str], rank: int) -> list[str]:
    """Return a name per dimension; stages leave out axes of extent 1 at times."""
    return list(names) if len(names) == rank else [f"u{i}" for i in range(rank)]


def _border_box(
    place: Placement, inner: list[int], dim: int, start: int, extent: int
) -> list[tuple[int, int]]:
    """Return (start, extent) per dimension: earlier ones inside of their borders, later whole."""
    shape = place.layout.physical_shape
    box = [(place.border[i][0], inner[i]) for i in range(dim)]
    box.append((start, extent))
    box += [(0, shape[i]) for i in range(dim + 1, len(shape))]
    return box


def _zero_stage(
    name: str,
    buffer: tirx.Buffer,
    box: Sequence[tuple[int, int]],
    loop_names: Sequence[str],
    index_dtype: str,
) -> Stage:
    axes = tuple(
        Axis(tirx.Var(f"v_{loop}", index_dtype), extent, SPATIAL, loop)
        for loop, (_, extent) in zip(loop_names, box, strict=True)
    )
    indices = [
        axis.var + start if start else axis.var for axis, (start, _) in zip(axes, box, strict=True)
    ]
    store = tirx.BufferStore(buffer, tirx.const(0, buffer.dtype), indices)
    return Stage(name, axes, store, None, {}, (store,), ())


def read_through_borders(nests: Nests, given: Mapping[Any, Layout]) -> Nests:
    """Drop the stages that pad with zeros what has a border already; readers use the border.

    pad[n, c, h, w] = if_then_else(1 <= h < H + 1, data[n, c, h - 1, w], 0)
    conv[...] += pad[n, rc, h + kh, w] * ...      ->     conv[...] += data[n, rc, h + kh - 1, w]
    """
    dropped: dict[Any, tuple[Any, list[int]]] = {}
    results = {b for stage in nests.stages for b in stage.written} & set(nests.params)
    for stage in nests.stages:
        if isinstance(stage, Stage):
            source = _padded_source(stage)
            if source is None or source[0] in results:
                continue
            if _covers(given.get(source[0]), source[1], stage):
                dropped[stage.written[0]] = source
    opaque = [b for stage in nests.stages if not isinstance(stage, Stage) for b in stage.buffers]
    for buffer in (*given, *nests.params, *opaque):
        dropped.pop(buffer, None)  # needed as they are
    if not dropped:
        return nests
    stages = tuple(
        _reading(stage, dropped) if isinstance(stage, Stage) else stage
        for stage in nests.stages
        if not (isinstance(stage, Stage) and stage.written[0] in dropped)
    )
    intermediates = tuple(buffer for buffer in nests.intermediates if buffer not in dropped)
    return Nests(nests.func, nests.params, intermediates, stages)


def _padded_source(stage: Stage) -> tuple[Any, list[int]] | None:
    """Return (source, leading padding per dimension) if a stage pads its source with zeros."""
    if stage.reduction or len(stage.stores) != 1 or len(stage.loads) != 1:
        return None
    value, load = stage.stores[0].value, stage.loads[0]
    if not (isinstance(value, tvm.ir.Call) and isinstance(value.op, tvm.ir.Op)):
        return None
    if not value.op.name.endswith(".if_then_else") or not value.args[1].same_as(load):
        return None
    other = value.args[2]
    if not isinstance(other, tirx.FloatImm | tirx.IntImm) or float(other.value) != 0.0:
        return None
    leading = []
    for index, written in zip(load.indices, stage.stores[0].indices, strict=False):
        terms, constant = linear_terms(index)
        constants_only = not terms and isinstance(written, tirx.IntImm)
        if not constants_only and not (
            len(terms) == 1 and terms[0][1] == 1 and terms[0][0].same_as(written)
        ):
            return None
        leading.append(-constant)
    shape = shape_of(load.source)
    if len(leading) != len(shape) or len(shape) != len(shape_of(stage.written[0])):
        return None
    if not _is_range_check(value.args[0], stage, leading, shape):
        return None
    return load.source, leading


def _is_range_check(
    condition: Any, stage: Stage, leading: Sequence[int], shape: Sequence[int]
) -> bool:
    """Whether a condition says that the source's indices are in range, no more and no less."""
    analyzer = tvm.sym.Analyzer()
    for axis in stage.axes:
        low, high = tirx.IntImm(str(axis.var.ty), 0), tirx.IntImm(str(axis.var.ty), axis.extent)
        analyzer.bind(axis.var, Range.from_min_extent(low, high))
    bounds = []
    for index, before, extent in zip(stage.stores[0].indices, leading, shape, strict=True):
        bounds += [index >= before, index < before + extent]
    in_range = tirx.all(*bounds)
    with analyzer.constraint_scope(in_range):
        if not analyzer.can_prove(condition):
            return False
    with analyzer.constraint_scope(condition):
        return all(analyzer.can_prove(bound) for bound in bounds)


def _covers(layout: Layout | None, leading: Sequence[int], stage: Stage) -> bool:
    """Whether the zeros of a layout reach as far as those of a pad stage, in every dimension."""
    if layout is None:
        return False
    padded = shape_of(stage.written[0])
    for dim, (before, total) in enumerate(zip(leading, padded, strict=True)):
        after = total - before - layout.shape[dim]
        has_before, has_after = _leading_pad(layout, dim)
        if before > has_before or after > has_after:
            return False
    return True


def _leading_pad(layout: Layout, dim: int) -> tuple[int, int]:
    """Return the padding of a logical dimension before any other primitive changes it."""
    before = after = 0
    for step in layout.simplify().primitives:
        if isinstance(step, Pad) and step.dim == dim:
            return before + step.before, after + step.after
        if isinstance(step, Reorder):
            dim = step.perm.index(dim)
            continue
        first, taken, given = extent_change(step)
        if first <= dim < first + taken:
            return before, after
        if dim >= first + taken:
            dim += given - taken
    return before, after


def _reading(stage: Stage, dropped: Mapping[Any, tuple[Any, list[int]]]) -> Stage:
    """Return a stage that reads the sources of dropped stages in their place."""

    def moved(load: Any, mutator: Any) -> Any:
        indices = [mutator.mutate(index) for index in load.indices]
        if load.source not in dropped:
            return tirx.BufferLoad(load.source, indices)
        source, leading = dropped[load.source]
        shifted = [i - before if before else i for i, before in zip(indices, leading, strict=True)]
        return (
            moved(tirx.BufferLoad(source, shifted), mutator)
            if source in dropped
            else (tirx.BufferLoad(source, shifted))
        )

    if not any(load.source in dropped for load in stage.loads):
        return stage
    body = tvm_ffi.structural_mutate(stage.body, [(TensorLoad, moved)])
    stores: list[Any] = []
    tvm_ffi.structural_walk(body, (tirx.BufferStore, stores.append))
    loads = tuple(load for load in loads_of(body) if load.source not in set(stage.written))
    return replace(stage, body=body, stores=tuple(stores), loads=loads)
