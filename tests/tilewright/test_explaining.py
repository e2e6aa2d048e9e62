"""explain: the time of each operator, its limit, its layout, its tuning."""

from __future__ import annotations

import json

import onnx
import pytest

from tests.tiny_model import make_model
from tilewright.errors import ModelError, ModuleError
from tilewright.explaining import explain


def test_explain_says_what_each_operator_is(module_path):
    found = explain(module_path, rounds=2)
    (row,) = found["operators"]
    assert row["share"] == 1
    assert row["seconds"] == found["seconds"]
    assert row["least_s"] > 0
    assert row["to_win_s"] == max(0, row["seconds"] - row["least_s"])
    assert row["tuning"] == "default"
    assert row["reason"]
    assert row["layouts"]
    assert found["conversions"] == {"count": 0, "seconds": 0}
    assert found["tuned"] == {"default": 1}


def test_command_takes_a_model_or_a_module(cli, module_path, model_path):
    for path in (module_path, model_path):
        result = cli("explain", path, "--rounds", "2", "--json")
        assert result.exit_code == 0, result.output
        assert json.loads(result.stdout)["module"] == str(path)
    text = cli("explain", module_path, "--rounds", "2").stdout
    assert "layout conversions" in text
    assert "default" in text


def test_two_modules_stand_beside_each_other(cli, module_path, tmp_path):
    onnx.save(make_model(operator="Sigmoid"), tmp_path / "other.onnx")
    cli("compile", tmp_path / "other.onnx", "-o", tmp_path / "other.so")
    found = explain(module_path, against=tmp_path / "other.so", rounds=2)["against"]
    assert found["module"] == str(tmp_path / "other.so")
    assert len(found["operators"]) >= 1
    text = cli("explain", module_path, "--against", tmp_path / "other.so", "--rounds", "2").stdout
    assert "times as long" in text


def test_what_is_neither_is_named(cli, tmp_path):
    (tmp_path / "text.so").write_text("hello")
    result = cli("explain", tmp_path / "text.so")
    assert result.exit_code == 1
    assert "Traceback" not in result.output
    with pytest.raises((ModelError, ModuleError)):
        explain(tmp_path / "missing.so")
