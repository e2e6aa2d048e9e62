"""The commands do what they say, and print it where they should."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace

import numpy as np
import onnx
import pytest

import tilewright as tw
from tests.tiny_model import expected, make_model
from tilewright.baselines import PEERS

_PATIENCE_S = 600  # on a machine that does much else, loading TVM alone took over a minute


def test_version(cli) -> None:
    result = cli("--version")
    assert result.exit_code == 0
    assert result.stdout == f"tilewright {tw.__version__}\n"


def test_compile_says_what_it_wrote(cli, model_path, tmp_path) -> None:
    out = tmp_path / "tiny.so"
    result = cli("compile", model_path, "-o", out)
    assert result.exit_code == 0, result.output
    assert result.stdout.startswith(f"{out}: ")
    assert result.stderr == ""
    assert os.listdir(tmp_path) == ["tiny.so"]


def test_run_on_a_file_gives_what_the_model_computes(cli, module_path, tmp_path) -> None:
    x = np.random.default_rng(1).standard_normal((2, 3)).astype(np.float32)
    np.savez(tmp_path / "in.npz", x=x)
    out = tmp_path / "out.npz"
    result = cli("run", module_path, "--input", tmp_path / "in.npz", "--output", out)
    assert result.exit_code == 0, result.output
    assert "float32" in result.stdout
    assert "[2, 5]" in result.stdout
    with np.load(out) as found:
        np.testing.assert_allclose(found["y"], expected(make_model(), x), rtol=1e-5, atol=1e-6)


def test_run_random_depends_on_the_seed_only(cli, module_path) -> None:
    first, again, other = (cli("run", module_path, "--random", "--seed", s) for s in (1, 1, 2))
    assert first.exit_code == 0, first.output
    assert first.stdout == again.stdout
    assert first.stdout != other.stdout


def test_shape_option_binds_open_dimensions(cli, tmp_path) -> None:
    onnx.save(make_model("batch"), tmp_path / "open.onnx")
    out = tmp_path / "open.so"
    result = cli("compile", tmp_path / "open.onnx", "-o", out, "--shape", "x=4,3")
    assert result.exit_code == 0, result.output
    assert tw.load(out).inputs[0].shape == (4, 3)


def test_constant_option_takes_the_input_away(cli, model_path, tmp_path) -> None:
    out = tmp_path / "constant.so"
    value = "x=[[1.0, 2.0, 3.0], [0.5, 0.5, 0.5]]"
    result = cli("compile", model_path, "-o", out, "--constant", value)
    assert result.exit_code == 0, result.output
    assert tw.load(out).inputs == ()
    x = np.array(json.loads(value.removeprefix("x=")), np.float32)
    np.testing.assert_allclose(tw.load(out)(), expected(make_model(), x), rtol=1e-5, atol=1e-6)


def test_dump_ir_writes_the_stages(cli, model_path, tmp_path) -> None:
    arguments = ("compile", model_path, "-o", tmp_path / "a.so", "--dump-ir", tmp_path / "ir")
    assert cli(*arguments).exit_code == 0
    stages = sorted(os.listdir(tmp_path / "ir"))
    assert stages[0] == "00_imported.py"
    assert stages[-1].endswith("_scheduled.py")


def test_inspect_model_as_json(cli, model_path) -> None:
    result = cli("inspect", model_path, "--json")
    assert result.exit_code == 0, result.output
    found = json.loads(result.stdout)
    assert found["kind"] == "model"
    assert found["inputs"] == [{"name": "x", "dtype": "float32", "shape": [2, 3]}]
    assert found["operators"] == {"MatMul": 1, "Relu": 1}
    assert found["unsupported"] == {}
    assert found["parameters"] == 15


def test_inspect_model_names_unsupported_operators(cli, tmp_path) -> None:
    model = make_model(operator="Mystery")
    model.graph.node[1].domain = "com.example"
    onnx.save(model, tmp_path / "odd.onnx")
    result = cli("inspect", tmp_path / "odd.onnx")
    assert result.exit_code == 0, result.output
    assert "not supported: Mystery 1" in result.stdout


def test_inspect_model_with_layouts(cli, model_path) -> None:
    result = cli("inspect", model_path, "--layouts", "--json")
    assert result.exit_code == 0, result.output
    layouts = json.loads(result.stdout)["layouts"]
    assert layouts["proven_optimal"] is True
    assert len(layouts["operators"]) >= 1
    assert cli("inspect", model_path, "--layouts").exit_code == 0


def test_inspect_module(cli, module_path) -> None:
    result = cli("inspect", module_path, "--json")
    assert result.exit_code == 0, result.output
    found = json.loads(result.stdout)
    assert found["kind"] == "module"
    assert found["entries"][0]["outputs"][0]["name"] == "y"
    text = cli("inspect", module_path)
    assert text.stdout.startswith("compiled module, ")


def test_targets(cli) -> None:
    found = json.loads(cli("targets", "--json").stdout)
    assert [item["name"] for item in found][:3] == ["native", "x86-64-v3", "x86-64-v4"]
    assert "x86-64-v4" in cli("targets").stdout


def test_bench_measures_us_and_the_peers(cli, model_path) -> None:
    pytest.importorskip("onnxruntime", reason="needs onnxruntime (test extra)")
    result = cli("bench", model_path, "--rounds", "3", "--json")
    assert result.exit_code == 0, result.output
    found = json.loads(result.stdout)
    (row,) = found["rows"]
    assert list(row["engines"]) == ["tilewright", "onnxruntime"]
    assert all(engine["median_s"] > 0 for engine in row["engines"].values())
    assert row["engines"]["onnxruntime"]["ratio"] > 0
    assert row["largest_error"]["onnxruntime"] < 1e-5


def test_bench_leaves_out_peers_that_are_missing(cli, model_path, monkeypatch) -> None:
    absent = replace(PEERS["onnxruntime"], missing=lambda: "not installed; pip install x")
    monkeypatch.setitem(PEERS, "not_there", absent)
    result = cli("bench", model_path, "--against", "not_there", "--rounds", "1")
    assert result.exit_code == 0, result.output
    assert "not_there left out: not installed; pip install" in result.stdout


def test_help_of_every_command_names_its_options(cli) -> None:
    for command in ("compile", "run", "bench", "inspect", "targets"):
        result = cli(command, "--help")
        assert result.exit_code == 0
        assert "--debug" in result.stdout


def test_interrupted_compile_leaves_nothing_behind(model_path, tmp_path) -> None:
    command = [sys.executable, "-m", "tilewright", "compile", str(model_path), "-o", "out.so"]
    command += ["--dump-ir", "ir"]
    process = subprocess.Popen(command, cwd=tmp_path, stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + _PATIENCE_S
    # The folder appears when TVM is loaded and the compile is under way.
    while not (tmp_path / "ir").exists() and process.poll() is None:
        assert time.monotonic() < deadline
        time.sleep(0.005)
    process.send_signal(signal.SIGINT)
    _, stderr = process.communicate(timeout=_PATIENCE_S)
    assert (process.returncode, stderr) == (130, "interrupted\n")
    assert os.listdir(tmp_path) == ["ir"]
