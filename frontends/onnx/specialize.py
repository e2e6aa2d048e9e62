"""Finds the inputs of a model that decide shapes, which must be known when compiling."""

from __future__ import annotations

from collections.abc import Mapping

import onnx

from tilewright.frontends.onnx.registry import find_converter
from tilewright.frontends.onnx.walk import captured_names

# Operators that shape arithmetic consists of: what they compute is shape-like if their inputs are.
_ARITHMETIC = frozenset(
    [
        "Add",
        "Cast",
        "Ceil",
        "Concat",
        "Div",
        "Equal",
        "Expand",
        "Floor",
        "Gather",
        "Identity",
        "If",
        "Max",
        "Min",
        "Mod",
        "Mul",
        "Not",
        "ReduceMax",
        "ReduceMin",
        "ReduceProd",
        "ReduceSum",
        "Relu",
        "Reshape",
        "Slice",
        "Split",
        "Squeeze",
        "Sub",
        "Unsqueeze",
        "Where",
    ]
)
# A whole tensor of numbers is data, whatever it is used for.
_LARGEST_SHAPE_INPUT = 1024


def shape_inputs(model: onnx.ModelProto) -> tuple[str, ...]:
    """Return the graph inputs that shapes, axes, counts or sizes are read from.

    Only inputs of rank 0 or 1 count, and only where they reach a shape-like operand of an
    operator directly or through shape arithmetic. They may be given as ``constants`` to
    :func:`import_onnx`; everything else stays a run-time input.
    """
    opsets = {_domain(item.domain): item.version for item in model.opset_import}
    producers = {name: node for node in model.graph.node for name in node.output if name}
    wanted: list[str] = []
    for node in model.graph.node:
        wanted += _operands(node, opsets)
    seen: set[str] = set()
    while wanted:
        name = wanted.pop()
        if name in seen:
            continue
        seen.add(name)
        producer = producers.get(name)
        if producer is not None and producer.op_type in _ARITHMETIC and not producer.domain:
            wanted += [item for item in producer.input if item]
            wanted += captured_names(producer)
    known = {tensor.name for tensor in model.graph.initializer}
    return tuple(
        item.name
        for item in model.graph.input
        if item.name in seen and item.name not in known and _is_small(item)
    )


def _operands(node: onnx.NodeProto, opsets: Mapping[str, int]) -> list[str]:
    """Return the inputs of a node that must be known when compiling."""
    domain = _domain(node.domain)
    converter = find_converter(domain, node.op_type, opsets.get(domain, 1))
    if converter is None:
        return []
    return [
        node.input[index]
        for index in converter.shape_inputs
        if index < len(node.input) and node.input[index]
    ]


def _is_small(item: onnx.ValueInfoProto) -> bool:
    """Tell whether an input can be a shape: rank 0 or 1, and not long."""
    dims = item.type.tensor_type.shape.dim
    return item.type.HasField("tensor_type") and (
        len(dims) == 0 or (len(dims) == 1 and dims[0].dim_value <= _LARGEST_SHAPE_INPUT)
    )


def _domain(name: str) -> str:
    return "" if name == "ai.onnx" else name
