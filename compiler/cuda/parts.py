"""Cut a fused PrimFunc into parts that are one launch each.

    matmul, add, relu            -> one product with an epilogue
    max, exp, sum, divide        -> rows: several reductions over the same rows, then a store
    pad, window maximum          -> one reduction
    reductions of other domains  -> one launch each, with temporary tensors between them

Stages without a reduction are inlined where they are read.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import prod
from typing import Any, Literal

from tvm import tirx
from tvm.ir import TensorLoad

from tilewright.compiler.cuda.index_reduction import read_gpu_stages
from tilewright.compiler.schedule.analysis import Axis, Stage, inline_loads
from tilewright.compiler.schedule.expressions import (
    Expr,
    children,
    loads_in,
    shape_of,
)
from tilewright.errors import CompileError

Kind = Literal["elementwise", "reduction", "rows"]
Combine = Literal["add", "mul", "max", "min", "and", "or"]
_COMBINERS: dict[type, Combine] = {
    tirx.Add: "add",
    tirx.Mul: "mul",
    tirx.Max: "max",
    tirx.Min: "min",
    tirx.And: "and",
    tirx.Or: "or",
}
# A stage that would be written out this many times, weighed by its size, gets memory instead.
_MAX_NODES = 4000


@dataclass(frozen=True, eq=False)
class Reduction:
    """A stage `buffer = combine(init, term over the reduction axes)`, producers inlined."""

    stage: Stage
    combine: Combine
    term: Expr
    init: Expr

    @property
    def dtype(self) -> str:
        """Dtype of the result."""
        return str(self.stage.buffer.dtype)


@dataclass(frozen=True, eq=False)
class Part:
    """One launch.

    Attributes:
        kind: "elementwise" has no reduction; "reduction" has one and may end in `stores[0]`;
            "rows" has several over the same spatial axes.
        reductions: in order; a later one may read the results of those before.
        stores: what is written after them; empty where the reduction itself is the result.
        reads, writes: buffers in device memory.
    """

    kind: Kind
    reductions: tuple[Reduction, ...]
    stores: tuple[Stage, ...]
    reads: tuple[Any, ...]
    writes: tuple[Any, ...]


def split(func: tirx.PrimFunc) -> tuple[Part, ...]:
    """Return the launches that compute an unscheduled function, in order.

    Raises:
        CompileError: the function has blocks of another form (a sort, a scan, several results of
            one reduction), which `fallback` is for.
    """
    stages = read_gpu_stages(func)
    if stages is None:
        raise CompileError(
            "it is not a sequence of blocks that each compute one tensor (a sort, a scan or a "
            "reduction with several results)"
        )
    return _Splitter(func, stages).parts()


def is_split(func: tirx.PrimFunc) -> bool:
    """Tell whether `split` knows what a function computes."""
    try:
        split(func)
    except CompileError:
        return False
    return True


class _Splitter:
    def __init__(self, func: tirx.PrimFunc, stages: tuple[Stage, ...]) -> None:
        self.params = list(func.params)
        self.stages = stages
        self.made = {stage.buffer: stage for stage in stages}
        readers: dict[Any, int] = {}
        for stage in stages:
            for load in loads_in(stage.value):
                readers[load.source] = readers.get(load.source, 0) + 1
        self.inlined = self._inlined(readers)

    def parts(self) -> tuple[Part, ...]:
        kept = [stage for stage in self.stages if stage.buffer not in self.inlined]
        reductions = [self._reduction(stage) for stage in kept if stage.reduction]
        stores = [self._inline(stage) for stage in kept if not stage.reduction]
        if not reductions:
            return tuple(_part("elementwise", (), (store,)) for store in stores)
        whole = self._whole(reductions, stores)
        if whole is not None:
            return (whole,)
        found: list[Part] = []
        for stage in kept:
            if stage.reduction:
                found.append(_part("reduction", (self._reduction(stage),), ()))
            else:
                found.append(_part("elementwise", (), (self._inline(stage),)))
        return tuple(found)

    def _inlined(self, readers: dict[Any, int]) -> dict[Any, Stage]:
        """Return the stages without memory: no parameter, no reduction, not too large."""
        inlined: dict[Any, Stage] = {}
        sizes: dict[Any, int] = {}
        for stage in self.stages:
            size = _size(stage.value) + sum(
                sizes[load.source] for load in loads_in(stage.value) if load.source in inlined
            )
            is_param = any(stage.buffer.same_as(param) for param in self.params)
            if is_param or stage.reduction or size * readers.get(stage.buffer, 0) > _MAX_NODES:
                continue
            inlined[stage.buffer], sizes[stage.buffer] = stage, size
        return inlined

    def _inline(self, stage: Stage) -> Stage:
        return replace(stage, value=inline_loads(stage.value, self.inlined))

    def _reduction(self, stage: Stage) -> Reduction:
        combine, term = read_update(stage)
        assert stage.init is not None
        return Reduction(stage, combine, inline_loads(term, self.inlined), stage.init)

    def _whole(self, reductions: Sequence[Reduction], stores: Sequence[Stage]) -> Part | None:
        """Return the function as one launch, if its stages run over the same domain."""
        domain = [axis.extent for axis in reductions[0].stage.spatial]
        if (
            len(reductions) == 1
            and len(stores) <= 1
            and all(_same_domain(store, domain, self.made) for store in stores)
        ):
            if any(reductions[0].stage.buffer.same_as(p) for p in self.params) and stores:
                return None
            return _part("reduction", tuple(reductions), tuple(stores))
        for reduction in reductions:
            if [axis.extent for axis in reduction.stage.spatial] != domain:
                return None
            if not _reads_own_row(reduction.term, reduction.stage, reductions, len(domain)):
                return None
            if not is_identity(reduction.stage):
                return None
        for store in stores:
            extents = [axis.extent for axis in store.spatial]
            if extents[: len(domain)] != domain or not is_identity(store):
                return None
            if not _reads_own_row(store.value, store, reductions, len(domain)):
                return None
        return _part("rows", tuple(reductions), tuple(stores))


def _part(kind: Kind, reductions: tuple[Reduction, ...], stores: tuple[Stage, ...]) -> Part:
    inner = {r.stage.buffer for r in reductions}
    if kind == "reduction" and not stores:
        writes: tuple[Any, ...] = (reductions[0].stage.buffer,)
    else:
        writes = tuple(store.buffer for store in stores)
    expressions = [r.term for r in reductions] + [store.value for store in stores]
    reads: list[Any] = []
    for expression in expressions:
        for load in loads_in(expression):
            known = any(load.source.same_as(buffer) for buffer in reads)
            if load.source not in inner and not known:
                reads.append(load.source)
    return Part(kind, reductions, stores, tuple(reads), writes)


def read_update(stage: Stage) -> tuple[Combine, Expr]:
    """Return (combiner, term) of a reduction `out = combine(out, term)`.

    Raises:
        CompileError: it is none that is known.
    """
    combine = _COMBINERS.get(type(stage.value))
    if combine is not None and stage.init is not None:
        left, right = stage.value.a, stage.value.b
        for own, term in ((left, right), (right, left)):
            if isinstance(own, TensorLoad) and own.source.same_as(stage.buffer):
                return combine, term
    raise CompileError(f"the reduction of block '{stage.name}' is none that CUDA targets know")


def _size(expr: Expr) -> int:
    return 1 + sum(_size(part) for part in children(expr))


def is_identity(stage: Stage) -> bool:
    """Tell whether a stage writes element [i, j, ..] in step i, j, .. of its axes."""
    return len(stage.indices) == len(stage.spatial) and all(
        isinstance(index, tirx.Var) and index.same_as(axis.var)
        for index, axis in zip(stage.indices, stage.spatial, strict=True)
    )


def _same_domain(store: Stage, domain: list[int], made: dict[Any, Stage]) -> bool:
    """Tell whether a store runs over a reduction's domain and reads its own element of it."""
    if [axis.extent for axis in store.spatial] != domain:
        return False
    for load in loads_in(store.value):
        source = made.get(load.source)
        if source is None:
            continue
        if not source.reduction or not is_at_own_index(load.indices, store, len(domain)):
            return False
    return all(
        is_identity(made[b]) for b in {load.source for load in loads_in(store.value)} & set(made)
    )


def _reads_own_row(value: Expr, stage: Stage, reductions: Sequence[Reduction], rank: int) -> bool:
    """Tell whether all results of reductions that are read belong to the step's own row."""
    buffers = {reduction.stage.buffer for reduction in reductions}
    return all(
        is_at_own_index(load.indices, stage, rank)
        for load in loads_in(value)
        if load.source in buffers
    )


def is_at_own_index(indices: Sequence[Expr], stage: Stage, rank: int) -> bool:
    if len(indices) != rank:
        return False
    return all(is_axis(index, axis) for index, axis in zip(indices, stage.spatial, strict=False))


def is_axis(index: Expr, axis: Axis) -> bool:
    """Tell whether an index is an axis, or the only step of one."""
    is_only = axis.extent == 1 and isinstance(index, tirx.IntImm) and int(index) == 0
    return is_only or (isinstance(index, tirx.Var) and index.same_as(axis.var))


def check_sizes(func: tirx.PrimFunc) -> None:
    """Refuse tensors whose offsets do not fit 32 bits.

    Raises:
        CompileError: a parameter has 2^31 elements or more.
    """
    for param in func.params:
        if prod(shape_of(param)) >= 2**31:
            raise CompileError(
                f"parameter '{param.name}' has {prod(shape_of(param))} elements; CUDA targets "
                "index with 32 bits"
            )
