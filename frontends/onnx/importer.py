"""Imports an ONNX model as a Relax module with static shapes."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import tvm
from tvm import relax

from tilewright.compiler.quantize.weight_product import DECODED
from tilewright.errors import ModelError, ShapeError
from tilewright.frontends.onnx.builder import GraphBuilder, check_dtype
from tilewright.frontends.onnx.interface import InputTensors, element_type, tensors_of
from tilewright.frontends.onnx.loading import Weight, load_model
from tilewright.frontends.onnx.regions import Region
from tilewright.frontends.onnx.shapes import bind_shapes
from tilewright.frontends.onnx.values import TensorSpec, Value, constant, dtype_of_onnx
from tilewright.frontends.onnx.walk import UNKNOWN, Budget, Problems, Scope

EXTENTS_SUFFIX = ".extents"


@dataclass(frozen=True, slots=True)
class ImportedModel:
    """A model in Relax: function ``main`` takes the inputs in order and returns a tuple.

    Attributes:
        module: The Relax module; weights are constants inside it.
        inputs: Inputs in the order of the parameters, under their ONNX names.
        outputs: Outputs in the order of the tuple. Where the size of an output ``x`` depends on
            data, its shape is an upper bound, and ``x.extents`` follows: the actual one, as int64.
        digest: SHA-256 of the model file and its external weights, in hexadecimal.
        regions: Control flow that is decided at run time; see `regions.Region`.
    """

    module: tvm.IRModule
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    digest: str
    regions: tuple[Region, ...] = ()


def import_onnx(
    model: str | Path | onnx.ModelProto,
    *,
    shapes: Mapping[str, Sequence[int]] | None = None,
    constants: Mapping[str, np.ndarray] | None = None,
) -> ImportedModel:
    """Import an ONNX model.

    Args:
        model: A file, or a model in memory.
        shapes: Shapes of inputs by name; needed where the model leaves dimensions open. A
            sequence becomes one input per element, ``name[0]``, ``name[1]``...: as many as get a
            shape here; an optional input that gets none is absent.
        constants: Values of inputs by name; these inputs vanish from the signature.

    Returns:
        The module with every shape static, every constant expression folded, and one dataflow
        block.

    Raises:
        ModelError: The file cannot be read or is not a valid model.
        ShapeError: A dimension is unknown, or ``shapes`` does not fit the model.
        UnsupportedModelError: Lists every operator, attribute and type that is not supported.
    """
    proto, folder, digest = load_model(model)
    graph = proto.graph
    known = {tensor.name: tensor for tensor in graph.initializer}
    bound = _bind_constants(graph, constants or {})
    open_inputs, specs = _open_inputs(graph, {*known, *bound}, shapes or {})
    builder = GraphBuilder()
    problems = Problems()
    opsets = {_domain(item.domain): item.version for item in proto.opset_import}
    functions = {(_domain(item.domain), item.name): item for item in proto.functions}
    scope = Scope(builder, problems, opsets, functions, Budget(len(graph.node)))
    for name, tensor in known.items():
        scope.values[name] = Weight(tensor, folder)
    for sparse in graph.sparse_initializer:
        scope.values[sparse.values.name] = constant(_dense(sparse))
    scope.values.update(bound)
    built = _build(graph, specs, open_inputs, builder, problems, scope)
    return ImportedModel(*built, digest, tuple(builder.regions))


def read_inputs(
    model: str | Path | onnx.ModelProto, shapes: Mapping[str, Sequence[int]] | None = None
) -> tuple[TensorSpec, ...]:
    """Return the inputs that `import_onnx` would give a model, without importing its nodes.

    Raises:
        ModelError: The file cannot be read or is not a valid model.
        ShapeError: A dimension is unknown, or ``shapes`` does not fit the model.
    """
    graph = load_model(model)[0].graph
    return _open_inputs(graph, {tensor.name for tensor in graph.initializer}, shapes or {})[1]


def _open_inputs(
    graph: onnx.GraphProto, known: Collection[str], shapes: Mapping[str, Sequence[int]]
) -> tuple[dict[str, InputTensors], tuple[TensorSpec, ...]]:
    """Return the inputs without a known value, and the tensors that they become."""
    found = {item.name: tensors_of(item, shapes) for item in graph.input if item.name not in known}
    tensors = [tensor for item in found.values() for tensor in item.tensors]
    specs = (
        TensorSpec(item.name, shape, _tensor_dtype(item))
        for item, shape in bind_shapes(tensors, shapes)
    )
    return found, tuple(specs)


def _build(
    graph: onnx.GraphProto,
    specs: Sequence[TensorSpec],
    open_inputs: Mapping[str, InputTensors],
    builder: GraphBuilder,
    problems: Problems,
    scope: Scope,
) -> tuple[tvm.IRModule, tuple[TensorSpec, ...], tuple[TensorSpec, ...]]:
    """Import the nodes into the main function; return the module, its inputs and outputs."""
    params, tensors = [], {}
    for spec in specs:
        var, tensors[spec.name] = builder.parameter(spec.name, spec.shape, spec.dtype)
        params.append(var)
    for name, item in open_inputs.items():
        scope.values[name] = item.assemble(tensors)
    block = builder.block
    outputs: tuple[TensorSpec, ...] = ()
    failure: ModelError | None = None
    with block.function("main", params):
        with block.dataflow():
            fields = []
            try:
                values = scope.run(graph.node, [item.name for item in graph.output])
                problems.raise_if_any()
                leaves = [
                    leaf
                    for pair in zip(graph.output, values, strict=True)
                    for leaf in _leaves(builder, *pair)
                ]
                outputs = tuple(_output_spec(*leaf) for leaf in leaves)
                fields = [builder.expr(value) for _, value in leaves]
            except ModelError as error:
                # Raised below: an open Relax scope that is left complains on stderr.
                failure = error
            result = block.emit_output(relax.Tuple(fields))
        block.emit_func_output(result)
    if failure is not None:
        raise failure
    module = block.get()
    if builder.decoded:
        module = module.with_attr(DECODED, json.dumps(builder.decoded))
    return module, tuple(specs), outputs


def _leaves(
    builder: GraphBuilder, item: onnx.ValueInfoProto, value: Any
) -> list[tuple[onnx.ValueInfoProto, Any]]:
    """Return the tensors of an output: those of a sequence are ``name[0]``, ``name[1]``..."""
    if value is None and item.type.HasField("optional_type"):
        return []
    if isinstance(value, Value) and value.sizes is not None:
        extents = onnx.ValueInfoProto(name=f"{item.name}{EXTENTS_SUFFIX}")
        return [(item, value), (extents, builder.sizes_vector(value))]
    if not isinstance(value, list):
        return [(item, value)]
    element = element_type(item.type)
    return [
        (onnx.ValueInfoProto(name=f"{item.name}[{index}]", type=element), part)
        for index, part in enumerate(value)
    ]


def _output_spec(item: onnx.ValueInfoProto, value: object) -> TensorSpec:
    """Describe an output, and check it against what the model declares."""
    if value is UNKNOWN or not isinstance(value, Value):
        raise ModelError(
            f"output {item.name!r} is not a tensor; only tensors can be returned from a model"
        )
    check_dtype(value.dtype, f"output {item.name!r}")
    declared = item.type.tensor_type.elem_type
    if declared and dtype_of_onnx(declared) != value.dtype:
        raise ModelError(
            f"output {item.name!r} is declared as {dtype_of_onnx(declared)}, but the graph "
            f"computes {value.dtype}"
        )
    return TensorSpec(item.name, value.shape, value.dtype)


def _tensor_dtype(item: onnx.ValueInfoProto) -> str:
    """Return the element type of a graph input, which must be a tensor."""
    kind = item.type.WhichOneof("value")
    if kind != "tensor_type":
        raise ModelError(
            f"input {item.name!r} is a {kind or 'value without type'}; only tensors can be inputs"
        )
    return dtype_of_onnx(item.type.tensor_type.elem_type)


def _bind_constants(
    graph: onnx.GraphProto, constants: Mapping[str, np.ndarray]
) -> dict[str, Value]:
    """Check the values given for inputs, and wrap them."""
    inputs = {item.name: item for item in graph.input}
    bound = {}
    for name, array in constants.items():
        if name not in inputs:
            raise ShapeError(
                f"there is no input {name!r} to bind to a constant; the inputs are "
                f"{', '.join(repr(item) for item in inputs) or 'none'}"
            )
        item = inputs[name]
        if item.type.HasField("tensor_type"):
            dtype = dtype_of_onnx(item.type.tensor_type.elem_type)
            array = np.asarray(array)
            if str(array.dtype) != dtype:
                raise ModelError(
                    f"the constant for input {name!r} has dtype {array.dtype}, the model wants "
                    f"{dtype}"
                )
            _check_fits(name, array.shape, item.type.tensor_type)
        bound[name] = constant(array)
    return bound


def _check_fits(name: str, shape: Sequence[int], wanted: onnx.TypeProto.Tensor) -> None:
    """Raise unless a constant has the shape that its input declares."""
    if not wanted.HasField("shape"):
        return
    dims = [dim.dim_value if dim.HasField("dim_value") else None for dim in wanted.shape.dim]
    if len(dims) != len(shape) or any(
        dim not in (None, extent) for dim, extent in zip(dims, shape, strict=True)
    ):
        raise ShapeError(f"the constant for input {name!r} has shape {tuple(shape)}, not {dims}")


def _dense(sparse: onnx.SparseTensorProto) -> np.ndarray:
    """Expand a sparse initialiser (indices are linear, or one row of coordinates per value)."""
    values = onnx.numpy_helper.to_array(sparse.values)
    indices = onnx.numpy_helper.to_array(sparse.indices)
    dense = np.zeros(tuple(sparse.dims), values.dtype)
    if indices.ndim == 1:
        dense.reshape(-1)[indices] = values
    else:
        dense[tuple(indices.T)] = values
    return dense


def _domain(name: str) -> str:
    return "" if name == "ai.onnx" else name
