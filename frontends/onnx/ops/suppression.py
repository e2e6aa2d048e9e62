"""NonMaxSuppression: the boxes of a class from the best score down, unless they overlap one kept.

Three steps: the order of the boxes that have the least score, those that are kept, and these of all
classes one after the other. Classes are independent in the first two.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from tvm import te, tirx
from tvm.script.ir_builder import IRBuilder
from tvm.script.ir_builder import tirx as T

from tilewright.frontends.onnx.node import NodeContext
from tilewright.frontends.onnx.ops.bounded import masked, plain, with_sizes
from tilewright.frontends.onnx.ops.data_dependent import clear, int64, last_of, set_starts
from tilewright.frontends.onnx.ops.reshaping import reshape_to
from tilewright.frontends.onnx.registry import register
from tilewright.frontends.onnx.values import Value, constant

ORDER_ANNOTATION = "tilewright.order"
"""On the block of (scores [batch, class, box], least score [1]) -> order: nothing more."""
KEEP_ANNOTATION = "tilewright.keep"
"""On the block of (boxes, order, overlap [1]) -> (kept, amounts): how many, is_centred."""


@register("NonMaxSuppression", 10, shape_inputs=(2,))
def non_max_suppression(op: NodeContext) -> Value:
    """https://onnx.ai/onnx/operators/onnx__NonMaxSuppression.html"""
    boxes, scores = op.input(0), op.input(1)
    most = op.ints(2)
    overlap, least = op.optional(3), op.optional(4)
    per_class = min(max(most[0], 0) if most else 0, boxes.shape[1])
    if not per_class:
        return constant(np.zeros((0, 3), np.int64))
    overlap = reshape_to(op, overlap or op.scalar(0, "float32"), (1,))
    least = reshape_to(op, least or op.scalar(-np.inf, "float32"), (1,))
    is_centred = bool(op.attr("center_point_box"))
    scores = masked(op, scores, -np.inf, range(scores.rank))
    order = op.te_tuple(_order, scores, least, name="nms_order")[0]
    args = (plain(boxes), order, overlap, per_class, is_centred)
    kept, amounts = op.te_tuple(_keep, *args, name="nms_keep")[:2]
    chosen, starts = op.te_tuple(_pack, kept, amounts, scores.shape[1], name="nms_pack")
    return with_sizes(chosen, [last_of(op, starts), None])


def _order(scores: te.Tensor, least: te.Tensor) -> list[te.Tensor]:
    """Return the boxes of each class with a greater score than the least, best first, then -1.

    Merges sorted runs of twice the length each time; equal scores stay in their order.
    """
    batches, classes, count = (int(extent) for extent in scores.shape)
    groups = batches * classes

    def loops(ins: Any, outs: Any) -> tirx.Stmt:
        with IRBuilder() as builder:
            with T.seq_scope():
                score, lowest = map(T.buffer_proxy, ins)
                order, spare, amounts, left, right = map(T.buffer_proxy, outs)
                with T.parallel(0, groups) as group:
                    first = group * count
                    amounts[group] = int64(0)
                    with T.serial(0, count) as box, T.If(score[first + box] > lowest[0]), T.Then():
                        order[first + amounts[group]] = box.astype("int64")
                        amounts[group] = amounts[group] + 1
                    with T.serial(int64(0), count - amounts[group]) as beyond:
                        order[first + amounts[group] + beyond] = int64(-1)
                    source, target, run = order, spare, 1
                    state = (group, amounts, left, right)
                    while run < count:
                        _merge(score, source, target, first, run, state)
                        source, target, run = target, source, run * 2
                    if source is spare:
                        with T.serial(int64(0), amounts[group]) as place:
                            order[first + place] = spare[first + place]
            return builder.get()

    return te.extern(
        [scores.shape, scores.shape, *[(groups,)] * 3],
        [scores, least],
        loops,
        dtype=["int64"] * 5,
        name="nms_order",
        attrs={ORDER_ANNOTATION: 1},
    )


def _merge(score: Any, source: Any, target: Any, first: Any, run: int, state: Any) -> None:
    """Emit the loops that merge each two sorted runs of a class; `state` has its amount."""
    group, amounts, left, right = state
    amount = amounts[group]
    pairs = (amount + (2 * run - 1)) // (2 * run)
    with T.If(amount > run), T.Then(), T.serial(int64(0), pairs) as pair:
        start = pair * (2 * run)
        middle, end = tirx.min(start + run, amount), tirx.min(start + 2 * run, amount)
        left[group], right[group] = start, middle
        with T.serial(int64(0), end - start) as step:
            # Where a run is over, its next element is one of the other's, whose score is there.
            one = source[first + tirx.min(left[group], amount - 1)]
            other = source[first + tirx.min(right[group], amount - 1)]
            is_better = score[first + one] >= score[first + other]
            is_left = tirx.any(right[group] >= end, tirx.all(left[group] < middle, is_better))
            with T.If(is_left):
                with T.Then():
                    target[first + start + step] = one
                    left[group] = left[group] + 1
                with T.Else():
                    target[first + start + step] = other
                    right[group] = right[group] + 1
    with T.If(amount <= run), T.Then(), T.serial(int64(0), amount) as place:
        target[first + place] = source[first + place]


def _keep(
    boxes: te.Tensor, order: te.Tensor, overlap: te.Tensor, per_class: int, is_centred: bool
) -> list[te.Tensor]:
    """Return for each class the boxes that are kept [class, number], and how many [class]."""
    batches, classes, count = (int(extent) for extent in order.shape)
    groups = batches * classes

    def loops(ins: Any, outs: Any) -> tirx.Stmt:
        with IRBuilder() as builder:
            with T.seq_scope():
                corners, ordered, most_overlap = map(T.buffer_proxy, ins)
                kept, amounts, is_kept = map(T.buffer_proxy, outs)
                with T.parallel(0, groups) as group:
                    amounts[group] = int64(0)
                    with T.serial(0, count) as place:
                        box = ordered[group * count + place]
                        is_wanted = tirx.all(box >= 0, amounts[group] < per_class)
                        with T.If(is_wanted), T.Then():
                            is_kept[group] = int64(1)
                            with (
                                T.serial(int64(0), amounts[group]) as number,
                                T.If(is_kept[group] == 1),
                                T.Then(),
                            ):
                                other = kept[group * per_class + number]
                                first = group // classes * count
                                shared = overlap_of(corners, first, box, other, is_centred)
                                with T.If(shared > most_overlap[0]), T.Then():
                                    is_kept[group] = int64(0)
                            with T.If(is_kept[group] == 1), T.Then():
                                kept[group * per_class + amounts[group]] = box
                                amounts[group] = amounts[group] + 1
            return builder.get()

    return te.extern(
        [(groups, per_class), (groups,), (groups,)],
        [boxes, order, overlap],
        loops,
        dtype=["int64"] * 3,
        name="nms_keep",
        attrs={KEEP_ANNOTATION: [per_class, int(is_centred)]},
    )


def _pack(kept: te.Tensor, amounts: te.Tensor, classes: int) -> list[te.Tensor]:
    """Return (batch, class, box) of all that is kept, then zeros; and where classes start."""
    groups, per_class = (int(extent) for extent in kept.shape)

    def loops(ins: Any, outs: Any) -> tirx.Stmt:
        with IRBuilder() as builder:
            with T.seq_scope():
                boxes, numbers = map(T.buffer_proxy, ins)
                chosen, starts = map(T.buffer_proxy, outs)
                clear(chosen, groups * per_class * 3, "int64")
                set_starts(starts, numbers, groups)
                with T.parallel(0, groups * per_class) as slot:
                    group, number = slot // per_class, slot % per_class
                    with T.If(number < numbers[group]), T.Then():
                        target = (starts[group] + number) * 3
                        chosen[target] = (group // classes).astype("int64")
                        chosen[target + 1] = (group % classes).astype("int64")
                        chosen[target + 2] = boxes[slot]
            return builder.get()

    return te.extern(
        [(groups * per_class, 3), (groups + 1,)],
        [kept, amounts],
        loops,
        dtype=["int64"] * 2,
        name="nms_pack",
    )


def overlap_of(corners: Any, first: Any, one: Any, other: Any, is_centred: bool) -> Any:
    """Return the area that two boxes share over the area that they cover; 0 if they do not meet."""
    (low_a, high_a), (low_b, high_b) = (
        _corners(corners, (first + box) * 4, is_centred) for box in (one, other)
    )
    sides = [
        tirx.max(tirx.min(ha, hb) - tirx.max(la, lb), tirx.const(0.0, "float32"))
        for la, ha, lb, hb in zip(low_a, high_a, low_b, high_b, strict=True)
    ]
    shared = sides[0] * sides[1]
    areas = [
        (high[0] - low[0]) * (high[1] - low[1]) for low, high in ((low_a, high_a), (low_b, high_b))
    ]
    union = areas[0] + areas[1] - shared
    zero = tirx.const(0.0, "float32")
    return tirx.Select(union > zero, shared / tirx.Select(union > zero, union, zero + 1.0), zero)


def _corners(corners: Any, at: Any, is_centred: bool) -> tuple[list[Any], list[Any]]:
    """Return the lower and the upper corner of a box."""
    a, b, c, d = (corners[at + index] for index in range(4))
    if is_centred:  # x, y of the centre, width, height
        half = tirx.const(0.5, "float32")
        return [a - c * half, b - d * half], [a + c * half, b + d * half]
    return [tirx.min(a, c), tirx.min(b, d)], [tirx.max(a, c), tirx.max(b, d)]
