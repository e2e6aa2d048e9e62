"""A module for a GPU: what it says without a driver, and its host code against a stand-in for one.

The stand-in (driver_shim.cpp) checks and counts the calls of the driver API and runs the kernels by
the emulation, so results are real. What only a GPU can show is in tests marked `cuda`.
"""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import tilewright
from tests.cuda.emulation import compile_for_cpu, compile_shim
from tests.cuda.programs import lower, save_matmul
from tilewright.compiler.cuda.nvcc import find_tool
from tilewright.compiler.cuda.package import package_for_cuda
from tilewright.compiler.cuda.targets import parse_cuda_target
from tilewright.errors import ModuleError

pytestmark = pytest.mark.skipif(find_tool("nvcc") is None, reason="needs nvcc")

_HAS_DRIVER = Path("/dev/nvidiactl").exists()
_CHILD = """
import ctypes, json, sys
import numpy as np
from tilewright.runtime.module import Module
shim = ctypes.CDLL("libcuda.so.1")
module = Module(sys.argv[1])
rng = np.random.default_rng(1)
x = rng.standard_normal((24, 48), dtype=np.float32)
found = {}
def count(step):
    names = ("launches", "captures", "graph_launches", "to_device", "to_host")
    found[step] = {name: shim.tw_shim_count(name.encode()) for name in names}
first = module(x)
count("first")
second = module(x)
count("second")
third = module(2 * x)
count("third")
found["times"] = [call.seconds for call in module.profile({"x": x}, rounds=2)]
np.savez(sys.argv[2], x=x, first=first, second=second, third=third)
del module
import gc
gc.collect()
found["live_blocks"] = shim.tw_shim_live_blocks()
found["balance"] = [shim.tw_shim_count(n) for n in (b"push", b"pop", b"retain", b"release")]
print(json.dumps(found))
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder with model, module, its kernels for the CPU, and the stand-in for the driver."""
    folder = tmp_path_factory.mktemp("cuda")
    lowered = lower(save_matmul(folder))
    target = parse_cuda_target("cuda:sm_90")
    package_for_cuda(lowered, target, "fp32", folder / "matmul.so", {"model_digest": "m"})
    compile_for_cpu(list(lowered.kernels.values()), folder)
    return compile_shim(folder)


def run_child(folder, code, **variables):
    environment = {
        **os.environ,
        "LD_LIBRARY_PATH": str(folder),
        "TW_SHIM_KERNELS": str(folder / "kernels.so"),
        **variables,
    }
    command = [sys.executable, "-c", code, str(folder / "matmul.so"), str(folder / "out.npz")]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)


def test_a_module_runs_and_is_recorded_as_a_graph_after_the_first_run(folder):
    done = run_child(folder, _CHILD)
    assert done.returncode == 0, done.stderr
    found, arrays = json.loads(done.stdout), np.load(folder / "out.npz")
    module = tilewright.compile(folder / "matmul.onnx")
    expected = module(arrays["x"])
    np.testing.assert_allclose(arrays["first"], expected, rtol=1e-5, atol=1e-5)
    np.testing.assert_array_equal(arrays["first"], arrays["second"])
    np.testing.assert_allclose(arrays["third"], module(2 * arrays["x"]), rtol=1e-5, atol=1e-5)
    launches = found["first"]["launches"]
    assert launches > 0
    assert found["first"] == {
        "launches": launches,
        "captures": 0,
        "graph_launches": 0,
        "to_device": 2,  # the weights once, the input
        "to_host": 1,
    }
    assert found["second"]["captures"] == found["third"]["captures"] == 1
    assert found["third"]["graph_launches"] == 2
    assert found["third"]["to_device"] == 4
    assert found["times"] == pytest.approx([1e-3] * launches)


def test_a_closed_module_leaves_nothing_on_the_device(folder):
    found = json.loads(run_child(folder, _CHILD).stdout)
    pushes, pops, retained, released = found["balance"]
    assert (found["live_blocks"], pushes, retained) == (0, pops, released)


@pytest.mark.parametrize(
    ("variables", "message"),
    [
        ({"TW_SHIM_ARCH": "80"}, r"compiled for cuda:sm_90, but device 0 \(shim\) is sm_80"),
        ({"TW_SHIM_BROKEN": "1"}, "the NVIDIA driver does not start: refused by the shim"),
        ({"TILEWRIGHT_CUDA_DEVICE": "7"}, "TILEWRIGHT_CUDA_DEVICE is '7', but the devices are 0"),
    ],
)
def test_a_gpu_that_does_not_fit_is_refused(folder, variables, message):
    code = "import sys; from tilewright.runtime.module import Module; Module(sys.argv[1])"
    done = run_child(folder, code, **variables)
    assert done.returncode != 0
    assert re.search(message, done.stderr), done.stderr


def test_a_later_chip_of_the_same_generation_is_accepted(folder):
    code = "import sys; from tilewright.runtime.module import Module; Module(sys.argv[1])"
    assert run_child(folder, code, TW_SHIM_ARCH="100").returncode == 0


@pytest.mark.skipif(_HAS_DRIVER, reason="there is an NVIDIA driver")
def test_without_a_driver_loading_says_so(folder):
    with pytest.raises(ModuleError, match=r"no NVIDIA driver: libcuda\.so\.1"):
        tilewright.load(folder / "matmul.so")


def test_a_module_can_be_inspected_without_a_driver(folder):
    described = tilewright.inspect(folder / "matmul.so")
    assert described["target"]["name"] == "cuda:sm_90"
    assert described["target"]["precision"] == "fp32"
    calls = described["entries"][0]["calls"]
    assert all(call["schedule"] for call in calls)
