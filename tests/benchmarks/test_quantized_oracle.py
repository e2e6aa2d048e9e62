"""The double-precision oracle of quantized models, and how differences from it are counted."""

import numpy as np

from benchmarks.quantized_operators import compare, difference
from benchmarks.quantized_oracle import evaluate
from tests.compiler.quantize.models import Builder, run_onnxruntime


def _qdq_model():
    b = Builder()
    x = b.qdq("x", 0.03, 120)
    y = b.node("Relu", b.conv(x, 0.03, (8, 4, 3, 3), pads=[1, 1, 1, 1], strides=[2, 2]))
    y = b.qdq(y, 0.02, 3)
    y = b.node("MaxPool", y, kernel_shape=[3, 3], strides=[2, 2], pads=[1, 1, 1, 1])
    depthwise = b.conv(b.qdq(y, 0.02, 3), 0.02, (8, 1, 3, 3), group=8)
    model = b.model({"x": ((1, 4, 13, 12), "float32")}, [b.q(depthwise, 0.01, 100)])
    return model, {"x": (b.rng.standard_normal((1, 4, 13, 12)) * 1.5).astype("float32")}


def test_oracle_rounds_like_onnxruntime_up_to_ties():
    model, feed = _qdq_model()
    (theirs,) = run_onnxruntime(model, feed)
    found = evaluate(model, feed)
    assert found.outputs[0].dtype == theirs.dtype
    assert np.abs(found.outputs[0].astype(int) - theirs).max() <= 1
    assert (found.outputs[0] != theirs).mean() < 0.01
    assert theirs.std() > 10


def test_oracle_reads_operators_on_bytes_in_full_range():
    b = Builder()
    x = np.full((2, 4), 255, "uint8")
    w = np.full((4, 3), 127, "int8")
    one, none = b.constant(np.float32(1)), b.constant(np.uint8(0))
    out = b.node(
        *("QLinearMatMul", "x", one, none, b.constant(w), one, b.constant(np.int8(0))),
        *(b.constant(np.float32(1000)), none),
    )
    model = b.model({"x": ((2, 4), "uint8")}, [out])
    (exact,) = evaluate(model, {"x": x}).before_rounding.values()
    np.testing.assert_array_equal(exact, np.full((2, 3), 4 * 255 * 127 / 1000))


def test_every_operator_of_a_cut_model_is_compared():
    model, feed = _qdq_model()
    found = compare(model, feed)
    operators = sorted(item.operator for item in found)
    assert operators == ["Conv", "MaxPool", "QuantizeLinear", "Relu"]
    assert max(item.off_greatest for item in found) <= 1


def test_mistakes_saturation_and_ties_are_told_apart():
    exact = np.array([[10.5, 20.2, 30.0, 300.0]])
    theirs = np.array([[10, 20, 25, 255]], "uint8")
    ours = np.array([[11, 21, 30, 255]], "uint8")
    found = difference("t", "Conv", ours, theirs, exact)
    # The tie and the mistake differ from ONNX Runtime; where that is wrong is not compared.
    assert (found.differing, found.greatest, found.ort_wrong) == (2, 1, 1)
    assert (found.off, found.off_greatest) == (2, 1)
    np.testing.assert_allclose(found.from_tie, 0.3)
