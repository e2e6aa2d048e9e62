"""Machine code that nvcc makes: tensor cores where asked for, nothing in local memory."""

import pytest

from benchmarks.cuda_structure import describe, faults
from tests.cuda.programs import lower, save_matmul
from tilewright.compiler.cuda.build import compile_kernels
from tilewright.compiler.cuda.kernel import Kernel
from tilewright.compiler.cuda.nvcc import find_tool
from tilewright.compiler.cuda.structure import CodeUse, read_code
from tilewright.compiler.cuda.targets import list_cuda_targets, parse_cuda_target
from tilewright.errors import CompileError, TargetError

needs_nvcc = pytest.mark.skipif(
    any(find_tool(name) is None for name in ("nvcc", "cuobjdump", "nvdisasm")),
    reason="needs nvcc, cuobjdump and nvdisasm",
)


@needs_nvcc
@pytest.mark.parametrize("name", list_cuda_targets())
def test_every_architecture_gets_tensor_cores_and_background_copies(tmp_path, name):
    target = parse_cuda_target(name)
    kernels = lower(save_matmul(tmp_path), "tf32").kernels
    (found,) = read_code(compile_kernels(kernels, target)).items()
    kernel, use = found
    assert use.matrix_instructions("tf32") > 0
    assert use.instructions["LDGSTS"] > 0
    assert use.instructions["LDSM"] > 0
    assert (use.spills, use.stack_bytes, use.local_bytes) == (0, 0, 0)
    assert 16 < use.registers <= target.registers_per_thread
    assert not faults(describe(kernel, kernels[kernel], use))


@needs_nvcc
def test_a_kernel_that_nvcc_refuses_is_named():
    kernels = {
        "good": Kernel("good", "TW_GLOBAL(32) good() {}", (1, 1, 1), 32, 0, "x"),
        "bad": Kernel("bad", "TW_GLOBAL(32) bad() { nothing(); }", (1, 1, 1), 32, 0, "x"),
    }
    with pytest.raises(CompileError, match=r"kernel bad: nvcc failed .*nothing"):
        compile_kernels(kernels, parse_cuda_target("cuda:sm_90"))


def test_faults_are_said():
    kernel = Kernel("k", "", (1, 1, 1), 64, 0, "gemm tf32 64x64x16 2 stages copy/copy")
    row = describe("k", kernel, CodeUse(255, 8, 0, {"LDL": 3, "STL": 1, "FFMA": 100}))
    assert faults(row) == [
        "4 accesses of local memory",
        "no HMMA",
        "no background copy",
    ]


@pytest.mark.parametrize(("unit", "wanted"), [("fp32", []), ("tf32", ["no HMMA"])])
def test_attention_needs_tensor_cores_where_it_is_for_them(unit, wanted):
    kernel = Kernel("k", "", (1, 1, 1), 64, 0, f"attention {unit} 64x64x32")
    assert faults(describe("k", kernel, CodeUse(255, 0, 0, {"FFMA": 100}))) == wanted


def test_without_the_tools_it_says_what_to_install(monkeypatch):
    monkeypatch.setattr("tilewright.compiler.cuda.structure.find_tool", lambda _name: None)
    with pytest.raises(TargetError, match=r"pip install 'tilewright\[cuda\]'"):
        read_code(b"")
