"""Int8 models on real data: the short version of `benchmarks.quantized_accuracy`."""

import numpy as np
import pytest

import tilewright
from benchmarks.quantized_accuracy import digits
from tests.compiler.quantize.float_scan import kernels_with_floats, lowered_program
from tilewright.quantization import quantize


@pytest.fixture(scope="module")
def digits_int8(tmp_path_factory):
    model, samples, judge = digits()
    out = tmp_path_factory.mktemp("digits") / "int8.onnx"
    quantize(model, samples[:50], out)
    return model, out, judge


@pytest.mark.parametrize("integer_only", [False, True])
def test_digits_lose_at_most_one_image(digits_int8, integer_only):
    model, out, judge = digits_int8
    plain = judge(tilewright.compile(model, logs=()).run)
    found = judge(tilewright.compile(out, logs=(), integer_only=integer_only).run)
    assert found["of"] == 540
    assert found["right"] >= plain["right"] - 1
    if integer_only:
        assert kernels_with_floats(lowered_program(out, integer_only=True)) == []


def test_super_resolution_network_keeps_its_quality(tmp_path):
    pytest.importorskip("skimage", reason="scikit-image is in the extra bench")
    from benchmarks.quantized_accuracy import superres

    model, samples, judge = superres()
    out = tmp_path / "int8.onnx"
    quantize(model, samples, out)
    plain = judge(tilewright.compile(model, logs=()).run)["psnr_db"]
    for integer_only in (False, True):
        run = tilewright.compile(out, logs=(), integer_only=integer_only).run
        assert judge(run)["psnr_db"] > plain - 0.1
    assert kernels_with_floats(lowered_program(out, integer_only=True)) == []
    assert np.isfinite(plain)
