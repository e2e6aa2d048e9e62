"""MatMulNBits of com.microsoft: a product with weights of 2, 4 or 8 bits in blocks."""

from __future__ import annotations

import numpy as np
from tvm import relax

from tilewright.frontends.onnx.node import NodeContext
from tilewright.frontends.onnx.ops.linear import product
from tilewright.frontends.onnx.registry import register
from tilewright.frontends.onnx.values import Value, constant

R = relax.op


def unpack(packed: np.ndarray, bits: int) -> np.ndarray:
    """Take bytes apart into codes, the lowest bits first.

    Args:
        packed: uint8, [..., bytes].
        bits: width of a code: 2, 4 or 8.

    Returns:
        uint8, [..., bytes * 8 / bits].
    """
    shifts = np.arange(0, 8, bits, dtype=np.uint8)
    codes = packed[..., None] >> shifts & np.uint8(2**bits - 1)
    return codes.reshape(*packed.shape[:-1], -1)


@register("MatMulNBits", domain="com.microsoft")
def matmul_n_bits(op: NodeContext) -> Value:
    """Product of the data with constant weights, which are decoded when compiling.

    The packed weights are [N, blocks, bytes]; column n of block b is (code - zero) * scale.
    """
    data, bits = op.input(0), op.attr("bits", 4)
    rows, columns, block = op.attr("K"), op.attr("N"), op.attr("block_size")
    op.attr("accuracy_level", 0)
    op.attr("weight_prepacked", 0)
    order, bias = op.optional_data(4), op.optional(5)
    if bits not in (2, 4, 8) or order is not None:
        op.fail(f"its weights have {bits} bits or are permuted; accepted are 2, 4 and 8 in order")
    blocks = -(-rows // block)
    codes = unpack(op.data(1).reshape(columns, blocks, -1), bits)
    zeros = _zero_points(op.optional_data(3), bits, columns, blocks)
    scales = op.data(2).astype(np.float32).reshape(columns, blocks, 1)
    weight = ((codes.astype(np.float32) - zeros) * scales).reshape(columns, -1)[:, :rows]
    result = product(op, data, constant(np.ascontiguousarray(weight.T).astype(data.dtype)))
    return result if bias is None else op.call(R.add, result, bias)


def _zero_points(given: np.ndarray | None, bits: int, columns: int, blocks: int) -> np.ndarray:
    """Return one zero point per column and block, [N, blocks, 1] in float32."""
    if given is None:
        return np.full((columns, blocks, 1), 2 ** (bits - 1), np.float32)
    if given.dtype != np.uint8:
        return given.astype(np.float32).reshape(columns, blocks, 1)
    codes = unpack(given.reshape(columns, -1), bits)[:, :blocks]
    return codes.astype(np.float32)[..., None]
