"""Scratch buffers of truth values become bytes; what is computed stays the same."""

import numpy as np
import onnx
import pytest
import tvm
import tvm_ffi
from onnx import TensorProto, helper, numpy_helper
from tvm import tirx
from tvm.script import tirx as T

import tilewright
from tilewright.compiler.passes.store_bools_as_bytes import StoreBoolsAsBytes
from tilewright.reference import reference_outputs


def _transformed(func):
    return StoreBoolsAsBytes()(tvm.IRModule({"main": func}))["main"]


@T.prim_func(private=True, s_tir=True)
def _keeps_a_bool(x: T.Buffer((8,), "float32"), y: T.Buffer((8,), "float32")):
    kept = T.alloc_buffer((8,), "bool")
    for i in range(8):
        kept[i] = x[i] < T.float32(0.0)
        y[i] = T.Select(kept[i], x[i], T.float32(1.0))


@T.prim_func(private=True, s_tir=True)
def _returns_bools(x: T.Buffer((8,), "float32"), y: T.Buffer((8,), "bool")):
    for i in range(8):
        y[i] = x[i] < T.float32(0.0)


def test_scratch_of_bools_is_stored_and_read_as_bytes():
    once = _transformed(_keeps_a_bool)
    text = str(once)
    assert '"bool"' not in text
    assert 'T.Cast("int8", x[i] < T.float32(0.0))' in text
    assert "kept[i] != T.int8(0)" in text
    assert tvm_ffi.structural_equal(_transformed(once), once)


def test_parameters_are_left_alone():
    assert tvm_ffi.structural_equal(_transformed(_returns_bools), _returns_bools)
    assert isinstance(_returns_bools, tirx.PrimFunc)


@pytest.mark.parametrize("kind", ["Softplus", "Mish"])
def test_an_epilogue_that_keeps_a_comparison_compiles(kind):
    """Found by fuzzing: the comparison is read twice, in whole vectors, beside a convolution."""
    rng = np.random.default_rng(0)
    w = numpy_helper.from_array(rng.standard_normal((8, 48, 3, 1)).astype(np.float32), "w")
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["c"], pads=[2, 0, 2, 0]),
        helper.make_node(kind, ["c"], ["y"]),
    ]
    infos = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, shape)
        for name, shape in (("x", [2, 48, 7, 1]), ("y", [2, 8, 9, 1]))
    ]
    graph = helper.make_graph(nodes, "g", infos[:1], infos[1:], [w])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    onnx.checker.check_model(model)
    x = rng.standard_normal((2, 48, 7, 1)).astype(np.float32)
    expected = reference_outputs(model, {"x": x}, ["y"], "onnx")["y"]
    found = tilewright.compile(model, logs=()).run({"x": x})["y"]
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4)
