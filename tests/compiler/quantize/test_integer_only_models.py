"""Whole models in integers only, quantized by ONNX Runtime: the scan, and how close they stay."""

import numpy as np
import pytest

import tilewright
from tests.compiler.quantize.float_scan import kernels_with_floats, lowered_program

pytestmark = pytest.mark.slow

_RESIDUAL, _TRANSFORMER, _GATED = "resnet18", "bert_tiny", "efficientnet_b0"


def _quantized(name):
    quantized = pytest.importorskip("benchmarks.quantized", reason="needs the bench extra")
    return quantized.quantize(name, "qdq", "u8", True)


@pytest.mark.parametrize("name", [_RESIDUAL, _TRANSFORMER, _GATED])
def test_no_floats_between_the_first_bytes_and_the_last(name):
    assert kernels_with_floats(lowered_program(_quantized(name), integer_only=True)) == []


def test_resnet18_stays_within_a_hundredth_of_its_qdq_result():
    from benchmarks import zoo

    model, feed = _quantized(_RESIDUAL), zoo.inputs(_RESIDUAL, 0)
    (wanted,) = tilewright.compile(model, logs=()).run(feed).values()
    (seen,) = tilewright.compile(model, logs=(), integer_only=True).run(feed).values()
    assert wanted.std() > 0
    assert np.linalg.norm(seen - wanted) <= 1e-2 * np.linalg.norm(wanted)
