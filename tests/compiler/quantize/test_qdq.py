"""Quantized graphs become integer kernels whose bytes are ONNX Runtime's."""

import numpy as np
import pytest
from onnx import TensorProto, helper

import tilewright
from tests.compiler.quantize.models import Builder, run_onnxruntime
from tilewright.api import lower_model
from tilewright.compiler.codegen import assembly
from tilewright.compiler.quantize.qdq import QuantizedOperators
from tilewright.compiler.targets import parse_target
from tilewright.frontends.onnx import import_onnx


def _kernels(model, **options):
    """Return the names of the functions that the pass leaves, without numbers."""
    mod = QuantizedOperators(**options)(import_onnx(model).module)
    return sorted(
        name.name_hint.rstrip("0123456789") for name in mod.functions if name.name_hint != "main"
    )


def _check(model, feed, most_differing=0.01):
    """Compare bytes: none off by more than one, few off at all (ties of rounding)."""
    expected = run_onnxruntime(model, feed)
    got = list(tilewright.compile(model, "native").run(feed).values())
    for ours, theirs in zip(got, expected, strict=True):
        assert ours.dtype == theirs.dtype
        if theirs.dtype.kind == "f":
            np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-4)
            continue
        difference = np.abs(ours.astype(int) - theirs.astype(int))
        assert difference.max() <= 1
        assert (difference > 0).mean() <= most_differing
        # An output that saturates everywhere would prove nothing.
        assert theirs.std() > 10


@pytest.mark.parametrize(("scale", "zero"), [(0.04, 0), (0.04, 77), (1e-7, 0), (1e-7, 77)])
def test_values_too_great_to_round_saturate_like_small_ones(scale, zero):
    """With the tiny scale what is rounded exceeds 2**22, with the other it cannot."""
    b = Builder()
    y = b.conv(b.qdq("x", 0.03, 120), 0.03, (16, 8, 3, 3))
    bytes_ = b.q(b.node("Relu", y), scale, zero)
    model = b.model({"x": ((1, 8, 7, 6), "float32")}, [bytes_])
    _check(model, {"x": _image(b, 1, 8, 7, 6)})


@pytest.mark.parametrize("act", ["uint8", "int8"])
def test_curve_behind_a_convolution_is_computed_or_looked_up(act):
    b = Builder(act=act)
    y = b.qdq(b.conv(b.qdq("x", 0.03, 120), 0.03, (16, 8, 3, 3)), 0.05, 100)
    silu = b.q(b.node("Mul", y, b.qdq(b.node("Sigmoid", y), 1 / 256, 0)), 0.04, 9)
    model = b.model({"x": ((1, 8, 9, 8), "float32")}, [silu])
    assert "lookup" not in _kernels(model)
    assert "lookup" in _kernels(model, tables=True)
    _check(model, {"x": _image(b, 1, 8, 9, 8)})


@pytest.mark.parametrize("act", ["uint8", "int8"])
def test_four_output_channels_are_a_short_vector(act):
    """What ends a network that doubles an image."""
    b = Builder(act=act)
    bytes_ = b.q(b.conv(b.qdq("x", 0.03, 120), 0.03, (4, 16, 3, 3), pads=[1] * 4), 0.05, 100)
    model = b.model({"x": ((1, 16, 9, 8), "float32")}, [bytes_])
    lowered, _ = lower_model(model, parse_target("x86-64-v3"))
    convolutions = {n: f for n, f in lowered.program.kernels.items() if n.startswith("conv")}
    assert "vpmaddwd" in assembly(convolutions, parse_target("x86-64-v3"))
    _check(model, {"x": _image(b, 1, 16, 9, 8)})


def _image(b, *shape):
    return (b.rng.standard_normal(shape) * 1.5).astype("float32")


@pytest.mark.parametrize("act", ["uint8", "int8"])
@pytest.mark.parametrize(
    ("channels", "zero", "attributes"),
    [
        (16, 0, {"pads": [1, 1, 1, 1]}),
        (16, 120, {"pads": [1, 1, 1, 1], "strides": [2, 2]}),
        (3, 120, {"pads": [1, 0, 1, 2]}),
    ],
)
def test_convolution_with_relu(act, channels, zero, attributes):
    b = Builder(act=act)
    x = b.qdq("x", 0.03, zero)
    y = b.conv(x, 0.03, (24, channels, 3, 3), **attributes)
    y = b.q(b.node("Relu", y), 0.05, 10)
    model = b.model({"x": ((1, channels, 13, 12), "float32")}, [y])
    assert "conv_int" in _kernels(model)
    _check(model, {"x": _image(b, 1, channels, 13, 12)})


@pytest.mark.parametrize("act", ["uint8", "int8"])
def test_residual_block_is_two_kernels(act):
    b = Builder(act=act)
    x = b.qdq("x", 0.03, 128)
    y = b.qdq(b.node("Relu", b.conv(x, 0.03, (16, 16, 3, 3), pads=[1, 1, 1, 1])), 0.04, 0)
    y = b.qdq(b.conv(y, 0.04, (16, 16, 3, 3), pads=[1, 1, 1, 1]), 0.1, 130)
    y = b.q(b.node("Relu", b.node("Add", y, x)), 0.07, 3)
    model = b.model({"x": ((1, 16, 9, 9), "float32")}, [y])
    assert _kernels(model).count("conv_int") == 2
    assert not any("dequantize" in name for name in _kernels(model))
    _check(model, {"x": _image(b, 1, 16, 9, 9)})


def test_two_convolutions_into_one_sum():
    b = Builder()
    x = b.qdq("x", 0.03, 128)
    left = b.qdq(b.conv(x, 0.03, (16, 8, 1, 1)), 0.047, 120)
    right = b.qdq(b.conv(x, 0.03, (16, 8, 3, 3), pads=[1, 1, 1, 1]), 0.1, 130)
    y = b.q(b.node("Add", left, right), 0.1, 128)
    model = b.model({"x": ((2, 8, 7, 7), "float32")}, [y])
    assert _kernels(model).count("conv_int") == 2
    _check(model, {"x": _image(b, 2, 8, 7, 7)})


@pytest.mark.parametrize("act", ["uint8", "int8"])
def test_depthwise_convolution(act):
    b = Builder(act=act)
    x = b.qdq("x", 0.03, 100)
    y = b.conv(x, 0.03, (32, 1, 3, 3), pads=[1, 1, 1, 1], group=32)
    y = b.q(b.node("Clip", y, b.constant(np.float32(0)), b.constant(np.float32(6))), 0.02, 5)
    model = b.model({"x": ((1, 32, 10, 10), "float32")}, [y])
    assert "conv_int" in _kernels(model)
    _check(model, {"x": _image(b, 1, 32, 10, 10)})


def test_pooling_and_movement_of_bytes():
    b = Builder()
    x = b.qdq("x", 0.03, 128)
    pooled = b.node("MaxPool", x, kernel_shape=[3, 3], strides=[2, 2], pads=[1, 1, 1, 1])
    pooled = b.qdq(pooled, 0.03, 128)
    other = b.qdq(b.node("Relu", pooled), 0.02, 0)
    joined = b.qdq(b.node("Concat", pooled, other, axis=1), 0.025, 100)
    flat = b.q(b.node("Flatten", joined), 0.025, 100)
    model = b.model({"x": ((1, 8, 9, 9), "float32")}, [flat])
    assert not any("dequantize" in name for name in _kernels(model))
    _check(model, {"x": _image(b, 1, 8, 9, 9)})


@pytest.mark.parametrize("act", ["uint8", "int8"])
@pytest.mark.parametrize("depth", [32, 30])
def test_matrix_product_with_float_result(act, depth):
    b = Builder(act=act)
    x = b.qdq("x", 0.03, 128)
    weight, scale = b.weight((24, depth), 0)
    bias = b.bias(24, scale * np.float32(0.03))
    y = b.node("Gemm", x, weight, bias, transB=1)
    model = b.model({"x": ((5, depth), "float32")}, [y])
    assert "matmul_int" in _kernels(model)
    _check(model, {"x": _image(b, 5, depth)})


def test_stacked_matrix_product():
    b = Builder()
    x = b.qdq("x", 0.03, 128)
    weight, _ = b.weight((16, 48), 1)
    y = b.q(b.node("MatMul", x, weight), 0.02, 128)
    model = b.model({"x": ((2, 6, 16), "float32")}, [y])
    assert "matmul_int" in _kernels(model)
    _check(model, {"x": _image(b, 2, 6, 16)})


def test_silu_reads_its_value_twice():
    b = Builder()
    x = b.qdq("x", 0.03, 128)
    y = b.qdq(b.conv(x, 0.03, (16, 8, 1, 1)), 0.05, 128)
    gate = b.qdq(b.node("Sigmoid", y), 1 / 256, 0)
    y = b.q(b.node("Mul", y, gate), 0.03, 10)
    model = b.model({"x": ((1, 8, 7, 7), "float32")}, [y])
    _check(model, {"x": _image(b, 1, 8, 7, 7)}, most_differing=0.05)


def test_quantized_inputs_and_unmatched_users_stay_right():
    b = Builder(act="int8")
    real = b.dq("x", 0.03, 128)
    y = b.conv(real, 0.03, (16, 8, 3, 3))
    bytes_ = b.q(y, 0.05, 128)
    total = b.node("ReduceSum", b.dq(bytes_, 0.05, 128), keepdims=0)
    model = b.model({"x": ((1, 8, 6, 6), "int8")}, [bytes_, total])
    feed = {"x": b.rng.integers(-128, 128, (1, 8, 6, 6)).astype("int8")}
    _check(model, feed)


def test_wide_weight_zero_point_falls_back_to_floats():
    b = Builder()
    x = b.qdq("x", 0.03, 128)
    integers = b.rng.integers(0, 256, (8, 4, 1, 1)).astype("uint8")
    weight = b.node(
        "DequantizeLinear",
        b.constant(integers),
        b.constant(np.float32(0.01)),
        b.constant(np.uint8(10)),
    )
    y = b.q(b.node("Conv", x, weight), 0.05, 128)
    model = b.model({"x": ((1, 4, 5, 5), "float32")}, [y])
    assert "conv_int" not in _kernels(model)
    _check(model, {"x": _image(b, 1, 4, 5, 5)})


def test_qoperator_form_comes_to_the_same_kernels():
    b = Builder()
    scale, zero = b.parameters(0.03, 120)
    x = b.node("QuantizeLinear", "x", scale, zero)
    # 7 bits: without VNNI ONNX Runtime's own integer kernels saturate sums of two products.
    weight = b.constant(b.rng.integers(-63, 64, (16, 8, 3, 3)).astype("int8"))
    w_scale = (b.rng.random(16) * 0.01 + 0.002).astype("float32")
    bias = b.constant(b.rng.integers(-2000, 2000, 16).astype("int32"))
    y_scale, y_zero = b.parameters(0.05, 100)
    y = b.node(
        "QLinearConv", x, scale, zero, weight, b.constant(w_scale),
        b.constant(np.zeros(16, "int8")), y_scale, y_zero, bias, pads=[1, 1, 1, 1],
    )  # fmt: skip
    s, z = b.parameters(0.04, 110)
    y = b.node("QLinearAdd", y, y_scale, y_zero, y, y_scale, y_zero, s, z, domain="com.microsoft")
    model = b.model({"x": ((1, 8, 6, 6), "float32")}, [y])
    assert "conv_int" in _kernels(model)
    _check(model, {"x": _image(b, 1, 8, 6, 6)})


@pytest.mark.parametrize("depth", [32, 30])
def test_dynamically_quantized_product(depth):
    b = Builder()
    b.nodes.append(helper.make_node("DynamicQuantizeLinear", ["x"], ["xq", "scale", "zero"]))
    # 7 bits, as above.
    weight = b.constant(b.rng.integers(-63, 64, (depth, 24)).astype("int8"))
    sums = b.node("MatMulInteger", "xq", weight, "zero")
    y = b.node("Mul", b.node("Cast", sums, to=TensorProto.FLOAT), "scale")
    model = b.model({"x": ((2, 5, depth), "float32")}, [sums, y])
    assert "matmul_int" in _kernels(model)
    feed = {"x": _image(b, 2, 5, depth)}
    exact, _ = run_onnxruntime(model, feed)
    got = tilewright.compile(model, "native").run(feed)
    np.testing.assert_array_equal(got[sums], exact)
    _check(b.model({"x": ((2, 5, depth), "float32")}, [y]), feed)


@pytest.mark.parametrize("act", ["uint8", "int8"])
def test_integer_convolution_is_exact_at_the_border(act):
    b = Builder(act=act)
    weight = b.constant(b.rng.integers(-127, 128, (16, 6, 3, 3)).astype("int8"))
    y = b.node("ConvInteger", "x", weight, "zero", pads=[1, 2, 0, 1], strides=[2, 1])
    model = b.model({"x": ((1, 6, 9, 8), act), "zero": ((), act)}, [y])
    assert "conv_int" in _kernels(model)
    low = 0 if act == "uint8" else -128
    feed = {
        "x": b.rng.integers(low, low + 256, (1, 6, 9, 8)).astype(act),
        "zero": np.array(37, act),
    }
    (expected,) = run_onnxruntime(model, feed)
    np.testing.assert_array_equal(tilewright.compile(model, "native").run(feed)[y], expected)
