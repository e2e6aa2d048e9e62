"""Plans of bits, and models written by them."""

import numpy as np
import onnx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator

from tests.compiler.quantize.models import run_onnxruntime
from tilewright.compiler.quantize.bit_plan import BYTES, FLOAT, BitPlan, LayerBits, parse_bits
from tilewright.compiler.quantize.float_model import FloatModel
from tilewright.compiler.quantize.layer_matrix import linear_layers
from tilewright.compiler.quantize.plan_model import integer_tensors, write_plan
from tilewright.compiler.quantize.weight_rounding import clipped_scales, nearest
from tilewright.errors import ModelError

_BITS = st.one_of(
    st.just(FLOAT),
    st.builds(LayerBits, st.integers(1, 8), st.sampled_from((2, 4, 8))),
    st.builds(LayerBits, st.integers(1, 8), st.just(32), st.sampled_from((0, 16, 32))),
)


@given(st.dictionaries(st.text(min_size=1, max_size=4), _BITS))
def test_a_plan_comes_back_from_json(layers):
    plan = BitPlan(tuple(layers.items()))
    assert BitPlan.from_json(plan.to_json()) == plan
    assert all(parse_bits(bits.name) == bits for _, bits in plan.layers)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("w9a8", "unknown precision 'w9a8'"),
        ("w4a3", "unknown precision 'w4a3'"),
        ("w4a8g32", "groups are for integer weights beside activations in floats"),
        ("int4", "accepted are 8, 4, fp32, w4a8"),
    ],
)
def test_other_precisions_are_refused(text, said):
    with pytest.raises(ModelError, match=said):
        parse_bits(text)


def test_impossible_combinations_are_refused():
    with pytest.raises(ModelError, match="weights have 1 to 8 bits, or 32"):
        LayerBits(9, 8)
    with pytest.raises(ModelError, match="activations have 2, 4 or 8 bits"):
        LayerBits(4, 3)
    with pytest.raises(ModelError, match="weights in floats reads floats"):
        LayerBits(32, 8)
    with pytest.raises(ModelError, match="names the layer 'a' twice"):
        BitPlan((("a", BYTES), ("a", FLOAT)))


def network() -> onnx.ModelProto:
    """Two convolutions with a sum and a pool, a product and a Gemm."""
    rng = np.random.default_rng(3)

    def constant(name, *shape):
        array = rng.standard_normal(shape) / np.sqrt(max(1, np.prod(shape[1:])))
        return numpy_helper.from_array(array.astype("float32"), name)

    nodes = [
        helper.make_node("Conv", ["x", "w1", "b1"], ["c1"], name="first", pads=[1, 1, 1, 1]),
        helper.make_node("Relu", ["c1"], ["r1"]),
        helper.make_node("MaxPool", ["r1"], ["p1"], kernel_shape=[2, 2], strides=[2, 2]),
        helper.make_node(
            "Conv", ["p1", "w2", "b2"], ["c2"], name="second", pads=[1, 1, 1, 1], group=2
        ),
        helper.make_node("Add", ["c2", "p1"], ["a1"]),
        helper.make_node("GlobalAveragePool", ["a1"], ["g1"]),
        helper.make_node("Flatten", ["g1"], ["f1"]),
        helper.make_node("MatMul", ["f1", "w4"], ["m1"], name="product"),
        helper.make_node("Gemm", ["m1", "w3", "b3"], ["y"], name="last", transB=1),
    ]
    graph = helper.make_graph(
        nodes,
        "network",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 3, 12, 12])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, 10])],
        [
            *(constant("w1", 8, 3, 3, 3), constant("b1", 8), constant("w2", 8, 4, 3, 3)),
            *(constant("b2", 8), constant("w3", 10, 40), constant("b3", 10)),
            constant("w4", 8, 40),
        ],
    )
    opsets = [helper.make_opsetid("", 17)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=8)


def _written(plan):
    proto = network()
    model = FloatModel(proto)
    layers = linear_layers(model)
    weights = {
        name: nearest(
            layers[name].matrix,
            clipped_scales(layers[name].matrix, bits.weights, None, bits.group),
            bits.weights,
            bits.group,
        )
        for name, bits in plan.layers
        if bits.has_integer_weights
    }
    tensors = integer_tensors(model, plan)
    parameters = {
        (name, bits): (np.float32(8 / 2**bits), 2 ** (bits - 1))
        for name, widths in tensors.items()
        for bits in widths
    }
    return write_plan(proto, plan, parameters, weights, {}), weights


_NAMES = ("first", "second", "product", "last")


@pytest.mark.parametrize(
    "bits",
    [
        ("w8a8", "w8a8", "w8a8", "w8a8"),
        ("w4a8", "w8a8", "w4a8", "w4a8"),
        ("w4a4", "w4a4", "w4a8", "w4a4"),
        ("w3a8", "w4a4", "fp32", "w5a8"),
        ("w4", "w4a8", "w4", "w4g16"),
        ("w8a8", "fp32", "w4a8", "w8g32"),
        ("w2a8", "w1a8", "w2a2", "w4a8"),
    ],
)
def test_models_are_valid_and_mean_the_same_in_onnxruntime_and_the_reference(bits):
    plan = BitPlan(tuple(zip(_NAMES, map(parse_bits, bits), strict=True)))
    proto, _ = _written(plan)
    onnx.checker.check_model(proto, full_check=True)
    x = np.random.default_rng(5).standard_normal((1, 3, 12, 12)).astype("float32")
    (seen,) = run_onnxruntime(proto, {"x": x})
    # The reference knows these operators from opset 19 on.
    newer = onnx.version_converter.convert_version(proto, max(19, proto.opset_import[0].version))
    (wanted,) = ReferenceEvaluator(newer).run(None, {"x": x})
    # A sum on the edge of two levels may fall on either side.
    np.testing.assert_allclose(seen, wanted, atol=0.1 * np.abs(wanted).max())
    assert np.corrcoef(seen.ravel(), wanted.ravel())[0, 1] > 0.99


def test_weights_are_stored_in_the_narrowest_type_and_need_no_newer_opset_than_that():
    for bits, kind, opset in (
        ("w8a8", TensorProto.INT8, 17),
        ("w4a8", TensorProto.INT4, 21),
        ("w3a8", TensorProto.INT4, 21),
        ("w2a8", TensorProto.INT2, 25),
    ):
        proto, weights = _written(BitPlan.uniform(_NAMES, parse_bits(bits)))
        stored = {item.name: item for item in proto.graph.initializer}
        assert stored["c1_weight_quantized"].data_type == kind
        assert proto.opset_import[0].version == opset
        integers = numpy_helper.to_array(stored["c1_weight_quantized"]).astype("int8")
        assert (integers.reshape(8, -1) == weights["first"].integers).all()


def test_layers_in_floats_read_floats_and_sums_between_integer_layers_are_bytes():
    model = FloatModel(network())
    every = integer_tensors(model, BitPlan.uniform(_NAMES, BYTES))
    assert set(every) == {"x", "r1", "p1", "c2", "a1", "g1", "f1", "m1"}
    plan = BitPlan.uniform(_NAMES, parse_bits("w4a4")).replaced({"product": FLOAT, "first": FLOAT})
    assert integer_tensors(model, plan) == {"p1": (4,), "r1": (4,), "m1": (4,)}
