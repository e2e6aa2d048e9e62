"""Read what the blocks of an unscheduled PrimFunc compute: axes, stores and loads as plain data."""

from __future__ import annotations

from dataclasses import dataclass

import tvm
import tvm_ffi
from tvm import tirx
from tvm.ir.expr import TensorLoad
from tvm.tirx import IterVar, PrimFunc

_REDUCTION = 2  # IterVar.CommReduce


@dataclass(frozen=True, eq=False)
class Load:
    """One read of a buffer: which buffer, and the index of each of its dimensions."""

    buffer: tirx.Var
    indices: tuple[tirx.Expr, ...]

    def variables(self) -> set[tirx.Var]:
        """Return the iteration variables that the index uses."""
        return set().union(*(variables(index) for index in self.indices))

    def dims_of(self, var: tirx.Var) -> list[int]:
        """Return the dimensions whose index uses `var`."""
        return [dim for dim, index in enumerate(self.indices) if var in variables(index)]


@dataclass(frozen=True, eq=False)
class BlockAccess:
    """One block: its axes, the buffer it writes, and everything that it reads.

    Attributes:
        spatial: iteration variables that index the output, in order.
        reduction: iteration variables that are summed (or otherwise reduced) over.
        extents: extent of every iteration variable.
        index: where the block writes `output`.
        loads: reads, without those of the reduction's own accumulator.
    """

    name: str
    spatial: tuple[tirx.Var, ...]
    reduction: tuple[tirx.Var, ...]
    extents: dict[tirx.Var, int]
    output: tirx.Var
    index: tuple[tirx.Expr, ...]
    value: tirx.Expr
    loads: tuple[Load, ...]

    @property
    def points(self) -> int:
        """Return how many times the body runs."""
        points = 1
        for extent in self.extents.values():
            points *= extent
        return points


def variables(expr: tirx.Expr) -> set[tirx.Var]:
    """Return the variables in an expression, buffers left out."""
    found: set[tirx.Var] = set()

    def visit(var: tirx.Var) -> None:
        found.add(var)

    tvm_ffi.structural_walk(expr, (tirx.Var, visit))
    return found


def shape_of(buffer: tirx.Var) -> tuple[int, ...]:
    """Return a buffer's static shape."""
    return tuple(int(extent) for extent in buffer.ty.shape)


def blocks(func: PrimFunc) -> list[BlockAccess]:
    """Return the blocks of a PrimFunc in order, the root block left out."""
    found: list[tvm.s_tir.SBlock] = []

    def visit(block: tvm.s_tir.SBlock) -> None:
        if isinstance(block.body, tirx.BufferStore):
            found.append(block)

    tvm_ffi.structural_walk(func.body, (tvm.s_tir.SBlock, visit))
    return [_read_block(block) for block in found]


def _read_block(block: tvm.s_tir.SBlock) -> BlockAccess:
    store = block.body

    def axes(is_reduction: bool) -> tuple[tirx.Var, ...]:
        iters: list[IterVar] = list(block.iter_vars)
        return tuple(i.var for i in iters if (int(i.iter_type) == _REDUCTION) == is_reduction)

    loads: list[Load] = []

    def visit(load: TensorLoad) -> None:
        if not load.source.same_as(store.buffer):
            loads.append(Load(load.source, tuple(load.indices)))

    tvm_ffi.structural_walk(store.value, (TensorLoad, visit))
    return BlockAccess(
        str(block.name_hint),
        axes(False),
        axes(True),
        {i.var: int(i.dom.extent) for i in block.iter_vars},
        store.buffer,
        tuple(store.indices),
        store.value,
        tuple(loads),
    )


def find_contraction(func_blocks: list[BlockAccess]) -> BlockAccess | None:
    """Return the block that sums products of two buffers and runs most often, if any does.

    That is a convolution or a matrix product of any kind; a window reduction with one operand
    (pooling), or with a constant operand, is not.
    """
    products = [block for block in func_blocks if block.reduction and _is_sum_of_products(block)]
    return max(products, key=lambda block: block.points, default=None)


def _is_sum_of_products(block: BlockAccess) -> bool:
    if len(block.loads) != 2 or block.loads[0].buffer.same_as(block.loads[1].buffer):
        return False
    value = block.value
    if type(value).__name__ != "Add":
        return False
    term = value.b
    while type(term).__name__ == "Cast":
        term = term.value
    return type(term).__name__ == "Mul"
