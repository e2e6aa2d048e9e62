"""Every mistake ends in one clear line and the right exit status, and leaves no file behind."""

from __future__ import annotations

import os
import sys

import numpy as np
import onnx
import pytest

import tilewright as tw
from tests.tiny_model import make_model
from tilewright.errors import ModelError, TilewrightError


def _fails(result, *words: str) -> None:
    """Check for exit status 1 and one line on stderr that has all `words`."""
    assert result.exit_code == 1, result.output
    assert result.stdout == ""
    assert result.stderr.startswith("error: ")
    assert result.stderr.count("\n") == 1
    for word in words:
        assert word in result.stderr


def _damaged(folder, content: bytes):
    path = folder / "damaged.onnx"
    path.write_bytes(content)
    return path


@pytest.mark.parametrize("command", ["compile", "bench", "inspect"])
def test_missing_model(cli, tmp_path, command) -> None:
    extra = ("-o", tmp_path / "a.so") if command == "compile" else ()
    _fails(cli(command, tmp_path / "no.onnx", *extra), "no.onnx", "No such file")
    assert os.listdir(tmp_path) == []


def test_truncated_model(cli, model_path, tmp_path) -> None:
    path = _damaged(tmp_path, model_path.read_bytes()[:-40])
    _fails(cli("compile", path, "-o", tmp_path / "a.so"), "damaged.onnx")
    assert os.listdir(tmp_path) == ["damaged.onnx"]


@pytest.mark.parametrize("content", [b"", b"hello, this is text\n" * 9, b"\x00" * 64])
def test_file_that_is_no_model(cli, tmp_path, content) -> None:
    _fails(cli("compile", _damaged(tmp_path, content), "-o", tmp_path / "a.so"), "not an ONNX")


def test_unsupported_operators_are_listed_with_their_nodes(cli, tmp_path) -> None:
    model = make_model(operator="Mystery")
    model.graph.node[1].domain = "com.example"
    onnx.save(model, tmp_path / "odd.onnx")
    _fails(cli("compile", tmp_path / "odd.onnx", "-o", tmp_path / "a.so"), "Mystery", "activate")


def test_unknown_dimension_names_it_and_the_option(cli, tmp_path) -> None:
    onnx.save(make_model("batch"), tmp_path / "open.onnx")
    result = cli("compile", tmp_path / "open.onnx", "-o", tmp_path / "a.so")
    _fails(result, "'batch'", "'x'", "--shape x=")


def test_shape_of_an_unknown_input(cli, model_path, tmp_path) -> None:
    result = cli("compile", model_path, "-o", tmp_path / "a.so", "--shape", "z=1,3")
    _fails(result, "'z'", "'x'")


def test_missing_external_weights(cli, tmp_path) -> None:
    model = make_model()
    options = {"save_as_external_data": True, "location": "tiny.bin", "size_threshold": 0}
    onnx.save(model, tmp_path / "tiny.onnx", **options)
    (tmp_path / "tiny.bin").unlink()
    _fails(cli("compile", tmp_path / "tiny.onnx", "-o", tmp_path / "a.so"), "tiny.bin")


def test_unknown_target(cli, model_path, tmp_path) -> None:
    result = cli("compile", model_path, "-o", tmp_path / "a.so", "--target", "pdp11")
    _fails(result, "'pdp11'", "x86-64-v3")


@pytest.mark.parametrize("out", ["missing/a.so", "."])
def test_unwritable_output_is_said_before_the_compile(cli, model_path, tmp_path, out) -> None:
    _fails(cli("compile", model_path, "-o", tmp_path / out), "cannot write")
    assert os.listdir(tmp_path) == []


def test_save_to_an_unwritable_path_leaves_nothing(model_path, tmp_path) -> None:
    module = tw.compile(model_path)
    with pytest.raises(TilewrightError, match="cannot write"):
        module.save(tmp_path / "missing" / "a.so")
    (tmp_path / "folder").mkdir()
    with pytest.raises(TilewrightError, match="cannot write"):
        module.save(tmp_path / "folder")
    assert os.listdir(tmp_path) == ["folder"]


def test_no_c_compiler(cli, model_path, tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CC", raising=False)
    monkeypatch.setitem(sys.modules, "ziglang", None)  # the compiler that comes as a wheel
    _fails(cli("compile", model_path, "-o", tmp_path / "a.so"), "C compiler")
    assert os.listdir(tmp_path) == []


def test_run_of_a_missing_module(cli, tmp_path) -> None:
    _fails(cli("run", tmp_path / "no.so", "--random"), "no.so")


def test_run_of_something_else(cli, model_path) -> None:
    _fails(cli("run", model_path, "--random"), "tiny.onnx", "must be compiled first")


def test_a_module_in_place_of_a_model_is_said(cli, module_path, tmp_path) -> None:
    result = cli("compile", module_path, "-o", tmp_path / "a.so")
    _fails(result, "not an ONNX model", "compiled already")


def test_a_module_for_other_processors_is_said(cli, model_path, tmp_path) -> None:
    path = tmp_path / "board.so"
    tw.compile(model_path, target="aarch64", logs=()).save(path)
    _fails(cli("run", path, "--random"), "is for aarch64 processors, this is x86_64")


def test_an_operator_that_onnx_does_not_know_is_named_with_its_node(cli, tmp_path) -> None:
    onnx.save(make_model(operator="Mystery"), tmp_path / "odd.onnx")
    result = cli("compile", tmp_path / "odd.onnx", "-o", tmp_path / "a.so")
    _fails(result, "Mystery", "node 'activate'")


def test_a_shape_to_give_can_be_pasted_into_a_shell(cli, tmp_path) -> None:
    model = make_model("batch")
    model.graph.input[0].name = "my x"
    model.graph.node[0].input[0] = "my x"
    onnx.save(model, tmp_path / "open.onnx")
    result = cli("inspect", tmp_path / "open.onnx", "--layouts")
    _fails(result, "--shape 'my x=1,")


def test_samples_without_ranges_are_refused(cli, model_path, tmp_path) -> None:
    (tmp_path / "empty").mkdir()
    quantize = ("quantize", model_path, "-o", tmp_path / "q.onnx", "--calibration")
    _fails(cli(*quantize, tmp_path / "empty"), "empty holds no .npz files")
    x = np.full((2, 3), np.nan, np.float32)
    _fails(cli(*quantize, _save_inputs(tmp_path, x=x)), "sample 0 has NaN or infinity", "'x'")
    assert not (tmp_path / "q.onnx").exists()


@pytest.mark.parametrize(
    ("samples", "words"),
    [
        ([], "no calibration samples"),
        ([{"y": np.zeros((2, 3), np.float32)}], "sample 0 lacks the input 'x'"),
        ([{"x": np.zeros((3, 2), np.float32)}], r"float32 \[3, 2\], but .* reads float32 \[2, 3\]"),
        ([{"x": np.zeros((2, 3), np.complex64)}], r"is complex64 .* reads float32"),
        ([{"x": np.full((2, 3), np.inf, np.float32)}], "NaN or infinity"),
    ],
)
@pytest.mark.parametrize("options", [{}, {"bits": "w4a8"}])
def test_samples_are_checked_before_anything_is_compiled(
    model_path, tmp_path, samples, words, options
) -> None:
    stages: list[str] = []
    out = tmp_path / "q.onnx"
    with pytest.raises(ModelError, match=words):
        tw.quantize(model_path, samples, out, progress=stages.append, **options)
    assert stages == []
    with pytest.raises(ModelError, match=words):
        tw.quantize_weights(model_path, out, calibration=samples, progress=stages.append)
    assert not any("compile" in stage for stage in stages)
    assert not out.exists()


@pytest.mark.parametrize("keep", [0.2, 0.9, 0.999])
def test_run_of_a_truncated_module(cli, module_path, tmp_path, keep) -> None:
    content = module_path.read_bytes()
    path = tmp_path / "cut.so"
    path.write_bytes(content[: int(keep * len(content))])
    _fails(cli("run", path, "--random"), "cut.so")
    _fails(cli("inspect", path), "cut.so")


def _save_inputs(folder, **arrays: np.ndarray):
    np.savez(folder / "in.npz", **arrays)
    return folder / "in.npz"


@pytest.mark.parametrize(
    ("arrays", "words"),
    [
        ({"z": np.zeros((2, 3), np.float32)}, ("'z'", "'x'", "float32 [2, 3]")),
        ({"x": np.zeros((3, 2), np.float32)}, ("'x'", "[3, 2]", "[2, 3]")),
        ({"x": np.zeros((2, 3), np.float64)}, ("'x'", "float64", "float32")),
    ],
)
def test_run_with_wrong_inputs(cli, module_path, tmp_path, arrays, words) -> None:
    _fails(cli("run", module_path, "--input", _save_inputs(tmp_path, **arrays)), *words)


@pytest.mark.parametrize("content", [None, b"", b"no archive"])
def test_run_with_inputs_that_cannot_be_read(cli, module_path, tmp_path, content) -> None:
    path = tmp_path / "in.npz"
    if content is not None:
        path.write_bytes(content)
    result = cli("run", module_path, "--input", path)
    _fails(result, "in.npz")
    assert "pickle" not in result.stderr


def test_run_with_an_output_that_cannot_be_written(cli, module_path, tmp_path) -> None:
    out = tmp_path / "missing" / "y.npz"
    _fails(cli("run", module_path, "--random", "--output", out), "cannot write")


def test_bench_against_an_unknown_peer(cli, model_path) -> None:
    _fails(cli("bench", model_path, "--against", "abacus"), "'abacus'", "onnxruntime, openvino")


def test_layouts_of_a_module(cli, module_path) -> None:
    _fails(cli("inspect", module_path, "--layouts"), ".onnx")


@pytest.mark.parametrize(
    "arguments",
    [
        (),
        ("frobnicate",),
        ("compile",),
        ("compile", "a.onnx"),
        ("compile", "a.onnx", "-o", "a.so", "--shape", "x"),
        ("compile", "a.onnx", "-o", "a.so", "--shape", "x=1,y"),
        ("compile", "a.onnx", "-o", "a.so", "--constant", "x=hello"),
        ("compile", "a.onnx", "-o", "a.so", "--constant", "x=@missing.npy"),
        ("run", "a.so"),
        ("run", "a.so", "--random", "--input", "x.npz"),
        ("run", "a.so", "--random", "--threads", "0"),
        ("bench", "a.onnx", "--rounds", "many"),
        ("targets", "--jsn"),
    ],
)
def test_wrong_usage(cli, arguments) -> None:
    assert cli(*arguments).exit_code == 2


def test_traceback_only_with_debug(process, tmp_path) -> None:
    plain = process("inspect", tmp_path / "no.onnx")
    assert (plain.returncode, plain.stdout) == (1, "")
    assert plain.stderr.startswith("error: ")
    assert plain.stderr.count("\n") == 1
    debug = process("inspect", tmp_path / "no.onnx", "--debug")
    assert debug.returncode == 1
    assert "Traceback" in debug.stderr
    assert "ModelError" in debug.stderr
