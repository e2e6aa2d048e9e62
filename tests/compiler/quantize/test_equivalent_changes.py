"""Bias correction, and scaling and shifting of layer normalisations."""

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from tests.compiler.quantize.models import run_onnxruntime
from tilewright.compiler.quantize.bias_correction import correct_biases
from tilewright.compiler.quantize.channel_statistics import channel_statistics, linear_inputs
from tilewright.compiler.quantize.equivalent import norm_outputs, smooth
from tilewright.compiler.quantize.float_model import FloatModel
from tilewright.compiler.quantize.post_training import noise, with_outputs
from tilewright.errors import ModelError
from tilewright.quantization import quantize

DEPTH = 24


def _model(nodes, constants, shape, output):
    graph = helper.make_graph(
        nodes,
        "network",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info(output, TensorProto.FLOAT, None)],
        [numpy_helper.from_array(v.astype("float32"), k) for k, v in constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    return onnx.shape_inference.infer_shapes(model)


def _transformer():
    """A layer norm with two outlier channels before a product, a Gemm and a residual."""
    rng = np.random.default_rng(0)
    gamma, beta = rng.random(DEPTH) + 0.5, rng.standard_normal(DEPTH)
    gamma[3], beta[7] = 30.0, -40.0
    nodes = [
        helper.make_node("LayerNormalization", ["x", "gamma", "beta"], ["n"], axis=-1),
        helper.make_node("MatMul", ["n", "w1"], ["m1"]),
        helper.make_node("Add", ["b1", "m1"], ["a1"]),
        helper.make_node("Reshape", ["n", "flat"], ["r"]),
        helper.make_node("Gemm", ["r", "w2"], ["g"], transB=1),
        helper.make_node("Reshape", ["g", "back"], ["g3"]),
        helper.make_node("Add", ["a1", "g3"], ["s"]),
        helper.make_node("Add", ["s", "n"], ["y"]),
    ]
    constants = {
        "gamma": gamma,
        "beta": beta,
        "w1": rng.standard_normal((DEPTH, DEPTH)),
        "b1": rng.standard_normal(DEPTH),
        "w2": rng.standard_normal((DEPTH, DEPTH)),
    }
    model = _model(nodes, constants, [2, 5, DEPTH], "y")
    for name, shape in (("flat", [10, DEPTH]), ("back", [2, 5, DEPTH])):
        model.graph.initializer.append(numpy_helper.from_array(np.array(shape, "int64"), name))
    return onnx.shape_inference.infer_shapes(model)


def _samples(count, *shape):
    rng = np.random.default_rng(1)
    return [{"x": rng.standard_normal(shape).astype("float32")} for _ in range(count)]


def _run(model, names):
    wanted = [name for name in names if name not in {i.name for i in model.graph.input}]

    def run(sample):
        if not wanted:
            return {}
        return dict(zip(wanted, run_onnxruntime(with_outputs(model, wanted), sample), strict=True))

    return run


def _smoothed(model, samples, strength=0.5):
    axes = norm_outputs(FloatModel(model))
    return smooth(model, channel_statistics(axes, samples, _run(model, axes)), strength)


def test_smoothing_changes_nothing_in_floats_but_evens_out_the_channels():
    model, samples = _transformer(), _samples(4, 2, 5, DEPTH)
    changed = _smoothed(model, samples)
    (before,) = run_onnxruntime(model, samples[0])
    (after,) = run_onnxruntime(changed, samples[0])
    np.testing.assert_allclose(after, before, rtol=1e-4, atol=1e-3)

    def spread(m):
        value = _run(m, ["n"])(samples[0])["n"].reshape(-1, DEPTH)
        reach = np.abs(value).max(axis=0)
        return reach.max() / np.median(reach)

    assert spread(changed) < spread(model) / 3


def test_smoothing_makes_the_quantized_model_better(tmp_path):
    samples = _samples(8, 2, 5, DEPTH)
    onnx.save(_transformer(), tmp_path / "m.onnx")
    (wanted,) = run_onnxruntime(_transformer(), samples[0])
    ratios = []
    for strength in (None, 0.5, "auto"):
        result = quantize(tmp_path / "m.onnx", samples, tmp_path / "q.onnx", smooth=strength)
        assert result["smoothed"] == (strength is not None)
        (got,) = run_onnxruntime(onnx.load(tmp_path / "q.onnx"), samples[0])
        ratios.append(noise(got, wanted))
    assert ratios[1] > ratios[0] + 1
    assert ratios[2] == ratios[1]


def test_model_without_layer_norms_cannot_be_smoothed(tmp_path):
    model = _model(
        [helper.make_node("MatMul", ["x", "w"], ["y"])], {"w": np.ones((4, 3))}, [2, 4], "y"
    )
    onnx.save(model, tmp_path / "m.onnx")
    with pytest.raises(ModelError, match="no LayerNormalization with constants"):
        quantize(tmp_path / "m.onnx", _samples(1, 2, 4), tmp_path / "q.onnx", smooth=0.5)
    with pytest.raises(ModelError, match="share between 0 and 1, found 2"):
        quantize(tmp_path / "m.onnx", _samples(1, 2, 4), tmp_path / "q.onnx", smooth=2)


@pytest.mark.parametrize("groups", [1, 3])
def test_bias_correction_takes_the_mean_error_of_rounded_weights_away(groups):
    rng = np.random.default_rng(2)
    weight = rng.standard_normal((6, 6 // groups, 1, 1))
    model = _model(
        [helper.make_node("Conv", ["x", "w"], ["y"], group=groups)],
        {"w": weight},
        [1, 6, 8, 8],
        "y",
    )
    samples = [{"x": np.abs(s["x"]) + 1} for s in _samples(4, 1, 6, 8, 8)]

    def coarse(array, axis):
        return np.rint(array * 2), np.full(array.shape[axis], 0.5)

    axes = linear_inputs(FloatModel(model))
    statistics = channel_statistics(axes, samples, _run(model, axes))
    corrected = correct_biases(model, statistics, coarse)

    def mean_error(m):
        copy = onnx.ModelProto()
        copy.CopyFrom(m)
        for item in copy.graph.initializer:
            if item.name == "w":
                rounded = (coarse(weight, 0)[0] * 0.5).astype("float32")
                item.CopyFrom(numpy_helper.from_array(rounded, "w"))
        errors = [run_onnxruntime(copy, s)[0] - run_onnxruntime(model, s)[0] for s in samples]
        return np.abs(np.mean(errors, axis=(0, 1, 3, 4)))

    assert mean_error(model).max() > 0.1
    assert mean_error(corrected).max() < 1e-4


def test_attention_mask_stays_in_floats(tmp_path):
    mask = np.where(np.arange(5) < 3, 0, np.finfo("float32").min)
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["m"]),
        helper.make_node("Mul", ["x", "zero"], ["z"]),
        helper.make_node("Add", ["z", "mask"], ["big"]),
        helper.make_node("Add", ["m", "big"], ["s"]),
        helper.make_node("Softmax", ["s"], ["p"]),
        helper.make_node("MatMul", ["p", "w"], ["y"]),
    ]
    rng = np.random.default_rng(3)
    constants = {"w": rng.standard_normal((5, 5)), "zero": np.zeros(1), "mask": mask}
    model, samples = _model(nodes, constants, [4, 5], "y"), _samples(4, 4, 5)
    onnx.save(model, tmp_path / "m.onnx")
    quantize(tmp_path / "m.onnx", samples, tmp_path / "q.onnx")
    (wanted,) = run_onnxruntime(model, samples[0])
    (got,) = run_onnxruntime(onnx.load(tmp_path / "q.onnx"), samples[0])
    assert noise(got, wanted) > 25
