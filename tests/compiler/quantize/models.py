"""Small quantized ONNX models, and ONNX Runtime without its graph optimisations as the oracle."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import onnx
import onnxruntime
from onnx import TensorProto, helper, numpy_helper


class Builder:
    """Writes a QDQ graph node by node; every method returns the name of its result."""

    def __init__(self, seed: int = 0, act: str = "uint8") -> None:
        self.rng = np.random.default_rng(seed)
        self.act = act
        self.nodes: list[onnx.NodeProto] = []
        self.weights: list[onnx.TensorProto] = []
        self.count = 0

    def constant(self, array: np.ndarray) -> str:
        self.count += 1
        name = f"c{self.count}"
        self.weights.append(numpy_helper.from_array(np.asarray(array), name))
        return name

    def node(self, kind: str, *inputs: str, domain: str = "", **attributes: object) -> str:
        self.count += 1
        name = f"v{self.count}"
        self.nodes.append(
            helper.make_node(kind, list(inputs), [name], name=name, domain=domain, **attributes)
        )
        return name

    def parameters(self, scale: float, zero: int) -> tuple[str, str]:
        zero = zero - 128 if self.act == "int8" else zero
        return self.constant(np.float32(scale)), self.constant(np.array(zero, self.act))

    def q(self, x: str, scale: float, zero: int) -> str:
        return self.node("QuantizeLinear", x, *self.parameters(scale, zero))

    def dq(self, x: str, scale: float, zero: int) -> str:
        return self.node("DequantizeLinear", x, *self.parameters(scale, zero))

    def qdq(self, x: str, scale: float, zero: int) -> str:
        return self.dq(self.q(x, scale, zero), scale, zero)

    def weight(
        self, shape: tuple[int, ...], axis: int, per_channel: bool = True
    ) -> tuple[str, np.ndarray]:
        """Return dequantized weights and their scales."""
        integers = self.rng.integers(-127, 128, shape).astype("int8")
        count = shape[axis] if per_channel else 1
        scale = (self.rng.random(count) * 0.01 + 0.002).astype("float32")
        scale = scale if per_channel else scale.reshape(())
        zero = np.zeros(scale.shape, "int8")
        name = self.node(
            "DequantizeLinear", self.constant(integers), self.constant(scale), self.constant(zero),
            axis=axis,
        )  # fmt: skip
        return name, scale

    def bias(self, count: int, scale: np.ndarray) -> str:
        integers = self.rng.integers(-2000, 2000, count).astype("int32")
        scale = np.broadcast_to(scale.astype("float32"), (count,)).copy()
        zero = np.zeros(count, "int32")
        return self.node(
            "DequantizeLinear", self.constant(integers), self.constant(scale), self.constant(zero),
            axis=0,
        )  # fmt: skip

    def conv(self, x: str, x_scale: float, shape: tuple[int, ...], **attributes: object) -> str:
        weight, scale = self.weight(shape, 0)
        bias = self.bias(shape[0], scale * np.float32(x_scale))
        return self.node("Conv", x, weight, bias, **attributes)

    def model(
        self, inputs: Mapping[str, tuple[tuple[int, ...], str]], outputs: Sequence[str]
    ) -> onnx.ModelProto:
        graph = helper.make_graph(
            self.nodes,
            "quantized",
            [
                helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(np.dtype(t)), s)
                for name, (s, t) in inputs.items()
            ],
            [helper.make_tensor_value_info(name, TensorProto.UNDEFINED, []) for name in outputs],
            self.weights,
        )
        opsets = [helper.make_opsetid("", 17), helper.make_opsetid("com.microsoft", 1)]
        return helper.make_model(graph, opset_imports=opsets, ir_version=8)


def run_onnxruntime(model: onnx.ModelProto, feed: Mapping[str, np.ndarray]) -> list[np.ndarray]:
    """Run without graph optimisations: every operator as the standard says."""
    # It infers the types of outputs itself, and does not take "undefined" for an answer.
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    for output in copy.graph.output:
        output.ClearField("type")
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(
        copy.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    return session.run(None, dict(feed))
