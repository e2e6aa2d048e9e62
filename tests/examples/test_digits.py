"""The committed digit classifier and the split that it is judged on."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("sklearn", reason="needs scikit-learn (test extra)")
onnxruntime = pytest.importorskip("onnxruntime", reason="needs onnxruntime (test extra)")

from digits import load_split  # noqa: E402

MODEL = Path(__file__).resolve().parents[2] / "examples" / "digits_cnn.onnx"


def test_split_is_fixed_and_disjoint():
    (images, labels), (held_out, expected) = load_split()
    assert images.shape == (1257, 1, 8, 8)
    assert held_out.shape == (540, 1, 8, 8)
    assert expected[:10].tolist() == [2, 8, 2, 6, 6, 7, 1, 9, 8, 5]
    seen = {image.tobytes() for image in images}
    assert not any(image.tobytes() in seen for image in held_out)
    assert np.bincount(labels).min() > 100


def test_committed_model_is_small_and_knows_the_held_out_digits():
    assert MODEL.stat().st_size < 300_000
    session = onnxruntime.InferenceSession(MODEL, providers=["CPUExecutionProvider"])
    _, (images, labels) = load_split()
    found = [session.run(None, {"image": x[None]})[0].argmax() for x in images]
    assert np.mean(np.array(found) == labels) > 0.99


def test_demo_agrees_with_onnx_runtime_on_every_image():
    demo = MODEL.with_name("demo.py")
    done = subprocess.run(
        [sys.executable, str(demo)], capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "both give the same answer on every image" in done.stdout
    assert done.stdout.count("538/540 right") == 2
    assert len(done.stdout.split("next, try\n")[1].splitlines()) == 3
