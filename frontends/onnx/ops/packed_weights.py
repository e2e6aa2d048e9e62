"""MatMulNBits of com.microsoft: a product with weights of 2, 4 or 8 bits in blocks."""

from __future__ import annotations

import numpy as np
from tvm import relax

from tilewright.compiler.quantize.weight_product import BITS, IntegerWeights, unpack
from tilewright.frontends.onnx.node import NodeContext
from tilewright.frontends.onnx.ops.linear import weight_product
from tilewright.frontends.onnx.registry import register
from tilewright.frontends.onnx.values import Value

R = relax.op


@register("MatMulNBits", domain="com.microsoft")
def matmul_n_bits(op: NodeContext) -> Value:
    """Product of the data with constant weights, which stay packed.

    The packed weights are [N, blocks, bytes]; column n of block b is (code - zero) * scale.
    """
    data, bits = op.input(0), op.attr("bits", 4)
    rows, columns, block = op.attr("K"), op.attr("N"), op.attr("block_size")
    op.attr("accuracy_level", 0)  # the least accuracy that will do; products are in float32
    op.attr("weight_prepacked", 0)
    order, bias = op.optional_data(4), op.optional(5)
    if bits not in BITS or order is not None:
        op.fail(f"its weights have {bits} bits or are permuted; accepted are 2, 4 and 8 in order")
    blocks = -(-rows // block)
    weights = IntegerWeights(
        op.data(1).reshape(columns, blocks, -1),
        op.data(2).astype(np.float32).reshape(columns, blocks),
        _zero_points(op.optional_data(3), bits, columns, blocks),
        bits,
        rows,
    )
    result = weight_product(op, data, weights)
    return result if bias is None else op.call(R.add, result, bias)


def _zero_points(
    given: np.ndarray | None, bits: int, columns: int, blocks: int
) -> np.ndarray | None:
    """Return one zero point per column and block, float32 [N, blocks]; None for the middle."""
    if given is None:
        return None
    if given.dtype != np.uint8:
        return given.astype(np.float32).reshape(columns, blocks)
    codes = unpack(given.reshape(columns, -1), bits)[:, :blocks].astype(np.float32)
    return None if (codes == 2 ** (bits - 1)).all() else codes
