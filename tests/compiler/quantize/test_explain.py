"""`inspect` says which operators run on integers, and why others do not."""

import numpy as np
import onnx
from onnx import TensorProto, helper
from typer.testing import CliRunner

import tilewright
from tests.compiler.quantize.models import Builder
from tilewright.cli import app
from tilewright.compiler.quantize.explain import explain
from tilewright.frontends.onnx import import_onnx


def _reasons(model):
    return {(i.operator, i.integer): i.reason for i in explain(import_onnx(model).module)}


def _mixed():
    b = Builder()
    x = b.qdq("x", 0.03, 128)
    y = b.qdq(b.node("Relu", b.conv(x, 0.03, (8, 8, 3, 3))), 0.04, 0)
    pooled = b.qdq(b.node("MaxPool", y, kernel_shape=[2, 2]), 0.04, 0)
    s = b.qdq(b.node("Softmax", pooled, axis=-1), 1 / 256, 0)
    product = b.node("MatMul", s, b.node("Transpose", pooled, perm=[0, 1, 3, 2]))
    sine = b.node("Sin", y)
    outputs = [product, sine, b.node("Conv", sine, b.weight((4, 8, 1, 1), 0)[0])]
    return b.model({"x": ((1, 8, 6, 6), "float32")}, outputs)


def _typed(model, rank):
    """Give the outputs a type, which files need, and dimensions without a size."""
    for place, output in enumerate(model.graph.output):
        dims = [f"d{place}_{axis}" for axis in range(rank)]
        model.graph.output[place].CopyFrom(
            helper.make_tensor_value_info(output.name, TensorProto.FLOAT, dims)
        )
    return model


def test_every_operator_has_a_verdict_and_a_reason():
    found = _reasons(_mixed())
    assert found["nn.conv2d", True] == ""
    assert found["nn.relu", True] == ""
    assert found["nn.max_pool2d", True] == ""
    assert "except by --integer-only" in found["nn.softmax", False]
    assert "both operands are computed" in found["matmul", False]
    assert found["sin", False] == "sin has no integer form"
    assert found["nn.conv2d", False] == "its data is not quantized"


def test_weights_that_do_not_fit_are_named():
    b = Builder()
    x = b.qdq("x", 0.03, 128)
    integers = b.constant(b.rng.integers(0, 256, (8, 4, 1, 1)).astype("uint8"))
    scale, zero = b.constant(np.float32(0.01)), b.constant(np.uint8(10))
    weight = b.node("DequantizeLinear", integers, scale, zero)
    y = b.q(b.node("Conv", x, weight), 0.05, 128)
    model = b.model({"x": ((1, 4, 5, 5), "float32")}, [y])
    assert "need more than 8 bits" in _reasons(model)["nn.conv2d", False]


def test_inspect_prints_it_for_quantized_models_only(tmp_path):
    onnx.save(_typed(_mixed(), 4), tmp_path / "q.onnx")
    result = CliRunner().invoke(app, ["inspect", str(tmp_path / "q.onnx")])
    assert result.exit_code == 0, result.output
    assert "operators run on integers" in result.output
    b = Builder()
    plain = b.model({"x": ((2, 3), "float32")}, [b.node("Relu", "x")])
    onnx.save(_typed(plain, 2), tmp_path / "f.onnx")
    assert "quantized" not in tilewright.inspect(tmp_path / "f.onnx")
