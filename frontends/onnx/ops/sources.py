"""Operators that make tensors from attributes, shapes or numbers."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import onnx
from tvm import relax

from tilewright.frontends.onnx.folding import GROWTH_LIMIT_BYTES
from tilewright.frontends.onnx.node import NodeContext
from tilewright.frontends.onnx.registry import register
from tilewright.frontends.onnx.values import Value, constant, dtype_of_onnx, numpy_dtype

R = relax.op


@register("Constant")
def constant_node(op: NodeContext) -> Any:
    """https://onnx.ai/onnx/operators/onnx__Constant.html (no strings, no sparse tensors)."""
    for name, dtype in (
        ("value_float", np.float32),
        ("value_floats", np.float32),
        ("value_int", np.int64),
        ("value_ints", np.int64),
    ):
        if op.attrs.has(name):
            return constant(np.asarray(op.attr(name), dtype))
    if op.attrs.has("value"):
        return constant(onnx.numpy_helper.to_array(op.attr("value")))
    if op.attrs.has("value_string") or op.attrs.has("value_strings"):
        op.fail("string constants cannot be compiled")
    op.fail("sparse constants are not supported")


@register("ConstantOfShape", shape_inputs=(0,))
def constant_of_shape(op: NodeContext) -> Value:
    """https://onnx.ai/onnx/operators/onnx__ConstantOfShape.html"""
    shape = op.ints(0) or ()
    tensor = op.attr("value", None)
    fill = np.zeros(1, np.float32) if tensor is None else onnx.numpy_helper.to_array(tensor)
    if math.prod(shape) * fill.itemsize <= GROWTH_LIMIT_BYTES:
        return constant(np.full(shape, fill.reshape(())))
    return op.call(R.full, shape, constant(fill.reshape(())), str(fill.dtype))


@register("Shape")
def shape_of(op: NodeContext) -> Value:
    """https://onnx.ai/onnx/operators/onnx__Shape.html: always known, so always a constant."""
    shape = op.input(0).shape
    start, end = op.attr("start", 0), op.attr("end", None)
    return constant(np.array(shape[start:end], np.int64))


@register("Size")
def size_of(op: NodeContext) -> Value:
    """https://onnx.ai/onnx/operators/onnx__Size.html"""
    return constant(np.array(op.input(0).size, np.int64))


@register("Range", shape_inputs=(0, 1, 2))
def range_of(op: NodeContext) -> Value:
    """https://onnx.ai/onnx/operators/onnx__Range.html"""
    start, limit, delta = (op.data(index).reshape(()) for index in range(3))
    count = max(0, math.ceil((limit - start) / delta))
    steps = np.arange(count).astype(start.dtype)
    return constant((start + steps * delta).astype(start.dtype))


@register("EyeLike")
def eye_like(op: NodeContext) -> Value:
    """https://onnx.ai/onnx/operators/onnx__EyeLike.html"""
    data, offset, to = op.input(0), op.attr("k"), op.attr("dtype", None)
    dtype = data.dtype if to is None else dtype_of_onnx(to)
    return constant(np.eye(*data.shape, k=offset).astype(numpy_dtype(dtype)))
