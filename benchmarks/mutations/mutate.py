"""Damages a model, in its bytes or in its structure; the same seed damages it the same way."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import onnx
from google.protobuf.message import DecodeError
from onnx import AttributeProto, TensorProto

Random = np.random.Generator

_BYTE_SHARE = 0.2
_MOST_CHANGES = 3
_SINGLE_CHANGE_SHARE = 0.6  # more changes, and ONNX's checker refuses nearly every model
_SIZES = (0, 1, 2, 3, 7, 64, 1 << 20, 1 << 31, 1 << 40, (1 << 63) - 1, -1, -2, -(1 << 63))
_FLOATS = (0.0, -1.0, 1e-30, 1e30, float("nan"), float("inf"), float("-inf"))
_OPERATORS = tuple(sorted({item.name for item in onnx.defs.get_all_schemas() if not item.domain}))
_NAMES = ("", "ghost", "x", "y", "w", "0", "a b", "é", "x\n", "../x", "main", "int")


def mutate(model: onnx.ModelProto, random: Random) -> bytes:
    """Return the bytes of a damaged copy of a model."""
    if random.random() < _BYTE_SHARE:
        return damage_bytes(model.SerializeToString(), random)
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    single = random.random() < _SINGLE_CHANGE_SHARE
    for _ in range(1 if single else random.integers(2, _MOST_CHANGES + 1)):
        change = _CHANGES[random.integers(len(_CHANGES))]
        try:
            change(copy, random)
        except (ValueError, TypeError, IndexError, DecodeError):
            continue  # protobuf itself refuses the change
    return copy.SerializeToString()


def damage_bytes(data: bytes, random: Random) -> bytes:
    """Flip, replace, delete, repeat or cut bytes, in up to three places."""
    raw = bytearray(data)
    for _ in range(random.integers(1, _MOST_CHANGES + 1)):
        at = int(random.integers(len(raw))) if raw else 0
        length = int(random.integers(1, 9))
        kind = random.integers(6)
        if kind == 0 and raw:
            raw[at] ^= 1 << int(random.integers(8))
        elif kind == 1:
            raw[at : at + length] = random.bytes(length)
        elif kind == 2:
            del raw[at : at + length]
        elif kind == 3:
            raw[at:at] = random.bytes(length)
        elif kind == 4:
            start = int(random.integers(len(raw))) if raw else 0
            raw[at:at] = raw[start : start + 8 * length]
        elif random.random() < 0.2:
            del raw[at:]
    return bytes(raw)


def _pick(items: Sequence[Any], random: Random) -> Any:
    return items[int(random.integers(len(items)))]


def _graphs(model: onnx.ModelProto) -> list[Any]:
    """Return the graph, its subgraphs and the bodies of functions: all that has nodes."""
    found: list[Any] = []
    waiting: list[Any] = [model.graph, *model.functions]
    while waiting:
        graph = waiting.pop()
        found.append(graph)
        for node in graph.node:
            waiting += [item.g for item in node.attribute if item.type == AttributeProto.GRAPH]
    return found


def _node(model: onnx.ModelProto, random: Random) -> onnx.NodeProto:
    return _pick([node for graph in _graphs(model) for node in graph.node], random)


def _tensor_names(model: onnx.ModelProto) -> list[str]:
    names = [item.name for item in (*model.graph.input, *model.graph.initializer)]
    for graph in _graphs(model):
        names += [name for node in graph.node for name in node.output]
    return [*names, *_NAMES]


def _number(random: Random) -> int:
    return int(_pick(_SIZES, random)) if random.random() < 0.6 else int(random.integers(-4, 12))


def _change_input(model: onnx.ModelProto, random: Random) -> None:
    """Rewire: another name (cycles among them), absent, dropped, added or swapped."""
    node = _node(model, random)
    kind = random.integers(5)
    if kind == 0 and len(node.input) > 1:
        one, other = random.choice(len(node.input), 2, replace=False)
        node.input[one], node.input[other] = node.input[other], node.input[one]
    elif kind == 1 and node.input:
        del node.input[int(random.integers(len(node.input)))]
    elif kind == 2:
        node.input.append(_pick(_tensor_names(model), random))
    elif node.input:
        at = int(random.integers(len(node.input)))
        node.input[at] = "" if kind == 3 else _pick(_tensor_names(model), random)


def _change_output(model: onnx.ModelProto, random: Random) -> None:
    """Rename an output (twice the same name, shadowing), drop it or add one."""
    node = _node(model, random)
    kind = random.integers(3)
    if kind == 0 and node.output:
        node.output[int(random.integers(len(node.output)))] = _pick(_tensor_names(model), random)
    elif kind == 1 and node.output:
        del node.output[int(random.integers(len(node.output)))]
    else:
        node.output.append(_pick(_NAMES, random))


def _change_attribute(model: onnx.ModelProto, random: Random) -> None:
    """Change, drop, rename, retype or repeat an attribute."""
    nodes = [node for graph in _graphs(model) for node in graph.node if node.attribute]
    if not nodes:
        return
    node = _pick(nodes, random)
    at = int(random.integers(len(node.attribute)))
    item = node.attribute[at]
    kind = random.integers(7)
    if kind == 0:
        del node.attribute[at]
    elif kind == 1:
        item.name = _pick(("axis", "to", "kernel_shape", "perm", "nothing", ""), random)
    elif kind == 2:
        item.type = int(random.integers(0, 16))
    elif kind == 3:
        node.attribute.add().CopyFrom(item)
    elif kind == 4:
        item.ref_attr_name = _pick(("by", "nothing"), random)
    else:
        _change_number(item, random)


def _change_number(item: AttributeProto, random: Random) -> None:
    if item.type == AttributeProto.INT:
        item.i = _number(random)
    elif item.type == AttributeProto.FLOAT:
        item.f = _pick(_FLOATS, random)
    elif item.type == AttributeProto.STRING:
        item.s = _pick((b"", b"same", b"linear", b"\xff", b"sum", b"SAME_UPPER", b"relu"), random)
    elif item.type == AttributeProto.INTS:
        numbers = list(item.ints) or [0]
        kind = random.integers(3)
        if kind == 0:
            numbers[int(random.integers(len(numbers)))] = _number(random)
        elif kind == 1:
            numbers.pop()
        else:
            numbers.append(_number(random))
        item.ints[:] = numbers


def _add_attribute(model: onnx.ModelProto, random: Random) -> None:
    """Give a node an attribute that its operator has, with a number of our choice."""
    node = _node(model, random)
    schemas = [s for s in onnx.defs.get_all_schemas() if s.name == node.op_type]
    names = [name for schema in schemas for name in schema.attributes] or ["axis"]
    value = _pick((_number(random), [_number(random)], [0, 1], 0.5, "x"), random)
    node.attribute.append(onnx.helper.make_attribute(_pick(names, random), value))


def _change_operator(model: onnx.ModelProto, random: Random) -> None:
    node = _node(model, random)
    if random.random() < 0.8:
        node.op_type = _pick(_OPERATORS, random)
    else:
        node.domain = _pick(("com.microsoft", "ai.onnx", "ai.onnx.ml", "local", "no"), random)


def _change_nodes(model: onnx.ModelProto, random: Random) -> None:
    """Drop, repeat or move a node."""
    graph = _pick([graph for graph in _graphs(model) if graph.node], random)
    at, kind = int(random.integers(len(graph.node))), random.integers(3)
    node = onnx.NodeProto()
    node.CopyFrom(graph.node[at])
    if kind == 0:
        del graph.node[at]
        return
    nodes = list(graph.node)
    if kind == 1:
        nodes.pop(at)
    nodes.insert(int(random.integers(len(nodes) + 1)), node)
    copies = [onnx.NodeProto.FromString(item.SerializeToString()) for item in nodes]
    del graph.node[:]
    graph.node.extend(copies)


def _change_version(model: onnx.ModelProto, random: Random) -> None:
    item = _pick(model.opset_import, random)
    kind = random.integers(5)
    if kind == 0:
        model.opset_import.remove(item)
    elif kind == 1:
        model.opset_import.add(domain=item.domain, version=int(random.integers(1, 30)))
    elif kind == 2:
        model.ir_version = _pick((0, 1, 3, 8, 13, 14, 99, 1 << 40, -1), random)
    else:
        item.version = int(random.integers(-1, 32)) if random.random() < 0.8 else 1 << 40


def _change_weight(model: onnx.ModelProto, random: Random) -> None:
    """Damage an initialiser: its shape, type, name, bytes, numbers or place of storage."""
    tensor: TensorProto = _pick(model.graph.initializer, random)
    kind = random.integers(8)
    if kind == 0 and tensor.dims:
        tensor.dims[int(random.integers(len(tensor.dims)))] = _number(random)
    elif kind == 1:
        tensor.dims.append(_number(random))
    elif kind == 2:
        tensor.data_type = int(random.integers(0, 30))
    elif kind == 3:
        cut = int(random.integers(len(tensor.raw_data) + 1))
        tensor.raw_data = tensor.raw_data[:cut] + random.bytes(int(random.integers(0, 9)))
    elif kind == 4:
        tensor.name = _pick(_tensor_names(model), random)
    elif kind == 5:
        _move_outside(tensor, random)
    elif kind == 6 and tensor.dims:
        tensor.ClearField("dims")
    else:
        _change_values(tensor, random)


def _change_values(tensor: TensorProto, random: Random) -> None:
    """Write a number of our choice into a tensor: shapes, axes and counts are among them."""
    array = np.array(onnx.numpy_helper.to_array(tensor))
    flat = array.reshape(-1)
    if not flat.size:
        return
    at = int(random.integers(flat.size))
    if array.dtype.kind == "f":
        flat[at] = _pick(_FLOATS, random)
    elif array.dtype.kind in "iu":
        limits = np.iinfo(array.dtype)
        flat[at] = min(max(_number(random), limits.min), limits.max)
    name = tensor.name
    tensor.CopyFrom(onnx.numpy_helper.from_array(array, name))


def _move_outside(tensor: TensorProto, random: Random) -> None:
    """Say that the data is in a file: one that is missing, outside, or given by odd numbers."""
    tensor.data_location = TensorProto.EXTERNAL
    places = ("weights.bin", "missing.bin", "../weights.bin", "/etc/passwd", "", ".", "a\0b")
    fields = {"location": _pick(places, random)}
    if random.random() < 0.5:
        fields["offset"] = str(_number(random)) if random.random() < 0.8 else "many"
    if random.random() < 0.5:
        fields["length"] = str(_number(random)) if random.random() < 0.8 else ""
    del tensor.external_data[:]
    for key, value in fields.items():
        tensor.external_data.add(key=key, value=value)
    if random.random() < 0.8:
        tensor.ClearField("raw_data")


def _change_interface(model: onnx.ModelProto, random: Random) -> None:
    """Damage an input or output of a graph: extents, rank, element type, name, presence."""
    graphs = [graph for graph in _graphs(model) if isinstance(graph, onnx.GraphProto)]
    graph = model.graph if random.random() < 0.6 else _pick(graphs, random)
    items = graph.input if random.random() < 0.6 and graph.input else graph.output
    if not items:
        return
    item = _pick(items, random)
    tensor = item.type.tensor_type
    kind = random.integers(7)
    if kind == 0 and tensor.shape.dim:
        _pick(tensor.shape.dim, random).dim_value = _number(random)
    elif kind == 1 and tensor.shape.dim:
        _pick(tensor.shape.dim, random).dim_param = _pick(("n", "batch", ""), random)
    elif kind == 2:
        tensor.ClearField("shape")
    elif kind == 3:
        tensor.elem_type = int(random.integers(0, 30))
    elif kind == 4:
        item.name = _pick(_tensor_names(model), random)
    elif kind == 5:
        items.remove(item)
    else:
        tensor.shape.dim.add(dim_value=_number(random))


def _change_attribute_number(model: onnx.ModelProto, random: Random) -> None:
    nodes = [node for graph in _graphs(model) for node in graph.node if node.attribute]
    if nodes:
        _change_number(_pick(_pick(nodes, random).attribute, random), random)


def _change_weight_number(model: onnx.ModelProto, random: Random) -> None:
    _change_values(_pick(model.graph.initializer, random), random)


# What leaves a model valid for ONNX's checker comes more often.
_CHANGES: tuple[Callable[[onnx.ModelProto, Random], None], ...] = (
    *(_change_input, _change_output, _change_attribute, _add_attribute, _change_operator),
    *(_change_nodes, _change_version, _change_weight, _change_interface),
    *(_change_input, _change_attribute, _change_weight, _change_interface, _add_attribute),
    *(_change_operator, _change_operator, _change_attribute_number, _change_attribute_number),
    *(_change_attribute_number, _change_weight_number, _change_weight_number),
)
