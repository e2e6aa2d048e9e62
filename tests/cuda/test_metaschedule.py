"""MetaSchedule as a peer on GPUs: TVM's CUDA C as launches of ours, its builder and its runner."""

import numpy as np
import pytest
from tvm import s_tir, te
from tvm.ir import IRModule
from tvm.s_tir.meta_schedule.arg_info import ArgInfo
from tvm.s_tir.meta_schedule.builder import BuilderInput
from tvm.s_tir.meta_schedule.runner import RunnerInput

from tests.cuda.emulation import compile_for_cpu, compile_shim
from tests.cuda.programs import run
from tilewright.baselines.budget import Budget
from tilewright.baselines.metaschedule_cuda import (
    OUTPUTS,
    alone,
    lowered_by_tvm,
    on_device,
    tvm_target,
)
from tilewright.compiler.cuda.build import compile_kernels
from tilewright.compiler.cuda.kernel import Kernel
from tilewright.compiler.cuda.nvcc import find_tool
from tilewright.compiler.cuda.targets import parse_cuda_target
from tilewright.errors import CompileError

TARGET = parse_cuda_target("cuda:sm_90")
_NOTHING = """TW_GLOBAL(32) tvm_operator_kernel(
    const float *__restrict__ in0, const float *__restrict__ in1, float *__restrict__ out0) {
}
"""
needs_nvcc = pytest.mark.skipif(find_tool("nvcc") is None, reason="needs nvcc")


def scheduled():
    """Return exp(x @ w) as two kernels, one with rows in shared memory and blocks of 2 x 32."""
    x = te.placeholder((16, 24), "float32", "x")
    w = te.placeholder((24, 64), "float32", "w")
    k = te.reduce_axis((0, 24), "k")
    product = te.compute((16, 64), lambda i, j: te.sum(x[i, k] * w[k, j], axis=k), "product")
    result = te.compute((16, 64), lambda i, j: te.exp(product[i, j]), "result")
    func = te.create_prim_func([x, w, result]).with_attr(OUTPUTS, 1)
    schedule = s_tir.Schedule(func)
    block = schedule.get_sblock("product")
    row, column, _ = schedule.get_loops(block)
    outer, inner = schedule.split(column, [None, 32])
    for loop, tag in ((row, "blockIdx.x"), (outer, "threadIdx.y"), (inner, "threadIdx.x")):
        schedule.bind(loop, tag)
    copy = schedule.cache_read(block, 0, "shared")
    schedule.compute_at(copy, inner)
    row, column = schedule.get_loops(schedule.get_sblock("result"))
    outer, inner = schedule.split(column, [None, 4])
    schedule.bind(row, "blockIdx.x")
    schedule.bind(outer, "threadIdx.x")
    schedule.vectorize(inner)
    return schedule.mod["main"]


def lowered():
    func = scheduled()
    return lowered_by_tvm(alone(func), {"operator": func}, TARGET)


@pytest.mark.parametrize("backwards", [False, True])
def test_kernels_of_tvm_run_as_launches(backwards):
    rng = np.random.default_rng(0)
    x, w = (rng.standard_normal(shape, np.float32) * 0.2 for shape in ((16, 24), (24, 64)))
    (names,) = lowered().schedules.values()
    assert names == (
        "metaschedule, 16 blocks of 64 threads",
        "metaschedule, 16 blocks of 16 threads",
    )
    results = run(lowered(), {"t0": x, "t1": w}, backwards)
    np.testing.assert_allclose(results["t2"], np.exp(x @ w), rtol=1e-5)


@needs_nvcc
def test_nvcc_takes_the_text_of_tvm():
    assert compile_kernels(lowered().kernels, TARGET)


def test_a_function_that_stays_on_the_host_is_refused():
    x = te.placeholder((8,), "float32", "x")
    y = te.compute((8,), lambda i: x[i] + 1.0, "y")
    func = te.create_prim_func([x, y]).with_attr(OUTPUTS, 1)
    with pytest.raises(CompileError, match="leaves nothing, or not all, to the GPU"):
        lowered_by_tvm(alone(func), {"operator": func}, TARGET)


def on_the_shim(tmp_path, monkeypatch, kernels):
    """Let the stand-in for the driver run these kernels, whatever a module brings."""
    compile_for_cpu(kernels, tmp_path)
    monkeypatch.setenv("LD_LIBRARY_PATH", str(compile_shim(tmp_path)))
    monkeypatch.setenv("TW_SHIM_KERNELS", str(tmp_path / "kernels.so"))


@needs_nvcc
def test_candidates_are_built_and_run_as_modules(tmp_path, monkeypatch):
    on_the_shim(tmp_path, monkeypatch, list(lowered().kernels.values()))
    func = scheduled()
    unbound = te.create_prim_func([te.placeholder((8,), name="x")]).with_attr(OUTPUTS, 1)
    with on_device(TARGET) as how:
        good, bad = how["builder"].build(
            [BuilderInput(IRModule({"main": f}), tvm_target(TARGET)) for f in (func, unbound)]
        )
        assert "CompileError" in bad.error_msg
        given = RunnerInput(good.artifact_path, "cuda", ArgInfo.from_prim_func(func))
        (future,) = how["runner"].run([given])
        assert [float(seconds) for seconds in future.result().run_secs] == pytest.approx([2e-3] * 3)


@needs_nvcc
@pytest.mark.slow
def test_metaschedule_tunes_and_its_best_is_right(tmp_path, monkeypatch):
    """Every candidate takes the same time on the stand-in, which runs none of them."""
    from tilewright.baselines.metaschedule_worker import best, tune

    x = te.placeholder((64, 48), "float32", "x")
    w = te.placeholder((48, 96), "float32", "w")
    k = te.reduce_axis((0, 48), "k")
    product = te.compute((64, 96), lambda i, j: te.sum(x[i, k] * w[k, j], axis=k), "product")
    func = te.create_prim_func([x, w, product]).with_attr(OUTPUTS, 1)
    nothing = Kernel("tvm_operator_kernel", _NOTHING, (1, 1, 1), 32, 0, "nothing")
    on_the_shim(tmp_path, monkeypatch, [nothing])
    with on_device(TARGET) as how:
        tune({"operator": func}, tvm_target(TARGET), tmp_path / "log", Budget(4), seed=1, **how)
    found = best({"operator": func}, tvm_target(TARGET), tmp_path / "log", 4)
    rng = np.random.default_rng(0)
    feeds = {"t0": rng.standard_normal((64, 48), np.float32)}
    feeds["t1"] = rng.standard_normal((48, 96), np.float32)
    results = run(lowered_by_tvm(alone(func), found, TARGET), feeds)
    np.testing.assert_allclose(results["t2"], feeds["t0"] @ feeds["t1"], rtol=1e-4, atol=1e-4)
