"""Weights in groups: what the search finds, and the models that are written."""

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from tilewright.compiler.quantize.group_codes import compensated, encode
from tilewright.compiler.quantize.weight_only_model import WeightFormat, quantize_weights
from tilewright.errors import ModelError

X = np.random.default_rng(5).standard_normal((3, 70)).astype(np.float32)


def matrix(*shape: int) -> np.ndarray:
    return np.random.default_rng(sum(shape)).standard_normal(shape).astype(np.float32)


def two_products(opset: int = 17) -> onnx.ModelProto:
    """MatMul, then Gemm with a transposed operand and a bias, then a product of computed values."""
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["h"], name="first"),
        helper.make_node("Gemm", ["h", "v", "b"], ["y"], name="second", transB=1),
        helper.make_node("Transpose", ["y"], ["t"]),
        helper.make_node("MatMul", ["y", "t"], ["z"], name="third"),
    ]
    constants = {"w": matrix(70, 33), "v": matrix(9, 33), "b": matrix(9)}
    graph = helper.make_graph(
        nodes,
        "two",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [3, 70])],
        [helper.make_tensor_value_info("z", TensorProto.FLOAT, [3, 3])],
        [numpy_helper.from_array(array, name) for name, array in constants.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)


def run(model: onnx.ModelProto) -> np.ndarray:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    # It would join DequantizeLinear and MatMul, and round activations to 8 bits.
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(model.SerializeToString(), options)
    return session.run(None, {"x": X})[0]


@settings(max_examples=15, deadline=None)
@given(
    st.integers(1, 80),
    st.integers(1, 12),
    st.sampled_from([4, 8]),
    st.sampled_from([16, 32]),
    st.booleans(),
)
def test_codes_are_nearer_than_half_a_step_of_the_whole_range(
    rows, columns, bits, group, symmetric
):
    weight = matrix(rows, columns)
    coded = encode(weight, bits, group, symmetric)
    assert coded.codes.max(initial=0) < 2**bits
    assert coded.is_symmetric or not symmetric
    blocks = np.pad(weight, ((0, -rows % group), (0, 0))).reshape(-1, group, columns)
    span = np.maximum(blocks.max(1), 0) - np.minimum(blocks.min(1), 0)
    reach = 2 * np.abs(blocks).max(1) if symmetric else span
    step = (reach / (2**bits - 1))[:, None].repeat(group, 1).reshape(-1, columns)[:rows]
    # The search may clip a few weights, where that makes the error of the group less.
    error = (weight - coded.decoded()).astype(np.float64)
    assert (error**2).mean() <= (step.astype(np.float64) ** 2).mean() / 4 + 1e-12


def test_clipping_beats_the_whole_range_where_one_weight_is_far_out() -> None:
    weight = matrix(32, 1)
    weight[3] = 2.5 * np.abs(weight).max()
    coded = encode(weight, 4, 32, importance=np.where(np.arange(32) == 3, 1e-3, 1.0))
    scale = -weight[3, 0] / 8
    plain = np.clip(np.rint(weight / scale), -8, 7) * scale
    others = np.arange(32) != 3
    assert ((weight - coded.decoded())[others] ** 2).sum() < ((weight - plain)[others] ** 2).sum()


def test_what_matters_more_is_nearer() -> None:
    weight = matrix(32, 40)
    importance = np.where(np.arange(32) < 4, 100.0, 1.0)
    even, weighted = encode(weight, 4, 32), encode(weight, 4, 32, importance=importance)

    def error(coded) -> float:
        return float(((weight - coded.decoded())[:4] ** 2).sum())

    assert error(weighted) < error(even)


@pytest.mark.parametrize("symmetric", [True, False], ids=["symmetric", "zeros"])
def test_weights_make_up_for_each_other_where_inputs_go_together(symmetric) -> None:
    rng = np.random.default_rng(0)
    x = rng.standard_normal((500, 6)) @ rng.standard_normal((6, 70)) + rng.standard_normal(
        (500, 70)
    )
    weight = matrix(70, 20)
    plain = encode(weight, 4, 16, symmetric, importance=(x * x).mean(0))
    better = compensated(plain, weight, x.T @ x / len(x))

    def error(coded) -> float:
        return float(((x @ (weight - coded.decoded())) ** 2).mean())

    assert error(better) < 0.7 * error(plain)
    np.testing.assert_array_equal(better.scales, plain.scales)
    assert better.codes.max() < 16


@pytest.mark.parametrize("operators", ["nbits", "dequantize"])
@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("symmetric", [True, False], ids=["symmetric", "zeros"])
def test_written_model_runs_elsewhere_and_here_alike(operators, bits, symmetric) -> None:
    import tilewright

    found = quantize_weights(two_products(), WeightFormat(bits, 16, symmetric, operators))
    onnx.checker.check_model(found.proto)
    assert sorted(layer.name for layer in found.layers) == ["first", "second"]
    assert found.kept == {"third": "its second operand is computed"}
    elsewhere = run(found.proto)
    here = tilewright.compile(found.proto, logs=()).run({"x": X})["z"]
    np.testing.assert_allclose(here, elsewhere, rtol=1e-4, atol=1e-4 * np.abs(elsewhere).max())
    wanted = run(two_products())
    difference = np.abs(elsewhere - wanted).max() / np.abs(wanted).max()
    assert difference < (0.2 if bits == 4 else 0.02)


def test_each_layer_may_have_its_own_format() -> None:
    formats = {"first": None, "second": WeightFormat(8, 16)}
    found = quantize_weights(two_products(), WeightFormat(4, 16), formats=formats)
    assert found.kept["first"] == "asked for"
    (node,) = (node for node in found.proto.graph.node if node.op_type == "MatMulNBits")
    assert next(item.i for item in node.attribute if item.name == "bits") == 8
    assert "w" in {item.name for item in found.proto.graph.initializer}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((3, 32), "weights of 3 bits"),
        ((4, 24), "a group of 24 weights"),
        ((4, 32, True, "int"), "unknown operators 'int'"),
    ],
)
def test_formats_that_cannot_be_written_are_refused(arguments, message) -> None:
    with pytest.raises(ModelError, match=message):
        WeightFormat(*arguments)


def test_a_model_without_products_is_refused() -> None:
    model = two_products()
    del model.graph.node[:]
    model.graph.node.append(helper.make_node("Relu", ["x"], ["z"]))
    with pytest.raises(ModelError, match="no matrix product to quantize"):
        quantize_weights(model, WeightFormat())


def test_weights_that_are_not_finite_are_refused() -> None:
    model = two_products()
    broken = matrix(70, 33)
    broken[0, 0] = np.nan
    model.graph.initializer[0].CopyFrom(numpy_helper.from_array(broken, "w"))
    with pytest.raises(ModelError, match="'first' are not finite"):
        quantize_weights(model, WeightFormat())
