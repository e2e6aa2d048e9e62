"""Calibration and the QDQ models that it writes."""

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

from tests.compiler.quantize.models import run_onnxruntime
from tests.compiler.quantize.test_bit_plan import network
from tilewright.calibration import load_samples
from tilewright.cli import app
from tilewright.compiler.quantize.byte_tensors import tensors_to_quantize
from tilewright.compiler.quantize.post_training import noise, quantize_weights
from tilewright.compiler.quantize.ranges import METHODS, Observer, choose_range, parameters
from tilewright.errors import ModelError
from tilewright.quantization import quantize


@given(st.floats(-100, 0), st.floats(0, 100))
@settings(deadline=None)
def test_zero_is_exact_and_both_ends_are_covered(low, high):
    scale, zero = parameters(low, high)
    assert 0 <= zero <= 255
    assert (0 - zero) * scale <= low + scale
    assert (255 - zero) * scale >= high - scale


@pytest.mark.parametrize("method", METHODS)
def test_long_tails_are_cut_by_all_but_minmax(method):
    rng = np.random.default_rng(0)
    values = np.concatenate([rng.standard_normal(200_000), [60.0]])
    observer = Observer()
    observer.see_range(values)
    observer.see_values(values)
    low, high = choose_range(observer, method)
    assert low < -2
    if method == "minmax":
        assert high == 60
    else:
        assert 2 < high < 50


@pytest.mark.parametrize("sign", [1, -1])
def test_exact_zeros_do_not_draw_in_the_interval_of_least_divergence(sign):
    rng = np.random.default_rng(5)
    values = sign * rng.exponential(1.0, 50_000)
    found = []
    for zeros in (0, 50_000):
        observer = Observer()
        padded = np.concatenate([values, np.zeros(zeros)])
        observer.see_range(padded)
        observer.see_values(padded)
        found.append(choose_range(observer, "entropy"))
    assert found[0] == found[1]


def test_least_squares_search_is_no_worse_than_all_values():
    rng = np.random.default_rng(1)
    values = rng.standard_normal(50_000) ** 3
    observer = Observer()
    observer.see_range(values)
    observer.see_values(values)

    def error(method):
        scale, zero = parameters(*choose_range(observer, method))
        levels = np.clip(np.rint(values / scale) + zero, 0, 255)
        return (((levels - zero) * scale - values) ** 2).sum()

    assert error("mse") < error("minmax")


def test_weights_have_a_scale_for_each_channel():
    rng = np.random.default_rng(2)
    weight = rng.standard_normal((4, 3, 3, 3)) * np.array([1, 10, 0.1, 0])[:, None, None, None]
    integers, scale = quantize_weights(weight.astype("float32"), 0)
    assert scale.shape == (4,)
    assert integers.min() >= -127
    error = np.abs(integers * scale[:, None, None, None] - weight).reshape(4, -1).max(axis=1)
    assert (error <= scale / 2 + 1e-7).all()


def test_activations_are_rounded_behind_relu_and_outputs_stay_floats():
    names = tensors_to_quantize(network())
    assert "r1" in names
    assert "c1" not in names
    assert "y" not in names


def test_command_writes_a_model_that_onnxruntime_runs(tmp_path):
    model, samples, out = (tmp_path / name for name in ("m.onnx", "c.npz", "q.onnx"))
    onnx.save(network(), model)
    rng = np.random.default_rng(4)
    data = rng.standard_normal((6, 1, 3, 12, 12)).astype("float32")
    np.savez(samples, x=data)
    result = CliRunner().invoke(
        app, ["quantize", str(model), "--calibration", str(samples), "-o", str(out)]
    )
    assert result.exit_code == 0, result.output
    assert "dB" in result.output
    quantized = onnx.load(out)
    kinds = [node.op_type for node in quantized.graph.node]
    assert kinds.count("QuantizeLinear") == len(tensors_to_quantize(network()))
    (wanted,) = run_onnxruntime(network(), {"x": data[0]})
    (got,) = run_onnxruntime(quantized, {"x": data[0]})
    assert noise(got, wanted) > 25


def test_calibration_data_that_does_not_fit_is_refused(tmp_path):
    path = tmp_path / "c.npz"
    np.savez(path, x=np.zeros((4, 5), "float32"))
    with pytest.raises(ModelError, match=r"shape \[4, 5\]; accepted are \[2, 3\]"):
        load_samples(path, {"x": (2, 3)})
    with pytest.raises(ModelError, match="lacks the inputs y"):
        load_samples(path, {"x": (2, 5), "y": (1,)})
    assert len(load_samples(path, {"x": (2, 5)})) == 2
    with pytest.raises(ModelError, match="unknown method"):
        quantize(tmp_path / "m.onnx", path, tmp_path / "q.onnx", "best")
