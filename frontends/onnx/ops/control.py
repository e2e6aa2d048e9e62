"""If, Loop and Scan: decided or unrolled when compiling."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx
from tvm import relax

from tilewright.frontends.onnx.node import NodeContext
from tilewright.frontends.onnx.ops.reshaping import cut, reshape_to
from tilewright.frontends.onnx.registry import register
from tilewright.frontends.onnx.values import Value, constant, dtype_of_onnx, numpy_dtype

R = relax.op

# Every iteration becomes code, so a longer loop would swell the deployed file.
_UNROLL_LIMIT = 1024


@register("If", foldable=False)
def if_node(op: NodeContext) -> Any:
    """https://onnx.ai/onnx/operators/onnx__If.html

    A condition known when compiling leaves one branch. Else both are computed (a branch has no
    side effects) and the results selected, which needs outputs of equal shapes.
    """
    branches = [op.attr("then_branch"), op.attr("else_branch")]
    condition = op.input(0)
    if condition.data is not None:
        taken = branches[0] if bool(condition.data.reshape(-1)[0]) else branches[1]
        return op.walk(taken, {})
    results = [op.walk(branch, {}) for branch in branches]
    return [_choose(op, condition, *pair) for pair in zip(*results, strict=True)]


def _choose(op: NodeContext, condition: Value, left: Any, right: Any) -> Any:
    """Select between the results of two branches; sequences element by element."""
    if isinstance(left, list) and isinstance(right, list) and len(left) == len(right):
        return [_choose(op, condition, *pair) for pair in zip(left, right, strict=True)]
    if not isinstance(left, Value) or not isinstance(right, Value):
        op.fail("a condition known only at run time selects between sequences that differ")
    if (left.shape, left.dtype) != (right.shape, right.dtype):
        op.fail(
            f"a condition known only at run time selects between shapes {left.shape} and "
            f"{right.shape}"
        )
    return select(op, condition, left, right)


def select(op: NodeContext, condition: Value, left: Value, right: Value) -> Value:
    """Choose between two tensors of one shape by a condition with one element."""
    if left is right:
        return left
    return op.call(R.where, reshape_to(op, condition, ()), left, right)


@register("Loop", foldable=False, shape_inputs=(0, 1))
def loop(op: NodeContext) -> Any:
    """https://onnx.ai/onnx/operators/onnx__Loop.html (trip count known when compiling: unrolled).

    A condition that is computed at run time freezes the carried values once it is false; it
    cannot shorten a scan output, so a loop with both is not supported.
    """
    body: onnx.GraphProto = op.attr("body")
    trips, alive = _trip_count(op), _start_condition(op)
    carried: list[Any] = list(op.inputs[2:])
    scanned: list[list[Value]] = [[] for _ in range(len(body.output) - 1 - len(carried))]
    names = [item.name for item in body.input]
    for trip in range(trips):
        if alive.data is not None and not alive.data.reshape(-1)[0]:
            break
        if trip >= _UNROLL_LIMIT:
            op.fail(f"more than {_UNROLL_LIMIT} iterations cannot be unrolled")
        inputs = [constant(np.array(trip, np.int64)), alive, *carried]
        results = op.walk(body, dict(zip(names, inputs, strict=True)))
        if any(item is not None and not isinstance(item, (Value, list)) for item in results):
            return [results[1]] * len(op.node.output)
        after, new = results[0], results[1 : 1 + len(carried)]
        if alive.data is None:
            if scanned:
                op.fail("scan outputs of a loop whose condition is known only at run time")
            new = [select(op, alive, now, before) for now, before in zip(new, carried, strict=True)]
            after = op.call(R.logical_and, alive, reshape_to(op, after, alive.shape))
        carried, alive = new, after
        for rows, row in zip(scanned, results[1 + len(new) :], strict=True):
            rows.append(row)
    if alive.data is None and op.optional(0) is None:
        op.fail("the number of iterations is known only at run time")
    stacks = [
        _stack(op, rows, body.output[1 + len(carried) + place])
        for place, rows in enumerate(scanned)
    ]
    return [*carried, *stacks]


def _trip_count(op: NodeContext) -> int:
    """Return the largest number of iterations."""
    trips = op.optional_data(0)
    return _UNROLL_LIMIT + 1 if trips is None else int(np.ravel(trips)[0])


def _start_condition(op: NodeContext) -> Value:
    given = op.optional(1)
    return constant(np.array(True)) if given is None else given


def _stack(op: NodeContext, rows: Sequence[Value], info: onnx.ValueInfoProto) -> Value:
    """Stack the rows of a scan output along a new first axis."""
    if not rows:
        kind = info.type.tensor_type
        shape = [0, *(dim.dim_value for dim in kind.shape.dim)]
        return constant(np.zeros(shape, numpy_dtype(dtype_of_onnx(kind.elem_type))))
    if all(row.data is not None for row in rows):
        return constant(np.stack([row.data for row in rows if row.data is not None]))
    lifted = [reshape_to(op, row, (1, *row.shape)) for row in rows]
    return lifted[0] if len(lifted) == 1 else op.call(R.concat, lifted, 0)


@register("Scan", 8, foldable=False)
def scan_batched(op: NodeContext) -> Any:
    """https://onnx.ai/onnx/operators/onnx__Scan.html in opset 8, which has a batch axis."""
    body: onnx.GraphProto = op.attr("body")
    count = op.attr("num_scan_inputs")
    directions = op.attr("directions") or (0,) * count
    if op.optional(0) is not None:
        op.fail("sequence_lens is not supported")
    values = [op.input(index) for index in range(1, len(op.inputs))]
    batches = []
    for index in range(values[0].shape[0]):
        rows = [
            reshape_to(op, cut(op, value, 0, index, index + 1), value.shape[1:]) for value in values
        ]
        batches.append(_scan(op, body, rows, count, directions, None, None, None))
    outputs = []
    for column in zip(*batches, strict=True):
        lifted = [reshape_to(op, item, (1, *item.shape)) for item in column]
        outputs.append(lifted[0] if len(lifted) == 1 else op.call(R.concat, lifted, 0))
    return outputs


@register("Scan", 9, foldable=False)
def scan(op: NodeContext) -> Any:
    """https://onnx.ai/onnx/operators/onnx__Scan.html (unrolled)."""
    body: onnx.GraphProto = op.attr("body")
    count = op.attr("num_scan_inputs")
    values = [op.input(index) for index in range(len(op.inputs))]
    return _scan(
        op,
        body,
        values,
        count,
        op.attr("scan_input_directions"),
        op.attr("scan_input_axes"),
        op.attr("scan_output_axes"),
        op.attr("scan_output_directions"),
    )


def _scan(
    op: NodeContext,
    body: onnx.GraphProto,
    values: Sequence[Value],
    count: int,
    directions: Sequence[int] | None,
    axes: Sequence[int] | None,
    out_axes: Sequence[int] | None,
    out_directions: Sequence[int] | None,
) -> list[Any]:
    """Run the body once per position of the scanned inputs."""
    carried, scanned = list(values[: len(values) - count]), values[len(values) - count :]
    directions = directions or (0,) * count
    axes = [axis % value.rank for axis, value in zip(axes or (0,) * count, scanned, strict=True)]
    trips = scanned[0].shape[axes[0]]
    if trips > _UNROLL_LIMIT:
        op.fail(f"{trips} iterations cannot be unrolled; the limit is {_UNROLL_LIMIT}")
    names = [item.name for item in body.input]
    produced: list[list[Value]] = [[] for _ in range(len(body.output) - len(carried))]
    for trip in range(trips):
        slices = []
        for value, axis, backwards in zip(scanned, axes, directions, strict=True):
            at = trips - 1 - trip if backwards else trip
            shape = [extent for place, extent in enumerate(value.shape) if place != axis]
            slices.append(reshape_to(op, cut(op, value, axis, at, at + 1), shape))
        results = op.walk(body, dict(zip(names, [*carried, *slices], strict=True)))
        carried = results[: len(carried)]
        for rows, row in zip(produced, results[len(carried) :], strict=True):
            rows.append(row)
    outputs = []
    for place, rows in enumerate(produced):
        backwards = bool(out_directions and out_directions[place])
        axis = out_axes[place] if out_axes else 0
        outputs.append(_stack_along(op, rows[::-1] if backwards else rows, axis))
    return [*carried, *outputs]


def _stack_along(op: NodeContext, rows: Sequence[Value], axis: int) -> Value:
    """Stack tensors along a new axis."""
    axis = axis % (rows[0].rank + 1)
    shape = (*rows[0].shape[:axis], 1, *rows[0].shape[axis:])
    lifted = [reshape_to(op, row, shape) for row in rows]
    return lifted[0] if len(lifted) == 1 else op.call(R.concat, lifted, axis)
