"""Whole networks on the kernels for GPUs, every thread of every launch by the emulation."""

import numpy as np
import onnxruntime
import pytest

from tests.cuda.programs import lower, run

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]
_TOLERANCE = {"fp32": 1e-4, "fp16": 2e-2}  # of the largest value


@pytest.mark.parametrize("precision", list(_TOLERANCE))
@pytest.mark.parametrize("name", ["bert_tiny", "vit_tiny", "mobilenetv2", "resnet18"])
def test_a_network_agrees_with_onnxruntime(name, precision):
    pytest.importorskip("torch")  # which exports it
    from benchmarks import zoo

    path, feed = zoo.load(name), zoo.inputs(name, 0)
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    found = run(lower(path, precision), feed)
    for item, expected in zip(session.get_outputs(), session.run(None, feed), strict=True):
        error = np.abs(found[item.name].astype(np.float64) - expected).max()
        assert error <= _TOLERANCE[precision] * np.abs(expected).max()
