"""Sums and products of everything up to an element, along an axis."""

from __future__ import annotations

from math import prod
from typing import Any

import numpy as np
from tvm import te, tirx
from tvm.script.ir_builder import IRBuilder
from tvm.script.ir_builder import tirx as T

from tilewright.frontends.onnx.node import NodeContext
from tilewright.frontends.onnx.registry import register
from tilewright.frontends.onnx.values import Value

SCAN_ANNOTATION = "tilewright.scan"
"""On the block of a scan: axis, is_sum, exclusive, reverse."""


@register("CumSum", shape_inputs=(1,))
@register("CumProd", shape_inputs=(1,))
def cumulative(op: NodeContext) -> Value:
    """https://onnx.ai/onnx/operators/onnx__CumSum.html"""
    data = op.input(0)
    axis = int(np.ravel(op.data(1))[0]) % data.rank
    is_sum = op.node.op_type == "CumSum"
    how = (is_sum, bool(op.attr("exclusive")), bool(op.attr("reverse")))
    return op.te(_scan, data, axis, *how, name="scan")


def _scan(data: te.Tensor, axis: int, is_sum: bool, exclusive: bool, reverse: bool) -> te.Tensor:
    shape = [int(extent) for extent in data.shape]
    length, after = shape[axis], prod(shape[axis + 1 :])
    identity = tirx.const(0 if is_sum else 1, data.dtype)
    onwards = -after if reverse else after

    def loops(source: Any, result: Any) -> tirx.Stmt:
        with IRBuilder() as builder:
            source, result = map(T.buffer_proxy, (source, result))
            with T.parallel(0, prod(shape) // max(1, length)) as row:
                first = row // after * (length * after) + row % after
                if reverse:
                    first = first + (length - 1) * after
                result[first] = identity if exclusive else source[first]
                with T.serial(0, length - 1) as step:
                    place = first + (step + 1) * onwards
                    before = place - onwards
                    value = source[before if exclusive else place]
                    so_far = result[before]
                    result[place] = so_far + value if is_sum else so_far * value
            return builder.get()

    return te.extern(
        [tuple(shape)],
        [data],
        lambda ins, outs: loops(ins[0], outs[0]),
        dtype=[data.dtype],
        name="scan",
        attrs={SCAN_ANNOTATION: [axis, int(is_sum), int(exclusive), int(reverse)]},
    )
