"""Models that are meant to take long compile, and compute the right thing."""

import numpy as np
import pytest

import tilewright as tw
from benchmarks.hostile import MODELS, power, powers
from tilewright.reference import reference_outputs


@pytest.mark.parametrize(
    "name",
    ["elementwise/150", "branches/70", "residuals/45", "chain/60", "folded/40", "nested/300"],
)
def test_small_ones_of_them_are_right(name):
    kind, size = name.split("/")
    model = MODELS[kind](int(size))
    x = (np.random.default_rng(0).standard_normal((4, 16)) * 0.3).astype(np.float32)
    (output,) = model.graph.output
    expected = reference_outputs(model, {"x": x}, [output.name], "onnx")[output.name]
    found = tw.compile(model, logs=()).run({"x": x})[output.name]
    np.testing.assert_allclose(found, expected, rtol=1e-3, atol=1e-4)


def test_growth_is_a_power_of_the_size():
    assert power((10, 3.0), (20, 6.0)) == pytest.approx(1)
    assert power((10, 3.0), (20, 12.0)) == pytest.approx(2)
    rows = {f"chain/{size}": {"cpu_s": size / 100, "grown_mb": 1} for size in (1000, 5000, 10000)}
    assert powers(rows) == {"chain": 1.0}
