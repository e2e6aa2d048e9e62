"""Integer-only models: no floats in between, and bytes beside ONNX Runtime's."""

import numpy as np
import pytest
from onnx import helper

import tilewright
from tests.compiler.quantize.float_scan import (
    floating_point_operations,
    kernels_with_floats,
    lowered_program,
)
from tests.compiler.quantize.models import Builder, run_onnxruntime
from tilewright.errors import CompileError


def _image(b, *shape):
    return (b.rng.standard_normal(shape) * 1.5).astype("float32")


def _check(model, feed, most_differing=0.01, unit=1):
    """Scan for floats; compare bytes with ONNX Runtime's, which rounds in floats."""
    assert kernels_with_floats(lowered_program(model, integer_only=True)) == []
    expected = run_onnxruntime(model, feed)
    got = list(tilewright.compile(model, logs=(), integer_only=True).run(feed).values())
    for ours, theirs in zip(got, expected, strict=True):
        difference = np.abs(ours.astype(int) - theirs.astype(int))
        assert difference.max() <= unit
        assert (difference > 0).mean() <= most_differing
        assert theirs.std() > 10


@pytest.mark.parametrize("act", ["uint8", "int8"])
def test_residual_block_with_pooling(act):
    b = Builder(act=act)
    x = b.qdq("x", 0.03, 128)
    y = b.qdq(b.node("Relu", b.conv(x, 0.03, (16, 16, 3, 3), pads=[1, 1, 1, 1])), 0.04, 0)
    y = b.qdq(b.conv(y, 0.04, (16, 16, 3, 3), pads=[1, 1, 1, 1]), 0.1, 130)
    y = b.qdq(b.node("Relu", b.node("Add", y, x)), 0.07, 3)
    pooled = b.node("MaxPool", y, kernel_shape=[2, 2], strides=[2, 2])
    pooled = b.qdq(pooled, 0.07, 3)
    averaged = b.q(b.node("GlobalAveragePool", pooled), 0.0307, 10)
    small = b.q(b.node("AveragePool", y, kernel_shape=[3, 3]), 0.0511, 20)
    product = b.q(b.node("Mul", pooled, pooled), 0.153, 7)
    model = b.model({"x": ((1, 16, 9, 9), "float32")}, [averaged, small, product])
    _check(model, {"x": _image(b, 1, 16, 9, 9)})


def test_clip_concat_and_curves_are_integers():
    b = Builder()
    x = b.qdq("x", 0.03, 100)
    y = b.conv(x, 0.03, (32, 1, 3, 3), pads=[1, 1, 1, 1], group=32)
    y = b.qdq(b.node("Clip", y, b.constant(np.float32(0)), b.constant(np.float32(6))), 0.02, 5)
    gate = b.qdq(b.node("Sigmoid", y), 1 / 256, 0)
    z = b.qdq(b.node("Mul", y, gate), 0.02, 3)
    joined = b.q(b.node("Concat", z, x, axis=1), 0.025, 100)
    model = b.model({"x": ((1, 32, 6, 6), "float32")}, [joined])
    _check(model, {"x": _image(b, 1, 32, 6, 6)})


def test_transformer_block_has_integer_softmax_gelu_and_layer_norm():
    b = Builder()
    x = b.qdq("x", 0.03, 128)
    weight, _ = b.weight((32, 32), 1)
    q = b.qdq(b.node("MatMul", x, weight), 0.04, 128)
    k = b.qdq(b.node("Transpose", q, perm=[0, 2, 1]), 0.04, 128)
    scores = b.qdq(b.node("MatMul", q, k), 0.9, 128)
    scores = b.qdq(b.node("Mul", scores, b.constant(np.float32(0.02))), 0.018, 128)
    weights = b.qdq(b.node("Softmax", scores, axis=-1), 1 / 256, 0)
    context = b.qdq(b.node("MatMul", weights, q), 0.03, 128)
    total = b.qdq(b.node("Add", context, x), 0.05, 128)
    gamma = b.constant((1 + 0.2 * b.rng.standard_normal(32)).astype("float32"))
    beta = b.constant(b.rng.standard_normal(32).astype("float32"))
    normed = b.qdq(b.node("LayerNormalization", total, gamma, beta, epsilon=1e-5), 0.03, 120)
    inner = b.node("Div", normed, b.constant(np.float32(2**0.5)))
    inner = b.node("Add", b.node("Erf", inner), b.constant(np.float32(1)))
    gelu = b.node("Mul", b.node("Mul", normed, inner), b.constant(np.float32(0.5)))
    model = b.model({"x": ((2, 7, 32), "float32")}, [b.q(gelu, 0.015, 20)])
    _check(model, {"x": _image(b, 2, 7, 32)}, most_differing=0.02)


def test_embedding_and_reshape_are_integers():
    b = Builder()
    table = b.constant(b.rng.standard_normal((11, 12)).astype("float32"))
    x = b.qdq("x", 0.03, 128)
    rows = b.node("Gather", table, "ids")
    total = b.qdq(b.node("Add", rows, x), 0.04, 128)
    flat = b.node("Reshape", total, b.constant(np.array([3, 24], "int64")))
    y = b.q(b.node("Add", flat, b.node("Relu", flat)), 0.05, 100)
    model = b.model({"x": ((6, 12), "float32"), "ids": ((6,), "int64")}, [y])
    _check(model, {"x": _image(b, 6, 12), "ids": np.array([3, 0, 10, 7, 7, 1])})


def test_last_product_leaves_floats_behind_its_dequantize():
    b = Builder()
    x = b.qdq("x", 0.03, 128)
    weight, scale = b.weight((24, 30), 0)
    y = b.node("Gemm", x, weight, b.bias(24, scale * np.float32(0.03)), transB=1)
    model = b.model({"x": ((5, 30), "float32")}, [y])
    feed = {"x": _image(b, 5, 30)}
    (expected,) = run_onnxruntime(model, feed)
    (got,) = tilewright.compile(model, logs=(), integer_only=True).run(feed).values()
    np.testing.assert_allclose(got, expected, rtol=1e-5, atol=1e-4)


def test_scan_finds_the_floats_of_the_ordinary_mode():
    b = Builder()
    x = b.qdq("x", 0.03, 128)
    y = b.qdq(b.node("Relu", b.conv(x, 0.03, (16, 16, 3, 3))), 0.04, 0)
    y = b.q(b.conv(y, 0.04, (16, 16, 1, 1)), 0.1, 130)
    model = b.model({"x": ((1, 16, 9, 9), "float32")}, [y])
    program = lowered_program(model, integer_only=False)
    assert kernels_with_floats(program)
    assert any(floating_point_operations(kernel) for kernel in program.kernels.values())


def test_what_has_no_integer_form_is_named():
    b = Builder()
    x = b.qdq("x", 0.03, 128)
    y = b.q(b.node("Sin", x), 0.01, 128)
    model = b.model({"x": ((1, 4, 5), "float32")}, [y])
    with pytest.raises(CompileError, match=r"integer-only is not possible.*\(sin\) in floats"):
        tilewright.compile(model, logs=(), integer_only=True)


def test_scales_known_only_at_run_time_are_refused():
    b = Builder()
    b.nodes.append(helper.make_node("DynamicQuantizeLinear", ["x"], ["xq", "scale", "zero"]))
    weight = b.constant(b.rng.integers(-127, 128, (8, 8)).astype("int8"))
    model = b.model({"x": ((2, 8), "float32")}, [b.node("MatMulInteger", "xq", weight, "zero")])
    with pytest.raises(CompileError, match="no QuantizeLinear with a constant scale"):
        tilewright.compile(model, logs=(), integer_only=True)
