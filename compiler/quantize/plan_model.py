"""Write a model by a bit plan: QDQ around the layers that read integers, the rest in floats.

A layer that reads integers reads its input from a QuantizeLinear and DequantizeLinear pair of its
own bits; what only moves values, and sums and averages on the way to such a layer, are integers
too (of 8 bits for sums). Everything else reads the tensor as it was, in floats.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import onnx

from tilewright.compiler.quantize.bit_plan import BitPlan, LayerBits
from tilewright.compiler.quantize.float_model import ACTIVATIONS, FloatModel
from tilewright.compiler.quantize.layer_matrix import LayerMatrix, linear_layers
from tilewright.compiler.quantize.qdq_writer import (
    BLOCKED_OPSET,
    QdqWriter,
    at_opset,
    dequantized,
    opset_for,
    whole_bias,
)
from tilewright.compiler.quantize.weight_rounding import RoundedWeights

Parameters = Mapping[tuple[str, int], tuple[np.float32, int]]
"""Tensor and bits -> scale and zero point."""

MOVING = frozenset(("MaxPool", "Reshape", "Flatten", "Transpose", "Squeeze", "Unsqueeze"))
_SUMMING = frozenset(("Add", "Concat", "AveragePool", "GlobalAveragePool"))
_BYTE = 8


def integer_tensors(model: FloatModel, plan: BitPlan) -> dict[str, tuple[int, ...]]:
    """Return the tensors that are stored as integers, and of how many bits, the most first.

    Args:
        model: the float model.
        plan: bits of all its layers.
    """
    bits_of = {layer.node.output[0]: plan[name] for name, layer in linear_layers(model).items()}
    made_by_integers = {name for name, bits in bits_of.items() if bits.reads_integers}
    wanted: dict[str, set[int]] = {}
    for node in reversed(model.proto.graph.node):
        result = node.output[0] if node.output else ""
        if result in bits_of:
            if bits_of[result].reads_integers:
                wanted.setdefault(node.input[0], set()).add(bits_of[result].activations)
            continue
        widths = wanted.get(result, set())
        if node.op_type in MOVING:
            for width in widths:
                wanted.setdefault(node.input[0], set()).add(width)
        elif widths and node.op_type in _SUMMING and _all_integers(model, node, made_by_integers):
            for name in node.input:
                wanted.setdefault(name, set()).add(_BYTE)
    return {name: tuple(sorted(widths, reverse=True)) for name, widths in wanted.items()}


def _all_integers(model: FloatModel, node: onnx.NodeProto, made: set[str]) -> bool:
    """Say whether all that a node reads comes from layers that read integers, or their sums."""

    def is_made(name: str) -> bool:
        if name in made:
            return True
        maker = model.maker.get(name)
        if maker is None or model.array(name) is not None:
            return False
        if maker.op_type in MOVING | ACTIVATIONS:
            return is_made(maker.input[0])
        return maker.op_type in _SUMMING and all(is_made(given) for given in maker.input)

    return all(is_made(name) for name in node.input)


def shared_parameters(
    model: FloatModel, tensors: Mapping[str, tuple[int, ...]], given: Parameters
) -> dict[tuple[str, int], tuple[np.float32, int]]:
    """Give what only moves values the scale of what it moves."""
    shared = {key: value for key, value in given.items() if key[1] in tensors.get(key[0], ())}
    for node in model.proto.graph.node:
        if node.op_type in MOVING:
            for bits in tensors.get(node.output[0], ()):
                if (node.input[0], bits) in shared:
                    shared[node.output[0], bits] = shared[node.input[0], bits]
    return shared


def write_plan(
    proto: onnx.ModelProto,
    plan: BitPlan,
    parameters: Parameters,
    weights: Mapping[str, RoundedWeights],
    shifts: Mapping[str, np.ndarray],
) -> onnx.ModelProto:
    """Return the quantized model.

    Args:
        proto: the float model.
        plan: bits of every layer.
        parameters: of every tensor and width that `integer_tensors` names.
        weights: of every layer with integer weights.
        shifts: layer -> what is added to its outputs, where there is a place for it.

    Raises:
        ModelError: the model cannot be brought to the opset that the plan needs.
    """
    source = onnx.ModelProto()
    source.CopyFrom(proto)
    model = FloatModel(source)
    for name, layer in linear_layers(model).items():
        if name in shifts:
            model.add_to_bias(layer.node, shifts[name])
    source = at_opset(source, _opset(plan))
    model = FloatModel(source)
    tensors = integer_tensors(model, plan)
    parameters = shared_parameters(model, tensors, parameters)
    writer = QdqWriter()
    layers = {layer.node.output[0]: layer for layer in linear_layers(model).values()}
    nodes: list[onnx.NodeProto] = []

    def store(name: str) -> None:
        for bits in tensors.get(name, ()):
            nodes.extend(writer.activation(name, *parameters[name, bits], bits))

    for name in tensors:
        if name not in model.maker:
            store(name)
    for node in source.graph.node:
        copy = onnx.NodeProto()
        copy.CopyFrom(node)
        if node.output and node.output[0] in layers:
            layer = layers[node.output[0]]
            bits = plan[layer.name]
            if bits.has_integer_weights:
                nodes += _layer(writer, model, copy, layer, weights[layer.name], bits, parameters)
            if bits.reads_integers:
                copy.input[0] = dequantized(copy.input[0], bits.activations)
        elif node.op_type in MOVING:
            widths = tensors.get(node.output[0], ())
            if len(widths) == 1 and widths[0] in tensors[node.input[0]]:
                copy.input[0] = dequantized(copy.input[0], widths[0])
        elif node.op_type in _SUMMING and node.output[0] in tensors:
            for place, name in enumerate(copy.input):
                if _BYTE in tensors.get(name, ()):
                    copy.input[place] = dequantized(name)
        nodes.append(copy)
        for name in node.output:
            store(name)
    return _finished(source, nodes, writer, model)


def _opset(plan: BitPlan) -> int:
    needed = [opset_for(b.weights) for _, b in plan.layers if b.has_integer_weights]
    needed += [opset_for(b.activations) for _, b in plan.layers if b.reads_integers]
    needed += [BLOCKED_OPSET for _, bits in plan.layers if bits.group]
    return max(needed, default=0)


def _layer(
    writer: QdqWriter,
    model: FloatModel,
    node: onnx.NodeProto,
    layer: LayerMatrix,
    rounded: RoundedWeights,
    bits: LayerBits,
    parameters: Parameters,
) -> list[onnx.NodeProto]:
    """Quantize a layer's weights and bias in place, and return what dequantizes them."""
    stem = f"{layer.node.output[0]}_weight"
    integers = layer.stored(rounded.integers)
    if bits.group:
        scale = rounded.scale if layer.axis == 0 else rounded.scale.T
        made = writer.weights(stem, integers, scale, 1 - layer.axis, bits.weights, bits.group)
    else:
        scale = rounded.scale.reshape(-1)
        made = writer.weights(stem, integers, scale, layer.axis, bits.weights)
    node.input[1] = made.output[0]
    bias = model.array(node.input[2]) if len(node.input) > 2 and node.input[2] else None
    if bias is None or not bits.reads_integers or bias.shape != (len(layer.matrix),):
        return [made]
    products = rounded.scale.reshape(-1) * parameters[node.input[0], bits.activations][0]
    stem = f"{layer.node.output[0]}_bias"
    added = writer.bias(stem, whole_bias(bias, products), products)
    node.input[2] = added.output[0]
    return [made, added]


def _finished(
    source: onnx.ModelProto, nodes: list[onnx.NodeProto], writer: QdqWriter, model: FloatModel
) -> onnx.ModelProto:
    result = onnx.ModelProto()
    result.CopyFrom(source)
    used = {name for node in nodes for name in node.input} | model.outputs
    del result.graph.node[:]
    result.graph.node.extend(
        node for node in nodes if node.op_type != "Constant" or node.output[0] in used
    )
    kept = [item for item in source.graph.initializer if item.name in used]
    del result.graph.initializer[:]
    result.graph.initializer.extend([*kept, *writer.constants.values()])
    del result.graph.value_info[:]
    return result
