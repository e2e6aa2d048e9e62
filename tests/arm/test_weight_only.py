"""Products with packed weights on ARM, under qemu, against ONNX Runtime."""

import numpy as np
import onnxruntime
import pytest

import tilewright
from benchmarks.weight_only import products
from tests.arm.board import board_for

pytestmark = pytest.mark.arm


@pytest.mark.parametrize("target", ["aarch64:cortex-a72", "armv7:cortex-a7"])
@pytest.mark.parametrize(
    ("batch", "form"), [(1, (4, 32, True)), (5, (4, 32, False)), (3, (8, 64, True))]
)
def test_products_agree(target, batch, form, tmp_path) -> None:
    board = board_for(target)
    model = products(batch, 128, 45, form, 1, 0)
    x = np.random.default_rng(0).standard_normal((batch, 128)).astype(np.float32)
    tilewright.compile(model, target, logs=()).save(tmp_path / "module.so")
    session = onnxruntime.InferenceSession(model.SerializeToString())
    wanted = session.run(None, {"x": x})[0]
    found = board.run(tmp_path / "module.so", [x])[0]
    np.testing.assert_allclose(found, wanted, rtol=1e-4, atol=1e-5 * np.abs(wanted).max())
