"""`tilewright quantize --weights`: from a float model to a module, by the command line."""

import json

import numpy as np
import onnx
import pytest

from tests.compiler.quantize.test_weight_only_model import X, two_products


@pytest.fixture
def model(tmp_path):
    path = tmp_path / "model.onnx"
    onnx.save(two_products(), path)
    return path


@pytest.mark.parametrize("operators", ["nbits", "dequantize"])
def test_weights_are_quantized_and_stay_packed_in_the_module(cli, model, tmp_path, operators):
    out, module = tmp_path / "w4.onnx", tmp_path / "w4.so"
    np.savez(tmp_path / "samples.npz", x=np.stack([X, X + 1]))
    result = cli(
        *("quantize", model, "--weights", "int4", "--group", "16", "--asymmetric"),
        *("--operators", operators, "--calibration", tmp_path / "samples.npz"),
        *("-o", out, "--json"),
    )
    assert result.exit_code == 0, result.output
    found = json.loads(result.stdout)
    assert found["bits"] == 4
    assert {layer["layer"] for layer in found["layers"]} == {"first", "second"}
    assert found["bytes"] < found["float_bytes"] / 3
    assert cli("compile", out, "-o", module).exit_code == 0
    described = json.loads(cli("inspect", module, "--json").stdout)
    assert [row["form"] for row in described["quantized"]] == ["W4A32", "W4A32"]


def test_report_names_what_stays_in_floats(cli, model, tmp_path) -> None:
    result = cli("quantize", model, "--weights", "int8", "-o", tmp_path / "w8.onnx")
    assert result.exit_code == 0, result.output
    assert "weights of 2 products in 8 bits" in result.stdout
    assert "in floats: third: its second operand is computed" in result.stdout


@pytest.mark.parametrize(
    ("options", "status", "message"),
    [
        (("--weights", "int3"), 1, "unknown weights 'int3'"),
        (("--weights", "int4", "--group", "20"), 1, "a group of 20 weights"),
        ((), 2, "--weights int4"),
    ],
)
def test_wrong_options_are_one_line(cli, model, tmp_path, options, status, message) -> None:
    result = cli("quantize", model, "-o", tmp_path / "q.onnx", *options)
    assert result.exit_code == status
    assert message in " ".join(result.stderr.replace("\u2502", " ").split())
