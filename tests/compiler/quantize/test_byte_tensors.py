"""Which tensors of a quantized model are bytes."""

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper
from typer.testing import CliRunner

from tests.compiler.quantize.models import run_onnxruntime
from tilewright.cli import app
from tilewright.compiler.quantize.byte_tensors import tensors_to_quantize
from tilewright.quantization import quantize

_DEPTH = 16


def _block():
    """One block of a transformer: product, residual sum with an outlier channel, norm, product."""
    rng = np.random.default_rng(0)
    row = rng.standard_normal(_DEPTH)
    row[5] = 300
    constants = {
        "w1": rng.standard_normal((_DEPTH, _DEPTH)),
        "b1": row,
        "gamma": np.ones(_DEPTH),
        "beta": np.zeros(_DEPTH),
        "w2": rng.standard_normal((_DEPTH, _DEPTH)),
    }
    nodes = [
        helper.make_node("MatMul", ["x", "w1"], ["product"]),
        helper.make_node("Add", ["product", "b1"], ["biased"]),
        helper.make_node("Add", ["biased", "x"], ["sum"]),
        helper.make_node("LayerNormalization", ["sum", "gamma", "beta"], ["norm"], axis=-1),
        helper.make_node("Transpose", ["norm"], ["turned"], perm=[1, 0]),
        helper.make_node("Transpose", ["turned"], ["back"], perm=[1, 0]),
        helper.make_node("MatMul", ["back", "w2"], ["last"]),
        helper.make_node("Add", ["last", "norm"], ["y"]),
    ]
    graph = helper.make_graph(
        nodes,
        "block",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [6, _DEPTH])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [6, _DEPTH])],
        [numpy_helper.from_array(v.astype("float32"), k) for k, v in constants.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def _samples():
    rng = np.random.default_rng(1)
    return [{"x": rng.standard_normal((6, _DEPTH)).astype("float32")} for _ in range(4)]


def test_sums_before_norms_stay_in_floats():
    assert tensors_to_quantize(_block()) == ["x", "norm", "turned", "back"]


def test_activations_pass_on_that_their_result_is_wanted():
    model = _block()
    del model.graph.node[3:]
    model.graph.node.extend(
        [
            helper.make_node("Relu", ["sum"], ["positive"]),
            helper.make_node("MatMul", ["positive", "w2"], ["y"]),
        ]
    )
    # The sum is computed on integers and rounded behind the activation.
    assert tensors_to_quantize(model) == ["x", "biased", "positive"]


def test_residuals_read_what_was_not_rounded(tmp_path):
    onnx.save(_block(), tmp_path / "m.onnx")
    result = quantize(tmp_path / "m.onnx", _samples(), tmp_path / "q.onnx", smooth=None)
    written = onnx.load(tmp_path / "q.onnx")
    reads = {node.output[0]: list(node.input) for node in written.graph.node}
    assert reads["sum"] == ["biased", "x"]
    assert reads["y"] == ["last", "norm"]
    assert reads["last"][0] == "back_dequantized"
    assert result["floats"] == ["biased", "last"]
    (wanted,) = run_onnxruntime(_block(), _samples()[0])
    (got,) = run_onnxruntime(written, _samples()[0])
    # With the outlier of 300 in bytes the other channels had one level or two.
    assert np.abs(got - wanted).max() < 0.2


def test_command_says_what_stays_in_floats(tmp_path):
    model, samples, out = (str(tmp_path / name) for name in ("m.onnx", "c.npz", "q.onnx"))
    onnx.save(_block(), model)
    np.savez(samples, x=np.stack([sample["x"] for sample in _samples()]))
    command = ["quantize", model, "--calibration", samples, "-o", out]
    result = CliRunner().invoke(app, command)
    assert result.exit_code == 0, result.output
    assert "results of 2 integer layers stay in floats" in result.output
    result = CliRunner().invoke(app, [*command, "--smooth", "much"])
    assert result.exit_code == 2
    assert "found 'much'" in result.output
