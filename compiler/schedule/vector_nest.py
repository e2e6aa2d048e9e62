"""Emit the loops of one stage with its innermost axis in vectors.

A `Kernel` owns the flat view of every buffer. A `Nest` is one stage under some loops: neighbouring
axes that every access walks with one stride are fused, and addresses are rebuilt from linear
forms, so that no division is left in them. Extents that vectors do not divide are finished by a
last vector that overlaps its neighbour: it stores the same values again, which is cheaper than a
scalar or masked tail.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any

import tvm
from tvm import sym, tirx
from tvm.ir import TensorLoad

from tilewright.compiler.schedule.analysis import Axis
from tilewright.compiler.schedule.expressions import (
    Expr,
    Linear,
    children,
    dtype_of,
    linear_form,
    loads_in,
    range_from_zero,
    rebuild,
    shape_of,
    substitute,
)
from tilewright.compiler.schedule.micro_kernel import constant_like, sequence

# Larger buffers would not stay in the first-level cache anyway, and stacks are not endless.
_MAX_LOCAL_BYTES = 1 << 16


@dataclass(frozen=True, eq=False)
class KeptDim:
    """A dimension of a private buffer: `extent` elements from index `first` on (None is 0)."""

    dim: int
    extent: int
    first: Expr | None = None


class Kernel:
    """The buffers of a function under construction, each seen as one-dimensional."""

    def __init__(self, func: tirx.PrimFunc) -> None:
        self.func = func
        self.declared: list[tirx.Stmt] = []
        self._views: dict[Any, tuple[Any, tuple[KeptDim, ...]]] = {}

    def view(self, buffer: Any) -> tuple[Any, tuple[KeptDim, ...]]:
        """Return the flat buffer behind `buffer`, and the dimensions that index it."""
        if buffer not in self._views:
            size = max(1, prod(shape_of(buffer)))
            flat = tirx.decl_buffer((size,), str(buffer.dtype), f"{buffer.name}_flat", layout=None)
            if any(buffer.same_as(param) for param in self.func.params):
                self.declared.append(tirx.DeclBuffer(flat, data=tirx.buffer_data(buffer)))
            else:
                self.declared.append(tirx.AllocBuffer(flat))
            kept = tuple(KeptDim(dim, extent) for dim, extent in enumerate(shape_of(buffer)))
            self._views[buffer] = (flat, kept)
        return self._views[buffer]

    def keep_privately(self, buffer: Any, dims: Sequence[KeptDim]) -> tirx.Stmt:
        """Store only parts of some dimensions of `buffer`; return the allocation."""
        size = max(1, prod(dim.extent for dim in dims))
        wide = size * tvm.DataType(str(buffer.dtype)).bits // 8 > _MAX_LOCAL_BYTES
        flat = tirx.decl_buffer(
            (size,),
            str(buffer.dtype),
            f"{buffer.name}_row",
            scope="global" if wide else "local",
            layout=None,
        )
        self._views[buffer] = (flat, tuple(dims))
        return tirx.AllocBuffer(flat)

    def address(self, buffer: Any, indices: Sequence[Expr]) -> tuple[Any, Expr]:
        """Return (flat buffer, offset in elements) of one element."""
        flat, dims = self.view(buffer)
        offset: Expr = 0
        for dim in dims:
            index = indices[dim.dim]
            offset = offset * dim.extent + (index if dim.first is None else index - dim.first)
        return flat, offset

    def finish(self, body: tirx.Stmt) -> tirx.PrimFunc:
        """Return the function with its new body."""
        attrs = self.func.attrs
        return tirx.PrimFunc(list(self.func.params), sequence([*self.declared, body]), attrs=attrs)


@dataclass(frozen=True, eq=False)
class Access:
    """One load or store: flat buffer, offset, and its linear form over the axes if it has one."""

    buffer: Any
    offset: Expr
    form: Linear | None


@dataclass(frozen=True, eq=False)
class Loop:
    """Axes walked as one, outermost member first; every access steps evenly through them."""

    members: tuple[Axis, ...]

    @property
    def extent(self) -> int:
        """Product of the members' extents."""
        return prod(axis.extent for axis in self.members)

    @property
    def last(self) -> Any:
        """Variable of the innermost member, whose coefficient is the step of the loop."""
        return self.members[-1].var


class Nest:
    """A value over axes, and the element that it is stored to.

    Args:
        kernel: owner of the buffers.
        outer: axes that loops around the nest walk, in order.
        axes: axes of the nest itself, outermost first. Axes of extent 1 vanish.
        value: an expression over the axes, loading buffers by their logical indices.
        store: (buffer, indices), or None where the value is not stored element by element.
    """

    def __init__(
        self,
        kernel: Kernel,
        outer: Sequence[Axis],
        axes: Sequence[Axis],
        value: Expr,
        store: tuple[Any, Sequence[Expr]] | None,
    ) -> None:
        self.kernel = kernel
        self.dtype = dtype_of([*outer, *axes][0].var) if [*outer, *axes] else "int64"
        units = {a.var: constant_like(0, a.var) for a in [*outer, *axes] if a.extent == 1}
        self.outer = tuple(axis for axis in outer if axis.extent > 1)
        self.axes = tuple(axis for axis in axes if axis.extent > 1)
        self.value = substitute(value, units)
        self.analyzer = sym.Analyzer()
        for axis in (*self.outer, *self.axes):
            self.analyzer.bind(axis.var, range_from_zero(axis.extent))
        self._accesses: dict[Any, Access] = {}
        self.store: Access | None = None
        if store is not None:
            self.store = self._read(store[0], [substitute(index, units) for index in store[1]])
        for load in loads_in(self.value):
            self._accesses[load] = self._read(load.source, list(load.indices))

    def _read(self, buffer: Any, indices: Sequence[Expr]) -> Access:
        flat, offset = self.kernel.address(buffer, indices)
        variables = [axis.var for axis in (*self.outer, *self.axes)]
        if isinstance(offset, int):
            return Access(flat, constant_like(offset, self.dtype), Linear(offset, {}))
        offset = self.analyzer.simplify(offset)
        if any(isinstance(node, TensorLoad) for node in _nodes(offset)):
            return Access(flat, offset, None)
        return Access(flat, offset, linear_form(offset, variables, self.analyzer))

    @property
    def accesses(self) -> list[Access]:
        """All accesses, the store first."""
        return ([] if self.store is None else [self.store]) + list(self._accesses.values())

    def loads(self) -> list[tuple[TensorLoad, Access]]:
        """The loads of the value with their addresses."""
        return list(self._accesses.items())

    def pinned(self) -> set[Any]:
        """Variables that may not be fused: used outside addresses, or in one that is not linear."""
        pinned: set[Any] = set()

        def visit(node: Expr) -> None:
            if isinstance(node, TensorLoad):
                access = self._accesses[node]
                if access.form is None:
                    pinned.update(_variables(access.offset))
                return
            if isinstance(node, tirx.Var):
                pinned.add(node)
            for part in children(node):
                visit(part)

        visit(self.value)
        if self.store is not None and self.store.form is None:
            pinned.update(_variables(self.store.offset))
        return pinned

    def loops(self, axes: Sequence[Axis] | None = None) -> list[Loop]:
        """Return the nest's axes (or the given ones) as loops, neighbours fused where possible."""
        return fuse(self.axes if axes is None else axes, self.accesses, self.pinned())

    def at(self, loops: Sequence[Loop], values: Sequence[Expr], access: Access) -> Expr:
        """Return the offset of an access where each loop has the given value."""
        if access.form is None:
            return self.analyzer.simplify(self._plain(access.offset, loops, values))
        offset: Expr = constant_like(access.form.constant, self.dtype)
        for loop, value in zip(loops, values, strict=True):
            step = access.form.of(loop.last)
            if step:
                offset = offset + value * constant_like(step, self.dtype)
        return offset

    def value_at(
        self,
        loops: Sequence[Loop],
        values: Sequence[Expr],
        replaced: Callable[[TensorLoad], Expr | None] = lambda load: None,
    ) -> Expr:
        """Return the value where each loop has the given value.

        Args:
            loops: all loops around and in the nest.
            values: their values.
            replaced: gives another expression for a load, or None to load it from its buffer.
        """

        def leaf(node: Expr) -> Expr | None:
            if not isinstance(node, TensorLoad):
                return None
            other = replaced(node)
            if other is not None:
                return other
            access = self._accesses[node]
            return tirx.BufferLoad(access.buffer, [self.at(loops, values, access)])

        return self._plain(rebuild(self.value, leaf), loops, values, inside_loads=False)

    def _plain(
        self, expr: Expr, loops: Sequence[Loop], values: Sequence[Expr], inside_loads: bool = True
    ) -> Expr:
        """Substitute loop variables; addresses that were already built are left alone."""
        single = {
            loop.last: value
            for loop, value in zip(loops, values, strict=True)
            if len(loop.members) == 1
        }
        replaced = rebuild(
            expr,
            lambda node: (
                single.get(node)
                if isinstance(node, tirx.Var)
                else node
                if isinstance(node, TensorLoad) and not inside_loads
                else None
            ),
        )
        if not inside_loads:
            return replaced

        def flatten(node: Expr) -> Expr | None:
            if not isinstance(node, TensorLoad):
                return None
            indices = [rebuild(index, flatten) for index in node.indices]
            buffer, offset = self.kernel.address(node.source, indices)
            return tirx.BufferLoad(buffer, [offset])

        return rebuild(replaced, flatten)


def _nodes(expr: Expr) -> list[Expr]:
    found = [expr]
    for part in children(expr):
        found.extend(_nodes(part))
    return found


def _variables(expr: Expr) -> set[Any]:
    return {node for node in _nodes(expr) if isinstance(node, tirx.Var)}


def fuse(axes: Sequence[Axis], accesses: Sequence[Access], pinned: set[Any]) -> list[Loop]:
    """Fuse neighbouring axes that all accesses walk evenly; axes of extent 1 must be gone."""
    loops: list[Loop] = []
    for axis in axes:
        if loops and axis.var not in pinned and loops[-1].last not in pinned:
            before = loops[-1].last
            even = all(
                (
                    access.form is not None
                    and access.form.of(before) == access.form.of(axis.var) * axis.extent
                )
                or (access.form is None and not {before, axis.var} & _variables(access.offset))
                for access in accesses
            )
            if even:
                loops[-1] = Loop((*loops[-1].members, axis))
                continue
        loops.append(Loop((axis,)))
    return loops


def vector_width(extent: int, lanes: int) -> int:
    """Return the widest vector, a power of two, not above `lanes` and `extent`."""
    width = lanes
    while width > extent:
        width //= 2
    return width


def serial(name: str, extent: int, dtype: str, body: Callable[[Expr], tirx.Stmt]) -> tirx.Stmt:
    """Return a serial loop; no loop at all for one step."""
    if extent == 1:
        return body(constant_like(0, dtype))
    return _for(name, extent, dtype, tirx.ForKind.SERIAL, body)


def vector(extent: int, dtype: str, body: Callable[[Expr], tirx.Stmt]) -> tirx.Stmt:
    """Return a vectorised loop; no loop at all for one lane."""
    if extent == 1:
        return body(constant_like(0, dtype))
    return _for("lane", extent, dtype, tirx.ForKind.VECTORIZED, body)


def _for(
    name: str, extent: int, dtype: str, kind: Any, body: Callable[[Expr], tirx.Stmt]
) -> tirx.Stmt:
    variable = tirx.Var(name, dtype)
    zero, count = constant_like(0, dtype), constant_like(extent, dtype)
    return tirx.For(variable, zero, count, kind, body(variable))


def serial_nest(
    loops: Sequence[Loop], dtype: str, body: Callable[[list[Expr]], tirx.Stmt]
) -> tirx.Stmt:
    """Return nested serial loops around `body(values)`."""
    if not loops:
        return body([])
    first, *rest = loops

    def inside(value: Expr) -> tirx.Stmt:
        return serial_nest(rest, dtype, lambda values: body([value, *values]))

    return serial(str(first.last.name), first.extent, dtype, inside)


def tasks(
    loops: Sequence[Loop],
    dtype: str,
    count: int,
    body: Callable[[list[Expr]], tirx.Stmt],
    scratch: Sequence[tirx.Stmt] = (),
) -> tirx.Stmt:
    """Return loops over all `loops`, as `count` parallel tasks if that is more than one.

    Each task walks a contiguous part of the steps and has its own `scratch` allocations.
    """
    total = prod(loop.extent for loop in loops)
    if count <= 1 or total == 1:
        return sequence([*scratch, serial_nest(loops, dtype, body)])

    def step(number: Expr) -> tirx.Stmt:
        binds: list[tirx.Stmt] = []
        values: list[Expr] = []
        rest: Expr = number
        for position, loop in reversed(list(enumerate(loops))):
            variable = tirx.Var(str(loop.last.name), dtype)
            extent = constant_like(loop.extent, dtype)
            binds.append(
                tirx.Bind(variable, rest if position == 0 else tirx.floormod(rest, extent))
            )
            values.insert(0, variable)
            rest = tirx.floordiv(rest, extent)
        return sequence([*binds, body(values)])

    size = -(-total // min(count, total))
    number = -(-total // size)
    if size == 1:
        return _for(
            "task", total, dtype, tirx.ForKind.PARALLEL, lambda t: sequence([*scratch, step(t)])
        )

    def inside(task: Expr) -> tirx.Stmt:
        variable = tirx.Var("step", dtype)
        first = task * constant_like(size, dtype)
        extent: Expr = constant_like(size, dtype)
        if total % size:
            extent = tirx.min(extent, constant_like(total, dtype) - first)
        zero = constant_like(0, dtype)
        loop = tirx.For(variable, zero, extent, tirx.ForKind.SERIAL, step(first + variable))
        return sequence([*scratch, loop])

    return _for("task", number, dtype, tirx.ForKind.PARALLEL, inside)
