"""Loading and running modules from Python."""

import dataclasses
import gc
import os
import resource
import subprocess
import sys
import threading

import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator

from tests.programs import (
    copy_program,
    huge_workspace_kernel,
    mlp_program,
    mlp_reference,
    unary_kernel,
)
from tilewright.api import compile as compile_model
from tilewright.api import load
from tilewright.compiler import entry
from tilewright.compiler.package import package
from tilewright.errors import ModuleError
from tilewright.runtime.buffers import empty_aligned
from tilewright.runtime.module import Module, default_threads

_RTOL, _ATOL = 1e-4, 1e-4  # float32 sums of 48 products


def _input(seed=0):
    return np.random.default_rng(seed).standard_normal((6, 32), dtype=np.float32)


def _at_offset(array, offset_bytes):
    """Return a copy whose data starts `offset_bytes` behind a multiple of 64."""
    raw = empty_aligned((array.nbytes + offset_bytes,), np.uint8)
    moved = raw[offset_bytes:].view(array.dtype).reshape(array.shape)
    moved[...] = array
    return moved


@pytest.mark.parametrize("threads", [1, 2, 5])
def test_module_computes_what_the_program_says(mlp, threads):
    path, weights = mlp
    module = Module(path, threads=threads)
    for seed in range(5):
        x = _input(seed)
        np.testing.assert_allclose(module(x), mlp_reference(x, weights), rtol=_RTOL, atol=_ATOL)


def test_run_takes_and_gives_names(mlp):
    path, weights = mlp
    x = _input()
    result = Module(path).run({"x": x})
    assert list(result) == ["y"]
    np.testing.assert_allclose(result["y"], mlp_reference(x, weights), rtol=_RTOL, atol=_ATOL)


@pytest.mark.parametrize("offset_bytes", [4, 16, 32, 60])
def test_unaligned_inputs_give_the_same_bits(mlp, offset_bytes):
    module = Module(mlp[0], threads=2)
    x = empty_aligned((6, 32), np.float32)
    x[...] = _input()
    moved = _at_offset(x, offset_bytes)
    assert moved.ctypes.data % 64 == offset_bytes
    np.testing.assert_array_equal(module(moved), module(x))


@pytest.mark.parametrize("offset_bytes", [0, 16, 32, 48])
def test_kernels_assume_no_more_than_the_alignment_of_malloc(offset_bytes):
    data = helper.make_tensor_value_info("x", TensorProto.FLOAT, (2, 16, 9, 16))
    result = helper.make_tensor_value_info("y", TensorProto.FLOAT, (2, 16, 9, 16))
    weight = np.random.default_rng(1).standard_normal((16, 1, 3, 3), dtype=np.float32)
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["c"], group=16, pads=[1] * 4),
        helper.make_node("Add", ["c", "x"], ["y"]),
    ]
    graph = helper.make_graph(nodes, "g", [data], [result], [numpy_helper.from_array(weight, "w")])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=10)
    x = np.random.default_rng(0).standard_normal((2, 16, 9, 16), dtype=np.float32)
    compiled = compile_model(model)
    module = load(compiled.path, 1)
    (expected,) = ReferenceEvaluator(model).run(None, {"x": x})
    actual = module(_at_offset(x, offset_bytes))
    np.testing.assert_allclose(actual, expected, rtol=_RTOL, atol=_ATOL)


def test_strided_and_byteswapped_inputs_work(mlp):
    module = Module(mlp[0], threads=1)
    x = _input()
    expected = module(x)
    np.testing.assert_array_equal(module(np.asfortranarray(x)), expected)
    np.testing.assert_array_equal(module(x.astype(">f4")), expected)


@pytest.mark.parametrize(
    ("dtype", "shape"),
    [
        *(("float32", ()), ("float32", (0,)), ("int64", (3, 1, 5)), ("int8", (1,))),
        *(("float64", (2, 2)), ("bool", (7,)), ("float16", (3, 5))),
    ],
)
def test_dtypes_and_odd_shapes(tmp_path, native, dtype, shape):
    package(copy_program(shape, dtype), native, tmp_path / "m.so")
    x = np.asarray(np.random.default_rng(0).integers(0, 2, shape)).astype(dtype)
    y = Module(tmp_path / "m.so", threads=1)(x)
    assert y.dtype == x.dtype
    np.testing.assert_array_equal(y, x != 0 if dtype == "bool" else x + 1)


def test_wrong_names_are_named(mlp):
    module = Module(mlp[0], threads=1)
    with pytest.raises(ModuleError, match=r"unknown input 'z', missing input 'x'.*float32 \[6, 32"):
        module.run({"z": _input()})


def test_wrong_shape_and_dtype_say_what_is_accepted(mlp):
    module = Module(mlp[0], threads=1)
    with pytest.raises(ModuleError, match=r"input 'x' is float32 \[32, 6\].*float32 \[6, 32\]"):
        module(_input().T)
    with pytest.raises(ModuleError, match=r"input 'x' is float64"):
        module(_input().astype(np.float64))
    with pytest.raises(ModuleError, match="0 inputs given; the module accepts x"):
        module()


def test_eight_threads_share_one_module(mlp):
    path, weights = mlp
    module = Module(path, threads=2)
    failures = []

    def work(seed):
        x = _input(seed)
        expected = mlp_reference(x, weights)
        for _ in range(50):
            if not np.allclose(module(x), expected, rtol=_RTOL, atol=_ATOL):
                failures.append(seed)

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []


def test_two_modules_live_in_one_process(mlp, plus_one):
    path, weights = mlp
    first, second = Module(path, threads=2), Module(plus_one, threads=2)
    x, z = _input(), np.ones((5, 7), np.float32)
    for _ in range(3):
        np.testing.assert_allclose(first(x), mlp_reference(x, weights), rtol=_RTOL, atol=_ATOL)
        np.testing.assert_array_equal(second(z), z + 1)


def _plus(number):
    """Return y = x + number: the same interface as `copy_program`, other code."""
    kernel = unary_kernel((3,), lambda x: x + float(number))
    return dataclasses.replace(copy_program((3,)), kernels={"plus_one": kernel})


def test_a_file_that_was_replaced_is_loaded_anew(tmp_path, native):
    x = np.zeros(3, np.float32)
    modules = []
    for number in (1, 2, 3):
        package(_plus(number), native, tmp_path / "m.so")
        modules.append(Module(tmp_path / "m.so", threads=1))
    assert [float(module(x)[0]) for module in modules] == [1, 2, 3]


def test_code_and_file_that_do_not_belong_together_are_refused(tmp_path, native, monkeypatch):
    monkeypatch.setattr("tilewright.runtime.library._spelled", lambda path, _: str(path))
    package(_plus(1), native, tmp_path / "m.so")
    first = Module(tmp_path / "m.so", threads=1)
    package(_plus(2), native, tmp_path / "m.so")
    with pytest.raises(ModuleError, match="the file was replaced while its code was loaded"):
        Module(tmp_path / "m.so", threads=1)
    assert first(np.zeros(3, np.float32))[0] == 1


def test_modules_are_unloaded_when_no_longer_used(plus_one):
    def is_mapped():
        with open("/proc/self/maps") as maps:
            return str(plus_one) in maps.read()

    module = Module(plus_one, threads=2)
    module(np.ones((5, 7), np.float32))
    assert is_mapped()
    before = threading.active_count(), len(os.listdir("/proc/self/task"))
    del module
    gc.collect()
    assert not is_mapped()
    assert len(os.listdir("/proc/self/task")) < before[1]


def test_forked_child_can_run_the_parents_module(mlp):
    module = Module(mlp[0], threads=3)
    x = _input()
    expected = module(x)
    child = os.fork()
    if child == 0:
        same = all(np.array_equal(module(x), expected) for _ in range(3))
        os._exit(0 if same else 1)
    _, status = os.waitpid(child, 0)
    assert os.waitstatus_to_exitcode(status) == 0
    np.testing.assert_array_equal(module(x), expected)


def test_profile_times_every_call(mlp):
    times = Module(mlp[0], threads=1).profile({"x": _input()}, rounds=3)
    assert [time.label for time in times] == ["matmul_1", "relu_1", "matmul_2", "add_1"]
    assert all(0 <= time.seconds < 1 for time in times)


@pytest.mark.parametrize("most", [1, 3])
def test_calls_may_be_spread_over_functions(tmp_path, native, monkeypatch, most):
    monkeypatch.setattr(entry, "_MOST_CALLS", most)
    program, weights = mlp_program()
    assert len(program.calls) > most
    package(program, native, tmp_path / "spread.so")
    module = Module(tmp_path / "spread.so", threads=2)
    x = _input()
    np.testing.assert_allclose(module(x), mlp_reference(x, weights), rtol=_RTOL, atol=_ATOL)
    assert all(time.seconds > 0 for time in module.profile({"x": x}, rounds=3))


def test_description_holds_what_was_given(mlp, native):
    description = Module(mlp[0], threads=1).description
    assert description["model_digest"] == "sha256:0123"
    assert description["target"]["mcpu"] == native.mcpu
    assert "avx2" in description["cpu_features"]
    assert {"tilewright", "apache-tvm"} <= set(description["versions"])


def test_running_needs_no_tvm(plus_one):
    script = (
        "import sys, numpy as np\n"
        "from tilewright.runtime.module import Module\n"
        "y = Module(sys.argv[1])(np.ones((5, 7), np.float32))\n"
        "assert (y == 2).all()\n"
        "heavy = {'tvm', 'tvm_ffi', 'onnx', 'scipy', 'xgboost'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
    )
    subprocess.run([sys.executable, "-c", script, str(plus_one)], check=True)


def test_number_of_threads_comes_from_the_environment(monkeypatch):
    monkeypatch.setenv("TILEWRIGHT_NUM_THREADS", "3")
    assert default_threads() == 3
    monkeypatch.setenv("TILEWRIGHT_NUM_THREADS", "none")
    with pytest.raises(ModuleError, match="TILEWRIGHT_NUM_THREADS is 'none'"):
        default_threads()
    monkeypatch.delenv("TILEWRIGHT_NUM_THREADS")
    assert default_threads() == len(os.sched_getaffinity(0))


def test_threads_below_one_are_refused(plus_one):
    with pytest.raises(ModuleError, match="threads is 0"):
        Module(plus_one, threads=0)


def test_a_kernel_that_gets_no_memory_is_named(tmp_path, native):
    program = copy_program((4,))
    program = dataclasses.replace(program, kernels={"plus_one": huge_workspace_kernel((4,))})
    package(program, native, tmp_path / "m.so")
    module = Module(tmp_path / "m.so", threads=2)
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    with open("/proc/self/statm") as statm:
        used_bytes = int(statm.read().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used_bytes + (2 << 30), hard))
    try:
        for _ in range(2):
            with pytest.raises(ModuleError, match=r"operator 'plus_one' failed: out of memory"):
                module(np.zeros(4, np.float32))
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))


def test_missing_file_is_named(tmp_path):
    with pytest.raises(ModuleError, match=r"none\.so.*No such file"):
        Module(tmp_path / "none.so")


def test_other_files_are_refused(tmp_path):
    (tmp_path / "text.so").write_text("hello")
    with pytest.raises(ModuleError, match="not a tilewright module"):
        Module(tmp_path / "text.so")
    (tmp_path / "empty.so").touch()
    with pytest.raises(ModuleError, match="not a tilewright module"):
        Module(tmp_path / "empty.so")


@pytest.mark.parametrize("keep", [0.2, 0.5, 0.9, 0.999])
def test_truncated_modules_are_refused(tmp_path, mlp, keep):
    content = mlp[0].read_bytes()
    (tmp_path / "cut.so").write_bytes(content[: int(len(content) * keep)])
    with pytest.raises(ModuleError, match="cut short"):
        Module(tmp_path / "cut.so")


def test_a_flipped_bit_anywhere_is_found(tmp_path, mlp):
    content = mlp[0].read_bytes()
    rng = np.random.default_rng(0)
    for position in (0, 100, *rng.integers(0, len(content), 20), len(content) - 30):
        damaged = bytearray(content)
        damaged[position] ^= 0x10
        (tmp_path / "flipped.so").write_bytes(damaged)
        with pytest.raises(ModuleError, match="damaged"):
            Module(tmp_path / "flipped.so")


def test_module_for_another_cpu_is_refused_with_the_missing_features(tmp_path, native, monkeypatch):
    # No processor has both Intel's tile registers and AMD's XOP.
    monkeypatch.setattr(
        "tilewright.compiler.package.required_features", lambda _: ("avx2", "xop", "amx-int8")
    )
    package(copy_program(), native, tmp_path / "other.so")
    with pytest.raises(ModuleError, match=r"this CPU lacks .*(xop|amx-int8)"):
        Module(tmp_path / "other.so")
