"""What no schedule of ours covers (sorts, scans, scatters): loops as they are written, by dlight.

`dlight.gpu.Fallback` of TVM gives the axes of each block to threads. Most of these functions are
loops without blocks, so they become blocks first: a loop whose iterations are independent has an
axis, anything else is a step of one thread. Each block is a launch.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import count, takewhile
from math import prod
from typing import Any

from tvm import s_tir, sym, tirx
from tvm.ir import Range, TensorLoad
from tvm.s_tir.dlight.gpu import Fallback
from tvm.target import Target
from tvm_ffi import structural_equal, structural_walk

from tilewright.compiler.cuda.ctext import STORED, Printer, computed_type, loaded, stored
from tilewright.compiler.cuda.kernel import Kernel, block, head
from tilewright.compiler.cuda.targets import CudaTarget
from tilewright.compiler.program import item_bytes
from tilewright.compiler.schedule.expressions import dtype_of, flat_index, linear_form
from tilewright.errors import CompileError

_THREADS = 128
# What GPUs add to memory by one instruction.
_ADDED = ("float32", "float64", "int32", "uint32", "int64", "uint64")
Built = tuple[Kernel, tuple[Any, ...], tuple[Any, ...]]
"""A kernel, the buffers that it only reads, and those that it writes."""


def fallback_kernels(
    func: tirx.PrimFunc, name: str, target: CudaTarget, stored_as: dict[Any, Any]
) -> list[Built]:
    """Return the kernels that compute an unscheduled function, in order.

    Args:
        func: of any form.
        name: prefix of the kernels' names.
        target: the GPU.
        stored_as: parameter -> the buffer of another dtype that stands for it in memory.

    Raises:
        CompileError: dlight has no schedule for it, or a statement has no CUDA C.
    """
    schedule = Fallback().apply(_in_blocks(func), _dlight_target(target), False)
    if schedule is None:
        raise CompileError("dlight has no schedule for its blocks")
    nests = _statements(schedule.mod["main"].body.block.body)
    return [
        _launch(nest, name if len(nests) == 1 else f"{name}_{number}", stored_as)
        for number, nest in enumerate(nests)
    ]


def _dlight_target(target: CudaTarget) -> Target:
    return Target({"kind": "cuda", "arch": target.arch, "max_threads_per_block": _THREADS})


def _statements(stmt: Any) -> list[Any]:
    """Return the statements of a sequence, without the pragmas around them."""
    if isinstance(stmt, tirx.SeqStmt):
        return [inner for part in stmt.seq for inner in _statements(part)]
    return _statements(stmt.body) if isinstance(stmt, tirx.AttrStmt) else [stmt]


# ---- loops as blocks ----


def _in_blocks(func: tirx.PrimFunc) -> tirx.PrimFunc:
    """Return a function whose loops without blocks are blocks."""
    root = func.body
    if not isinstance(root, s_tir.SBlockRealize):
        raise CompileError("its body is no block")
    statements = []
    is_alone = not any(_holds_block(stmt) for stmt in _statements(root.block.body))
    for stmt in _statements(root.block.body):
        if isinstance(stmt, s_tir.SBlockRealize) and not stmt.block.iter_vars:
            statements += [_as_block(inner) for inner in _statements(stmt.block.body)]
        else:
            statements.append(_as_block(stmt) if is_alone else stmt)
    body = statements[0] if len(statements) == 1 else tirx.SeqStmt(statements)
    whole = s_tir.SBlock([], [], [], "root", body, alloc_buffers=root.block.alloc_buffers)
    realized = s_tir.SBlockRealize([], tirx.const(True), whole)
    return tirx.PrimFunc(func.params, realized).with_attr("global_symbol", "main")


def _holds_block(stmt: Any) -> bool:
    while isinstance(stmt, tirx.For):
        stmt = stmt.body
    return isinstance(stmt, s_tir.SBlockRealize)


def _as_block(stmt: Any) -> Any:
    """Return a statement as a block, with axes where its iterations may run at once.

    Blocks say nothing of what they touch: they stay in this order, each in a launch of its own.
    """
    loops, body = _loops(stmt)
    axes = [
        tirx.IterVar(
            Range.from_min_extent(loop.min, loop.extent), loop.loop_var, tirx.IterVar.DataPar
        )
        for loop in loops
    ]
    variables = [tirx.Var(loop.loop_var.name, dtype_of(loop.loop_var)) for loop in loops]
    block = s_tir.SBlock(axes, [], [], "loop" if loops else "step", body)
    nest: Any = s_tir.SBlockRealize(variables, tirx.const(True), block)
    for loop, var in reversed(list(zip(loops, variables, strict=True))):
        nest = tirx.For(var, loop.min, loop.extent, tirx.ForKind.SERIAL, nest)
    return nest


def _loops(stmt: Any) -> tuple[list[tirx.For], Any]:
    """Return the outer loops whose iterations may run at once, and what is inside them."""
    loops, body = [], stmt
    while _counts_from_zero(body):
        loops.append(body)
        body = body.body
    if isinstance(body, tirx.BufferStore) and _has_any_order(body, loops):
        return loops, body
    parallel = list(takewhile(lambda loop: loop.kind == tirx.ForKind.PARALLEL, loops))
    return parallel, parallel[-1].body if parallel else stmt


def _counts_from_zero(stmt: Any) -> bool:
    """Tell whether a statement is a loop from 0 to a constant."""
    return (
        isinstance(stmt, tirx.For)
        and isinstance(stmt.extent, tirx.IntImm)
        and isinstance(stmt.min, tirx.IntImm)
        and int(stmt.min) == 0
    )


def _has_any_order(store: tirx.BufferStore, loops: Sequence[tirx.For]) -> bool:
    """Tell whether a store may run for all values of the loops at once.

    Where the place comes from data, several may hit one element: ONNX has no order for them
    (ScatterND, ScatterElements: "indices must not repeat"; with a reduction, they are combined).
    """
    if _update_of(store) is not None:
        return True
    if any(load.source.same_as(store.buffer) for load in _loads(store)):
        return False
    if any(_loads(index) for index in store.indices):
        return True
    flat = flat_index(store.buffer, store.indices)
    place = linear_form(flat, [loop.loop_var for loop in loops], sym.Analyzer())
    if place is None:
        return False
    steps = sorted((abs(place.of(loop.loop_var)), int(loop.extent)) for loop in loops)
    reached = 0
    for step, extent in steps:
        if extent > 1 and step <= reached:
            return False
        reached += step * (extent - 1)
    return True


def _update_of(store: tirx.BufferStore) -> tuple[Any, Any] | None:
    """Return how a store combines what is there with a value, and the value; None for any other.

    The place comes from data, so that several may hit one element; words of memory can be combined
    in any order.
    """
    value, buffer = store.value, store.buffer
    if not isinstance(value, tirx.Add | tirx.Mul | tirx.Max | tirx.Min):
        return None
    if not any(_loads(index) for index in store.indices) or item_bytes(str(buffer.dtype)) < 2:
        return None
    for old, new in ((value.a, value.b), (value.b, value.a)):
        is_same = (
            isinstance(old, TensorLoad)
            and old.source.same_as(buffer)
            and all(map(structural_equal, old.indices, store.indices))
        )
        others = [load for part in (new, *store.indices) for load in _loads(part)]
        if is_same and not any(load.source.same_as(buffer) for load in others):
            return type(value), new
    return None


def _loads(stmt: Any) -> list[TensorLoad]:
    found: list[TensorLoad] = []
    structural_walk(stmt, [(TensorLoad, found.append)], order="post")
    return found


def _stores(stmt: Any) -> list[tirx.BufferStore]:
    found: list[tirx.BufferStore] = []
    structural_walk(stmt, [(tirx.BufferStore, found.append)], order="post")
    return found


# ---- statements as CUDA C ----


def _launch(nest: Any, name: str, stored_as: dict[Any, Any]) -> Built:
    """Return one nest of blocks and threads as a kernel."""
    extents, stmt, bound = {}, nest, {}
    while isinstance(stmt, tirx.For) and stmt.kind == tirx.ForKind.THREAD_BINDING:
        tag = str(stmt.thread_binding.thread_tag)
        extents[tag], bound[stmt.loop_var] = int(stmt.extent), tag
        stmt = stmt.body
    if set(extents) != {"blockIdx.x", "threadIdx.x"}:
        raise CompileError("dlight left a loop without threads")
    writes = _distinct(store.buffer for store in _stores(stmt))
    reads = [
        buffer
        for buffer in _distinct(load.source for load in _loads(stmt))
        if not any(buffer.same_as(other) for other in writes)
    ]
    in_memory = [[stored_as.get(b, b) for b in group] for group in (reads, writes)]
    names = {b: f"in{i}" for i, b in enumerate(reads)}
    names |= {b: f"out{i}" for i, b in enumerate(writes)}
    writer = _Writer(names, stored_as, bound)
    threads = extents["threadIdx.x"]
    lines = [f"{head(name, threads, *in_memory)} {{", *writer.statement(stmt), "}"]
    grid = (extents["blockIdx.x"], 1, 1)
    label = f"dlight fallback, {_at_once(stmt)} at once"
    kernel = Kernel(name, block(lines), grid, threads, 0, label)
    return kernel, tuple(in_memory[0]), tuple(in_memory[1])


def _at_once(stmt: Any) -> int:
    """Return how many threads of a nest have something to do."""
    realized: list[Any] = []
    structural_walk(stmt, [(s_tir.SBlockRealize, realized.append)], order="pre")
    axes = realized[0].block.iter_vars if realized else ()
    return prod(int(a.dom.extent) for a in axes if a.iter_type == tirx.IterVar.DataPar)


def _distinct(buffers: Iterable[Any]) -> list[Any]:
    found: list[Any] = []
    for buffer in buffers:
        if not any(buffer.same_as(other) for other in found):
            found.append(buffer)
    return found


class _Writer:
    def __init__(
        self, names: dict[Any, str], stored_as: dict[Any, Any], bound: dict[Any, str]
    ) -> None:
        self.names, self.stored_as = names, stored_as
        self.numbers = count()
        self.printer = Printer((), bound, names, self._load)

    def _load(self, load: TensorLoad) -> str | None:
        memory = self.stored_as.get(load.source)
        return None if memory is None else loaded(self.printer.place(load), str(memory.dtype))

    def _name(self, var: Any) -> str:
        """Name a variable of the text, which no other has."""
        name = f"v{next(self.numbers)}"
        self.printer.names[var] = name
        return name

    def statement(self, stmt: Any) -> list[str]:
        """Return the CUDA C of a statement.

        Raises:
            CompileError: there is none.
        """
        if isinstance(stmt, tirx.SeqStmt | tirx.AttrStmt):
            return [line for part in _statements(stmt) for line in self.statement(part)]
        if isinstance(stmt, tirx.For):
            return self._loop(stmt)
        if isinstance(stmt, s_tir.SBlockRealize):
            return self._block(stmt)
        if isinstance(stmt, tirx.Bind):
            value, kind = self.printer.text(stmt.value), computed_type(dtype_of(stmt.var))
            return [f"const {kind} {self._name(stmt.var)} = {value};"]
        if isinstance(stmt, tirx.BufferStore):
            memory = self.stored_as.get(stmt.buffer, stmt.buffer)
            update = _update_of(stmt)
            if update is not None:
                return self._update(stmt, str(memory.dtype), *update)
            place = f"{self.names[stmt.buffer]}[{self.printer.index(stmt.buffer, stmt.indices)}]"
            return [f"{place} = {stored(self.printer.text(stmt.value), str(memory.dtype))};"]
        if isinstance(stmt, tirx.IfThenElse):
            return self._branch(stmt)
        raise CompileError(f"a statement of kind {type(stmt).__name__} has no CUDA C")

    def _update(self, store: tirx.BufferStore, dtype: str, combine: Any, value: Any) -> list[str]:
        """Return what combines a value with an element that other threads may change."""
        at = f"&{self.names[store.buffer]}[{self.printer.index(store.buffer, store.indices)}]"
        kind, text = computed_type(dtype_of(value)), self.printer.text(value)
        if combine is tirx.Add and dtype in _ADDED:
            return [f"tw_add({at}, ({STORED[dtype]}){text});"]
        old, new = (tirx.Var(name, dtype_of(value)) for name in ("old", "value"))
        self.printer.names |= {old: loaded("old", dtype), new: "value"}
        combined = stored(self.printer.text(combine(old, new)), dtype)
        function = f"[=]({STORED[dtype]} old) {{ return {combined}; }}"
        return ["{", f"const {kind} value = {text};", f"tw_update({at}, {function});", "}"]

    def _loop(self, loop: tirx.For) -> list[str]:
        first, extent = self.printer.text(loop.min, True), self.printer.text(loop.extent, True)
        kind, name = computed_type(dtype_of(loop.loop_var)), self._name(loop.loop_var)
        return [
            f"for ({kind} {name} = {first}; {name} < {first} + {extent}; ++{name}) {{",
            *self.statement(loop.body),
            "}",
        ]

    def _block(self, realize: Any) -> list[str]:
        inner = realize.block
        if inner.init is not None or inner.alloc_buffers:
            raise CompileError("dlight left a reduction whose first value is inside its block")
        lines = []
        for axis, value in zip(inner.iter_vars, realize.iter_values, strict=True):
            text = self.printer.text(value, True)
            lines.append(
                f"const {computed_type(dtype_of(axis.var))} {self._name(axis.var)} = {text};"
            )
        body = self.statement(inner.body)
        is_always = isinstance(realize.predicate, tirx.IntImm) and bool(int(realize.predicate))
        if not is_always:
            body = [f"if ({self.printer.text(realize.predicate, True)}) {{", *body, "}"]
        return ["{", *lines, *body, "}"]

    def _branch(self, branch: tirx.IfThenElse) -> list[str]:
        lines = [f"if ({self.printer.text(branch.condition)}) {{"]
        lines += self.statement(branch.then_case)
        if branch.else_case is not None:
            lines += ["}", "else {", *self.statement(branch.else_case)]
        return [*lines, "}"]
