"""explain: the time of each operator, its limit, its layout, its tuning."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
import pytest

from tests.tiny_model import make_model
from tilewright._cli_explain import _advised
from tilewright.errors import ModelError, ModuleError
from tilewright.explaining import explain
from tilewright.profiling import byte_ratio


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


def test_calls_of_one_kernel_share_a_line_of_advice():
    rows = [
        {"kernel": kernel, "label": label, "advice": advice, "to_win_s": seconds}
        for kernel, label, advice, seconds in (
            ("conv", "conv#0", "tune it", 3e-6),
            ("pool", "pool#1", "tune it", 4e-6),
            ("conv", "conv#2", "tune it", 2e-6),
            ("mean", "mean#3", "", 9e-6),
        )
    ]
    assert _advised(rows) == [
        ("2 calls of conv", "tune it", pytest.approx(5e-6)),
        ("pool#1", "tune it", 4e-6),
    ]


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


def test_a_quantized_module_says_what_stayed_in_floats_and_why(cli, tmp_path):
    np.savez(tmp_path / "samples.npz", image=np.full((4, 1, 1, 8, 8), 0.5, np.float32))
    model = Path(__file__).parents[2] / "examples" / "digits_cnn.onnx"
    quantized, module = tmp_path / "q.onnx", tmp_path / "q.so"
    arguments = ("--calibration", tmp_path / "samples.npz", "-o", quantized)
    assert cli("quantize", model, *arguments).exit_code == 0
    assert cli("compile", quantized, "-o", module).exit_code == 0
    found = explain(module, rounds=2)
    shown = cli("inspect", module)
    assert shown.exit_code == 0, shown.output
    assert "operators run on integers" in shown.stdout
    assert "{" not in shown.stdout
    floats = [row for row in found["quantized"] if not row["integer"]]
    assert len(found["quantized"]) > len(floats) > 0
    assert all(row["reason"] for row in floats)
    assert any({"int8", "uint8"} <= set(row["dtypes"]) for row in found["operators"])
    text = cli("explain", module, "--rounds", "2").stdout
    assert "operators run on integers" in text
    assert f"in floats: {floats[0]['operator']} {floats[0]['name']}" in text
    assert "u8" in text


def test_products_of_bytes_are_judged_by_what_the_processor_does_with_bytes():
    assert byte_ratio("fused_conv2d_relu", ("avx2", "avx512_vnni")) == 1
    assert byte_ratio("conv_int8", ("avx2", "avx512_vnni")) == 4
    assert byte_ratio("fused_matmul_int8_rescale_add", ("avx2", "fma")) == 2
