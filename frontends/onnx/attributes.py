"""Reads the attributes of an ONNX node and records which were read."""

from __future__ import annotations

from typing import Any

import onnx

from tilewright.errors import ModelError

_SPEC = object()


class Attributes:
    """The attributes of one node, with the defaults of the operator's ONNX schema."""

    def __init__(self, node: onnx.NodeProto, schema: onnx.defs.OpSchema | None) -> None:
        self._node = node
        self._schema = schema
        self._given = {attribute.name: attribute for attribute in node.attribute}
        self._read: set[str] = set()

    def get(self, name: str, default: Any = _SPEC) -> Any:
        """Return an attribute as a plain Python value, and mark it as read.

        Strings are decoded, lists come as tuples, tensors and graphs as their protos.

        Args:
            name: The attribute.
            default: What to return when it is absent; the default of the ONNX schema if not
                given, which is None for an optional attribute that has none.

        Raises:
            ModelError: The attribute is required and absent.
        """
        self._read.add(name)
        if name in self._given:
            return _plain(onnx.helper.get_attribute_value(self._given[name]))
        if default is not _SPEC:
            return default
        return self._spec_default(name)

    def has(self, name: str) -> bool:
        """Tell whether the node gives the attribute; this does not count as reading it."""
        return name in self._given

    def use_schema(self, operator: str) -> None:
        """Take the defaults of an ai.onnx operator that this one extends."""
        self._schema = onnx.defs.get_schema(operator)

    def unread(self) -> list[str]:
        """Return the attributes that the node gives and nobody read."""
        return sorted(set(self._given) - self._read)

    def _spec_default(self, name: str) -> Any:
        known = {} if self._schema is None else self._schema.attributes
        if name not in known:
            return None
        if known[name].required:
            raise ModelError(
                f"{self._node.op_type} node {self._node.name!r}: attribute {name!r} is missing; "
                "ONNX requires it. Export the model again."
            )
        default = known[name].default_value
        if default.type == onnx.AttributeProto.UNDEFINED:
            return None
        return _plain(onnx.helper.get_attribute_value(default))


def _plain(value: Any) -> Any:
    """Turn protobuf containers and bytes into tuples and strings."""
    if isinstance(value, bytes):
        return value.decode("utf-8", errors="replace")
    if isinstance(value, (str, int, float)) or hasattr(value, "DESCRIPTOR"):
        return value
    return tuple(_plain(item) for item in value)
