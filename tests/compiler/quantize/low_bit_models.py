"""ONNX models of one operator on integers of 2, 4 and 8 bits."""

from __future__ import annotations

import numpy as np
import onnx
from onnx import TensorProto, helper

RANGES = {
    "int8": (-128, 127),
    "uint8": (0, 255),
    "int4": (-8, 7),
    "uint4": (0, 15),
    "int2": (-2, 1),
    "uint2": (0, 3),
}


def _integers(name: str, values: np.ndarray, dtype: str) -> onnx.TensorProto:
    kind = getattr(TensorProto, dtype.upper())
    return helper.make_tensor(name, kind, values.shape, values.astype(int).flatten())


def quantized_model(
    shape: tuple[int, ...],
    weights: np.ndarray,
    weight_dtype: str,
    data_dtype: str,
    *,
    zero: int = 0,
    weight_zero: int = 0,
    scale: float = 0.1,
    out_scale: float = 0.5,
    out_dtype: str = "uint8",
    before: tuple[str, ...] = (),
    **attributes: object,
) -> onnx.ModelProto:
    """Return quantize(conv or matmul(dequantize(quantize(x)), dequantize(weights))).

    Args:
        shape: of x; float32.
        weights: integers of `weight_dtype`, OIHW or [K, N]; a scale for each output.
        data_dtype: that x is quantized to.
        zero, weight_zero: zero points.
        scale: of x.
        out_scale, out_dtype: of the result.
        before: nodes before x is quantized: "clip" to 0 .. scale, or "sign" to -1 and 1.
        attributes: of Conv.
    """
    is_conv = weights.ndim == 4
    axis = 0 if is_conv else 1
    count = weights.shape[axis]
    w_scale = (0.0137 * (1 + np.arange(count) % 5)).astype("float32")
    low, high = RANGES[out_dtype]
    floats = {"xs": scale, "ys": out_scale, "zero_f": 0.0, "one": 1.0, "minus": -1.0}
    tensors = [helper.make_tensor(k, TensorProto.FLOAT, [], [v]) for k, v in floats.items()]
    tensors += [
        helper.make_tensor("ws", TensorProto.FLOAT, [count], w_scale),
        _integers("w", weights, weight_dtype),
        _integers("wz", np.full(count, weight_zero), weight_dtype),
        _integers("xz", np.array(zero), data_dtype),
        _integers("yz", np.array((low + high) // 2), out_dtype),
    ]
    name = "x"
    nodes = []
    for kind in before:
        if kind == "clip":
            nodes.append(helper.make_node("Clip", [name, "zero_f", "xs"], ["clipped"]))
            name = "clipped"
        else:
            nodes.append(helper.make_node("GreaterOrEqual", [name, "zero_f"], ["positive"]))
            nodes.append(helper.make_node("Where", ["positive", "one", "minus"], ["signed"]))
            name = "signed"
    nodes += [
        helper.make_node("QuantizeLinear", [name, "xs", "xz"], ["xq"]),
        helper.make_node("DequantizeLinear", ["xq", "xs", "xz"], ["xd"]),
        helper.make_node("DequantizeLinear", ["w", "ws", "wz"], ["wd"], axis=axis),
        helper.make_node("Conv" if is_conv else "MatMul", ["xd", "wd"], ["y"], **attributes),
        helper.make_node("QuantizeLinear", ["y", "ys", "yz"], ["yq"]),
        helper.make_node("DequantizeLinear", ["yq", "ys", "yz"], ["out"]),
    ]
    graph = helper.make_graph(
        nodes,
        "low_bit",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info("out", TensorProto.FLOAT, [None] * len(shape))],
        tensors,
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 25)], ir_version=13)
