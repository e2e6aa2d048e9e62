"""Chooses the layouts of a function's intermediates from those of its parameters.

An intermediate that is read element by element takes the layout of what is computed from it, so
that the stages fuse; what no reader decides follows what it is computed from (a padded copy of the
data takes the data's layout). Dimensions that only one of the two has stay whole.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import prod
from typing import Any

from tvm import tirx

from tilewright.compiler.layout.indexing import linear_terms
from tilewright.compiler.layout.nest import Axis, Nests, Stage, shape_of
from tilewright.compiler.layout.primitives import Layout
from tilewright.compiler.layout.structure import carry_over

Layouts = dict[Any, Layout]


def infer_layouts(nests: Nests, given: Mapping[Any, Layout]) -> Layouts:
    """Return a layout for every parameter and intermediate; `given` ones are kept.

    Args:
        nests: the function.
        given: layouts by buffer; parameters that are not named stay logical.
    """
    layouts: Layouts = dict(given)
    for param in nests.params:
        if param not in layouts:
            layouts[param] = Layout(shape_of(param))
    fixed = {b for stage in nests.stages if not isinstance(stage, Stage) for b in stage.buffers}
    for buffer in nests.intermediates:
        if buffer in fixed and buffer not in layouts:
            layouts[buffer] = Layout(shape_of(buffer))
    stages = [stage for stage in nests.stages if isinstance(stage, Stage)]
    fused = [stage for stage in stages if not stage.reduction]
    reductions = [stage for stage in stages if stage.reduction]
    while (
        _from_readers(fused, layouts)
        or _from_sources(fused, layouts)
        or _from_readers(reductions, layouts)
        or _from_sources(reductions, layouts)
    ):
        pass
    for buffer in nests.intermediates:
        layouts.setdefault(buffer, Layout(shape_of(buffer)))
    for stage in stages:
        if len(stage.stores) > 1 and not any(b in given for b in stage.written):
            _leave_unpadded(stage, layouts)
    return layouts


def _leave_unpadded(stage: Stage, layouts: Layouts) -> None:
    """Keep logical what a stage with several results writes, rather than pad it.

    An argmax has no neutral value for padded lanes.
    """
    layout = layouts[stage.written[0]]
    if prod(layout.physical_shape) != prod(layout.shape):
        for buffer in stage.written:
            layouts[buffer] = Layout(layout.shape)


def _from_readers(stages: Sequence[Stage], layouts: Layouts) -> bool:
    """Give the sources of each stage the layout of what it writes; return whether any got one.

    A reduction decides only where it does not merely leave its source logical: that one may be
    computed from something blocked.
    """
    changed = False
    for stage in reversed(stages):
        target = next((b for b in stage.written if b in layouts), None)
        if target is None:
            continue
        for buffer in stage.written:  # one stage writes all its buffers alike
            if buffer not in layouts:
                layouts[buffer] = layouts[target]
                changed = True
        for load in stage.loads:
            if load.source in layouts:
                continue
            sources = _element_by_element(load, stage)
            layout = sources and carry_over(layouts[target], shape_of(load.source), sources)
            if layout and (layout.primitives or not stage.reduction):
                layouts[load.source] = layout
                changed = True
    return changed


def _element_by_element(load: Any, stage: Stage) -> list[int | None] | None:
    """Return which dimension of the written buffer each dimension of a load is.

    None where the load does not take one plain element (or one row) per written element: where some
    index is an expression, or where a written dimension of more than one element is missing and
    the source has a dimension that is not one of the written ones.
    """
    sources: list[int | None] = []
    spatial = [axis.var for axis in stage.spatial]
    reduction = [axis.var for axis in stage.reduction]
    positions = _positions(stage)
    for index in load.indices:
        if isinstance(index, tirx.IntImm):
            sources.append(None)
        elif isinstance(index, tirx.Var) and index in spatial:
            sources.append(positions[spatial.index(index)])
        elif isinstance(index, tirx.Var) and index in reduction:
            sources.append(None)
        else:
            return None
    taken = [source for source in sources if source is not None]
    if len(set(taken)) != len(taken):
        return None
    if stage.reduction:
        needed = {positions[i] for i, axis in enumerate(stage.spatial) if axis.extent > 1}
        return sources if needed <= set(taken) else None
    return sources


def _positions(stage: Stage) -> list[int]:
    """Return the dimension of the written buffer that each spatial axis indexes."""
    indices = list(stage.stores[0].indices)
    return [
        next(i for i, index in enumerate(indices) if index.same_as(axis.var))
        for axis in stage.spatial
    ]


def _from_sources(stages: Sequence[Stage], layouts: Layouts) -> bool:
    """Give the first stage that has none the layout of its source; return whether one got it."""
    for stage in stages:
        if any(buffer in layouts for buffer in stage.written):
            continue
        layout = _followed(stage, layouts)
        if layout is not None:
            for buffer in stage.written:
                layouts[buffer] = layout
            return True
    return False


def _followed(stage: Stage, layouts: Layouts) -> Layout | None:
    """Return the source's layout that fits most dimensions of what a stage writes."""
    shape = shape_of(stage.written[0])
    best: tuple[int, Layout] | None = None
    for load in stage.loads:
        layout = layouts.get(load.source)
        if layout is None:
            return None  # decided later, when all the sources are known
        sources = _mapped_dimensions(load, stage, len(shape))
        carried = carry_over(layout, shape, sources)
        score = sum(source is not None for source in sources)
        if carried is not None and (best is None or score > best[0]):
            best = (score, carried)
    return best[1] if best else Layout(shape)


def _mapped_dimensions(load: Any, stage: Stage, rank: int) -> list[int | None]:
    """Return the dimension of a load's source that each written dimension moves along, if any."""
    sources: list[int | None] = [None] * rank
    positions = _positions(stage)
    for dim, index in enumerate(load.indices):
        axes = _axes_in(index, stage.spatial)
        if len(axes) == 1:
            position = positions[stage.spatial.index(axes[0])]
            if sources[position] is None:
                sources[position] = dim
    return sources


def _axes_in(index: Any, axes: Sequence[Axis]) -> list[Axis]:
    terms, _ = linear_terms(index)
    found = [atom for atom, _ in terms if isinstance(atom, tirx.Var)]
    return [axis for axis in axes if axis.var in found]
