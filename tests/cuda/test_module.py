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
from tilewright.module_size import module_size

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

_DEVICE_CHILD = """
import ctypes, json, sys
import numpy as np
from tilewright.errors import ModuleError
from tilewright.module_size import module_size
from tilewright.runtime import dlpack
from tilewright.runtime.module import Module
shim = ctypes.CDLL("libcuda.so.1")

class Tensor:
    # A tensor on the device, as torch and CuPy hand it out.
    def __init__(self, shape, strides=None, skip=0):
        block = ctypes.c_uint64()
        size = 4 * int(np.prod(shape)) + skip
        assert shim.cuMemAlloc_v2(ctypes.byref(block), ctypes.c_size_t(size)) == 0
        self.address, self.shape = block.value + skip, shape
        self.array = np.ctypeslib.as_array(ctypes.cast(self.address,
            ctypes.POINTER(ctypes.c_float)), shape)
        self.tensor = dlpack._Tensor(self.address, dlpack._Device(2, 0), len(shape),
            dlpack._Dtype(2, 32, 1), (ctypes.c_int64 * len(shape))(*shape),
            (ctypes.c_int64 * len(shape))(*strides) if strides else None, 0)
    def __dlpack_device__(self):
        return (2, 0)
    def __dlpack__(self, stream=None):
        new = ctypes.pythonapi.PyCapsule_New
        new.restype = ctypes.py_object
        new.argtypes = (ctypes.c_void_p, ctypes.c_char_p, ctypes.c_void_p)
        return new(ctypes.addressof(self.tensor), b"dltensor", None)

module = Module(sys.argv[1])
x, y, odd = Tensor((24, 48)), Tensor((24, 40)), Tensor((24, 48), skip=4)
x.array[:] = np.random.default_rng(1).standard_normal((24, 48), dtype=np.float32)
odd.array[:] = x.array
before = shim.tw_shim_count(b"to_device"), shim.tw_shim_count(b"to_host")
for _ in range(3):
    module.run_into({"x": x}, {"y": y})
after = shim.tw_shim_count(b"to_device"), shim.tw_shim_count(b"to_host")
unaligned = module.run({"x": odd})["y"]
errors = []
for given, taken in (({"x": Tensor((24, 48), (1, 24))}, {"y": y}), ({"x": y}, {"y": y}),
                     ({"x": x}, {"y": np.zeros((3, 3), np.float32)}), ({"x": x}, {"z": y})):
    try:
        module.run_into(given, taken)
    except ModuleError as error:
        errors.append(str(error))
np.savez(sys.argv[2], x=np.array(x.array), y=np.array(y.array), unaligned=unaligned)
print(json.dumps({"before": before, "after": after, "errors": errors,
                  "graphs": shim.tw_shim_count(b"graph_launches"),
                  "waits": shim.tw_shim_count(b"waits")}))
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


def test_tensors_on_the_device_are_used_in_place(folder):
    done = run_child(folder, _DEVICE_CHILD)
    assert done.returncode == 0, done.stderr
    found, arrays = json.loads(done.stdout), np.load(folder / "out.npz")
    expected = tilewright.compile(folder / "matmul.onnx")(arrays["x"])
    np.testing.assert_allclose(arrays["y"], expected, rtol=1e-5, atol=1e-5)
    np.testing.assert_array_equal(arrays["unaligned"], arrays["y"])
    assert found["before"] == found["after"]  # nothing was copied
    assert found["graphs"] == 2
    assert found["waits"] >= 3  # for the caller's stream, in every run
    messages = ("is not compact", "'x' is float32 \\[24, 40\\]", "output 'y'", r"outputs \['z'\]")
    for message, error in zip(messages, found["errors"], strict=True):
        assert re.search(message, error), error


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


def test_size_counts_the_code_of_the_gpu_as_kernels(folder):
    sizes = module_size(folder / "matmul.so")
    assert sizes["kernels"] == sizes["by_kernel"]["cubin and PTX of all kernels"] > 1000
    assert sizes["data"] > 0
    parts = ("kernels", "runtime", "data", "elf", "weights", "description", "trailer")
    assert sum(sizes[part] for part in parts) == sizes["file"]
