"""Kernels with one reduction: pooling, depthwise convolution, means, products with one row.

A block has `outputs` x `shares` threads: each output is computed by `shares` threads, which take
terms by turns and then combine. Neighbouring threads have neighbouring outputs or neighbouring
terms, whichever are neighbours in memory.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import prod

from tvm import sym
from tvm.ir import TensorLoad

from tilewright.compiler.cuda.combine import (
    accumulator_type,
    across_lanes,
    combined,
    identity,
)
from tilewright.compiler.cuda.ctext import Printer, stored
from tilewright.compiler.cuda.kernel import Kernel, block, buffer_names, decompose, signature
from tilewright.compiler.cuda.parts import Part
from tilewright.compiler.cuda.targets import WARP, CudaTarget
from tilewright.compiler.schedule.analysis import Axis
from tilewright.compiler.schedule.expressions import (
    Expr,
    flat_index,
    linear_form,
    loads_in,
    shape_of,
)
from tilewright.errors import InvalidScheduleError

_MAX_UNROLLED = 32
_BLOCK = 128
_TERMS_PER_THREAD = 4


@dataclass(frozen=True, slots=True, order=True)
class ReductionShape:
    """How the threads of a block divide the work.

    Attributes:
        outputs: results that a block computes at once.
        shares: threads that compute one result together; a power of two.
        along_terms: neighbouring threads have neighbouring terms, else neighbouring results.
    """

    outputs: int
    shares: int
    along_terms: bool

    def __post_init__(self) -> None:
        threads = self.outputs * self.shares
        if self.shares & (self.shares - 1) or threads % WARP or not WARP <= threads <= 1024:
            raise InvalidScheduleError(
                f"a block of {self.outputs} results by {self.shares} threads: whole warps up to "
                "1024 threads are needed, and a power of two of them for a result"
            )

    @property
    def threads(self) -> int:
        """Threads of a block."""
        return self.outputs * self.shares


def default_shape(part: Part, target: CudaTarget) -> ReductionShape:
    """Choose the division of work that fills the GPU."""
    (reduction,) = part.reductions
    stage = reduction.stage
    total = prod(axis.extent for axis in stage.spatial)
    terms = prod(axis.extent for axis in stage.reduction)
    along_terms = _terms_are_neighbours(reduction.term, stage.spatial, stage.reduction)
    wanted = target.sms * target.warps * WARP // 4
    shares = 1
    while shares < _BLOCK and total * shares < wanted and terms >= shares * 2 * _TERMS_PER_THREAD:
        shares *= 2
    if along_terms and terms >= WARP:
        shares = max(shares, WARP)
    return ReductionShape(max(1, _BLOCK // shares), shares, along_terms)


def _terms_are_neighbours(
    term: Expr, spatial: tuple[Axis, ...], reduction: tuple[Axis, ...]
) -> bool:
    """Tell whether the largest thing that is read lies along the reduction in memory."""
    loads = sorted(loads_in(term), key=lambda load: -prod(shape_of(load.source)))
    axes = [axis for axis in (*spatial, *reduction) if axis.extent > 1]
    for load in loads:
        form = linear_form(
            flat_index(load.source, load.indices), [axis.var for axis in axes], sym.Analyzer()
        )
        if form is None:
            continue
        inner = [axis for axis in axes if form.of(axis.var) == 1]
        if inner:
            return all(any(axis is r for r in reduction) for axis in inner)
    return False


def reduction_kernel(part: Part, name: str, shape: ReductionShape) -> Kernel:
    """Return the kernel of a part of kind "reduction"."""
    (reduction,) = part.reductions
    stage = reduction.stage
    total = prod(axis.extent for axis in stage.spatial)
    buffers = buffer_names(part)
    slow, fast = ("output", "share") if shape.along_terms else ("share", "output")
    inner = shape.shares if shape.along_terms else shape.outputs
    kind = accumulator_type(reduction)
    needs_shared = shape.shares > 1 and not (shape.along_terms and shape.shares <= WARP)
    lines = [f"{signature(name, shape.threads, part)} {{"]
    if needs_shared:
        lines.append("TW_SHARED;")
    lines += [
        f"const int {fast} = threadIdx.x % {inner}, {slow} = threadIdx.x / {inner};",
        f"const int wanted = blockIdx.x * {shape.outputs} + output;",
        f"const bool is_inside = wanted < {total};",
        f"const int place = is_inside ? wanted : {total - 1};",
    ]
    head, names = decompose("place", stage.spatial, "i")
    lines += [*head, f"{kind} result = {identity(reduction)};"]
    lines += _terms(part, shape, names, buffers)
    if shape.shares > 1:
        lines += _gather(part, shape, kind)
    lines += [f"if (!is_inside{' || share != 0' if shape.shares > 1 else ''}) return;"]
    lines += _finish(part, names, buffers)
    lines.append("}")
    grid = (-(-total // shape.outputs), 1, 1)
    shared = 8 * shape.threads if needs_shared else 0
    label = f"reduction, {shape.outputs} results by {shape.shares} threads"
    return Kernel(name, block(lines), grid, shape.threads, shared, label)


def _terms(part: Part, shape: ReductionShape, names: dict, buffers: dict) -> list[str]:
    """Return the loop over the terms of one thread."""
    (reduction,) = part.reductions
    stage = reduction.stage
    axes = [*stage.spatial, *stage.reduction]
    if shape.shares == 1:
        lines: list[str] = []
        inner, nested = dict(names), 1
        for position, axis in reversed(list(enumerate(stage.reduction))):
            nested *= axis.extent
            unroll = "#pragma unroll\n" if nested <= _MAX_UNROLLED else ""
            variable = f"k{position}"
            inner[axis.var] = variable
            loop = f"{unroll}for (int {variable} = 0; {variable} < {axis.extent}; ++{variable}) {{"
            lines.insert(0, loop)
        closing = ["}"] * len(stage.reduction)
    else:
        total = prod(axis.extent for axis in stage.reduction)
        head, reduced = decompose("term", stage.reduction, "k")
        lines = [f"for (int term = share; term < {total}; term += {shape.shares}) {{", *head]
        inner, closing = names | reduced, ["}"]
    value = Printer(axes, inner, buffers).text(reduction.term)
    return [*lines, f"result = {combined(reduction, 'result', value)};", *closing]


def _gather(part: Part, shape: ReductionShape, kind: str) -> list[str]:
    """Return statements after which the thread with share 0 has the whole result."""
    (reduction,) = part.reductions
    if shape.along_terms and shape.shares <= WARP:
        return across_lanes(reduction, "result", shape.shares)
    other = f"partial[(share + step) * {shape.outputs} + output]"
    return [
        f"{kind} *partial = reinterpret_cast<{kind} *>(tw_shared);",
        f"partial[share * {shape.outputs} + output] = result;",
        f"for (int step = {shape.shares // 2}; step > 0; step /= 2) {{",
        "TW_BARRIER();",
        f"if (share < step) partial[share * {shape.outputs} + output] = result = "
        f"{combined(reduction, 'result', other)};",
        "}",
    ]


def _finish(part: Part, names: dict, buffers: dict) -> list[str]:
    """Return the statements that store the result, through the part's store if it has one."""
    (reduction,) = part.reductions
    stage = reduction.stage
    printer = Printer(stage.axes, names, buffers)
    lines = [f"result = {combined(reduction, printer.text(reduction.init), 'result')};"]
    return lines + finish(part, names, buffers, "result")


def finish(part: Part, names: dict, buffers: dict, result: str) -> list[str]:
    """Return the statement that stores one result of the part's only reduction.

    Args:
        names: C text of the reduction's spatial axes.
        result: C text of the complete result.
    """
    (reduction,) = part.reductions
    stage = reduction.stage
    if not part.stores:
        printer = Printer(stage.spatial, names, buffers)
        place = f"{buffers[stage.buffer]}[{printer.index(stage.buffer, stage.indices)}]"
        return [f"{place} = {stored(result, reduction.dtype)};"]
    (store,) = part.stores
    own = {
        axis.var: names[source.var]
        for axis, source in zip(store.spatial, stage.spatial, strict=True)
    }

    def override(load: TensorLoad) -> str | None:
        return result if load.source.same_as(stage.buffer) else None

    printer = Printer(store.spatial, own, buffers, override)
    place = f"{buffers[store.buffer]}[{printer.index(store.buffer, store.indices)}]"
    return [f"{place} = {stored(printer.text(store.value), str(store.buffer.dtype))};"]
