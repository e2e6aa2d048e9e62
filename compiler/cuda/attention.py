"""Find attention in a program: two products around a softmax, which one kernel can compute.

    scores = Q K^T -> scale, mask -> softmax -> times V

Here these are three launches or more, and the scores travel through memory between them. What is
found is described as one `Attention`; `attention_kernel` writes its kernel. Copies that only move
Q, K or V (heads are split off by reshape and transpose) are read through.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from math import prod
from typing import Any

import tvm
from tvm import tirx
from tvm.ir import Call as Function
from tvm.ir import TensorLoad

from tilewright.compiler.cuda.parts import Part, is_at_own_index, is_axis, is_identity
from tilewright.compiler.cuda.product import FLOATS, Product, read_product
from tilewright.compiler.program import Program, Tensor
from tilewright.compiler.schedule.analysis import Stage, inline_loads
from tilewright.compiler.schedule.expressions import Expr, loads_in, shape_of

_MOST_DEPTH = 128
"""Longest head: a thread keeps a row's share of the result and of the scores in registers."""


@dataclass(frozen=True, eq=False)
class Step:
    """A call that is one launch.

    Attributes:
        call: its position in the program.
        part: the launch.
        tensors: of its buffers: their tensors.
        writes: the tensor that it computes.
    """

    call: int
    part: Part
    tensors: dict[Any, int]
    writes: int


@dataclass(frozen=True, eq=False)
class Attention:
    """softmax(f(Q K^T)) V.

    Attributes:
        calls: positions of the calls that it replaces, in order.
        scores: Q times K: rows are queries, the column is the last axis, the keys.
        stores: what becomes of a score before the softmax, one after the other, and for each the
            buffer in which it finds the score.
        values: P times V: the same batch and rows, depth are the keys.
        last: the part around `values`, with its epilogue.
        tensors: of all buffers that are read or written: their tensors.
    """

    calls: tuple[int, ...]
    scores: Product
    stores: tuple[tuple[Stage, Any], ...]
    values: Product
    last: Part
    tensors: dict[Any, int] = field(repr=False)

    @property
    def depth(self) -> int:
        """The longest of the vectors of queries and of values."""
        return max(self.scores.sizes[3], self.values.sizes[2])


def find_attention(
    program: Program, tensors: Sequence[Tensor], step_of: Callable[[int], Step | None]
) -> list[Attention]:
    """Return the attention in a program.

    Args:
        program: calls in order, before they are cut into launches.
        tensors: of the program, as they are stored.
        step_of: gives a call by its position as one launch, or None where it is several.
    """
    return _Finder(program, tensors, step_of).all()


def unread_copies(program: Program, fused: Sequence[Attention]) -> frozenset[int]:
    """Return the calls that nothing reads once attention reads through them."""
    if not fused:
        return frozenset()
    kept = {program.storage_of(index) for index in program.outputs}
    replaced = {number for attention in fused for number in attention.calls}
    read = {program.storage_of(i) for attention in fused for i in attention.tensors.values()}
    unused = set()
    # From the end: what only unread calls read is unread too.
    for number in reversed(range(len(program.calls))):
        call = program.calls[number]
        if number in replaced:
            continue
        owners = {program.storage_of(index) for index in call.writes}
        if owners & (read | kept):
            read |= {program.storage_of(index) for index in call.reads}
        else:
            unused.add(number)
    return frozenset(unused)


class _Finder:
    def __init__(
        self, program: Program, tensors: Sequence[Tensor], step_of: Callable[[int], Step | None]
    ) -> None:
        self.program, self.step_of = program, step_of
        self.readers: dict[int, list[int]] = {}
        self.made_by: dict[int, int] = {}
        for number, call in enumerate(program.calls):
            for index in set(call.reads):
                self.readers.setdefault(index, []).append(number)
            for index in call.writes:
                self.made_by[index] = number
        aliased = {tensor.alias_of for tensor in tensors if tensor.alias_of is not None}
        self.is_kept = {program.storage_of(index) for index in program.outputs} | aliased

    def all(self) -> list[Attention]:
        found = [self._from(number) for number in range(len(self.program.calls))]
        return [attention for attention in found if attention is not None]

    def _from(self, number: int) -> Attention | None:
        """Return the attention whose scores a call computes."""
        first = self._step(number, "reduction")
        if first is None or read_product(first.part) is None:
            return None
        first, factors = self._read_through(first)
        scores = read_product(first.part)
        if scores is None or not _is_float(scores) or not _keys_are_last(scores, first.part):
            return None
        steps = [first]
        while True:
            following = self._only_reader(steps[-1])
            if following is None:
                return None
            step = self.step_of(following)
            if step is None:
                return None
            steps.append(step)
            if step.part.kind != "elementwise":
                break
            if not _keeps_place(step, steps[-2].writes):
                return None
        if not _is_softmax(steps[-1], steps[-2].writes):
            return None
        stores = tuple(_stores(first, steps[1:-1], factors))
        following = self._only_reader(steps[-1])
        last = None if following is None else self._step(following, "reduction")
        if last is None:
            return None
        last, others = self._read_through(last)
        values = read_product(last.part)
        if values is None or not _is_float(values) or others:
            return None
        if not _reads_rows_of(values, last, steps[-1].writes, scores, first.part):
            return None
        last, moved = self._write_through(last)
        steps += [last, *moved]
        attention = Attention(
            tuple(step.call for step in steps),
            scores,
            stores,
            values,
            last.part,
            {buffer: index for step in steps for buffer, index in step.tensors.items()},
        )
        return attention if attention.depth <= _MOST_DEPTH else None

    def _step(self, number: int, kind: str) -> Step | None:
        step = self.step_of(number)
        return step if step is not None and step.part.kind == kind else None

    def _only_reader(self, step: Step) -> int | None:
        """Return the only call that reads what a step computes, if nothing else needs it."""
        readers = self.readers.get(step.writes, [])
        is_free = self.program.storage_of(step.writes) not in self.is_kept
        return readers[0] if is_free and len(readers) == 1 else None

    def _read_through(self, step: Step) -> tuple[Step, list[Expr]]:
        """Return a product that reads what copies before it read, where it still is one.

        Also what the copies multiply all elements by.
        """
        factors: list[Expr] = []
        for load in loads_in(step.part.reductions[0].term):
            copied = self._copy(step.tensors[load.source])
            if copied is None:
                continue
            moved = copied.part.stores[0]
            value, scales = _scaled(moved.value)
            reduction = step.part.reductions[0]
            term = inline_loads(reduction.term, {load.source: replace(moved, value=value)})
            reads = [b for b in step.part.reads if not b.same_as(load.source)]
            part = replace(
                step.part,
                reductions=(replace(reduction, term=term),),
                reads=(*reads, *copied.part.reads),
            )
            product = read_product(part)
            if product is None or None in (product.a.offset, product.b.offset):
                continue
            known = {b: i for b, i in step.tensors.items() if not b.same_as(load.source)}
            sources = {b: i for b, i in copied.tensors.items() if i != copied.writes}
            step = replace(step, part=part, tensors=known | sources)
            factors += scales
        return step, factors

    def _write_through(self, step: Step) -> tuple[Step, list[Step]]:
        """Return a product that writes where the copy after it would, and that copy."""
        number = self._only_reader(step)
        copied = None if number is None else self._step(number, "elementwise")
        if copied is None or not is_identity(copied.part.stores[0]):
            return step, []
        moved = copied.part.stores[0]
        load = _plain(moved.value)
        stage = (step.part.stores or (step.part.reductions[0].stage,))[-1]
        if not isinstance(load, TensorLoad) or not is_identity(stage):
            return step, []
        indices = _inverse(moved, load, stage)
        if indices is None:
            return step, []
        stage = replace(stage, buffer=moved.buffer, indices=indices)
        part = replace(step.part, writes=(moved.buffer,))
        if part.stores:
            part = replace(part, stores=(stage,))
        else:
            part = replace(part, reductions=(replace(part.reductions[0], stage=stage),))
        tensors = step.tensors | {moved.buffer: copied.writes}
        return replace(step, part=part, tensors=tensors, writes=copied.writes), [copied]

    def _copy(self, index: int) -> Step | None:
        """Return the call that computes a tensor, if it only moves and scales elements."""
        number = self.made_by.get(index)
        step = None if number is None else self._step(number, "elementwise")
        if step is None or not is_identity(step.part.stores[0]):
            return None
        value, _ = _scaled(step.part.stores[0].value)
        return step if isinstance(_plain(value), TensorLoad) else None


def _inverse(moved: Stage, load: TensorLoad, stage: Stage) -> tuple[Expr, ...] | None:
    """Return where each element of a stage ends up in a copy of it, or None if not once.

    Args:
        moved: the copy.
        load: what it reads.
        stage: writes what is read, element by element.
    """
    pairs = zip(load.indices, stage.spatial, strict=True)
    real = [(index, axis) for index, axis in pairs if axis.extent > 1]
    mapping = tirx.IndexMap([axis.var for axis in moved.spatial], [i for i, _ in real], None)
    try:
        inverse = mapping.inverse([axis.extent for axis in moved.spatial])
    except (tvm.error.InternalError, ValueError):  # not one to one
        return None
    return tuple(inverse.map_indices([axis.var for _, axis in real]))


def _is_float(product: Product) -> bool:
    """Tell whether both factors are floats as they lie in memory."""
    return all(
        operand.offset is not None and operand.dtype in FLOATS for operand in (product.a, product.b)
    )


def _keys_are_last(product: Product, part: Part) -> bool:
    """Tell whether the last axis of the scores, and no other, is one of keys."""
    stage = part.reductions[0].stage
    whole = len(product.stage.spatial) == len(stage.spatial) and is_identity(stage)
    columns = [axis for axis in product.columns if axis.extent > 1]
    is_stored = all(_keeps_own(store, stage.buffer) for store in part.stores)
    return whole and is_stored and columns == [product.stage.spatial[-1]]


def _keeps_own(store: Stage, buffer: Any) -> bool:
    """Tell whether a store writes where it reads a buffer."""
    loads = [load for load in loads_in(store.value) if load.source.same_as(buffer)]
    rank = len(store.spatial)
    return is_identity(store) and all(is_at_own_index(x.indices, store, rank) for x in loads)


def _keeps_place(step: Step, index: int) -> bool:
    """Tell whether an element-wise call changes each element of a tensor where it is."""
    buffers = [buffer for buffer, known in step.tensors.items() if known == index]
    return len(step.part.stores) == 1 and all(
        _keeps_own(step.part.stores[0], buffer) for buffer in buffers
    )


def _stores(
    first: Step, others: Sequence[Step], factors: Sequence[Expr]
) -> list[tuple[Stage, Any]]:
    """Return what becomes of a score, and the buffer in which each store finds it."""
    stage = first.part.reductions[0].stage
    found = []
    if factors:
        score: Any = tirx.BufferLoad(stage.buffer, list(stage.indices))
        for factor in factors:
            score = score * factor
        found.append((replace(stage, reduction=(), value=score, init=None), stage.buffer))
    found += [(store, stage.buffer) for store in first.part.stores]
    before = first.writes
    for step in others:
        given = next(buffer for buffer, index in step.tensors.items() if index == before)
        found.append((step.part.stores[0], given))
        before = step.writes
    return found


def _is_softmax(step: Step, index: int) -> bool:
    """Tell whether a call is the softmax of a tensor along its last axis."""
    part = step.part
    if part.kind != "rows" or len(part.reductions) != 2 or len(part.stores) != 1:
        return False
    top, total = part.reductions
    (store,) = part.stores
    if (top.combine, total.combine) != ("max", "add") or not is_identity(store):
        return False
    ratio = _plain(store.value)
    if not isinstance(ratio, tirx.Div) or not _loads(ratio.b, total.stage.buffer):
        return False
    scores = [buffer for buffer, known in step.tensors.items() if known == index]
    return (
        _is_row(top.term, top.stage, scores)
        and _is_shifted(total.term, total.stage, scores, top.stage.buffer)
        and _is_shifted(ratio.a, store, scores, top.stage.buffer)
    )


def _is_shifted(expr: Expr, stage: Stage, scores: Sequence[Any], top: Any) -> bool:
    """Tell whether an expression is exp(score - greatest score of the row)."""
    call = _plain(expr)
    if not isinstance(call, Function) or not str(getattr(call.op, "name", "")).endswith(".exp"):
        return False
    shifted = _plain(call.args[0])
    is_difference = isinstance(shifted, tirx.Sub) and _loads(shifted.b, top)
    return is_difference and _is_row(shifted.a, stage, scores)


def _is_row(expr: Expr, stage: Stage, scores: Sequence[Any]) -> bool:
    """Tell whether an expression is the score of a step: all axes in order, the keys last."""
    load = _plain(expr)
    if not isinstance(load, TensorLoad) or not any(load.source.same_as(b) for b in scores):
        return False
    axes = [*stage.spatial, *stage.reduction]
    return len(axes) == len(load.indices) and all(
        is_axis(index, axis) for index, axis in zip(load.indices, axes, strict=True)
    )


def _reads_rows_of(values: Product, last: Step, index: int, scores: Product, first: Part) -> bool:
    """Tell whether the left factor of a product is a tensor of the same rows as the scores."""
    load, stage = values.a.load, last.part.reductions[0].stage
    if load is None or last.tensors.get(load.source) != index or not is_identity(stage):
        return False
    if len(values.stage.spatial) != len(stage.spatial) or len(values.depth) != 1:
        return False
    axes = (*values.stage.spatial[:-1], values.depth[0])
    if len(axes) != len(load.indices):
        return False
    if not all(is_axis(i, axis) for i, axis in zip(load.indices, axes, strict=True)):
        return False
    columns = [axis for axis in values.columns if axis.extent > 1]
    same = _places(values.batch, values) == _places(scores.batch, scores) and _places(
        values.rows, values
    ) == _places(scores.rows, scores)
    return same and columns == [values.stage.spatial[-1]]


def _places(axes: Sequence[Any], product: Product) -> list[int]:
    """Return the positions of the axes among those of the result, single elements left out."""
    spatial = product.stage.spatial
    return [
        number
        for number, axis in enumerate(spatial)
        if axis.extent > 1 and any(axis.var.same_as(other.var) for other in axes)
    ]


def _plain(expr: Expr) -> Expr:
    while isinstance(expr, tirx.Cast):
        expr = expr.value
    return expr


def _scaled(expr: Expr) -> tuple[Expr, list[Expr]]:
    """Return an expression without the numbers that multiply it, and these."""
    factors: list[Expr] = []
    while isinstance(_plain(expr), tirx.Mul):
        product = _plain(expr)
        number = next((f for f in (product.a, product.b) if _is_number(f)), None)
        if number is None:
            break
        expr = product.b if number is product.a else product.a
        factors.append(number)
    return expr, factors


def _is_number(expr: Expr) -> bool:
    """Tell whether an expression is a constant, or the only element of a tensor."""
    value = _plain(expr)
    if isinstance(value, TensorLoad):
        return prod(shape_of(value.source)) == 1
    return isinstance(value, tirx.FloatImm | tirx.IntImm)


def _loads(expr: Expr, buffer: Any) -> bool:
    load = _plain(expr)
    return isinstance(load, TensorLoad) and load.source.same_as(buffer)
