"""On a real GPU: modules against ONNX Runtime, from the host and from the device."""

import ctypes

import numpy as np
import onnxruntime
import pytest
from onnx import helper

import tilewright
from tests.cuda.programs import model_of
from tilewright.compiler.cuda.nvcc import find_tool
from tilewright.compiler.cuda.targets import list_cuda_targets

_TOLERANCE = {"fp32": 1e-5, "tf32": 2e-3, "fp16": 3e-3, "bf16": 3e-2}


def _device_target() -> str | None:
    """Return the CUDA target of the GPU here, or None."""
    try:
        driver = ctypes.CDLL("libcuda.so.1")
    except OSError:
        return None
    count, major, minor = (ctypes.c_int() for _ in range(3))
    if driver.cuInit(0) or driver.cuDeviceGetCount(ctypes.byref(count)) or not count.value:
        return None
    driver.cuDeviceGetAttribute(ctypes.byref(major), 75, 0)
    driver.cuDeviceGetAttribute(ctypes.byref(minor), 76, 0)
    known = [name for name in list_cuda_targets() if name <= f"cuda:sm_{major.value}{minor.value}"]
    return known[-1] if known else None


TARGET = _device_target()
pytestmark = [
    pytest.mark.cuda,
    pytest.mark.skipif(TARGET is None, reason="needs an NVIDIA GPU and its driver"),
    pytest.mark.skipif(find_tool("nvcc") is None, reason="needs nvcc"),
]


def normal(*shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape, np.float32)


def network():
    """Convolutions of three kinds, a pooling, a product and a softmax."""
    weights = {
        "w0": normal(32, 3, 3, 3, seed=1),
        "w1": normal(32, 1, 3, 3, seed=2),
        "w2": normal(64, 32, 1, 1, seed=3),
        "w3": normal(64, 40, seed=4) * 0.1,
    }
    nodes = [
        helper.make_node("Conv", ["x", "w0"], ["a"], pads=[1] * 4, strides=[2, 2]),
        helper.make_node("Relu", ["a"], ["b"]),
        helper.make_node("Conv", ["b", "w1"], ["c"], pads=[1] * 4, group=32),
        helper.make_node("Conv", ["c", "w2"], ["d"]),
        helper.make_node("GlobalAveragePool", ["d"], ["e"]),
        helper.make_node("Flatten", ["e"], ["f"]),
        helper.make_node("MatMul", ["f", "w3"], ["g"]),
        helper.make_node("Softmax", ["g"], ["y"], axis=-1),
    ]
    return model_of(nodes, {"x": normal(16, 3, 64, 64)}, weights)


@pytest.mark.parametrize("precision", list(_TOLERANCE))
def test_a_network_agrees_with_onnxruntime_on_every_run(precision):
    model, x = network(), normal(16, 3, 64, 64, seed=7)
    session = onnxruntime.InferenceSession(
        model.SerializeToString(), providers=["CPUExecutionProvider"]
    )
    (expected,) = session.run(None, {"x": x})
    module = tilewright.compile(model, TARGET, precision=precision, logs=())
    for _ in range(3):  # kernels, then recorded, then as a graph
        np.testing.assert_allclose(module(x), expected, atol=_TOLERANCE[precision])


def test_tensors_of_torch_are_used_in_place():
    torch = pytest.importorskip("torch")
    if not torch.cuda.is_available():
        pytest.skip("needs torch with CUDA")
    model, x = network(), normal(16, 3, 64, 64, seed=8)
    compiled = tilewright.compile(model, TARGET, logs=())
    expected = compiled(x)
    given, taken = torch.from_numpy(x).cuda(), torch.empty(16, 40, device="cuda")
    for _ in range(3):
        taken.zero_()
        compiled.module.run_into({"x": given}, {"y": taken})
        np.testing.assert_array_equal(taken.cpu().numpy(), expected)
