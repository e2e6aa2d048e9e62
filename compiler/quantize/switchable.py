"""A float model whose layers can be rounded from outside: one compile for all bit plans.

For each layer the copy has five more inputs: its weights, what its outputs add, and the step and
the two bounds that what it reads is rounded by:

    y = layer(x, W, b)   ->   q = min(max(round(x / step), low), high) * step
                              y = layer(q, W', b) + shift

With the original weights, no shift, and `UNROUNDED`, it computes what the model does.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import onnx
from onnx import TensorProto, helper

from tilewright.compiler.quantize.float_model import FloatModel
from tilewright.compiler.quantize.layer_matrix import LayerMatrix, linear_layers


@dataclass(frozen=True, slots=True)
class Rounding:
    """How a tensor is rounded: to step * (low .. high)."""

    step: float
    low: float
    high: float


# A step so small that floats above 2^-17 are whole multiples of it: division and product by a power
# of two are exact.
UNROUNDED = Rounding(2.0**-40, -3e38, 3e38)


def rounding_of(scale: np.float32, zero: int, bits: int) -> Rounding:
    """Return the rounding that QuantizeLinear with these parameters does."""
    return Rounding(float(scale), float(-zero), float((1 << bits) - 1 - zero))


@dataclass(frozen=True, eq=False)
class LayerState:
    """What one layer of the model computes with.

    Attributes:
        weights: float32 in the shape of the stored weights.
        shift: added to the output channels, float32 [outputs].
        rounding: of what it reads.
    """

    weights: np.ndarray
    shift: np.ndarray
    rounding: Rounding = UNROUNDED

    @classmethod
    def plain(cls, layer: LayerMatrix) -> LayerState:
        """Return the state in which the layer computes what it did."""
        return cls(layer.stored(layer.matrix), np.zeros(len(layer.matrix), np.float32))


@dataclass(frozen=True, eq=False)
class Switchable:
    """The model, and what its inputs are.

    Attributes:
        proto: the model; its outputs are those of the original, and what every layer reads.
        layers: of the original, in order.
        outputs: names of the original's outputs that are floats.
        readable: layer -> output of the model that is what it reads before rounding; a layer that
            reads an input of the model is not there.
    """

    proto: onnx.ModelProto
    layers: Mapping[str, LayerMatrix]
    outputs: tuple[str, ...]
    readable: Mapping[str, str]

    def feed(self, states: Mapping[str, LayerState]) -> dict[str, np.ndarray]:
        """Return the model's additional inputs for the states of all layers."""
        arrays: dict[str, np.ndarray] = {}
        for place, (name, layer) in enumerate(self.layers.items()):
            state = states[name]
            names = _names(place)
            rank = len(layer.shape) - 2 if layer.node.op_type == "Conv" else 0
            arrays[names["weights"]] = np.ascontiguousarray(state.weights, np.float32)
            shift = np.asarray(state.shift, np.float32)
            arrays[names["shift"]] = shift.reshape(-1, *(1,) * rank)
            for part in ("step", "low", "high"):
                arrays[names[part]] = np.array([getattr(state.rounding, part)], np.float32)
        return arrays


def make_switchable(proto: onnx.ModelProto) -> Switchable:
    """Return the copy of a float model whose layers can be switched."""
    model = FloatModel(proto)
    layers = linear_layers(model)
    by_result = {layer.node.output[0]: name for name, layer in layers.items()}
    places = {name: place for place, name in enumerate(layers)}
    copy = onnx.ModelProto()
    copy.CopyFrom(proto)
    del copy.graph.node[:]
    for node in proto.graph.node:
        name = by_result.get(node.output[0])
        if name is None:
            copy.graph.node.add().CopyFrom(node)
        else:
            copy.graph.node.extend(_switched(node, places[name]))
            copy.graph.input.extend(_inputs(layers[name], places[name]))
    used = {name for node in copy.graph.node for name in node.input} | model.outputs
    kept = [item for item in proto.graph.initializer if item.name in used]
    del copy.graph.initializer[:]
    copy.graph.initializer.extend(kept)
    typed = onnx.shape_inference.infer_shapes(proto).graph
    infos = {item.name: item for item in [*typed.value_info, *typed.output]}
    readable = {n: layer.source for n, layer in layers.items() if layer.source in infos}
    for tensor in dict.fromkeys(readable.values()):
        if tensor not in model.outputs:
            copy.graph.output.append(infos[tensor])
    del copy.graph.value_info[:]
    floats = TensorProto.FLOAT
    outputs = [i.name for i in proto.graph.output if i.type.tensor_type.elem_type == floats]
    return Switchable(copy, layers, tuple(outputs), readable)


def _names(place: int) -> dict[str, str]:
    parts = ("weights", "shift", "step", "low", "high")
    return {part: f"switch_{place}_{part}" for part in parts}


def _inputs(layer: LayerMatrix, place: int) -> list[onnx.ValueInfoProto]:
    rank = len(layer.shape) - 2 if layer.node.op_type == "Conv" else 0
    shapes = {"weights": layer.shape, "shift": (len(layer.matrix), *(1,) * rank)}
    return [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, list(shapes.get(part, (1,))))
        for part, name in _names(place).items()
    ]


def _switched(node: onnx.NodeProto, place: int) -> list[onnx.NodeProto]:
    names = _names(place)
    steps = [f"switch_{place}_{part}" for part in ("scaled", "whole", "above", "inside", "read")]
    scaled, whole, above, inside, read = steps
    layer = onnx.NodeProto()
    layer.CopyFrom(node)
    layer.input[0], layer.input[1] = read, names["weights"]
    layer.output[0] = f"switch_{place}_result"
    return [
        helper.make_node("Div", [node.input[0], names["step"]], [scaled]),
        helper.make_node("Round", [scaled], [whole]),
        helper.make_node("Max", [whole, names["low"]], [above]),
        helper.make_node("Min", [above, names["high"]], [inside]),
        helper.make_node("Mul", [inside, names["step"]], [read]),
        layer,
        helper.make_node("Add", [layer.output[0], names["shift"]], [node.output[0]]),
    ]
