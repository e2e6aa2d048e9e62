"""Reads and checks an ONNX file, and gives access to its weights without copying them."""

from __future__ import annotations

import hashlib
import mmap
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import google.protobuf.message
import numpy as np
import onnx

from tilewright.errors import ModelError
from tilewright.frontends.onnx.values import Value, constant, numpy_dtype

_WHOLE_CHECK_LIMIT_BYTES = 16 << 20
# A level of control flow takes three messages; Protocol Buffers reads at most 100 in each other.
_MOST_NESTED = 31
_TOO_DEEP = (
    f"{{}} has control flow nested more than {_MOST_NESTED} deep, which ONNX's own checker cannot "
    "read; move inner parts into functions or combine conditions"
)
_ELF = b"\x7fELF"


def load_model(model: str | Path | onnx.ModelProto) -> tuple[onnx.ModelProto, Path | None, str]:
    """Read and check a model.

    Args:
        model: A file, or a model in memory.

    Returns:
        The model without its external weights, the folder that these are relative to (None for a
        model in memory), and the SHA-256 of the model, external weights included.

    Raises:
        ModelError: The file cannot be read, is not ONNX, is not valid, or weights are missing.
    """
    if isinstance(model, onnx.ModelProto):
        proto, folder, data = model, None, None
    else:
        path = Path(model)
        data = _read(path)
        proto, folder = _parse(data, path), path.parent
    name = "the model" if folder is None else f"{str(model)!r}"
    if not proto.graph.node and not proto.graph.output:
        raise ModelError(f"{name} is not an ONNX model: it has no graph. Pass an .onnx file.")
    _check_external(proto, folder)
    if _is_nested_deeper(proto.graph, _MOST_NESTED):
        raise ModelError(_TOO_DEEP.format(name))
    _check(proto, name)
    return proto, folder, _digest(proto, folder, data)


@dataclass(frozen=True, slots=True)
class Weight:
    """An initialiser that is read when a node first uses it.

    Attributes:
        tensor: The proto, which says where the data is.
        folder: Folder of the model, for external data; None for a model in memory.
    """

    tensor: onnx.TensorProto
    folder: Path | None

    def load(self) -> Value:
        """Read the data."""
        return constant(initializer_array(self.tensor, self.folder))


def initializer_array(tensor: onnx.TensorProto, folder: Path | None) -> np.ndarray:
    """Return a weight as an array; one in an external file is mapped, not read.

    Raises:
        ModelError: The tensor's data does not fit its shape, or its file is missing.
    """
    try:
        if tensor.data_location == onnx.TensorProto.EXTERNAL:
            return _external_array(tensor, folder)
        return onnx.numpy_helper.to_array(tensor)
    except (ValueError, TypeError, KeyError, OSError) as error:
        raise ModelError(f"weight {tensor.name!r} cannot be read: {error}") from error


def _read(path: Path) -> memoryview:
    """Map a file, so that a large model is not in memory twice while it is parsed."""
    try:
        with path.open("rb") as file:
            if not path.stat().st_size:
                return memoryview(b"")
            return memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))
    except OSError as error:
        raise ModelError(f"cannot read {str(path)!r}: {error.strerror or error}") from error


def _parse(data: memoryview, path: Path) -> onnx.ModelProto:
    proto = onnx.ModelProto()
    try:
        proto.ParseFromString(data)
    except google.protobuf.message.DecodeError as error:
        if "MaxDepth" in str(error):
            raise ModelError(_TOO_DEEP.format(repr(str(path)))) from error
        raise ModelError(
            f"{str(path)!r} ({len(data)} bytes) is not an ONNX model, or is cut short: {error}. "
            + (
                "It is a module that is compiled already."
                if bytes(data[:4]) == _ELF
                else "Check that the file was exported or downloaded completely."
            )
        ) from error
    return proto


def _is_nested_deeper(graph: onnx.GraphProto, levels: int) -> bool:
    """Say whether control flow in control flow goes deeper than so many levels."""
    if levels < 0:
        return True
    return any(
        _is_nested_deeper(attribute.g, levels - 1)
        for node in graph.node
        for attribute in node.attribute
        if attribute.HasField("g")
    )


def _check(proto: onnx.ModelProto, name: str) -> None:
    """Run ONNX's own checker; it copies a model twice, so large ones go without their weights."""
    whole = proto.ByteSize() <= _WHOLE_CHECK_LIMIT_BYTES and not any(external_tensors(proto))
    try:
        onnx.checker.check_model(_declared(proto if whole else _without_weights(proto)))
    except onnx.checker.ValidationError as error:
        raise ModelError(f"{name} is not a valid ONNX model: {_first_line(error)}") from error
    except (RuntimeError, ValueError) as error:
        raise ModelError(f"{name} cannot be checked: {error}") from error


def _declared(proto: onnx.ModelProto) -> onnx.ModelProto:
    """Return a model whose inputs and outputs all say a shape, and outputs a type.

    The checker insists on both. An import does not need them: an input's shape can be given, and
    an output's follows from the graph.
    """
    graph = proto.graph
    if all(_says_enough(item) for item in (*graph.input, *graph.output)):
        return proto
    copy = onnx.ModelProto()
    copy.CopyFrom(proto)
    for item in copy.graph.output:
        if item.type.WhichOneof("value") is None:
            item.type.tensor_type.elem_type = onnx.TensorProto.FLOAT
    for item in (*copy.graph.input, *copy.graph.output):
        if item.type.HasField("tensor_type"):
            item.type.tensor_type.shape.SetInParent()
    return copy


def _says_enough(item: onnx.ValueInfoProto) -> bool:
    kind = item.type.WhichOneof("value")
    return kind is not None and (kind != "tensor_type" or item.type.tensor_type.HasField("shape"))


def _first_line(error: Exception) -> str:
    """Return the checker's first line, and the node that it is about."""
    text = str(error).strip()
    node = re.search(r"Bad node spec for node\. Name: (.*?) OpType: (\S+)", text)
    where = f" (node {node[1]!r})" if node is not None and node[1] else ""
    return text.split("\n")[0] + where


def _without_weights(proto: onnx.ModelProto) -> onnx.ModelProto:
    """Copy a model with its weights turned into inputs."""
    copy = onnx.ModelProto()
    for field, value in proto.ListFields():
        if field.name in ("graph", "training_info"):
            continue
        if hasattr(value, "extend"):
            getattr(copy, field.name).extend(value)
        else:
            setattr(copy, field.name, value)
    graph = proto.graph
    copy.graph.name = graph.name
    copy.graph.node.extend(graph.node)
    copy.graph.input.extend(graph.input)
    copy.graph.output.extend(graph.output)
    inputs = {item.name for item in graph.input}
    for tensor in graph.initializer:
        if tensor.name in inputs:
            continue
        inputs.add(tensor.name)
        info = copy.graph.input.add(name=tensor.name)
        info.type.tensor_type.elem_type = tensor.data_type
        info.type.tensor_type.shape.SetInParent()
        for extent in tensor.dims:
            info.type.tensor_type.shape.dim.add(dim_value=extent)
    copy.graph.sparse_initializer.extend(graph.sparse_initializer)
    return copy


def _check_external(proto: onnx.ModelProto, folder: Path | None) -> None:
    """Raise for the first weight whose external file is missing, too short or outside."""
    for tensor in external_tensors(proto):
        path = _external_path(tensor, folder)
        if not path.is_file():
            raise ModelError(
                f"weight {tensor.name!r} is in the external file {str(path)!r}, which does not "
                "exist. Copy it next to the model, or save the model with its weights inside."
            )


def external_tensors(proto: onnx.ModelProto) -> Iterator[onnx.TensorProto]:
    """Yield the initialisers that are stored outside the model."""
    for tensor in proto.graph.initializer:
        if tensor.data_location == onnx.TensorProto.EXTERNAL:
            yield tensor


def _external_fields(tensor: onnx.TensorProto) -> dict[str, str]:
    return {entry.key: entry.value for entry in tensor.external_data}


def _external_path(tensor: onnx.TensorProto, folder: Path | None) -> Path:
    location = _external_fields(tensor).get("location", "")
    relative = Path(location)
    if folder is None:
        raise ModelError(
            f"weight {tensor.name!r} is in the external file {location!r}, but the model was given "
            "in memory. Pass the path of the file, or load it with onnx.load."
        )
    if not location or relative.is_absolute() or ".." in relative.parts:
        raise ModelError(
            f"weight {tensor.name!r} names the external file {location!r}; only files in the "
            "folder of the model are read"
        )
    return folder / relative


def _external_array(tensor: onnx.TensorProto, folder: Path | None) -> np.ndarray:
    """Map the part of an external file that holds a weight (little endian, as ONNX says)."""
    fields = _external_fields(tensor)
    dtype = numpy_dtype(str(onnx.helper.tensor_dtype_to_np_dtype(tensor.data_type)))
    shape = tuple(tensor.dims)
    path = _external_path(tensor, folder)
    if "int4" in str(dtype) or "float4" in str(dtype) or "int2" in str(dtype):
        full = onnx.TensorProto()
        full.CopyFrom(tensor)
        onnx.external_data_helper.load_external_data_for_tensor(full, str(path.parent))
        return onnx.numpy_helper.to_array(full)
    size = dtype.itemsize * int(np.prod(shape, dtype=np.int64))
    if size == 0:
        return np.zeros(shape, dtype)
    offset, length = int(fields.get("offset", "0")), int(fields.get("length", size))
    if length != size:
        raise ValueError(f"its shape and type need {size} bytes, its external data has {length}")
    with path.open("rb") as file:
        mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    if offset < 0 or offset + size > len(mapped):
        raise ValueError(
            f"it needs bytes {offset} to {offset + size} of {str(path)!r}, which has {len(mapped)}"
        )
    return np.frombuffer(mapped, dtype, size // dtype.itemsize, offset).reshape(shape)


def _digest(proto: onnx.ModelProto, folder: Path | None, data: memoryview | None) -> str:
    """Hash the model and the external files that it names."""
    digest = hashlib.sha256()
    if data is not None:
        digest.update(data)
    else:
        skeleton = proto.SerializeToString(deterministic=True)
        digest.update(skeleton)
    for path in sorted({_external_path(tensor, folder) for tensor in external_tensors(proto)}):
        with path.open("rb") as file:
            while chunk := file.read(1 << 22):
                digest.update(chunk)
    return digest.hexdigest()
