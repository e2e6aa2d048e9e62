"""Graph inputs that are not tensors: sequences and optional values, as the tensors they hold."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import onnx

from tilewright.frontends.onnx.values import Value


@dataclass(frozen=True, slots=True)
class InputTensors:
    """One graph input as tensors.

    Attributes:
        tensors: What is passed for it.
        is_sequence: Whether the graph sees a list of them, however many.
    """

    tensors: tuple[onnx.ValueInfoProto, ...]
    is_sequence: bool

    def assemble(self, values: Mapping[str, Value]) -> Any:
        """Return what the graph sees: a value, a list of values, or None for what is absent."""
        parts = [values[tensor.name] for tensor in self.tensors]
        if self.is_sequence:
            return parts
        return parts[0] if parts else None


def tensors_of(item: onnx.ValueInfoProto, shapes: Mapping[str, Sequence[int]]) -> InputTensors:
    """Take a graph input apart.

    A sequence has as many elements as there are shapes for ``name[0]``, ``name[1]``...; an optional
    input without any shape is absent.
    """
    if item.type.HasField("tensor_type"):
        return InputTensors((item,), False)
    type_ = item.type
    if type_.HasField("optional_type"):
        type_ = type_.optional_type.elem_type
        if type_.HasField("tensor_type") and item.name in shapes:
            return InputTensors((onnx.ValueInfoProto(name=item.name, type=type_),), False)
        if f"{item.name}[0]" not in shapes:
            return InputTensors((), False)
    if not type_.HasField("sequence_type"):
        return InputTensors((item,), False)
    names: list[str] = []
    while f"{item.name}[{len(names)}]" in shapes:
        names.append(f"{item.name}[{len(names)}]")
    element = onnx.TypeProto()
    element.CopyFrom(type_.sequence_type.elem_type)
    for dim in element.tensor_type.shape.dim:
        dim.ClearField("dim_param")  # elements may differ where the type is open
    return InputTensors(tuple(onnx.ValueInfoProto(name=name, type=element) for name in names), True)


def element_type(type_: onnx.TypeProto) -> onnx.TypeProto:
    """Return the type of the elements of a sequence, which may be optional."""
    if type_.HasField("optional_type"):
        type_ = type_.optional_type.elem_type
    return type_.sequence_type.elem_type
