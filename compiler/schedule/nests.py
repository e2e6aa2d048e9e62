"""Plain loop nests for the stages around an anchor that need memory of their own."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import prod
from typing import TYPE_CHECKING, Any

from tvm import DataType, sym, tirx

from tilewright.compiler.schedule.analysis import Axis, PadStage, Stage, read_pad
from tilewright.compiler.schedule.expressions import (
    Expr,
    dtype_of,
    flat_index,
    linear_form,
    range_from_zero,
    substitute,
)
from tilewright.compiler.schedule.micro_kernel import constant_like, ramp, sequence

if TYPE_CHECKING:
    from tilewright.compiler.schedule.tile_loops import KernelBuilder

# Waking the threads costs some microseconds: about as long as this many operations.
_PARALLEL_WORK = 1 << 15


def is_parallel_worth(work: int) -> bool:
    """Tell whether a nest of that many element operations pays for waking the threads."""
    return work >= _PARALLEL_WORK


def emit_stage(builder: KernelBuilder, stage: Stage, max_lanes: int) -> Any:
    """Return loops that compute a whole stage without reduction into its buffer.

    The value is converted to the buffer's dtype.
    """
    pad = read_pad(stage)
    if pad is not None:
        # What is only moved fills whole vectors, however small its elements are.
        max_lanes = max_lanes * 32 // max(8, DataType(str(stage.buffer.dtype)).bits)
    rows = None if pad is None else _emit_pad(builder, pad, max_lanes)
    return rows if rows is not None else _emit_elementwise(builder, stage, max_lanes)


def _converted(value: Expr, buffer: Any) -> Expr:
    """Return a number or a vector in the dtype of a buffer."""
    dtype, lanes = DataType(dtype_of(value)), DataType(dtype_of(value)).lanes
    wanted = str(buffer.dtype) + (f"x{lanes}" if lanes > 1 else "")
    return value if str(dtype) == wanted else tirx.Cast(wanted, value)


def fused_nest(axes: Sequence[Axis], body_of: Callable[[dict[Any, Expr]], Any], work: int) -> Any:
    """Return a nest over `axes`, all fused into one parallel loop if the work is worth it."""
    if not axes:
        return body_of({})
    dtype = dtype_of(axes[0].var)
    total = prod(axis.extent for axis in axes)
    index = tirx.Var("index", dtype)
    binds, values, rest = [], {}, index
    for axis in reversed(axes):
        var = tirx.Var(axis.name, dtype)
        binds.append(tirx.Bind(var, rest % axis.extent if axis is not axes[0] else rest))
        values[axis.var] = var
        rest = rest // axis.extent
    body = sequence([*binds, body_of(values)])
    parallel = total > 1 and is_parallel_worth(work)
    kind = tirx.ForKind.PARALLEL if parallel else tirx.ForKind.SERIAL
    zero, count = constant_like(0, index), constant_like(total, index)
    return tirx.For(index, zero, count, kind, body)


def _emit_elementwise(builder: KernelBuilder, stage: Stage, max_lanes: int) -> Any:
    """One loop over all outer axes, the innermost axis vectorised where it divides."""
    *outer, inner = stage.spatial
    dtype = dtype_of(inner.var)

    def body_of(values: dict[Any, Expr]) -> Any:
        statements = []
        whole = inner.extent // max_lanes * max_lanes
        for start, extent, lanes in (
            (0, whole, max_lanes),
            (whole, inner.extent - whole, inner.extent - whole),
        ):
            if extent == 0:
                continue
            block, lane = tirx.Var("block", dtype), tirx.Var("lane", dtype)
            at = values | {inner.var: block * lanes + lane + start}
            analyzer = sym.Analyzer()
            analyzer.bind(lane, range_from_zero(lanes))
            indices = [substitute(index, at) for index in stage.indices]
            address = analyzer.simplify(flat_index(stage.buffer, indices))
            value = _converted(builder.flatten(stage.at(at), analyzer), stage.buffer)
            store = tirx.BufferStore(builder.flat(stage.buffer), value, [address])
            kind = tirx.ForKind.VECTORIZED if lanes > 1 else tirx.ForKind.SERIAL
            vector = tirx.For(lane, constant_like(0, lane), constant_like(lanes, lane), kind, store)
            statements.append(
                tirx.For(
                    block,
                    constant_like(0, block),
                    constant_like(extent // lanes, block),
                    tirx.ForKind.SERIAL,
                    vector,
                )
            )
        return sequence(statements)

    return fused_nest(outer, body_of, stage.work)


def _emit_pad(builder: KernelBuilder, pad: PadStage, max_lanes: int) -> Any | None:
    """Write each row as zeros, data, zeros: no test for single elements.

    The innermost padded axis and all axes inside it are one contiguous row. None where the
    source is not contiguous along the row.
    """
    stage = pad.stage
    if not pad.bounds:
        return None
    split = max(pad.bounds)
    outer, axis = list(stage.spatial[:split]), stage.spatial[split]
    width = prod(a.extent for a in stage.spatial[split + 1 :])
    form = linear_form(
        flat_index(pad.source.source, pad.source.indices),
        [a.var for a in stage.spatial],
        sym.Analyzer(),
    )
    if form is None or not _contiguous(stage, form, split):
        return None
    first, end = pad.bounds[split]

    def body_of(values: dict[Any, Expr]) -> Any:
        at = values | {a.var: constant_like(0, a.var) for a in stage.spatial[split:]}
        base = sum(
            (at[a.var] * step for a, step in zip(stage.spatial, _strides(stage), strict=True)),
            constant_like(0, axis.var),
        )
        source: Expr = constant_like(form.constant, axis.var)
        for a in outer:
            source = source + values[a.var] * form.of(a.var)
        target = builder.flat(stage.buffer)
        total = axis.extent * width

        def fill(start: int, stop: int) -> list[Any]:
            return emit_row(target, base, start * width, stop * width, max_lanes, None, pad.fill)

        copy = emit_row(
            target,
            base,
            first * width,
            end * width,
            max_lanes,
            (builder.flat(pad.source.source), source),
            pad.fill,
        )
        inside = [*fill(0, first), *copy, *fill(end, axis.extent)]
        condition = _inside(pad, values, split)
        if condition is None:
            return sequence(inside)
        border = emit_row(target, base, 0, total, max_lanes, None, pad.fill)
        return tirx.IfThenElse(condition, sequence(inside), sequence(border))

    return fused_nest(outer, body_of, stage.work)


def _strides(stage: Stage) -> list[int]:
    extents = [axis.extent for axis in stage.spatial]
    return [prod(extents[i + 1 :]) for i in range(len(extents))]


def _contiguous(stage: Stage, form: Any, split: int) -> bool:
    identity = all(
        index.same_as(axis.var) or axis.extent == 1
        for index, axis in zip(stage.indices, stage.spatial, strict=True)
    )
    steps = _strides(stage)
    return identity and all(
        form.of(axis.var) == step or axis.extent == 1
        for axis, step in list(zip(stage.spatial, steps, strict=True))[split:]
    )


def _inside(pad: PadStage, values: dict[Any, Expr], split: int) -> Expr | None:
    """Return the condition that a row lies in the data, without its own axis."""
    condition = None
    for position, (first, end) in pad.bounds.items():
        if position == split:
            continue
        axis = pad.stage.spatial[position]
        var = values[axis.var]
        terms = []
        if first > 0:
            terms.append(var >= first)
        if end < axis.extent:
            terms.append(var < end)
        for term in terms:
            condition = term if condition is None else tirx.And(condition, term)
    return condition


def emit_row(
    target: Any,
    base: Expr,
    first: int,
    end: int,
    lanes: int,
    source: tuple[Any, Expr] | None,
    fill: Expr,
) -> list[Any]:
    """Return the stores of elements [first, end) of a row: a copy, or the fill value.

    Args:
        target: flat buffer that is written.
        base: address of element 0 of the row.
        first, end: which elements.
        lanes: elements in a vector.
        source: flat buffer to copy from, and the address that element 0 has, or would have, in it.
        fill: what is stored without a source.
    """
    statements = []
    whole = (end - first) // lanes

    def store(at: Expr, count: int) -> Any:
        if source is None:
            value = fill if count == 1 else tirx.Broadcast(fill, count)
        else:
            value = tirx.BufferLoad(source[0], [ramp(source[1] + at, 1, count)])
        return tirx.BufferStore(target, _converted(value, target), [ramp(base + at, 1, count)])

    if whole:
        block = tirx.Var("block", dtype_of(base))
        body = store(block * lanes + first, lanes)
        zero, count = constant_like(0, block), constant_like(whole, block)
        statements.append(tirx.For(block, zero, count, tirx.ForKind.SERIAL, body))
    at, size = first + whole * lanes, lanes
    while at < end:
        size = size // 2
        while at + size <= end:
            statements.append(store(constant_like(at, base), size))
            at += size
    return statements
