"""The smallest model with weights, and what it computes."""

from __future__ import annotations

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper


def make_model(batch: int | str = 2, operator: str = "Relu") -> onnx.ModelProto:
    """Build y = operator(x @ w) with x: float32 [batch, 3], w: [3, 5]."""
    weights = np.random.default_rng(0).standard_normal((3, 5)).astype(np.float32)
    graph = helper.make_graph(
        [
            helper.make_node("MatMul", ["x", "w"], ["h"], name="project"),
            helper.make_node(operator, ["h"], ["y"], name="activate"),
        ],
        "tiny",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [batch, 3])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [batch, 5])],
        [numpy_helper.from_array(weights, "w")],
    )
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("com.example", 1)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=8)


def expected(model: onnx.ModelProto, x: np.ndarray) -> np.ndarray:
    """Return what `make_model` computes."""
    return np.maximum(x @ numpy_helper.to_array(model.graph.initializer[0]), 0)
