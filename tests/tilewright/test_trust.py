"""doctor, verify and debug-accuracy: they say what is wrong, and where."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

import tilewright as tw
from tests.tiny_model import make_model
from tilewright import debugging
from tilewright.debugging import debug_accuracy
from tilewright.errors import MeasureError, ModuleError
from tilewright.reference import largest_error
from tilewright.verification import verify


@pytest.fixture
def chain(tmp_path):
    """Write relu(x @ w) + b, then tanh, as a file."""
    rng = np.random.default_rng(0)
    weights = {
        "w": rng.standard_normal((3, 5)).astype(np.float32),
        "b": rng.standard_normal(5).astype(np.float32),
    }
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["h"], name="project"),
        helper.make_node("Relu", ["h"], ["r"], name="rectify"),
        helper.make_node("Add", ["r", "b"], ["s"], name="shift"),
        helper.make_node("Tanh", ["s"], ["y"], name="squash"),
    ]
    graph = helper.make_graph(
        nodes,
        "chain",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [2, 3])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [2, 5])],
        [numpy_helper.from_array(array, name) for name, array in weights.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    path = tmp_path / "chain.onnx"
    onnx.save(model, path)
    return path


def test_a_module_agrees_with_its_model(cli, module_path, model_path):
    found = verify(module_path, model_path)
    assert found["passed"]
    assert found["same_model"]
    assert found["largest"] < 1e-5
    result = cli("verify", module_path, model_path, "--against", "onnx", "--json")
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout)["passed"]


def test_a_module_of_another_model_is_found_out(cli, tmp_path):
    other = make_model(operator="Sigmoid")
    tw.compile(make_model()).save(tmp_path / "relu.so")
    onnx.save(other, tmp_path / "sigmoid.onnx")
    result = cli("verify", tmp_path / "relu.so", tmp_path / "sigmoid.onnx")
    assert result.exit_code == 1
    assert "NOT compiled from" in result.stdout
    assert "DISAGREES" in result.stdout


def test_verify_needs_the_same_outputs(module_path, chain, tmp_path):
    model = onnx.load(chain)
    model.graph.output[0].name = model.graph.node[-1].output[0] = "z"
    onnx.save(model, tmp_path / "renamed.onnx")
    with pytest.raises(ModuleError, match="does not have the outputs"):
        verify(module_path, tmp_path / "renamed.onnx")


def test_an_unknown_reference_is_named(module_path, model_path):
    with pytest.raises(MeasureError, match="unknown reference 'tvm'"):
        verify(module_path, model_path, against="tvm")


def test_a_model_that_is_right_has_no_first_wrong_node(cli, chain):
    assert debug_accuracy(chain) is None
    result = cli("debug-accuracy", chain)
    assert result.exit_code == 0, result.output
    assert "every output agrees" in result.stdout


def test_open_dimensions_are_given_a_size_as_for_compile(cli, chain, tmp_path, monkeypatch):
    model = onnx.load(chain)
    for info in (*model.graph.input, *model.graph.output):
        info.type.tensor_type.shape.dim[0].dim_param = "batch"
    path = tmp_path / "open.onnx"
    onnx.save(model, path)
    refused = cli("debug-accuracy", path)
    assert refused.exit_code == 1
    assert "--shape x=" in refused.stderr
    assert cli("debug-accuracy", path, "--shape", "x=4,3").exit_code == 0
    assert debug_accuracy(path, feed={"x": np.ones((7, 3), np.float32)}) is None
    true_outputs = debugging.reference_outputs
    monkeypatch.setattr(
        debugging,
        "reference_outputs",
        lambda *given: {**true_outputs(*given), "y": np.zeros((4, 5))},
    )
    found = debug_accuracy(path, shapes={"x": (4, 3)}, out=tmp_path / "repro")
    assert found is not None
    assert found.node == "Tanh 'squash'"
    part = onnx.load(tmp_path / "repro" / "repro.onnx")
    assert [d.dim_value for d in part.graph.input[0].type.tensor_type.shape.dim] == [4, 5]


def test_the_first_wrong_node_is_found_and_written_down(cli, chain, tmp_path, monkeypatch):
    true_outputs = debugging.reference_outputs

    def other_outputs(model, feed, names, against):
        """As if our Add were wrong: the reference adds one more."""
        values = true_outputs(model, feed, names, against)
        shifted = values["s"] + 1
        return {**values, "s": shifted, "y": np.tanh(shifted)}

    monkeypatch.setattr(debugging, "reference_outputs", other_outputs)
    found = debug_accuracy(chain, out=tmp_path / "repro")
    assert found is not None
    assert found.node == "Add 'shift'"
    assert found.reproducer == ("Add",)
    part = onnx.load(tmp_path / "repro" / "repro.onnx")
    assert [node.name for node in part.graph.node] == ["shift"]
    with np.load(tmp_path / "repro" / "repro.npz") as inputs:
        assert inputs["r"].shape == (2, 5)
    assert cli("debug-accuracy", chain).exit_code == 1


def test_a_compile_gives_the_same_bytes_in_any_process(model_path, tmp_path):
    digests = set()
    for hash_seed in ("1", "2"):
        out = tmp_path / f"{hash_seed}.so"
        subprocess.run(
            [sys.executable, "-m", "tilewright", "compile", str(model_path), "-o", str(out)],
            env={**os.environ, "PYTHONHASHSEED": hash_seed},
            check=True,
            capture_output=True,
        )
        digests.add(hashlib.sha256(out.read_bytes()).hexdigest())
    assert len(digests) == 1


def test_doctor_says_what_is_here(cli):
    result = cli("doctor", "--json")
    assert result.exit_code == 0, result.output
    found = json.loads(result.stdout)
    assert found["packages"]["numpy"] == np.__version__
    assert found["peers"]["onnxruntime"] is None
    assert found["problems"] == []
    assert cli("doctor").stdout.startswith("tilewright ")


def test_doctor_reports_a_missing_compiler(cli, monkeypatch):
    monkeypatch.setenv("CC", "no-such-compiler")
    result = cli("doctor")
    assert result.exit_code == 1
    assert "PROBLEM" in result.stdout


@pytest.mark.parametrize(
    ("found", "expected", "error"),
    [
        ([1.0, 2.0], [1.0, 2.0], 0.0),
        ([1.0, 2.5], [1.0, 2.0], 1.0),
        ([1.0, np.nan], [1.0, 2.0], np.inf),
        ([1.0, np.inf], [1.0, np.inf], 0.0),
        ([3.0, 3.0], [2.0, 2.0], 0.5),
    ],
)
def test_largest_error_is_in_standard_deviations(found, expected, error):
    assert largest_error(np.array(found), np.array(expected)) == pytest.approx(error)
