"""The module file: what it needs, what it exports, and how writing it fails."""

import dataclasses
import re
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest

from tests.programs import copy_program, matmul_kernel, mlp_program
from tilewright.compiler import toolchain
from tilewright.compiler.codegen import KERNEL_PREFIX, assembly, build_object
from tilewright.compiler.features import CHECKED_FEATURES, required_features
from tilewright.compiler.package import package
from tilewright.compiler.program import Call, Program, Tensor, TensorSpec
from tilewright.compiler.targets import parse_target
from tilewright.errors import CompileError, TargetError
from tilewright.runtime.library import read_description
from tilewright.runtime.module import Module

_C_SOURCES = Path(__file__).parents[2] / "runtime" / "c"


@pytest.fixture(scope="module")
def native():
    return parse_target("native")


@pytest.fixture(scope="module")
def module_path(tmp_path_factory, native):
    path = tmp_path_factory.mktemp("package") / "mlp.so"
    package(mlp_program()[0], native, path)
    return path


@pytest.mark.skipif(shutil.which("readelf") is None, reason="needs readelf")
def test_module_needs_only_the_c_library(module_path):
    text = subprocess.run(
        ["readelf", "-d", module_path], capture_output=True, text=True, check=True
    ).stdout
    needed = re.findall(r"NEEDED.*\[(.*)\]", text)
    assert set(needed) <= {"libc.so.6", "libm.so.6", "libpthread.so.0"}
    assert "TEXTREL" not in text


@pytest.mark.skipif(shutil.which("nm") is None, reason="needs nm")
def test_module_exports_one_symbol(module_path):
    text = subprocess.run(
        ["nm", "-D", "--defined-only", module_path], capture_output=True, text=True, check=True
    ).stdout
    assert [line.split()[-1] for line in text.splitlines()] == ["tilewright_api"]


def test_runtime_uses_no_vector_extension_outside_the_kernels(tmp_path, native, module_path):
    """The code that checks the CPU must run on every CPU."""
    objdump = shutil.which("objdump")
    if objdump is None:
        pytest.skip("needs objdump")
    text = subprocess.run(
        [objdump, "-d", "--no-show-raw-insn", module_path],
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    wide = re.compile(r"%[yz]mm|\sv[a-z0-9]+\s")
    guilty = set()
    for block in re.split(r"\n\n", text):
        name = re.match(r"\s*[0-9a-f]+ <(.*?)>:", block)
        if name and wide.search(block):
            guilty.add(name.group(1))
    # TVM's parallel tasks are private symbols, so objdump shows them under a neighbour's name.
    assert guilty
    assert not {
        name for name in guilty if name.startswith(("tw_", "open", "run", "tilewright"))
    } - {KERNEL_PREFIX + kernel for kernel in mlp_program()[0].kernels}


def test_kernels_are_plain_functions_without_argument_checks(native):
    text = assembly({"mm": matmul_kernel(4, 8, 16)}, native)
    assert f"{KERNEL_PREFIX}mm:" in text
    assert "TVMFFIErrorSetRaised" not in text
    assert "__TVMBackendParallelLaunch" in text


def test_compiling_twice_gives_the_same_bytes(tmp_path, native):
    for name in ("a.so", "b.so"):
        package(mlp_program()[0], native, tmp_path / name)
    assert (tmp_path / "a.so").read_bytes() == (tmp_path / "b.so").read_bytes()


def test_every_checked_feature_is_known_to_the_c_runtime():
    x86, arm = (
        re.findall(r'^    \{"([^"]+)", ', (_C_SOURCES / name).read_text(), re.MULTILINE)
        for name in ("tw_cpu_x86.c", "tw_cpu_arm.c")
    )
    assert sorted(CHECKED_FEATURES["x86_64"]) == sorted(x86)
    both = CHECKED_FEATURES["aarch64"] + CHECKED_FEATURES["armv7"]
    assert sorted(both) == sorted(arm)


def test_a_baseline_target_asks_for_no_more_than_it_names():
    features = required_features(parse_target("x86-64-v3"))
    assert "avx2" in features
    assert "fma" in features
    assert not [name for name in features if name.startswith("avx512")]


def test_file_sizes_and_offsets_are_as_described(module_path):
    description = read_description(module_path)
    entry = description["entries"][0]
    assert entry["inputs"] == [{"name": "x", "shape": [6, 32], "dtype": "float32"}]
    assert description["weights_bytes"] == 2 * (32 * 48 * 4 + 64)
    assert entry["arena_bytes"] > 0
    assert [call["kernel"] for call in entry["calls"]] == ["up", "relu", "down", "add"]


def test_nothing_is_left_beside_the_module(tmp_path, native):
    package(copy_program(), native, tmp_path / "m.so")
    assert [path.name for path in tmp_path.iterdir()] == ["m.so"]


def test_outputs_that_are_inputs_constants_or_repeated(tmp_path, native):
    base = copy_program((3,))
    constant = Tensor("c", (3,), "float32", "constant", np.array([7, 8, 9], np.float32))
    program = Program(
        tensors=(*base.tensors, constant),
        calls=base.calls,
        inputs=base.inputs,
        outputs=(1, 0, 2, 1),
        kernels=base.kernels,
        input_specs=base.input_specs,
        output_specs=tuple(TensorSpec(name, (3,), "float32") for name in "abcd"),
    )
    package(program, native, tmp_path / "m.so")
    x = np.array([1, 2, 3], np.float32)
    y, same, constant_out, again = Module(tmp_path / "m.so", threads=1)(x)
    np.testing.assert_array_equal(y, x + 1)
    np.testing.assert_array_equal(same, x)
    np.testing.assert_array_equal(constant_out, [7, 8, 9])
    np.testing.assert_array_equal(again, x + 1)


def test_names_of_any_language_survive(tmp_path, native):
    base = copy_program((3,))
    name = 'größe "?" \\ 入力\n??/'
    program = dataclasses.replace(base, input_specs=(TensorSpec(name, (3,), "float32"),))
    package(program, native, tmp_path / "m.so")
    module = Module(tmp_path / "m.so", threads=1)
    np.testing.assert_array_equal(module.run({name: np.zeros(3, np.float32)})["y"], [1, 1, 1])


def test_unwritable_place_is_one_clear_error(tmp_path, native):
    with pytest.raises(CompileError, match=r"cannot write .*No such file or directory"):
        package(copy_program(), native, tmp_path / "missing" / "m.so")
    with pytest.raises(CompileError, match="it is a directory"):
        package(copy_program(), native, tmp_path)


def test_full_disk_is_one_clear_error_and_leaves_the_old_file(tmp_path, native, monkeypatch):
    package(copy_program(), native, tmp_path / "m.so")
    before = (tmp_path / "m.so").read_bytes()

    def no_space(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("tilewright.compiler.package._write_parts", no_space)
    with pytest.raises(CompileError, match=r"m\.so': No space left on device"):
        package(mlp_program()[0], native, tmp_path / "m.so")
    assert (tmp_path / "m.so").read_bytes() == before
    assert [path.name for path in tmp_path.iterdir()] == ["m.so"]


def test_no_c_compiler_names_what_to_install(monkeypatch):
    monkeypatch.delenv("CC", raising=False)
    monkeypatch.setattr(toolchain.shutil, "which", lambda _: None)
    monkeypatch.setattr(toolchain.importlib.util, "find_spec", lambda _: None)
    with pytest.raises(TargetError, match="install gcc or clang, or run: pip install ziglang"):
        toolchain.find_c_compiler()


def test_cc_variable_chooses_the_compiler(monkeypatch):
    monkeypatch.setenv("CC", "gcc -m64")
    monkeypatch.setattr(toolchain.shutil, "which", lambda name: f"/bin/{name}")
    assert toolchain.find_c_compiler() == ["gcc", "-m64"]
    monkeypatch.setattr(toolchain.shutil, "which", lambda _: None)
    with pytest.raises(TargetError, match="'gcc -m64', is not installed"):
        toolchain.find_c_compiler()


def test_zig_wheel_serves_where_there_is_no_compiler(monkeypatch):
    monkeypatch.delenv("CC", raising=False)
    monkeypatch.setattr(toolchain.shutil, "which", lambda _: None)
    monkeypatch.setattr(toolchain.importlib.util, "find_spec", lambda _: object())
    assert toolchain.find_c_compiler()[1:] == ["-m", "ziglang", "cc"]


def test_cross_compilers_are_found_by_name_variable_or_wheel(monkeypatch):
    for name in ("CC", "CC_AARCH64", "CC_ARMV7"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(toolchain.platform, "machine", lambda: "x86_64")
    monkeypatch.setattr(toolchain.shutil, "which", lambda name: f"/bin/{name}")
    assert toolchain.find_c_compiler("aarch64") == ["aarch64-linux-gnu-gcc"]
    assert toolchain.find_c_compiler("x86_64") == ["cc"]
    monkeypatch.setenv("CC_ARMV7", "clang --target=armv7")
    assert toolchain.find_c_compiler("armv7") == ["clang", "--target=armv7"]
    monkeypatch.setattr(toolchain.shutil, "which", lambda _: None)
    monkeypatch.setattr(toolchain.importlib.util, "find_spec", lambda _: object())
    zig = toolchain.find_c_compiler("aarch64")
    assert zig[1:4] == ["-m", "ziglang", "cc"]
    assert "-target" in zig
    monkeypatch.setattr(toolchain.importlib.util, "find_spec", lambda _: None)
    with pytest.raises(TargetError, match=r"for aarch64 found.*pip install 'tilewright\[cross\]'"):
        toolchain.find_c_compiler("aarch64")


def test_compiler_output_is_in_the_error(tmp_path):
    (tmp_path / "bad.c").write_text("this is not C\n")
    with pytest.raises(CompileError, match=r"failed with status 1.*bad\.c"):
        toolchain.run_c_compiler(["-c", tmp_path / "bad.c", "-o", tmp_path / "bad.o"])


def test_codegen_failure_names_the_kernel(native, monkeypatch):
    def fail(kernels, _):
        if "bad" in kernels:
            raise ValueError("LLVM said no")

    monkeypatch.setattr("tilewright.compiler.codegen._object_bytes", fail)
    kernels = {name: matmul_kernel(2, 2, 2) for name in ("good", "bad")}
    with pytest.raises(CompileError, match="code generation failed for kernel bad: LLVM said no"):
        build_object(kernels, native)


class TestProgramChecks:
    """A program that cannot run is refused when it is made."""

    def _change(self, **changes):
        return dataclasses.replace(mlp_program()[0], **changes)

    def test_unknown_kernel(self):
        with pytest.raises(CompileError, match="no such kernel"):
            self._change(calls=(Call("none", (0, 1, 2), "x"),))

    def test_wrong_shape(self):
        with pytest.raises(
            CompileError, match=r"parameter 'left' is float32 \[6, 32\], but tensor"
        ):
            self._change(calls=(Call("up", (1, 1, 2), "x"),))

    def test_read_before_written(self):
        program = mlp_program()[0]
        with pytest.raises(CompileError, match="reads 'hidden' before it is set"):
            self._change(calls=program.calls[1:])

    def test_output_never_written(self):
        with pytest.raises(CompileError, match="output 'y' is never written"):
            self._change(calls=mlp_program()[0].calls[:3])

    def test_bad_alias(self):
        tensors = list(mlp_program()[0].tensors)
        tensors[6] = dataclasses.replace(tensors[6], alias_of=1)
        with pytest.raises(CompileError, match="cannot be an alias of 'w1'"):
            self._change(tensors=tuple(tensors))

    def test_spec_that_differs_from_the_tensor(self):
        with pytest.raises(CompileError, match="convert it by a kernel"):
            self._change(input_specs=(TensorSpec("x", (6, 33), "float32"),))

    def test_constant_without_data(self):
        tensors = list(mlp_program()[0].tensors)
        tensors[1] = dataclasses.replace(tensors[1], data=None)
        with pytest.raises(CompileError, match="constants have data"):
            self._change(tensors=tuple(tensors))
