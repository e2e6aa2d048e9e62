"""A graph under construction: its nodes, its weights, and the tensors that may be used next."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from math import prod
from typing import Any, TypeAlias

import numpy as np
import onnx
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

OPSET = 21
_IR_VERSION = 10
# Keeps ONNX's reference, which is plain numpy, below a tenth of a second a graph.
MOST_ELEMENTS = 20_000
MOST_PRODUCTS = 2_000_000

Draw: TypeAlias = Callable[[st.SearchStrategy], Any]


@dataclass(frozen=True)
class Value:
    """A float32 tensor of the graph."""

    name: str
    shape: tuple[int, ...]

    @property
    def rank(self) -> int:
        """Number of dimensions."""
        return len(self.shape)


@dataclass
class Graph:
    """Nodes and weights so far; `draw` makes every choice, so that hypothesis can shrink them."""

    draw: Draw
    nodes: list[onnx.NodeProto] = field(default_factory=list)
    weights: list[onnx.TensorProto] = field(default_factory=list)
    inputs: list[Value] = field(default_factory=list)
    values: list[Value] = field(default_factory=list)
    used: set[str] = field(default_factory=set)

    def __post_init__(self) -> None:
        self.random = np.random.default_rng(self.draw(st.integers(0, 3)))

    def integer(self, least: int, most: int) -> int:
        """Return a number of a range, both ends included."""
        return self.draw(st.integers(least, most))

    def chance(self, one_in: int = 2) -> bool:
        """Return True one time in so many."""
        return self.draw(st.integers(0, one_in - 1)) == one_in - 1

    def pick(self, options: Sequence[Any]) -> Any:
        """Return one of several; simpler ones stand first."""
        return options[self.integer(0, len(options) - 1)]

    def add_input(self, shape: Sequence[int]) -> Value:
        """Add a float32 input."""
        value = Value(f"x{len(self.inputs)}", tuple(shape))
        self.inputs.append(value)
        self.values.append(value)
        return value

    def weight(self, array: np.ndarray) -> str:
        """Add a constant; return its name."""
        name = f"w{len(self.weights)}"
        self.weights.append(numpy_helper.from_array(np.asarray(array, order="C"), name))
        return name

    def normal(self, shape: Sequence[int], fan_in: int = 1) -> str:
        """Add normally distributed weights that keep the size of what they are multiplied with."""
        array = self.random.standard_normal(tuple(shape)) / np.sqrt(max(1, fan_in))
        return self.weight(array.astype(np.float32))

    def integers(self, values: Sequence[int]) -> str:
        """Add a constant int64 vector, as shapes and axes are passed."""
        return self.weight(np.asarray(values, np.int64))

    def emit(
        self,
        kind: str,
        inputs: Sequence[str],
        shape: Sequence[int] | None = None,
        **attributes: Any,
    ) -> Value:
        """Add a node with one output and return that; its shape is inferred where not given."""
        name = f"t{len(self.nodes)}"
        node = helper.make_node(kind, list(inputs), [name], name=f"{kind}_{name}", **attributes)
        self.nodes.append(node)
        self.used.update(inputs)
        return Value(name, tuple(shape) if shape is not None else self._inferred(node))

    def emit_all(
        self,
        kind: str,
        inputs: Sequence[str],
        shapes: Sequence[Sequence[int]],
        **attributes: Any,
    ) -> list[Value]:
        """Add a node with several outputs and return those."""
        names = [f"t{len(self.nodes)}_{index}" for index in range(len(shapes))]
        node = helper.make_node(kind, list(inputs), names, name=f"{kind}_{names[0]}", **attributes)
        self.nodes.append(node)
        self.used.update(inputs)
        return [Value(name, tuple(shape)) for name, shape in zip(names, shapes, strict=True)]

    def _inferred(self, node: onnx.NodeProto) -> tuple[int, ...]:
        """Return the shape of a node's output by ONNX's own inference."""
        model = self._model([], [helper.make_empty_tensor_value_info(node.output[0])])
        inferred = onnx.shape_inference.infer_shapes(model, strict_mode=True, data_prop=True)
        found = {
            info.name: tuple(d.dim_value for d in info.type.tensor_type.shape.dim)
            for info in (*inferred.graph.value_info, *inferred.graph.output)
        }
        return found[node.output[0]]

    def finish(self) -> onnx.ModelProto:
        """Return the model; its outputs are all tensors that nothing reads."""
        unread = [value for value in self.values if value.name not in self.used]
        outputs = [value for value in unread if value not in self.inputs] or self.values[-1:]
        infos = [helper.make_tensor_value_info(v.name, TensorProto.FLOAT, v.shape) for v in outputs]
        model = self._model(self.inputs, infos)
        onnx.checker.check_model(model, full_check=True)
        return model

    def _model(
        self, inputs: Sequence[Value], outputs: Sequence[onnx.ValueInfoProto]
    ) -> onnx.ModelProto:
        infos = [
            helper.make_tensor_value_info(v.name, TensorProto.FLOAT, v.shape)
            for v in (inputs or self.inputs)
        ]
        graph = helper.make_graph(self.nodes, "fuzz", infos, list(outputs), self.weights)
        opsets = [helper.make_opsetid("", OPSET)]
        return helper.make_model(graph, opset_imports=opsets, ir_version=_IR_VERSION)


def small_enough(shape: Sequence[int]) -> bool:
    """Say whether a tensor is one that the reference computes quickly."""
    return 0 < prod(shape) <= MOST_ELEMENTS
