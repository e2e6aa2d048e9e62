"""Rewrites a TensorIR function for the physical layouts of its buffers.

    conv[n, co, h, w] += data[n, rc, h + kh, w + kw] * weight[co, rc, kh, kw]
        with data and conv blocked(C, 16), weight blocked(O, 16) and blocked(I, 16)
    -> conv[n, co_o, h, w, co_i] += data[n, rc_o, h + kh, w + kw, rc_i]
                                    * weight[co_o, rc_o, kh, kw, rc_i, co_i]

Each stage gets one spatial loop per physical dimension of what it writes, in order, with the
reduction loops inside; a reduction axis is cut where a layout cuts the dimension that it indexes.
Indices are simplified with the known extents.

Invariant: padding holds zeros in every buffer, parameters included. A stage writes a zero to each
padded lane unless its value is zero there anyway; the zeros of a border are written by stages of
their own, named ``<block>_border``, and the block itself writes at an offset.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from typing import Any

from tvm import tirx

from tilewright.compiler.layout.base import Shape
from tilewright.compiler.layout.border import border_stages, read_through_borders
from tilewright.compiler.layout.guests import guest_layouts
from tilewright.compiler.layout.inference import infer_layouts
from tilewright.compiler.layout.nest import (
    Nests,
    Stage,
    build_function,
    build_stage,
    read_nests,
    shape_of,
)
from tilewright.compiler.layout.opaque import rewrite_opaque
from tilewright.compiler.layout.primitives import Layout, pack_constant
from tilewright.compiler.layout.stage import Placement, rewrite_stage
from tilewright.compiler.layout.structure import split_border
from tilewright.errors import LayoutError

__all__ = ["pack_constant", "rewrite"]


def rewrite(
    func: tirx.PrimFunc,
    layouts: Mapping[int, Layout],
    *,
    buffers: Mapping[str, Layout] | None = None,
) -> tirx.PrimFunc:
    """Return `func` on physical buffers.

    Args:
        func: an unscheduled function in TE-normal form, with constant shapes.
        layouts: parameter index -> layout; the other parameters stay as they are. Intermediates
            follow the parameters.
        buffers: layouts of intermediates by name, where they are not to follow.

    A layout with `StoreAt` names its guest as the function's parameter is named; the guest is then
    read from the host, and is no parameter of the result.

    Raises:
        LayoutError: a layout does not fit its buffer, or a stage cannot write through it.
    """
    nests = read_nests(func)
    given = _given_layouts(nests, layouts, buffers or {})
    guests = guest_layouts(nests, given)
    nests = read_through_borders(nests, given)
    index_dtype = _index_dtype(nests)
    chosen = infer_layouts(nests, given)
    places = {buffer: _place(buffer, layout, index_dtype) for buffer, layout in chosen.items()}
    for guest, (host, layout) in guests.items():
        places[guest] = Placement(layout, places[host].physical, layout, (), is_guest=True)
    statements = []
    for stage in nests.stages:
        if not isinstance(stage, Stage):
            statements.append(rewrite_opaque(stage, places))
            continue
        statements.append(build_stage(rewrite_stage(stage, places, index_dtype), index_dtype))
        for border in border_stages(stage, places, index_dtype):
            statements.append(build_stage(border, index_dtype))
    return build_function(
        func,
        [places[param].physical for param in nests.params if param not in guests],
        [places[buffer].physical for buffer in nests.intermediates],
        statements,
    )


def _given_layouts(
    nests: Nests, layouts: Mapping[int, Layout], buffers: Mapping[str, Layout]
) -> dict[tirx.Buffer, Layout]:
    """Return the layouts of the call by buffer, checked against the buffers' shapes."""
    given = {}
    for index, layout in layouts.items():
        if not 0 <= index < len(nests.params):
            raise LayoutError(
                f"layout given for parameter {index}, but the function has {len(nests.params)}"
            )
        given[nests.params[index]] = layout
    by_name = {buffer.name: buffer for buffer in nests.intermediates}
    for name, layout in buffers.items():
        if name not in by_name:
            raise LayoutError(
                f"layout given for buffer {name!r}; the intermediates are {sorted(by_name)}"
            )
        given[by_name[name]] = layout
    for buffer, layout in given.items():
        if layout.shape != shape_of(buffer):
            raise LayoutError(
                f"buffer {buffer.name!r} has the shape {list(shape_of(buffer))}, but its layout is "
                f"for {list(layout.shape)}"
            )
    return given


def _index_dtype(nests: Nests) -> str:
    """Return the dtype of the function's iter vars: int64 from Relax, int32 from plain TE."""
    for stage in nests.stages:
        if isinstance(stage, Stage) and stage.axes:
            return str(stage.axes[0].var.ty)
    return "int64"


@lru_cache(maxsize=4096)
def _extents(shape: Shape, index_dtype: str) -> tuple[list[tirx.IntImm], Any]:
    """Return a shape as TIR constants, and TVM's own row-major layout of it (slow to make)."""
    extents = [tirx.IntImm(index_dtype, extent) for extent in shape]
    return extents, tirx.decl_buffer(extents, "float32", "any").ty.layout


def _place(buffer: tirx.Buffer, layout: Layout, index_dtype: str) -> Placement:
    """Return the physical buffer of a logical one; the logical one itself if they are equal."""
    simple = layout.simplify()
    if not simple.primitives:
        return Placement(simple, buffer, simple, ((0, 0),) * len(layout.shape))
    extents, tiles = _extents(simple.physical_shape, index_dtype)
    physical = tirx.decl_buffer(
        extents, buffer.dtype, buffer.name, scope=buffer.scope(), layout=tiles
    )
    core, border = split_border(simple)
    return Placement(simple, physical, core, border)
