"""Binds the open dimensions of graph inputs to the sizes given by the caller."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence

import onnx

from tilewright.errors import ShapeError

_EXAMPLE_SIZES = {4: "1,3,224,224", 2: "1,128", 3: "1,128,768", 5: "1,3,8,112,112"}


def bind_shapes(
    inputs: Sequence[onnx.ValueInfoProto], shapes: Mapping[str, Sequence[int]]
) -> list[tuple[onnx.ValueInfoProto, tuple[int, ...]]]:
    """Return the static shape of every input.

    A symbolic dimension has one size in the whole model: giving it for one input gives it for all.

    Args:
        inputs: Graph inputs, initialisers excluded.
        shapes: Sizes by input name.

    Raises:
        ShapeError: A dimension is left open, or the sizes given contradict the model.
    """
    by_name = {item.name: item for item in inputs}
    for name in shapes:
        if name not in by_name:
            raise ShapeError(
                f"there is no input {name!r} to give a shape; the inputs are "
                f"{', '.join(repr(item) for item in by_name) or 'none'}"
            )
    symbols: dict[str, tuple[int, str]] = {}
    for name, shape in shapes.items():
        _bind_symbols(by_name[name], tuple(int(extent) for extent in shape), symbols)
    return [(item, _shape(item, shapes.get(item.name), symbols)) for item in inputs]


def _bind_symbols(
    item: onnx.ValueInfoProto, shape: tuple[int, ...], symbols: dict[str, tuple[int, str]]
) -> None:
    """Check a shape given for an input against the model, and note its symbols' sizes."""
    given = ",".join(map(str, shape))
    if any(extent < 0 for extent in shape):
        raise ShapeError(f"the shape {given} given for input {item.name!r} has a negative size")
    if not item.type.tensor_type.HasField("shape"):
        return
    dims = item.type.tensor_type.shape.dim
    if len(dims) != len(shape):
        raise ShapeError(
            f"the shape {given} given for input {item.name!r} has {len(shape)} dimensions; the "
            f"model declares {len(dims)}: {_declared(item)}"
        )
    for index, (dim, extent) in enumerate(zip(dims, shape, strict=True)):
        if dim.HasField("dim_value") and dim.dim_value >= 0 and dim.dim_value != extent:
            raise ShapeError(
                f"the shape {given} given for input {item.name!r} has {extent} in dimension "
                f"{index}, where the model declares {dim.dim_value}: {_declared(item)}"
            )
        if dim.dim_param:
            size, source = symbols.setdefault(dim.dim_param, (extent, item.name))
            if size != extent:
                raise ShapeError(
                    f"dimension {dim.dim_param!r} is {size} in input {source!r}, but {extent} in "
                    f"input {item.name!r}; it must be the same"
                )


def _shape(
    item: onnx.ValueInfoProto,
    given: Sequence[int] | None,
    symbols: Mapping[str, tuple[int, str]],
) -> tuple[int, ...]:
    """Return the shape of one input."""
    if given is not None:
        return tuple(int(extent) for extent in given)
    if not item.type.tensor_type.HasField("shape"):
        raise ShapeError(
            f"the model does not say how many dimensions input {item.name!r} has; give its shape: "
            f"--shape {item.name}=1,3,224,224"
        )
    dims = item.type.tensor_type.shape.dim
    extents = []
    for index, dim in enumerate(dims):
        if dim.HasField("dim_value") and dim.dim_value >= 0:
            extents.append(dim.dim_value)
        elif dim.dim_param in symbols:
            extents.append(symbols[dim.dim_param][0])
        else:
            named = f" ({dim.dim_param!r})" if dim.dim_param else ""
            raise ShapeError(
                f"dimension {index}{named} of input {item.name!r} is unknown in the model "
                f"({_declared(item)}); give its shape: "
                f"--shape {shlex.quote(f'{item.name}={_example(dims)}')}"
            )
    return tuple(extents)


def _declared(item: onnx.ValueInfoProto) -> str:
    """Write the declared shape of an input as the model has it."""
    dims = item.type.tensor_type.shape.dim
    return "[" + ", ".join(_dim(dim) for dim in dims) + "]"


def _dim(dim: onnx.TensorShapeProto.Dimension) -> str:
    return str(dim.dim_value) if dim.HasField("dim_value") else dim.dim_param or "?"


def _example(dims: Sequence[onnx.TensorShapeProto.Dimension]) -> str:
    """Propose a shape that fits the known dimensions."""
    proposal = _EXAMPLE_SIZES.get(len(dims), ",".join(["1"] * len(dims))).split(",")
    known = [dim.HasField("dim_value") and dim.dim_value >= 0 for dim in dims]
    return ",".join(
        str(dim.dim_value) if is_known else size
        for dim, size, is_known in zip(dims, proposal, known, strict=True)
    )
