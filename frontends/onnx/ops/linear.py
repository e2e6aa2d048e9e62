"""Matrix products."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
from tvm import relax, te, tirx

from tilewright.compiler.quantize.weight_product import IntegerWeights, emit_product
from tilewright.frontends.onnx.node import NodeContext
from tilewright.frontends.onnx.ops.elementwise import cast
from tilewright.frontends.onnx.registry import register
from tilewright.frontends.onnx.values import Value, constant

R = relax.op


@register("MatMul")
def matmul(op: NodeContext) -> Value:
    """https://onnx.ai/onnx/operators/onnx__MatMul.html"""
    return product(op, op.input(0), op.input(1))


def product(op: NodeContext, left: Value, right: Value) -> Value:
    """Multiply matrices; 16-bit floats are accumulated in float32.

    A right operand that was dequantized in blocks stays in integers where a kernel can unpack it.
    """
    if right.blocks is not None:
        return _blocked_product(op, left, right)
    if left.dtype in ("float16", "bfloat16"):
        return cast(op, op.call(R.matmul, left, right, out_dtype="float32"), left.dtype)
    return op.call(R.matmul, left, right)


def _blocked_product(op: NodeContext, left: Value, right: Value) -> Value:
    blocks = right.blocks
    assert blocks is not None
    problem = blocks.problem()
    if problem:
        op.builder.decoded[blocks.name] = problem
        return product(op, left, replace(right, blocks=None))
    op.builder.decoded.pop(blocks.name, None)
    return weight_product(op, left, blocks.weights())


def weight_product(op: NodeContext, data: Value, weights: IntegerWeights) -> Value:
    """Multiply by integer weights; they stay packed where kernels can unpack them."""
    problem = weights.problem()
    if data.dtype != "float32":
        problem = f"its data is {data.dtype}; kernels multiply unpacked weights by float32"
    if problem:
        op.builder.decoded[op.hint] = problem
        return product(op, data, constant(weights.decoded().astype(data.dtype)))
    call = emit_product(op.builder.block, op.builder.expr(data), weights)
    return op.builder.emit(call, op.hint)


@register("Gemm")
def gemm(op: NodeContext) -> Value:
    """https://onnx.ai/onnx/operators/onnx__Gemm.html

    Transposition and alpha of a constant operand are applied to the constant.
    """
    left = transposed(op, op.input(0)) if op.attr("transA") else op.input(0)
    right = transposed(op, op.input(1)) if op.attr("transB") else op.input(1)
    alpha, beta, bias = op.attr("alpha"), op.attr("beta"), op.optional(2)
    if op.opset < 7:
        op.attr("broadcast", 0)  # numpy's rules include what it allowed
    if alpha != 1 and right.data is not None and right.dtype.startswith("float"):
        right, alpha = constant(right.data * np.asarray(alpha, right.dtype)), 1
    result = product(op, left, right)
    result = scaled(op, result, alpha)
    if bias is None or beta == 0:
        return result
    return op.call(R.add, result, scaled(op, bias, beta))


def transposed(op: NodeContext, value: Value) -> Value:
    """Swap the last two dimensions; a constant is swapped when compiling.

    A dequantized constant, which has a variable too, is left to the passes on quantized graphs.
    """
    axes = [*range(value.rank - 2), value.rank - 1, value.rank - 2]
    if value.blocks is not None and value.rank == 2:
        assert value.data is not None
        return replace(constant(value.data.T), blocks=value.blocks.transposed())
    if value.data is not None and not isinstance(value.expr, relax.Var):
        return constant(value.data.transpose(axes))
    return op.call(R.permute_dims, value, axes)


def scaled(op: NodeContext, value: Value, factor: float) -> Value:
    """Multiply by a number, unless it is 1; a constant is multiplied when compiling."""
    if factor == 1:
        return value
    if value.data is not None:
        return constant((value.data * factor).astype(value.data.dtype))
    return op.call(R.multiply, value, op.scalar(factor, value.dtype))


@register("Det", 11)
def determinant(op: NodeContext) -> Value:
    """https://onnx.ai/onnx/operators/onnx__Det.html: expanded along rows, so for small matrices."""
    data = op.input(0)
    size = data.shape[-1]
    if size > _LARGEST_DETERMINANT:
        op.fail(f"matrices of {size} rows; supported are up to {_LARGEST_DETERMINANT}")
    lead = data.shape[:-2]
    rows = op.call(R.reshape, data, (math.prod(lead), size, size))
    return op.call(R.reshape, op.te(_determinant, rows, name="det"), lead)


_LARGEST_DETERMINANT = 4


def _determinant(data: te.Tensor) -> te.Tensor:
    """Expand along rows (Laplace): exact for small matrices, no division."""
    size = int(data.shape[1])

    def minor(n: Any, row: int, columns: tuple[int, ...]) -> Any:
        if row == size:
            return tirx.const(1, data.dtype)
        total = None
        for place, column in enumerate(columns):
            rest = columns[:place] + columns[place + 1 :]
            term = data(n, row, column) * minor(n, row + 1, rest)
            total = term if total is None else total - term if place % 2 else total + term
        return total

    return te.compute((data.shape[0],), lambda n: minor(n, 0, tuple(range(size))), name="det")
