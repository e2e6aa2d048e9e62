"""A float ONNX model by what its nodes make and use, for post-training quantization."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx
from onnx import numpy_helper

LINEAR = {"Conv": 0, "Gemm": 1, "MatMul": 1}
"""Operators with weights -> dimension of the weights that the output channels are."""
ACTIVATIONS = frozenset(("Relu", "Clip"))
"""Operators that an operator on integers takes into its rounding."""


@dataclass
class FloatModel:
    """A model's nodes by what they make and use."""

    proto: onnx.ModelProto

    def __post_init__(self) -> None:
        graph = self.proto.graph
        self.constants = {item.name: item for item in graph.initializer}
        self.users: dict[str, list[onnx.NodeProto]] = {}
        self.maker: dict[str, onnx.NodeProto] = {}
        for node in graph.node:
            for name in node.input:
                self.users.setdefault(name, []).append(node)
            for name in node.output:
                self.maker[name] = node
        self.outputs = {item.name for item in graph.output}

    def array(self, name: str) -> np.ndarray | None:
        """Return a constant by name."""
        if name in self.constants:
            return numpy_helper.to_array(self.constants[name])
        node = self.maker.get(name)
        if node is not None and node.op_type == "Constant" and node.attribute[0].name == "value":
            return numpy_helper.to_array(node.attribute[0].t)
        return None

    def is_linear(self, node: onnx.NodeProto) -> bool:
        """Say whether a node is a convolution or product with constant float weights."""
        if node.op_type not in LINEAR or node.domain not in ("", "ai.onnx"):
            return False
        weight = self.array(node.input[1])
        if weight is None or weight.dtype != np.float32:
            return False
        if node.op_type == "MatMul":
            return weight.ndim == 2
        said = {item.name: item for item in node.attribute}
        plain = all(name not in said or said[name].f == 1.0 for name in ("alpha", "beta"))
        return node.op_type == "Conv" or (plain and not ("transA" in said and said["transA"].i))

    def output_axis(self, node: onnx.NodeProto) -> int:
        """Return the dimension of a linear node's weights that its output channels are."""
        said = {item.name: item for item in node.attribute}
        transposed = node.op_type == "Gemm" and "transB" in said and said["transB"].i
        return 0 if transposed else LINEAR[node.op_type]

    def add_constant(self, tensor: onnx.TensorProto) -> str:
        """Add a constant to the model and return its name."""
        self.proto.graph.initializer.append(tensor)
        self.constants[tensor.name] = self.proto.graph.initializer[-1]
        return str(tensor.name)

    def can_take_bias(self, node: onnx.NodeProto) -> bool:
        """Say whether `add_to_bias` can do what it says."""
        if node.op_type != "MatMul":
            return len(node.input) < 3 or self.array(node.input[2]) is not None
        return self._row_behind(node) is not None

    def add_to_bias(self, node: onnx.NodeProto, added: np.ndarray) -> bool:
        """Add numbers to the output channels of a linear node, by its bias or the sum behind it.

        Returns:
            Whether there was a place for them: a product without a bias has none.
        """
        if not self.can_take_bias(node):
            return False
        behind = self._row_behind(node) if node.op_type == "MatMul" else (node, 2)
        assert behind is not None
        holder, place = behind
        given = len(holder.input) > place and holder.input[place]
        old = self.array(holder.input[place]) if given else None
        new = np.asarray(added if old is None else old + added, np.float32)
        name = f"{node.output[0]}_bias_{len(self.constants)}"
        self.add_constant(numpy_helper.from_array(new, name))
        if len(holder.input) > place:
            holder.input[place] = name
        else:
            holder.input.append(name)
        return True

    def sum_behind(self, node: onnx.NodeProto) -> onnx.NodeProto | None:
        """Return the sum with a constant row that follows a product and is its bias."""
        behind = self._row_behind(node) if node.op_type == "MatMul" else None
        return None if behind is None else behind[0]

    def _row_behind(self, node: onnx.NodeProto) -> tuple[onnx.NodeProto, int] | None:
        """Return the sum with a constant row that follows a product, and the place of the row."""
        name = node.output[0]
        users = self.users.get(name, [])
        if len(users) != 1 or users[0].op_type != "Add" or name in self.outputs:
            return None
        place = 1 if users[0].input[0] == name else 0
        row = self.array(users[0].input[place])
        return (users[0], place) if row is not None and row.ndim == 1 else None

    def result(self, node: onnx.NodeProto) -> str:
        """Return the tensor that is to be quantized after a node: behind its activation."""
        name = node.output[0]
        users = self.users.get(name, [])
        follows = len(users) == 1 and users[0].op_type in ACTIVATIONS
        return users[0].output[0] if follows and name not in self.outputs else name
