"""Which activations a quantized model stores as bytes, and who reads them so.

    product -> + bias -> gelu -> [bytes] -> product -> + bias -> + residual -> layer norm -> [bytes]

A tensor is stored as bytes where that lets an operator run on integers: what convolutions and
products with weights read, and on the way there sums, averages and what only moves values. The
rest stays in floats: the sums between the blocks of a transformer, whose few outlier channels leave
no levels for the others (arXiv 2211.10438, section 3), what norms, GELU and softmax read, and the
outputs. All products run on integers all the same.
"""

from __future__ import annotations

from collections.abc import Container

import onnx
from onnx import TensorProto

from tilewright.compiler.quantize.float_model import ACTIVATIONS, FloatModel

MOVING = frozenset(
    ("MaxPool", "Reshape", "Flatten", "Transpose", "Squeeze", "Unsqueeze", "Identity")
)
"""Operators whose result has the scale of what they read."""
_OTHERS = frozenset(("Add", "Mul", "GlobalAveragePool", "AveragePool", "Concat"))
_PER_CHANNEL = frozenset(("BatchNormalization",))


def tensors_to_quantize(proto: onnx.ModelProto) -> list[str]:
    """Return the names of the activations that a quantized model stores as bytes."""
    model = FloatModel(proto)
    wanted = _demanded(model)
    made = [item.name for item in proto.graph.input]
    made += [name for node in proto.graph.node for name in node.output]
    floats = _float_tensors(proto)
    return [
        name
        for name in dict.fromkeys(made)
        if name in wanted and name in floats and name not in model.outputs
    ]


def results_in_floats(model: FloatModel, stored: Container[str]) -> list[str]:
    """Return what layers on integers make, with bias and activation, that is not stored as bytes.

    Args:
        model: the float model.
        stored: the tensors that are bytes.
    """
    layers = [n for n in model.proto.graph.node if model.is_linear(n) and n.input[0] in stored]
    results = [model.result(model.sum_behind(node) or node) for node in layers]
    return [name for name in results if name not in stored and name not in model.outputs]


def reads_bytes(model: FloatModel, node: onnx.NodeProto, stored: Container[str]) -> bool:
    """Say whether a node reads its inputs as they were rounded.

    Sums and movements that stay in floats read what was not rounded.

    Args:
        model: the float model.
        node: of it.
        stored: the tensors that are bytes.
    """
    if node.op_type not in _OTHERS | MOVING:
        return True
    result = model.result(node)
    return result in stored or (
        result in model.outputs and all(name in stored for name in node.input)
    )


def _demanded(model: FloatModel) -> set[str]:
    """Return the tensors that operators on integers read, or that such tensors are made from."""
    wanted: set[str] = set()
    # What an activation reads whose result is wanted: computed by integers, but not stored.
    computed: set[str] = set()
    for node in reversed(model.proto.graph.node):
        if model.is_linear(node):
            wanted.add(node.input[0])
            continue
        if not any(name in wanted or name in computed for name in node.output):
            continue
        varying = [name for name in node.input if name and model.array(name) is None]
        if node.op_type in MOVING | _PER_CHANNEL:
            wanted.add(node.input[0])
        elif node.op_type in ACTIVATIONS:
            computed.add(node.input[0])
        elif node.op_type in _OTHERS and len(varying) == len(node.input):
            # Sums and products with constants belong to what came before.
            wanted.update(varying)
    return {name for name in wanted if model.array(name) is None}


def _float_tensors(proto: onnx.ModelProto) -> set[str]:
    """Return the names of float32 tensors, by shape inference."""
    inferred = onnx.shape_inference.infer_shapes(proto).graph
    infos = [*inferred.value_info, *inferred.input, *inferred.output]
    return {i.name for i in infos if i.type.tensor_type.elem_type == TensorProto.FLOAT}
