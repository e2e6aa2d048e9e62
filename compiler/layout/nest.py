"""Reads a TE-normal PrimFunc as a list of stages, and builds PrimFuncs from stages.

A stage is one block under its own perfect nest of serial loops, which writes ``W[v0, v1, ...]``
with its spatial iter vars in order. That is what TE, Relax legalisation and FuseTIR produce. A
statement of another form is kept whole and marked as opaque.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import tvm_ffi
from tvm import s_tir, tirx
from tvm.ir import Range, TensorLoad

from tilewright.compiler.layout.base import Shape
from tilewright.errors import LayoutError

SPATIAL = 0
REDUCTION = 2


@dataclass(frozen=True, slots=True)
class Axis:
    """A block iter var with its loop's name; the domain is ``[0, extent)``."""

    var: tirx.Var
    extent: int
    kind: int
    name: str


@dataclass(frozen=True, slots=True)
class Stage:
    """One block: for `axes`, ``init``, then ``body``; buffers and indices as stored."""

    name: str
    axes: tuple[Axis, ...]
    body: tirx.Stmt
    init: tirx.Stmt | None
    annotations: dict[str, Any]
    stores: tuple[tirx.BufferStore, ...]
    loads: tuple[Any, ...]
    """The TensorLoads of the body, one per occurrence, but not those of what the stage writes."""

    @property
    def spatial(self) -> tuple[Axis, ...]:
        """The axes that index what the stage writes."""
        return tuple(axis for axis in self.axes if axis.kind == SPATIAL)

    @property
    def reduction(self) -> tuple[Axis, ...]:
        """The axes that are summed (or otherwise combined) over."""
        return tuple(axis for axis in self.axes if axis.kind == REDUCTION)

    @property
    def written(self) -> tuple[tirx.Buffer, ...]:
        """The buffers that the stage writes; all have one shape."""
        return tuple(dict.fromkeys(store.buffer for store in self.stores))


@dataclass(frozen=True, slots=True)
class Opaque:
    """A statement that is not in normal form, with the buffers that it touches."""

    stmt: tirx.Stmt
    buffers: tuple[tirx.Buffer, ...]
    written: tuple[tirx.Buffer, ...]


@dataclass(frozen=True, slots=True)
class Nests:
    """A PrimFunc as its stages, in the order in which they run."""

    func: tirx.PrimFunc
    params: tuple[tirx.Buffer, ...]
    intermediates: tuple[tirx.Buffer, ...]
    stages: tuple[Stage | Opaque, ...]


def shape_of(buffer: tirx.Buffer) -> Shape:
    """Return the extents of a buffer; raise LayoutError where one is not a constant."""
    for extent in buffer.shape:
        if not isinstance(extent, tirx.IntImm):
            raise LayoutError(
                f"buffer {buffer.name!r} has the shape {list(buffer.shape)}; layouts need constant "
                "extents, so bind the model's dimensions first"
            )
    return tuple(int(extent) for extent in buffer.shape)


def read_nests(func: tirx.PrimFunc) -> Nests:
    """Return the stages of an unscheduled PrimFunc.

    Raises:
        LayoutError: the function has no root block.
    """
    root = func.body
    if not isinstance(root, s_tir.SBlockRealize):
        raise LayoutError(
            "the function has no root block; it is not an unscheduled TensorIR function"
        )
    body = root.block.body
    statements = list(body) if isinstance(body, tirx.SeqStmt) else [body]
    stages = tuple(_read_stage(stmt) for stmt in statements)
    return Nests(func, tuple(func.params), tuple(root.block.alloc_buffers), stages)


def _read_stage(stmt: tirx.Stmt) -> Stage | Opaque:
    loops: list[tirx.For] = []
    inner = stmt
    while isinstance(inner, tirx.For):
        loops.append(inner)
        inner = inner.body
    if isinstance(inner, s_tir.SBlockRealize):
        stage = _normal_stage(loops, inner)
        if stage is not None:
            return stage
    return _opaque(stmt)


def _normal_stage(loops: list[tirx.For], realize: s_tir.SBlockRealize) -> Stage | None:
    """Return the stage of a block under `loops`, or None where it is not in normal form."""
    block = realize.block
    if list(block.alloc_buffers) or list(block.match_buffers) or not _is_true(realize.predicate):
        return None
    axes = _read_axes(loops, realize)
    stores = _stores_of(block.body)
    if axes is None or not stores:
        return None
    spatial = [axis for axis in axes if axis.kind == SPATIAL]
    for store in stores:
        if shape_of(store.buffer) != shape_of(stores[0].buffer):
            return None
        if not _is_plain_index(store, spatial):
            return None
    written = {store.buffer for store in stores}
    loads = tuple(load for load in loads_of(block.body) if load.source not in written)
    annotations = dict(block.annotations.items())
    return Stage(block.name_hint, axes, block.body, block.init, annotations, tuple(stores), loads)


def _read_axes(loops: list[tirx.For], realize: s_tir.SBlockRealize) -> tuple[Axis, ...] | None:
    extents = {}
    for loop in loops:
        if int(loop.kind) != 0 or not isinstance(loop.extent, tirx.IntImm) or loop.thread_binding:
            return None
        extents[loop.loop_var] = int(loop.extent)
    axes = []
    for iter_var, value in zip(realize.block.iter_vars, realize.iter_values, strict=True):
        extent, kind = iter_var.dom.extent, int(iter_var.iter_type)
        if not isinstance(extent, tirx.IntImm) or not _is_zero(iter_var.dom.min):
            return None
        if kind not in (SPATIAL, REDUCTION):
            return None
        if isinstance(value, tirx.Var) and extents.pop(value, None) == int(extent):
            name = value.name
        elif _is_zero(value) and int(extent) == 1:
            name = iter_var.var.name.removeprefix("v_")
        else:
            return None
        axes.append(Axis(iter_var.var, int(extent), kind, name))
    return tuple(axes) if not any(extent != 1 for extent in extents.values()) else None


def _is_plain_index(store: tirx.BufferStore, spatial: list[Axis]) -> bool:
    """Whether the store is ``W[v0, v1, ...]`` (0 may stand for an axis of extent 1)."""
    remaining = list(spatial)
    for index, extent in zip(store.indices, shape_of(store.buffer), strict=True):
        if remaining and index.same_as(remaining[0].var) and remaining[0].extent == extent:
            remaining.pop(0)
        elif not (_is_zero(index) and extent == 1):
            return False
    return not remaining


def _stores_of(body: tirx.Stmt) -> list[tirx.BufferStore]:
    """Return the stores of a body that is stores, behind bindings at most; else nothing."""
    if isinstance(body, tirx.BufferStore):
        return [body]
    if isinstance(body, tirx.SeqStmt):
        statements = [stmt for stmt in body if not isinstance(stmt, tirx.Bind)]
        if all(isinstance(stmt, tirx.BufferStore) for stmt in statements):
            return statements
    return []


def loads_of(node: Any) -> list[Any]:
    """Return every TensorLoad below a statement or expression, inner ones first."""
    found: list[Any] = []
    tvm_ffi.structural_walk(node, (TensorLoad, found.append))
    return found


def _opaque(stmt: tirx.Stmt) -> Opaque:
    stores: list[tirx.BufferStore] = []
    tvm_ffi.structural_walk(stmt, (tirx.BufferStore, stores.append))
    written = tuple(dict.fromkeys(store.buffer for store in stores))
    read = (load.source for load in loads_of(stmt))
    return Opaque(stmt, tuple(dict.fromkeys((*written, *read))), written)


def _is_zero(expr: Any) -> bool:
    return isinstance(expr, tirx.IntImm) and int(expr) == 0


def _is_true(expr: Any) -> bool:
    return isinstance(expr, tirx.IntImm) and int(expr) == 1


def build_stage(stage: Stage, index_dtype: str) -> tirx.Stmt:
    """Return the loop nest of a stage, its loops in the order of the axes."""
    iter_vars, values, loops = [], [], []
    for axis in stage.axes:
        domain = Range.from_min_extent(
            tirx.IntImm(index_dtype, 0), tirx.IntImm(index_dtype, axis.extent)
        )
        loop_var = tirx.Var(axis.name, index_dtype)
        iter_vars.append(tirx.IterVar(domain, axis.var, axis.kind))
        values.append(loop_var)
        loops.append((loop_var, domain))
    reads, writes = _regions(stage, iter_vars)
    block = s_tir.SBlock(
        iter_vars, reads, writes, stage.name, stage.body, stage.init, annotations=stage.annotations
    )
    stmt: tirx.Stmt = s_tir.SBlockRealize(values, True, block)
    for loop_var, domain in reversed(loops):
        stmt = tirx.For(loop_var, domain.min, domain.extent, tirx.ForKind.SERIAL, stmt)
    return stmt


def _regions(stage: Stage, iter_vars: list[tirx.IterVar]) -> tuple[list[Any], list[Any]]:
    """Return the regions that a block reads and writes."""
    accesses = [(load.source, load.indices) for load in stage.loads]
    accesses += [(store.buffer, store.indices) for store in stage.stores]
    buffers = {buffer: buffer for buffer, _ in accesses}
    nested = any(_has_load(index) for load in stage.loads for index in load.indices)
    if len(buffers) == len(accesses) and not nested:
        regions = [_point(buffer, indices) for buffer, indices in accesses]
        return regions[: len(stage.loads)], regions[len(stage.loads) :]
    # TVM's analysis joins regions, but takes milliseconds for a large concatenation
    block = s_tir.SBlock(iter_vars, [], [], stage.name, stage.body, stage.init)
    return s_tir.analysis.get_sblock_read_write_region(block, buffers)


def _has_load(index: Any) -> bool:
    return not isinstance(index, tirx.Var | tirx.IntImm) and bool(loads_of(index))


def _point(buffer: tirx.Buffer, indices: Sequence[Any]) -> Any:
    ranges = [Range.from_min_extent(i, tirx.IntImm(str(i.ty), 1)) for i in indices]
    return tirx.BufferRegion(buffer, ranges)


def build_function(
    original: tirx.PrimFunc,
    params: Sequence[tirx.Buffer],
    intermediates: Sequence[tirx.Buffer],
    statements: Sequence[tirx.Stmt],
) -> tirx.PrimFunc:
    """Return a PrimFunc with one root block."""
    body = statements[0] if len(statements) == 1 else tirx.SeqStmt(list(statements))
    root = s_tir.SBlock([], [], [], "root", body, alloc_buffers=list(intermediates))
    return tirx.PrimFunc(list(params), s_tir.SBlockRealize([], True, root), attrs=original.attrs)
