"""Rewrites one stage: new loops for the physical dimensions, new indices, zeros in the padding."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NoReturn

import tvm
import tvm_ffi
from tvm import tirx
from tvm.ir import Range, TensorLoad
from tvm.sym import Analyzer

from tilewright.compiler.layout.indexing import (
    digit_extents,
    is_within,
    map_load,
    reduction_boundaries,
)
from tilewright.compiler.layout.kinds import Fuse, Reorder, Split
from tilewright.compiler.layout.nest import REDUCTION, SPATIAL, Axis, Stage
from tilewright.compiler.layout.neutral import vanishes
from tilewright.compiler.layout.primitives import Layout
from tilewright.errors import LayoutError

_COMBINERS = (tirx.Add, tirx.Max, tirx.Min, tirx.Mul)


@dataclass(frozen=True, slots=True)
class Placement:
    """Where a logical buffer lies.

    Attributes:
        layout: the whole layout, in normal form.
        physical: the buffer of ``layout.physical_shape``.
        core: the layout without the border.
        border: the padding around the core, per physical dimension.
        is_guest: it lies inside another tensor, whose buffer `physical` is.
    """

    layout: Layout
    physical: tirx.Buffer
    core: Layout
    border: tuple[tuple[int, int], ...]
    is_guest: bool = False

    @property
    def is_logical(self) -> bool:
        """The buffer stays as it was."""
        return not self.layout.primitives


@dataclass(slots=True)
class _Loops:
    """The new axes of a stage, and what the old iter vars are in terms of them.

    `analyzer` simplifies indices. It does not know the axes of extent 1, so that they stay in the
    indices, where schedules look for them; `bounds` knows all axes, and is for proofs.
    """

    analyzer: Analyzer = field(default_factory=Analyzer)
    bounds: Analyzer = field(default_factory=Analyzer)
    axes: list[Axis] = field(default_factory=list)
    values: dict[Any, Any] = field(default_factory=dict)
    """Old iter var -> expression in the new ones."""
    spatial_valid: list[Any] = field(default_factory=list)
    """Conditions that hold where a spatial point is an element, not padding."""
    reduction_valid: list[Any] = field(default_factory=list)
    padded: set[Any] = field(default_factory=set)
    """Old iter vars that leave their domain in the padding."""


class _CannotPad(Exception):
    """Reduction axes (old iter vars) that cannot be padded, and so have to stay one loop."""

    def __init__(self, axes: set[Any]) -> None:
        super().__init__("a reduction axis cannot be padded")
        self.axes = axes


def rewrite_stage(stage: Stage, places: Mapping[Any, Placement], index_dtype: str) -> Stage:
    """Return the stage on the physical buffers of `places`.

    Raises:
        LayoutError: the stage cannot write through the layout of its output.
    """
    touched = [*stage.written, *(load.source for load in stage.loads)]
    if all(places[buffer].is_logical for buffer in touched):
        return stage
    place = _output_place(stage, places)
    whole: set[Any] = set()
    while True:
        loops = _new_loops(stage, place.core, places, whole, index_dtype)
        try:
            return _Rewriter(stage, places, loops).run()
        except _CannotPad as refused:
            whole |= refused.axes  # those stay one loop, with divisions in the indices


def _output_place(stage: Stage, places: Mapping[Any, Placement]) -> Placement:
    place = places[stage.written[0]]
    for buffer in stage.written[1:]:
        if places[buffer].layout != place.layout:
            raise LayoutError(
                f"block {stage.name!r} writes {stage.written[0].name!r} and {buffer.name!r} in one "
                "loop nest; give both the same layout"
            )
    if not place.core.is_invertible:
        raise LayoutError(
            f"block {stage.name!r} cannot write {stage.written[0].name!r} through the layout "
            f"{place.layout}: it repeats or drops elements; only a conversion or a constant can"
        )
    return place


def _new_loops(
    stage: Stage,
    core: Layout,
    places: Mapping[Any, Placement],
    whole: set[Any],
    index_dtype: str,
) -> _Loops:
    loops = _Loops()
    _add_spatial(stage, core, loops, index_dtype)
    _add_reduction(stage, places, whole, loops, index_dtype)
    return loops


def _new_axis(loops: _Loops, name: str, extent: int, kind: int, index_dtype: str) -> Axis:
    axis = Axis(tirx.Var(f"v_{name}", index_dtype), extent, kind, name)
    low, high = tirx.IntImm(index_dtype, 0), tirx.IntImm(index_dtype, extent)
    loops.bounds.bind(axis.var, Range.from_min_extent(low, high))
    if extent > 1:
        loops.analyzer.bind(axis.var, Range.from_min_extent(low, high))
    return axis


def _add_spatial(stage: Stage, core: Layout, loops: _Loops, index_dtype: str) -> None:
    indices = list(stage.stores[0].indices)
    spatial = list(stage.spatial)
    logical: list[Axis | None] = []
    for index in indices:
        logical.append(spatial.pop(0) if isinstance(index, tirx.Var) else None)
    names = [axis.name if axis else f"u{i}" for i, axis in enumerate(logical)]
    for name, extent in zip(dimension_names(core, names), core.physical_shape, strict=True):
        loops.axes.append(_new_axis(loops, name, extent, SPATIAL, index_dtype))
    elements, conditions = core.unmap_with_conditions([axis.var for axis in loops.axes])
    for condition in map(loops.bounds.simplify, conditions):
        if not isinstance(condition, tirx.IntImm):
            loops.spatial_valid.append(condition)
    for axis, element in zip(logical, elements, strict=True):
        if axis is not None:
            loops.values[axis.var] = loops.analyzer.simplify(element)
            if not is_within(element, axis.extent, loops.bounds):
                loops.padded.add(axis.var)


def _add_reduction(
    stage: Stage,
    places: Mapping[Any, Placement],
    whole: set[Any],
    loops: _Loops,
    index_dtype: str,
) -> None:
    cuts: dict[Any, list[int]] = {axis.var: [] for axis in stage.reduction}
    extents = {axis.var: axis.extent for axis in stage.axes}
    reduction = {axis.var: axis.extent for axis in stage.reduction if axis.var not in whole}
    for load in stage.loads if reduction else ():
        layout = places[load.source].layout
        for var, cut in reduction_boundaries(load.indices, layout, extents, reduction):
            cuts[var].append(cut)
    outer: list[Axis] = []
    inner: list[Axis] = []
    for axis in stage.reduction:
        digits = digit_extents(axis.extent, cuts[axis.var])
        names = _digit_names(axis.name, len(digits))
        new = [
            _new_axis(loops, name, extent, REDUCTION, index_dtype)
            for name, extent in zip(names, digits, strict=True)
        ]
        value: Any = new[0].var
        total = digits[0]
        for digit in new[1:]:
            value = value * digit.extent + digit.var
            total *= digit.extent
        loops.values[axis.var] = value
        if total != axis.extent:
            loops.reduction_valid.append(value < axis.extent)
            loops.padded.add(axis.var)
        outer.append(new[0])
        inner.extend(new[1:])
    loops.axes += outer + inner


def dimension_names(layout: Layout, names: Sequence[str]) -> list[str]:
    """Return a loop name per physical dimension of a layout, from those of the logical ones."""
    current = list(names)
    for step in layout.primitives:
        match step:
            case Reorder(perm=perm):
                current = [current[p] for p in perm]
            case Split(dim=dim, factors=factors):
                current[dim : dim + 1] = _digit_names(current[dim], len(factors))
            case Fuse(dim=dim, count=count):
                current[dim : dim + count] = ["_".join(current[dim : dim + count])]
    return current


def _digit_names(name: str, count: int) -> list[str]:
    if count == 1:
        return [name]
    if count == 2:
        return [f"{name}_o", f"{name}_i"]
    return [f"{name}_{k}" for k in range(count)]


def _callback(method: Callable[..., Any]) -> Callable[..., Any]:
    """Keep the signature, which `structural_mutate` asks each callback for at every call."""
    method.__signature__ = inspect.signature(method)  # type: ignore[attr-defined]
    return method


class _Rewriter:
    """Rewrites the body of one stage for its new loops."""

    def __init__(self, stage: Stage, places: Mapping[Any, Placement], loops: _Loops) -> None:
        self.stage = stage
        self.places = places
        self.loops = loops
        self.analyzer = loops.analyzer
        self.bounds = loops.bounds
        self.written = set(stage.written)
        self.store_index = [axis.var for axis in loops.axes if axis.kind == SPATIAL]
        self.layouts = {p.physical: p.layout for p in places.values() if not p.is_guest}
        self.valid = [*loops.spatial_valid, *loops.reduction_valid]
        self.padded_vars = {v for c in self.valid for v in _vars_of(c)}
        self.read_outside: set[Any] = set()
        """Padded reduction axes that lead out of a buffer; callbacks of TVM cannot raise."""

    def run(self) -> Stage:
        """Return the rewritten stage; raise _CannotPad where a reduction has to stay whole."""
        stage = self.stage
        init = self._statement(stage.init) if stage.init is not None else None
        body = self._statement(stage.body)
        if self.read_outside:
            raise _CannotPad(self.read_outside)
        body = self._masked(body)
        stores: list[Any] = []
        loads: list[Any] = []
        tvm_ffi.structural_walk(
            body, [(tirx.BufferStore, stores.append), (TensorLoad, loads.append)]
        )
        written = {store.buffer for store in stores}
        return replace(
            stage,
            axes=tuple(self.loops.axes),
            body=body,
            init=init,
            stores=tuple(stores),
            loads=tuple(load for load in loads if load.source not in written),
        )

    def _statement(self, stmt: tirx.Stmt) -> Any:
        return tvm_ffi.structural_mutate(
            stmt,
            [
                (tirx.BufferStore, self._store),
                (TensorLoad, self._load),
                (tirx.Var, self._var),
                (tvm.ir.Call, self._call),
                (tirx.Select, self._select),
            ],
        )

    @_callback
    def _var(self, var: Any, mutator: Any) -> Any:
        return self.loops.values.get(var, var)

    @_callback
    def _store(self, store: Any, mutator: Any) -> Any:
        value = mutator.mutate(store.value)
        physical = self.places[store.buffer].physical
        return tirx.BufferStore(physical, value, self._target_index(store.buffer))

    def _target_index(self, buffer: Any) -> list[Any]:
        moved = zip(self.store_index, self.places[buffer].border, strict=True)
        return [index + before if before else index for index, (before, _) in moved]

    @_callback
    def _load(self, load: Any, mutator: Any) -> Any:
        place = self.places[load.source]
        if load.source in self.written:
            return tirx.BufferLoad(place.physical, self._target_index(load.source))
        logical = [mutator.mutate(index) for index in load.indices]
        if not self.valid:
            return tirx.BufferLoad(place.physical, self._map(place.layout, logical))
        valid = tirx.all(*self.valid)
        with self.analyzer.constraint_scope(valid), self.bounds.constraint_scope(valid):
            indices = self._map(place.layout, logical)
        return self._guarded(load, place, indices)

    def _map(self, layout: Layout, logical: list[Any]) -> list[Any]:
        indices = map_load(layout, logical, self.analyzer)
        # an axis of extent 1 may stand in the way: (ci + r) // 16 for r in [0, 1)
        return [self.bounds.simplify(i) if _has_division(i) else i for i in indices]

    def _guarded(self, load: Any, place: Placement, indices: list[Any]) -> Any:
        """Load only where valid, if the padding of the loops leads outside of the buffer."""
        new = tirx.BufferLoad(place.physical, indices)
        extents = place.layout.physical_shape
        outside = {
            var
            for index, extent in zip(indices, extents, strict=True)
            if not is_within(index, extent, self.bounds)
            for var in self.padded_vars & _vars_of(index)
        }
        if not outside:
            return new
        for axis in self.stage.reduction:
            if axis.var in self.loops.padded and outside & _vars_of(self.loops.values[axis.var]):
                self.read_outside.add(axis.var)
        involved = {var for index in indices for var in _vars_of(index)}
        conditions = [c for c in self.valid if not involved.isdisjoint(_vars_of(c))]
        return tirx.if_then_else(tirx.all(*conditions), new, _zero(new))

    @_callback
    def _call(self, call: Any, mutator: Any) -> Any:
        if not isinstance(call.op, tvm.ir.Op) or not call.op.name.endswith(".if_then_else"):
            return mutator.default_mutate(call)
        condition = self.bounds.simplify(mutator.mutate(call.args[0]))
        if isinstance(condition, tirx.IntImm):
            return mutator.mutate(call.args[1 if int(condition) else 2])
        with self.analyzer.constraint_scope(condition):
            then = mutator.mutate(call.args[1])
        with self.analyzer.constraint_scope(tirx.Not(condition)):
            other = mutator.mutate(call.args[2])
        return tirx.if_then_else(condition, then, other)

    @_callback
    def _select(self, select: Any, mutator: Any) -> Any:
        condition = self.bounds.simplify(mutator.mutate(select.condition))
        then = mutator.mutate(select.true_value)
        other = mutator.mutate(select.false_value)
        if isinstance(condition, tirx.IntImm):
            return then if int(condition) else other
        return tirx.Select(condition, then, other)

    def _masked(self, body: Any) -> Any:
        """Make the value zero in padded lanes, and neutral in the padding of reductions."""
        if not self.valid:
            return body
        if not isinstance(body, tirx.BufferStore):
            self._refuse_padding("it writes several values in one loop nest")
        if not self.stage.reduction:
            value = self._zero_outside(body.value, self.loops.spatial_valid)
            return tirx.BufferStore(body.buffer, value, list(body.indices))
        return self._masked_reduction(body)

    def _masked_reduction(self, body: Any) -> Any:
        combined = body.value
        if not isinstance(combined, _COMBINERS):
            self._refuse_padding("its combiner is not add, mul, max or min")
        accumulators = [
            isinstance(part, TensorLoad) and part.source.same_as(body.buffer)
            for part in (combined.a, combined.b)
        ]
        if sum(accumulators) != 1:
            self._refuse_padding("its body is not of the form C = C + value")
        old, value = (combined.a, combined.b) if accumulators[0] else (combined.b, combined.a)
        value = self._zero_outside(value, self.loops.spatial_valid)
        if isinstance(combined, tirx.Add):
            value = self._zero_outside(value, self.loops.reduction_valid)
        elif self.loops.reduction_valid:
            value = tirx.Select(tirx.all(*self.loops.reduction_valid), value, self._identity())
        combined = type(combined)(old, value)
        return tirx.BufferStore(body.buffer, combined, list(body.indices))

    def _identity(self) -> Any:
        """Return the value that a reduction starts from, which is neutral to it."""
        if not isinstance(self.stage.init, tirx.BufferStore):
            self._refuse_padding("it does not say what its reduction starts from")
        return self.stage.init.value

    def _zero_outside(self, value: Any, conditions: list[Any]) -> Any:
        needed = [c for c in conditions if not vanishes(value, c, self.layouts, self.bounds)]
        return tirx.Select(tirx.all(*needed), value, _zero(value)) if needed else value

    def _refuse_padding(self, reason: str) -> NoReturn:
        reduced = {axis.var for axis in self.stage.reduction} & self.loops.padded
        if reduced:
            raise _CannotPad(reduced)
        raise LayoutError(
            f"block {self.stage.name!r} cannot be padded: {reason}; choose a layout whose factors "
            "divide the extents"
        )


def _zero(value: Any) -> Any:
    return tirx.const(0, str(value.ty))


def _has_division(expr: Any) -> bool:
    if isinstance(expr, tirx.Var | tirx.IntImm):
        return False
    found: list[Any] = []
    tvm_ffi.structural_walk(expr, ((tirx.FloorDiv, tirx.FloorMod), found.append))
    return bool(found)


def _vars_of(expr: Any) -> set[Any]:
    if isinstance(expr, tirx.Var | tirx.IntImm):
        return {expr} if isinstance(expr, tirx.Var) else set()
    found: set[Any] = set()
    tvm_ffi.structural_walk(expr, (tirx.Var, lambda var: found.add(var)))
    return found
