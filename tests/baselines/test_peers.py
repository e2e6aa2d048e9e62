"""The comparison with peers tells right from wrong, and its mistakes are said in one line."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx.reference import ReferenceEvaluator

from tests.tiny_model import expected, make_model
from tilewright.baselines import PEERS, Case, bench
from tilewright.baselines.engine import largest_error
from tilewright.errors import MeasureError


def test_largest_error_is_in_units_of_the_standard_deviation() -> None:
    reference = {"y": np.array([1.0, 3.0], np.float32)}  # standard deviation 1
    found = {"y": np.array([1.0, 2.5], np.float32)}
    assert largest_error(reference, reference) == 0.0
    assert largest_error(reference, found) == pytest.approx(0.5)


def test_largest_error_of_a_constant_is_the_difference() -> None:
    assert largest_error({"y": np.zeros(3)}, {"y": np.full(3, 0.25)}) == pytest.approx(0.25)


@pytest.mark.parametrize("name", ["onnxruntime", "openvino"])
def test_peer_computes_the_model(name, tmp_path) -> None:
    pytest.importorskip(name, reason=f"needs {name} (bench extra)")
    model = make_model()
    onnx.save(model, tmp_path / "tiny.onnx")
    x = np.random.default_rng(0).standard_normal((2, 3)).astype(np.float32)
    contender = PEERS[name].start(Case(tmp_path / "tiny.onnx", {"x": x}, 1))
    np.testing.assert_allclose(contender.outputs["y"], expected(model, x), rtol=1e-5, atol=1e-6)


# What exporters write and onnx2torch by itself refuses or gets wrong.
_AWKWARD = """
<ir_version: 8, opset_import: ["" : 17]>
awkward (float[2, 3, 4, 4] x) => (float[64, 1] y)
<float[2, 3, 1, 1] w = {1, -2, 3, -4, 5, -6}, float[2] b = {0.5, -0.25}>
{
    bias = Identity (b)
    convolved = Conv (x, w, bias)
    least = Constant <value = float {-1.0}> ()
    clipped = Clip (convolved, least, )
    axes = Constant <value = int64[3] {0, 2, 3}> ()
    column = Unsqueeze (b, axes)
    mask = GreaterOrEqual (column, least)
    kept = Where (mask, clipped, convolved)
    y = Flatten <axis = 4> (kept)
}
"""


def test_torch_takes_what_onnx2torch_alone_does_not(tmp_path) -> None:
    pytest.importorskip("torch", reason="needs torch (bench extra)")
    pytest.importorskip("onnx2torch", reason="needs onnx2torch (bench extra)")
    pytest.importorskip("onnxruntime", reason="needs onnxruntime (bench extra)")
    path = tmp_path / "awkward.onnx"
    onnx.save(onnx.parser.parse_model(_AWKWARD), path)
    x = np.random.default_rng(0).standard_normal((2, 3, 4, 4)).astype(np.float32)
    contender = PEERS["torch"].start(Case(path, {"x": x}, 1))
    (wanted,) = ReferenceEvaluator(str(path)).run(None, {"x": x})
    np.testing.assert_allclose(contender.outputs["y"], wanted, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(("threads", "rounds"), [(0, 1), (1, 0)])
def test_bench_refuses_to_measure_nothing(threads, rounds) -> None:
    with pytest.raises(MeasureError, match="must be at least 1"):
        bench("a.onnx", threads=threads, rounds=rounds)
