"""If, Loop and Scan as control flow in the module: `regions.Region` and its bodies."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
from tvm import relax

from tilewright.frontends.onnx.node import NodeContext
from tilewright.frontends.onnx.ops.bounded import extended, size_at, sizes_of, with_sizes
from tilewright.frontends.onnx.ops.reshaping import reshape_to
from tilewright.frontends.onnx.regions import (
    Failed,
    Imported,
    Region,
    emit_region,
    import_body,
)
from tilewright.frontends.onnx.values import Value, constant

R = relax.op
_ENDLESS = np.iinfo(np.int64).max


@dataclass(frozen=True, slots=True)
class _Form:
    """Shape and type by which both branches return a result, and dimensions of open size."""

    shape: tuple[int, ...]
    dtype: str
    open: tuple[int, ...]


def choose(
    op: NodeContext, condition: Value, branches: tuple[onnx.GraphProto, onnx.GraphProto]
) -> Any:
    """Run one of two branches by a condition known at run time."""
    layouts: list[list[Any]] = []
    forms: list[_Form] = []
    others: list[Imported | Failed] = []

    def first(inner: NodeContext, results: list[Any]) -> list[Value]:
        layouts.append(results)
        leaves = _leaves(inner, results)

        def second(inner: NodeContext, results: list[Any]) -> list[Value]:
            layouts.append(results)
            own = _leaves(inner, results)
            if [_shape_of(item) for item in layouts[0]] != [_shape_of(item) for item in results]:
                op.fail("a condition known only at run time selects between sequences that differ")
            forms.extend(_form(op, *pair) for pair in zip(leaves, own, strict=True))
            return _formed(inner, own, forms)

        # Within the first: only both together tell in which form each returns its results, and
        # to import both again would take 2 ** depth imports where branches are nested.
        other = import_body(op, branches[1], [], lambda _inner, _own: {}, second)
        others.append(other)
        if isinstance(other, Failed):
            raise other.error
        return _formed(inner, leaves, forms)

    made = import_body(op, branches[0], [], lambda _inner, _own: {}, first)
    for body in (*others, made):
        if isinstance(body, Failed):
            return op.give_up(body)
    bodies = [body for body in (made, *others) if isinstance(body, Imported)]
    if not any(form.open for form in forms):
        selected = _select(op, condition, *bodies)
        if selected is not None:
            return _assembled(layouts[0], selected)
    # Both bodies take what either captures.
    captured = {id(value): value for body in bodies for value in body.captured}
    places = tuple(
        tuple(list(captured).index(id(value)) for value in body.captured) for body in bodies
    )
    region = Region("if", tuple(body.body for body in bodies), takes=places)
    results = [(spec.shape, spec.dtype) for spec in bodies[0].body.outputs]
    values = iter(emit_region(op, region, [condition, *captured.values()], results))
    finished = []
    for form in forms:
        value = next(values)
        sizes: list[Value | None] = [None] * len(form.shape)
        for axis in form.open:
            sizes[axis] = next(values)
        finished.append(with_sizes(value, sizes))
    return _assembled(layouts[0], finished)


def _formed(op: NodeContext, leaves: Sequence[Value], forms: Sequence[_Form]) -> list[Value]:
    """Return what a branch passes on: each result in its form, then the sizes that are open."""
    outputs = []
    for value, form in zip(leaves, forms, strict=True):
        outputs.append(extended(op, value, form.shape))
        outputs += [size_at(value, axis) for axis in form.open]
    return outputs


def _shape_of(item: Any) -> int:
    return len(item) if isinstance(item, list) else -1


def _leaves(op: NodeContext, results: Sequence[Any]) -> list[Value]:
    """Return the tensors of results, of which some are sequences."""
    leaves: list[Value] = []
    for item in results:
        for value in item if isinstance(item, list) else [item]:
            if not isinstance(value, Value):
                op.fail("a branch or body that is chosen at run time returns what is no tensor")
            leaves.append(value)
    return leaves


def _assembled(layout: Sequence[Any], values: Sequence[Value]) -> list[Any]:
    """Put tensors into the sequences that they belong to."""
    rest = iter(values)
    return [[next(rest) for _ in item] if isinstance(item, list) else next(rest) for item in layout]


def _select(
    op: NodeContext, condition: Value, first: Imported, second: Imported
) -> list[Value] | None:
    """Choose element by element where neither branch computes anything; else return None."""
    pairs = list(zip(first.sources, second.sources, strict=True))
    if any(
        a is None or b is None or (a.shape, a.dtype) != (b.shape, b.dtype) or a.sizes or b.sizes
        for a, b in pairs
    ):
        return None
    scalar = reshape_to(op, condition, ())
    return [a if a is b else op.call(R.where, scalar, a, b) for a, b in pairs if a and b]


def _form(op: NodeContext, left: Value, right: Value) -> _Form:
    if (left.rank, left.dtype) != (right.rank, right.dtype):
        op.fail(
            f"a condition known only at run time selects between {left.dtype} {left.shape} and "
            f"{right.dtype} {right.shape}"
        )
    shape = tuple(max(pair) for pair in zip(left.shape, right.shape, strict=True))
    is_open = [
        left.shape[axis] != right.shape[axis]
        or sizes_of(left)[axis] is not None
        or sizes_of(right)[axis] is not None
        for axis in range(left.rank)
    ]
    return _Form(shape, left.dtype, tuple(axis for axis, found in enumerate(is_open) if found))


def loop_region(
    op: NodeContext, graph: onnx.GraphProto, trips: Value | None, alive: Value
) -> list[Value] | Failed:
    """Emit a Loop as a loop."""
    names = [item.name for item in graph.input]

    def bind(_inner: NodeContext, own: list[Value]) -> Mapping[str, Any]:
        return dict(zip(names, own, strict=True))

    def finish(inner: NodeContext, results: list[Any]) -> list[Value]:
        return _leaves(inner, results)

    carried = list(op.inputs[2:])
    if not all(isinstance(value, Value) for value in carried):
        op.fail("a loop over sequences; its end must be known when the model is compiled")
    return _repeat(op, graph, trips, alive, carried, bind, finish)


def scan_region(
    op: NodeContext,
    graph: onnx.GraphProto,
    carried: Sequence[Value],
    scanned: Sequence[Value],
    directions: Sequence[int],
    axes: Sequence[int],
) -> list[Value] | Failed:
    """Emit a Scan as a loop; rows of all scan outputs come along a first axis, forwards."""
    names = [item.name for item in graph.input]
    trips = scanned[0].shape[axes[0]]

    def bind(inner: NodeContext, own: list[Value]) -> Mapping[str, Any]:
        rows = []
        for value, axis, backwards in zip(scanned, axes, directions, strict=True):
            at = own[0]
            if backwards:
                at = inner.call(R.subtract, inner.scalar(trips - 1, "int64"), at)
            assert inner.scope.capture is not None
            seen = inner.scope.capture(value)
            rows.append(inner.call(R.take, seen, at, axis=axis, mode="wrap"))
        return dict(zip(names, [*own[2:], *rows], strict=True))

    def finish(inner: NodeContext, results: list[Any]) -> list[Value]:
        return [constant(np.array(True)), *_leaves(inner, results)]

    count = constant(np.array(trips, np.int64))
    return _repeat(op, graph, count, constant(np.array(True)), carried, bind, finish)


def _repeat(
    op: NodeContext,
    graph: onnx.GraphProto,
    trips: Value | None,
    alive: Value,
    carried: Sequence[Value],
    bind: Any,
    finish: Any,
) -> list[Value] | Failed:
    """Emit a loop: results are the carried values and the rows of each scan output."""
    own = [("iteration", (), "int64"), ("condition", alive.shape, "bool")]
    own += [(f"carried{i}", value.shape, value.dtype) for i, value in enumerate(carried)]

    def checked(inner: NodeContext, results: list[Any]) -> list[Value]:
        outputs = finish(inner, results)
        for before, after in zip(carried, outputs[1:], strict=False):
            if (before.shape, before.dtype) != (after.shape, after.dtype):
                inner.fail(
                    f"a value that a loop carries begins as {before.dtype} {before.shape} and "
                    f"becomes {after.dtype} {after.shape}; its number of iterations must be known "
                    "when the model is compiled"
                )
        if any(value.sizes for value in (*carried, *outputs)):
            inner.fail("a size that depends on data changes from one iteration to the next")
        return [reshape_to(inner, outputs[0], (1,)), *outputs[1:]]

    made = import_body(op, graph, own, bind, checked)
    if isinstance(made, Failed):
        return made
    rows = made.results[1 + len(carried) :]
    bound = _ENDLESS if trips is None or trips.data is None else int(np.ravel(trips.data)[0])
    if rows and bound == _ENDLESS:
        op.fail(
            "the number of iterations is known only at run time, so that the scan outputs have no "
            "bound; if it is an input of the model, bind it with --constant NAME=VALUE"
        )
    limit = constant(np.array(_ENDLESS, np.int64)) if trips is None else trips
    results = [(value.shape, value.dtype) for value in carried]
    results += [((bound, *row.shape), row.dtype) for row in rows]
    region = Region("loop", (made.body,), carried=len(carried))
    arguments = [limit, alive, *carried, *made.captured]
    values = emit_region(op, region, arguments, [*results, ((1,), "int64")])
    values, count = values[:-1], values[-1]
    ends_early = not (_is_true(alive) and _is_true(made.results[0]))
    if ends_early:
        for place in range(len(carried), len(values)):
            value = values[place]
            values[place] = with_sizes(value, [count, *[None] * (value.rank - 1)])
    return values


def _is_true(value: Value) -> bool:
    return value.data is not None and bool(value.data.reshape(-1)[0])
