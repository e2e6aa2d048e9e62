"""Bodies of functions: model-local ones, and those that ONNX defines for composite operators."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import onnx

from tilewright.errors import UnsupportedModelError
from tilewright.frontends.onnx.node import describe
from tilewright.frontends.onnx.values import Value, constant, onnx_of_dtype


def schema_of(node: onnx.NodeProto, opset: int) -> onnx.defs.OpSchema | None:
    """Return the ONNX schema of a node's operator, or None for a domain that ONNX lacks."""
    try:
        return onnx.defs.get_schema(node.op_type, opset, node.domain)
    except onnx.defs.SchemaError:
        return None


def schema_body(
    node: onnx.NodeProto,
    schema: onnx.defs.OpSchema,
    inputs: Sequence[Value | None],
    opset: int,
) -> onnx.FunctionProto | None:
    """Return the function body that ONNX defines for an operator, or None.

    Args:
        node: The node, whose attributes and present inputs may decide the body.
        schema: Schema of its operator.
        inputs: Its inputs, for their element types and shapes.
        opset: Opset version of the model.
    """
    if schema.has_function:
        versions = [item for item in schema.function_opset_versions if item <= opset]
        if versions:
            return _parse(schema.get_function_with_opset_version(max(versions)))
    if schema.has_context_dependent_function:
        versions = list(schema.context_dependent_function_opset_versions)
        usable = [item for item in versions if item <= opset]
        if usable:
            types = [_type(value).SerializeToString() for value in inputs]
            body = schema.get_context_dependent_function_with_opset_version(
                max(usable), node.SerializeToString(), types
            )
            return _parse(body)
    return None


def bind_attributes(
    body: onnx.FunctionProto, node: onnx.NodeProto, schema: onnx.defs.OpSchema | None = None
) -> list[onnx.NodeProto]:
    """Return the nodes of a function with its attribute references replaced by values.

    Args:
        body: The function.
        node: The call; its attributes give the values, else the defaults of function or schema.
        schema: ONNX schema of the operator, where the function is its body.

    Raises:
        UnsupportedModelError: An attribute given by the call is used nowhere.
    """
    given = {attribute.name: attribute for attribute in node.attribute}
    known = set(body.attribute) | {attribute.name for attribute in body.attribute_proto}
    if schema is not None:
        known |= set(schema.attributes)
    unknown = sorted(set(given) - known)
    if unknown:
        raise UnsupportedModelError(
            f"{describe(node)}: attribute {unknown[0]!r} is not one of the function's"
        )
    values = {attribute.name: attribute for attribute in body.attribute_proto}
    if schema is not None:
        for name, attribute in schema.attributes.items():
            if attribute.default_value.type != onnx.AttributeProto.UNDEFINED:
                values.setdefault(name, attribute.default_value)
    values.update(given)
    return [_bind_node(item, values) for item in body.node]


def _bind_node(node: onnx.NodeProto, values: Mapping[str, onnx.AttributeProto]) -> onnx.NodeProto:
    """Copy a node with its attribute references resolved, in its subgraphs too."""
    bound = onnx.NodeProto()
    bound.CopyFrom(node)
    del bound.attribute[:]
    for attribute in node.attribute:
        if attribute.ref_attr_name:
            if attribute.ref_attr_name in values:
                item = bound.attribute.add()
                item.CopyFrom(values[attribute.ref_attr_name])
                item.name = attribute.name
            continue
        item = bound.attribute.add()
        item.CopyFrom(attribute)
        if attribute.type == onnx.AttributeProto.GRAPH:
            nodes = [_bind_node(inner, values) for inner in attribute.g.node]
            del item.g.node[:]
            item.g.node.extend(nodes)
    return bound


def _parse(data: bytes) -> onnx.FunctionProto:
    body = onnx.FunctionProto()
    body.ParseFromString(data)
    return body


def _type(value: Value | list[Value] | None) -> onnx.TypeProto:
    """Return the ONNX type of an input; an absent one has the empty type."""
    if isinstance(value, list):
        # ONNX reads the element type without asking whether there is one.
        element = _type(value[0] if value else constant(np.float32(0)))
        return onnx.helper.make_sequence_type_proto(element)
    if not isinstance(value, Value):
        return onnx.TypeProto()
    return onnx.helper.make_tensor_type_proto(onnx_of_dtype(value.dtype), value.shape)
