"""The comparison with ONNX Runtime must notice what is wrong."""

import numpy as np
import pytest

from benchmarks.agreement import LIMIT, relative_error

REFERENCE = {"y": np.random.default_rng(0).standard_normal((2, 3, 7)).astype(np.float32)}


def test_equal_outputs_have_no_error():
    error, cosine = relative_error(REFERENCE, {"y": REFERENCE["y"].copy()})
    assert error == 0
    assert cosine == pytest.approx(1)


def test_error_is_relative_to_the_deviation_of_the_reference():
    shifted = REFERENCE["y"].copy()
    shifted[1, 2, 3] += 0.01
    scaled = {name: 1000 * value for name, value in (("y", REFERENCE["y"]),)}
    expected = 0.01 / REFERENCE["y"].std()
    assert relative_error(REFERENCE, {"y": shifted})[0] == pytest.approx(expected, rel=1e-3)
    assert relative_error(scaled, {"y": 1000 * shifted})[0] == pytest.approx(expected, rel=1e-3)


@pytest.mark.parametrize(
    "mutant",
    [
        pytest.param({}, id="output missing"),
        pytest.param({"y": REFERENCE["y"][:1]}, id="broadcastable shape"),
        pytest.param({"y": REFERENCE["y"].astype(np.float64)}, id="other dtype"),
        pytest.param({"y": np.full_like(REFERENCE["y"], np.nan)}, id="not a number"),
        pytest.param({"y": REFERENCE["y"][::-1].copy()}, id="samples swapped"),
        pytest.param({"y": np.zeros_like(REFERENCE["y"])}, id="zeros"),
    ],
)
def test_wrong_outputs_exceed_the_limit(mutant):
    with np.errstate(invalid="ignore"):
        error, _ = relative_error(REFERENCE, mutant)
    assert error > LIMIT
