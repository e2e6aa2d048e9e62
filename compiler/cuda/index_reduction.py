"""Arg-max and arg-min as two reductions with one result each.

TVM writes them as one block that carries the best value and its index. Here the best value comes
first; then the least index whose element is not worse, which a warp finds like any other minimum.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from tvm import sym, tirx
from tvm.ir import TensorLoad
from tvm_ffi import structural_equal

from tilewright.compiler.schedule.analysis import Stage, read_block, read_blocks
from tilewright.compiler.schedule.expressions import Expr, dtype_of, linear_form

_HIGHEST = {"int32": 2**31 - 1, "int64": 2**63 - 1}


@dataclass(frozen=True, eq=False)
class _Pair:
    """The two results of a block: `Select(own value is better, own, other)`, and of indices."""

    value: tirx.BufferStore
    index: tirx.BufferStore
    term: Expr
    place: Expr
    is_max: bool


def read_gpu_stages(func: tirx.PrimFunc) -> tuple[Stage, ...] | None:
    """Return the stages of an unscheduled function in order, index reductions as two.

    Returns:
        None where a block is of another form (a sort, a scan, an opaque block).
    """
    blocks = read_blocks(func)
    if blocks is None:
        return None
    stages: list[Stage] = []
    for block in blocks:
        stage = read_block(block)
        found = (stage,) if stage is not None else _index_reduction(block)
        if found is None:
            return None
        stages += found
    return tuple(stages)


def _index_reduction(block: Any) -> tuple[Stage, Stage] | None:
    """Return a block that carries a value and its index as the reductions of both."""
    pair = _read_pair(block)
    if pair is None:
        return None
    index_dtype, value_dtype = str(pair.index.buffer.dtype), str(pair.value.buffer.dtype)
    if index_dtype not in _HIGHEST:
        return None
    own: Any = tirx.BufferLoad(pair.value.buffer, list(pair.value.indices))
    combine, worse = (tirx.Max, tirx.LT) if pair.is_max else (tirx.Min, tirx.GT)
    bound = tirx.min_value(value_dtype) if pair.is_max else tirx.max_value(value_dtype)
    if value_dtype.startswith(("float", "bfloat")):
        # The finite bound would not be met by a row of infinities.
        bound = tirx.const(float("-inf" if pair.is_max else "inf"), value_dtype)
    value = read_block(_with_body(block, pair.value, combine(own, pair.term), bound))
    # Not worse, so that an element that is not a number leaves an index of the row.
    none = tirx.const(_HIGHEST[index_dtype], index_dtype)
    candidate = tirx.Select(worse(pair.term, own), none, pair.place)
    own_index = tirx.BufferLoad(pair.index.buffer, list(pair.index.indices))
    index = read_block(_with_body(block, pair.index, tirx.Min(own_index, candidate), none))
    if value is None or index is None:
        return None
    return replace(value, name=f"{value.name}_value"), index


def _with_body(block: Any, store: tirx.BufferStore, update: Expr, init: Expr) -> Any:
    """Return a block with the axes of another that reduces into one element."""

    def body(value: Expr) -> tirx.BufferStore:
        return tirx.BufferStore(store.buffer, value, list(store.indices))

    return type(block)(block.iter_vars, [], [], block.name_hint, body=body(update), init=body(init))


def _read_pair(block: Any) -> _Pair | None:
    if not isinstance(block.body, tirx.SeqStmt) or block.init is None:
        return None
    bound = {s.var: s.value for s in block.body.seq if isinstance(s, tirx.Bind)}
    stores = [s for s in block.body.seq if isinstance(s, tirx.BufferStore)]
    if len(stores) != 2 or len(bound) + len(stores) != len(block.body.seq):
        return None
    values = [bound.get(store.value, store.value) for store in stores]
    if not all(isinstance(value, tirx.Select) for value in values):
        return None
    for value, index in ((1, 0), (0, 1)):
        found = _match(stores[value], values[value], stores[index], values[index])
        if found is not None:
            return found
    return None


def _match(value: Any, value_choice: Any, index: Any, index_choice: Any) -> _Pair | None:
    """Read `v = Select(v > x, v, x)` and `i = Select(v > x or (v == x and i < k), i, k)`."""
    better = value_choice.condition
    if isinstance(better, tirx.Or):  # ties keep the value, whichever it is
        better = better.a
    if not isinstance(better, tirx.GT | tirx.LT):
        return None
    term = value_choice.false_value
    if not (_is_own(better.a, value) and structural_equal(better.b, term)):
        return None
    place, either = index_choice.false_value, index_choice.condition
    if not isinstance(either, tirx.Or) or not structural_equal(either.a, better):
        return None
    tie = either.b
    is_first = (
        isinstance(tie, tirx.And)
        and isinstance(tie.a, tirx.EQ)
        and _is_own(tie.a.a, value)
        and structural_equal(tie.a.b, term)
        and isinstance(tie.b, tirx.LT)
        and _is_own(tie.b.a, index)
        and _is_same_place(tie.b.b, place)
    )
    if not (is_first and _is_own(value_choice.true_value, value)):
        return None
    if not _is_own(index_choice.true_value, index):
        return None
    return _Pair(value, index, term, place, isinstance(better, tirx.GT))


def _is_own(expr: Expr, store: Any) -> bool:
    """Tell whether an expression reads the element that a store writes."""
    return (
        isinstance(expr, TensorLoad)
        and expr.source.same_as(store.buffer)
        and all(structural_equal(a, b) for a, b in zip(expr.indices, store.indices, strict=True))
    )


def _is_same_place(one: Expr, other: Expr) -> bool:
    if dtype_of(one) != dtype_of(other):
        return False
    difference = linear_form(one - other, [], sym.Analyzer())
    return difference is not None and difference.constant == 0
