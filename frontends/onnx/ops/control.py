"""If, Loop and Scan: decided or unrolled when compiling, else control flow in the module."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx
from tvm import relax

from tilewright.frontends.onnx.node import NodeContext
from tilewright.frontends.onnx.ops.control_regions import (
    choose,
    loop_region,
    scan_region,
)
from tilewright.frontends.onnx.ops.reshaping import cut, reshape_to
from tilewright.frontends.onnx.regions import Failed
from tilewright.frontends.onnx.registry import register
from tilewright.frontends.onnx.values import Value, constant, dtype_of_onnx, numpy_dtype

R = relax.op

# Every iteration that is unrolled becomes code, which would swell the deployed file; nodes count
# more than iterations, but a body that needs to know the iteration can only be unrolled.
_UNROLLED_NODES = 512
_UNROLLED_ITERATIONS = 1024


@register("If", foldable=False)
def if_node(op: NodeContext) -> Any:
    """https://onnx.ai/onnx/operators/onnx__If.html

    A condition known when compiling leaves one branch; else the module runs one of the two. Their
    results may differ in size, not in rank or type.
    """
    branches = (op.attr("then_branch"), op.attr("else_branch"))
    condition = op.input(0)
    if condition.data is not None:
        taken = branches[0] if bool(condition.data.reshape(-1)[0]) else branches[1]
        return op.walk(taken, {})
    return choose(op, condition, branches)


@register("Loop", foldable=False, shape_inputs=(0, 1))
def loop(op: NodeContext) -> Any:
    """https://onnx.ai/onnx/operators/onnx__Loop.html

    A short loop whose end is known when compiling is unrolled. The rows of a scan output need a
    number of iterations, or a bound of it, that is known when compiling.
    """
    body: onnx.GraphProto = op.attr("body")
    trips, alive = op.optional(0), _start_condition(op)
    is_decided = (trips is None or trips.data is not None) and alive.data is not None
    count = _UNROLLED_ITERATIONS + 1
    if trips is not None and trips.data is not None:
        count = max(0, int(np.ravel(trips.data)[0]))
    written = op.scope.copies * count * len(body.node)
    if is_decided and (trips is None or written <= _UNROLLED_NODES):
        unrolled = _unroll(op, body, count, alive)
        if unrolled is not None:
            return unrolled
    result = loop_region(op, body, trips, alive)
    if isinstance(result, Failed) and is_decided and count <= _UNROLLED_ITERATIONS:
        return _unroll(op, body, count, alive) or op.give_up(result)
    return op.give_up(result) if isinstance(result, Failed) else result


def _unroll(op: NodeContext, body: onnx.GraphProto, trips: int, alive: Value) -> Any:
    """Import the body once per iteration; None where the end is not known when compiling."""
    carried: list[Any] = list(op.inputs[2:])
    scanned: list[list[Value]] = [[] for _ in range(len(body.output) - 1 - len(carried))]
    names = [item.name for item in body.input]
    for trip in range(trips):
        if alive.data is None or trip >= _UNROLLED_ITERATIONS:
            return None
        if not alive.data.reshape(-1)[0]:
            break
        inputs = [constant(np.array(trip, np.int64)), alive, *carried]
        results = op.walk(body, dict(zip(names, inputs, strict=True)), trips)
        if any(item is not None and not isinstance(item, (Value, list)) for item in results):
            return [results[1]] * len(op.node.output)
        alive, carried = results[0], results[1 : 1 + len(carried)]
        for rows, row in zip(scanned, results[1 + len(carried) :], strict=True):
            rows.append(row)
    stacks = [
        _stack(op, rows, body.output[1 + len(carried) + place])
        for place, rows in enumerate(scanned)
    ]
    return [*carried, *stacks]


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
    return _stack_along(op, rows, 0)


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
    """https://onnx.ai/onnx/operators/onnx__Scan.html (unrolled, or a loop in the module)."""
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
    if not 0 < count <= len(values):
        op.fail(f"num_scan_inputs is {count}, but there are {len(values)} inputs")
    carried, scanned = list(values[: len(values) - count]), values[len(values) - count :]
    directions = directions or (0,) * count
    axes = [axis % value.rank for axis, value in zip(axes or (0,) * count, scanned, strict=True)]
    trips = scanned[0].shape[axes[0]]
    is_long = op.scope.copies * trips * len(body.node) > _UNROLLED_NODES
    made = scan_region(op, body, carried, scanned, directions, axes) if is_long else None
    if isinstance(made, Failed) and trips > _UNROLLED_ITERATIONS:
        return op.give_up(made)
    outputs = range(len(body.output) - len(carried))
    reverse = [bool(out_directions and out_directions[place]) for place in outputs]
    if isinstance(made, list):
        stacks = []
        for place, stack in enumerate(made[len(carried) :]):
            stack = op.call(R.flip, stack, 0) if reverse[place] else stack
            axis = (out_axes[place] if out_axes else 0) % stack.rank
            order = [*range(1, axis + 1), 0, *range(axis + 1, stack.rank)]
            stacks.append(op.call(R.permute_dims, stack, order) if axis else stack)
        return [*made[: len(carried)], *stacks]
    names = [item.name for item in body.input]
    produced: list[list[Value]] = [[] for _ in range(len(body.output) - len(carried))]
    for trip in range(trips):
        slices = []
        for value, axis, backwards in zip(scanned, axes, directions, strict=True):
            at = trips - 1 - trip if backwards else trip
            shape = [extent for place, extent in enumerate(value.shape) if place != axis]
            slices.append(reshape_to(op, cut(op, value, axis, at, at + 1), shape))
        results = op.walk(body, dict(zip(names, [*carried, *slices], strict=True)), trips)
        carried = results[: len(carried)]
        for rows, row in zip(produced, results[len(carried) :], strict=True):
            rows.append(row)
    stacks = []
    for place, rows in enumerate(produced):
        axis = out_axes[place] if out_axes else 0
        stacks.append(_stack_along(op, rows[::-1] if reverse[place] else rows, axis))
    return [*carried, *stacks]


def _stack_along(op: NodeContext, rows: Sequence[Value], axis: int) -> Value:
    """Stack tensors along a new axis."""
    axis = axis % (rows[0].rank + 1)
    shape = (*rows[0].shape[:axis], 1, *rows[0].shape[axis:])
    lifted = [reshape_to(op, row, shape) for row in rows]
    return lifted[0] if len(lifted) == 1 else op.call(R.concat, lifted, axis)
