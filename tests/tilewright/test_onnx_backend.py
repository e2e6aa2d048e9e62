"""ONNX's backend interface: every result comes from a compiled module."""

import unittest

import ml_dtypes
import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper
from onnx.backend.test import BackendTest

from tilewright import onnx_backend
from tilewright.errors import ModelError, TargetError, UnsupportedModelError


def model_of(nodes, inputs, outputs, opset=23):
    """Make a model; inputs and outputs are (name, element type, shape)."""
    graph = helper.make_graph(
        nodes,
        "test",
        [helper.make_tensor_value_info(*item) for item in inputs],
        [helper.make_tensor_value_info(*item) for item in outputs],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=11)


def test_run_model_takes_arrays_in_order_or_by_name():
    model = model_of(
        [helper.make_node("Sub", ["a", "b"], ["c"])],
        [("a", TensorProto.FLOAT, [2]), ("b", TensorProto.FLOAT, [2])],
        [("c", TensorProto.FLOAT, [2])],
    )
    a, b = np.float32([5, 7]), np.float32([1, 2])
    for inputs in ([a, b], {"b": b, "a": a}):
        (c,) = onnx_backend.run_model(model, inputs)
        np.testing.assert_array_equal(c, a - b)
    with pytest.raises(ModelError, match="1 inputs given; the model has 2: a, b"):
        onnx_backend.run_model(model, [a])


def test_run_node_needs_no_model():
    node = helper.make_node("Relu", ["x"], ["y"])
    (y,) = onnx_backend.run_node(node, [np.float32([-1, 2])])
    np.testing.assert_array_equal(y, np.float32([0, 2]))


def test_only_the_cpu_is_supported():
    assert onnx_backend.supports_device("CPU")
    assert not onnx_backend.supports_device("CUDA")
    assert not onnx_backend.supports_device("nonsense")
    with pytest.raises(TargetError, match="accepted is 'CPU'"):
        onnx_backend.prepare(onnx.ModelProto(), "CUDA")


def test_inputs_that_decide_shapes_may_change_and_are_compiled_once_each():
    model = model_of(
        [helper.make_node("Reshape", ["x", "s"], ["y"])],
        [("x", TensorProto.FLOAT, [2, 3]), ("s", TensorProto.INT64, [2])],
        [("y", TensorProto.FLOAT, [None, None])],
    )
    prepared = onnx_backend.prepare(model)
    x = np.arange(6, dtype=np.float32).reshape(2, 3)
    for shape in ([3, 2], [6, 1], [3, 2]):
        (y,) = prepared.run([x, np.int64(shape)])
        np.testing.assert_array_equal(y, x.reshape(shape))
    assert len(prepared._compiled) == 2


def test_sequences_go_in_and_out_as_lists():
    tensor = helper.make_tensor_type_proto(TensorProto.FLOAT, None)
    sequence = helper.make_sequence_type_proto(tensor)
    graph = helper.make_graph(
        [helper.make_node("SequenceInsert", ["s", "x"], ["t"])],
        "test",
        [
            helper.make_value_info("s", sequence),
            helper.make_tensor_value_info("x", TensorProto.FLOAT, [2]),
        ],
        [helper.make_value_info("t", sequence)],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    parts = [np.float32([[1, 2, 3]]), np.float32([4])]
    x = np.float32([5, 6])
    (found,) = onnx_backend.run_model(model, [parts, x])
    assert len(found) == 3
    for actual, expected in zip(found, [*parts, x], strict=True):
        np.testing.assert_array_equal(actual, expected)


SMALL = [
    "float8_e4m3fn", "float8_e4m3fnuz", "float8_e5m2", "float8_e5m2fnuz", "float4_e2m1fn",
]  # fmt: skip


@pytest.mark.parametrize("dtype", SMALL)
def test_every_code_of_a_small_float_survives_a_round_trip(dtype):
    codes = np.arange(256 if "8" in dtype else 16, dtype=np.uint8).view(getattr(ml_dtypes, dtype))
    kind = helper.np_dtype_to_tensor_dtype(codes.dtype)
    size = [len(codes)]
    down = helper.make_node("Cast", ["x"], ["y"], to=TensorProto.FLOAT)
    model = model_of([down], [("x", kind, size)], [("y", TensorProto.FLOAT, size)])
    (wide,) = onnx_backend.run_model(model, [codes])
    np.testing.assert_array_equal(wide, codes.astype(np.float32))
    up = helper.make_node("Cast", ["x"], ["y"], to=kind, saturate=0)
    model = model_of([up], [("x", TensorProto.FLOAT, size)], [("y", kind, size)])
    (back,) = onnx_backend.run_model(model, [wide])
    np.testing.assert_array_equal(back.astype(np.float32), wide)


@pytest.fixture(scope="module")
def encoders():
    """One compiled Cast from float32 per small type, for 64 numbers."""
    found = {}
    for dtype in SMALL:
        kind = helper.np_dtype_to_tensor_dtype(np.dtype(getattr(ml_dtypes, dtype)))
        node = helper.make_node("Cast", ["x"], ["y"], to=kind, saturate=0)
        model = model_of([node], [("x", TensorProto.FLOAT, [64])], [("y", kind, [64])])
        found[dtype] = onnx_backend.prepare(model)
    return found


@settings(deadline=None, max_examples=20)
@given(st.lists(st.floats(width=32), min_size=64, max_size=64))
def test_rounding_to_small_floats_is_that_of_ml_dtypes(encoders, numbers):
    x = np.array(numbers, np.float32)
    for dtype, prepared in encoders.items():
        (found,) = prepared.run([x])
        with np.errstate(all="ignore"):
            expected = x.astype(getattr(ml_dtypes, dtype))
        np.testing.assert_array_equal(found.astype(np.float32), expected.astype(np.float32))


@pytest.mark.parametrize("dtype", ["int4", "uint4", "int2", "uint2"])
def test_quantization_to_small_integers_saturates(dtype):
    kind = helper.np_dtype_to_tensor_dtype(np.dtype(getattr(ml_dtypes, dtype)))
    node = helper.make_node("QuantizeLinear", ["x", "s"], ["y"], output_dtype=kind)
    model = model_of(
        [node],
        [("x", TensorProto.FLOAT, [7]), ("s", TensorProto.FLOAT, [])],
        [("y", kind, [7])],
        opset=25,
    )
    x = np.float32([-100, -1.25, -0.25, 0, 0.75, 1.25, 100])
    (found,) = onnx_backend.run_model(model, [x, np.float32(0.5)])
    info = ml_dtypes.iinfo(found.dtype)
    expected = np.clip(np.rint(x / 0.5), int(info.min), int(info.max))
    np.testing.assert_array_equal(found.astype(np.int32), expected.astype(np.int32))


def test_arithmetic_on_a_small_type_is_refused_with_the_remedy():
    kind = TensorProto.FLOAT8E5M2
    model = model_of(
        [helper.make_node("Neg", ["x"], ["y"])],
        [("x", kind, [2])],
        [("y", kind, [2])],
    )
    with pytest.raises(UnsupportedModelError, match="put a Cast before the node"):
        onnx_backend.run_model(model, [np.zeros(2, ml_dtypes.float8_e5m2)])


def test_a_small_type_can_be_moved():
    kind = TensorProto.INT4
    model = model_of(
        [
            helper.make_node("Concat", ["x", "x"], ["two"], axis=0),
            helper.make_node("Transpose", ["two"], ["y"]),
        ],
        [("x", kind, [2, 3])],
        [("y", kind, [3, 4])],
    )
    x = np.array([[-8, 7, 0], [1, -1, 3]]).astype(ml_dtypes.int4)
    (y,) = onnx_backend.run_model(model, [x])
    assert y.dtype == x.dtype
    np.testing.assert_array_equal(y.astype(int), np.concatenate([x, x]).T.astype(int))


def nonzero_model(size, nodes=()):
    return model_of(
        [helper.make_node("NonZero", ["x"], ["y"]), *nodes],
        [("x", TensorProto.FLOAT, size)],
        [("z" if nodes else "y", TensorProto.INT64, [None, None])],
    )


def test_an_output_has_the_size_that_the_data_give_it():
    prepared = onnx_backend.prepare(nonzero_model([3, 5]))
    random = np.random.default_rng(1)
    for share in (0.0, 0.3, 1.0):
        x = (random.random((3, 5)) < share).astype(np.float32)
        (y,) = prepared.run([x])
        np.testing.assert_array_equal(y, np.array(np.nonzero(x)))
    (module,) = prepared._compiled.values()
    assert [spec.name for spec in module.module.outputs] == ["y"]
    assert module.module.outputs[0].shape == (2, 15)


def test_an_operator_that_cannot_take_an_open_size_says_so():
    model = nonzero_model([4], [helper.make_node("ReverseSequence", ["y", "n"], ["z"])])
    model.graph.input.append(helper.make_tensor_value_info("n", TensorProto.INT64, [4]))
    with pytest.raises(UnsupportedModelError, match="the size of its input depends on data"):
        onnx_backend.run_model(model, [np.float32([0, 1, 0, 2]), np.ones(4, np.int64)])


@pytest.mark.parametrize("is_sorted", [0, 1])
def test_unique_against_numpy(is_sorted):
    node = helper.make_node("Unique", ["x"], ["y", "first", "inverse", "n"], sorted=is_sorted)
    names = ["y", "first", "inverse", "n"]
    model = model_of(
        [node],
        [("x", TensorProto.INT64, [40])],
        [(name, TensorProto.INT64, [None]) for name in names],
    )
    x = np.random.default_rng(2).integers(0, 9, 40)
    values, first, inverse, counts = onnx_backend.run_model(model, [x])
    expected = np.unique(x, return_index=True, return_counts=True)
    order = np.argsort(values)
    if is_sorted:
        np.testing.assert_array_equal(order, np.arange(len(values)))
    else:
        np.testing.assert_array_equal(first, np.sort(first))
    np.testing.assert_array_equal(values[order], expected[0])
    np.testing.assert_array_equal(first[order], expected[1])
    np.testing.assert_array_equal(counts[order], expected[2])
    np.testing.assert_array_equal(values[inverse], x)


def test_unique_takes_what_is_no_number_for_one_value_at_the_end():
    node = helper.make_node("Unique", ["x"], ["y", "first", "inverse", "n"])
    outputs = [("y", TensorProto.FLOAT, [None])]
    outputs += [(name, TensorProto.INT64, [None]) for name in ("first", "inverse", "n")]
    x = np.array([2, np.nan, 1, 2, np.nan, -np.inf], np.float32)
    model = model_of([node], [("x", TensorProto.FLOAT, [6])], outputs)
    found = onnx_backend.run_model(model, [x])
    expected = np.unique(x, return_index=True, return_inverse=True, return_counts=True)
    for result, wanted in zip(found, expected, strict=True):
        np.testing.assert_array_equal(result, wanted)


@pytest.mark.filterwarnings("ignore::RuntimeWarning")  # of making the suite's cases
def test_the_suite_of_onnx_runs_with_this_backend():
    suite = BackendTest(onnx_backend.TilewrightBackend, __name__)
    suite.include("^test_(abs|nonzero_example|basic_conv_with_padding)_c(pu|uda)$")
    result = unittest.TestResult()
    suite.test_suite.run(result)
    assert not result.failures + result.errors
    skipped = {test.id().rsplit(".", 1)[1] for test, _ in result.skipped}
    assert {"test_abs_cuda", "test_add_cpu"} <= skipped
    assert not skipped & {"test_abs_cpu", "test_nonzero_example_cpu"}
