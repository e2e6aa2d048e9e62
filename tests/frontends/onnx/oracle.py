"""Builds an imported model with plain TVM and compares it with another implementation."""

import os
from collections.abc import Mapping, Sequence

os.environ.setdefault("TVM_NUM_THREADS", "1")
os.environ.setdefault("TVM_BIND_THREADS", "0")

import numpy as np
import onnx
import onnxruntime
import tvm
from onnx import TensorProto, helper
from onnx.reference import ReferenceEvaluator
from tvm import relax

from tilewright.frontends.onnx import ImportedModel, import_onnx


def make_model(
    nodes: Sequence[onnx.NodeProto],
    inputs: Mapping[str, np.ndarray],
    outputs: Sequence[str],
    opset: int,
    weights: Mapping[str, np.ndarray] | None = None,
    domains: Mapping[str, int] | None = None,
    functions: Sequence[onnx.FunctionProto] = (),
) -> onnx.ModelProto:
    """Make a model whose inputs have the shapes and dtypes of example arrays."""
    infos = [
        helper.make_tensor_value_info(
            name, helper.np_dtype_to_tensor_dtype(array.dtype), array.shape
        )
        for name, array in inputs.items()
    ]
    graph = helper.make_graph(
        list(nodes),
        "test",
        infos,
        [helper.make_tensor_value_info(name, TensorProto.UNDEFINED, []) for name in outputs],
        [onnx.numpy_helper.from_array(array, name) for name, array in (weights or {}).items()],
    )
    opsets = [helper.make_opsetid("", opset)]
    opsets += [helper.make_opsetid(name, version) for name, version in (domains or {}).items()]
    return helper.make_model(graph, opset_imports=opsets, functions=list(functions), ir_version=10)


def run(imported: ImportedModel, feeds: Mapping[str, np.ndarray]) -> list[np.ndarray]:
    """Build with TVM's default pipeline, without any schedule of ours, and run."""
    machine = relax.VirtualMachine(relax.build(imported.module, "llvm"), tvm.cpu())
    given = [feeds[item.name] for item in imported.inputs]
    arrays = [tvm.runtime.tensor(np.ascontiguousarray(a).reshape(a.shape)) for a in given]
    return [item.numpy() for item in machine["main"](*arrays)]


def check(
    model: onnx.ModelProto,
    feeds: Mapping[str, np.ndarray],
    *,
    rtol: float = 1e-5,
    atol: float = 1e-5,
    constants: Sequence[str] = (),
    runtime: bool = False,
) -> ImportedModel:
    """Import, build and run a model, and compare with ONNX's reference evaluator.

    With ``runtime``, ONNX Runtime is the oracle: the reference evaluator has gaps.
    """
    bound = {name: feeds[name] for name in constants}
    imported = import_onnx(model, constants=bound)
    if runtime:
        expected = run_onnxruntime(model, feeds)
    else:
        expected = ReferenceEvaluator(model).run(None, dict(feeds))
    compare(run(imported, feeds), expected, rtol, atol)
    specs = [(item.shape, item.dtype) for item in imported.outputs]
    assert specs == [(np.shape(item), str(np.asarray(item).dtype)) for item in expected]
    return imported


def run_onnxruntime(model: onnx.ModelProto, feeds: Mapping[str, np.ndarray]) -> list[np.ndarray]:
    """Run with ONNX Runtime, which wants outputs without a type rather than with an empty one."""
    typed = onnx.ModelProto()
    typed.CopyFrom(model)
    for output in typed.graph.output:
        if output.type.tensor_type.elem_type == TensorProto.UNDEFINED:
            output.ClearField("type")
    session = onnxruntime.InferenceSession(
        typed.SerializeToString(), providers=["CPUExecutionProvider"]
    )
    return session.run(None, dict(feeds))


def compare(
    found: Sequence[np.ndarray], expected: Sequence[np.ndarray], rtol: float, atol: float
) -> None:
    """Compare shapes, dtypes and numbers; integers and booleans exactly."""
    assert len(found) == len(expected)
    for actual, wanted in zip(found, expected, strict=True):
        assert (actual.shape, actual.dtype) == (wanted.shape, wanted.dtype)
        if wanted.dtype.kind == "f":
            np.testing.assert_allclose(actual, wanted, rtol=rtol, atol=atol)
        else:
            np.testing.assert_array_equal(actual, wanted)


def operators(imported: ImportedModel) -> list[str]:
    """Names of the Relax operators in the order of the main function."""
    names = []
    for block in imported.module["main"].body.blocks:
        for binding in block.bindings:
            operator = getattr(binding.value, "op", None)
            if operator is not None:
                names.append(getattr(operator, "name", str(operator)))
    return names
