"""Profiles: every call is measured, judged by the machine, and shown with its inner loop."""

import json
import shutil

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

from tilewright import inner_loops, profiling
from tilewright.compiler import disassembly


@pytest.fixture(scope="module")
def product_module(cli, tmp_path_factory):
    """Return a module of one matrix product and a softmax."""
    folder = tmp_path_factory.mktemp("profiled")
    weight = np.random.default_rng(0).standard_normal((256, 192)).astype(np.float32)
    graph = helper.make_graph(
        [
            helper.make_node("MatMul", ["x", "w"], ["y"]),
            helper.make_node("Softmax", ["y"], ["z"], axis=-1),
        ],
        "product",
        [helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, [64, 256])],
        [helper.make_tensor_value_info("z", onnx.TensorProto.FLOAT, [64, 192])],
        [numpy_helper.from_array(weight, "w")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)])
    onnx.save(model, folder / "product.onnx")
    result = cli("compile", folder / "product.onnx", "-o", folder / "product.so")
    assert result.exit_code == 0, result.output
    return folder / "product.so"


def test_profile_as_json_has_every_call(cli, product_module):
    result = cli("profile", product_module, "--rounds", 3, "--json")
    assert result.exit_code == 0, result.output
    found = json.loads(result.stdout)
    assert found["peak_gflops"] > 1
    assert found["bandwidth_gbytes"] > 0.1
    product, softmax = found["operators"]
    assert sum(row["share"] for row in (product, softmax)) == pytest.approx(1)
    operations = 2 * 64 * 256 * 192
    assert product["gflops"] == pytest.approx(operations / product["seconds"] / 1e9)
    assert product["peak_share"] < 2
    assert softmax["gbytes"] == pytest.approx(2 * 4 * 64 * 192 / softmax["seconds"] / 1e9)


def test_profile_prints_a_line_per_kernel(cli, product_module, tmp_path):
    np.savez(tmp_path / "in.npz", x=np.ones((64, 256), np.float32))
    result = cli("profile", product_module, "--rounds", 1, "--input", tmp_path / "in.npz")
    assert result.exit_code == 0, result.output
    assert "of peak" in result.stdout
    assert "softmax" in result.stdout


@pytest.mark.skipif(shutil.which("objdump") is None, reason="needs objdump")
def test_inner_loop_of_a_product_multiplies_and_adds(product_module):
    loops = inner_loops.inner_loops(product_module)
    assert loops is not None
    (product,) = (text for name, text in loops.items() if "matmul" in name)
    assert "vfmadd" in product


def test_no_objdump_is_said(monkeypatch, cli, product_module):
    which = disassembly.shutil.which
    monkeypatch.setattr(
        disassembly.shutil, "which", lambda name: None if "objdump" in name else which(name)
    )
    result = cli("profile", product_module, "--rounds", 1)
    assert result.exit_code == 0, result.output
    assert "no objdump" in result.stdout


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ((1e-3, 0.9, 0.2, False), "multiply-add units"),
        ((1e-6, 0.1, 0.2, False), "overhead"),
        ((1e-3, 0.1, 0.9, False), "memory"),
        ((1e-3, 0.1, 3.0, False), "other instructions"),
        ((1e-3, 0.35, 0.5, False), "other instructions"),  # softmax of much data
        ((1e-3, 0.0, 0.1, True), "latency"),
        ((1e-3, None, 0.0, False), "not known"),
    ],
)
def test_what_an_operator_waits_for(arguments, expected):
    assert expected in profiling.waits_for(*arguments)


@pytest.mark.parametrize(
    ("weights", "data", "all_weights", "expected"),
    [
        (0, 400, 0, 0),  # written just before: in the last cache level
        (0, 600, 0, 600),
        (300, 100, 300, 0),
        (300, 100, 900, 300),  # weights of other calls drive these out
        (300, 600, 900, 900),
    ],
)
def test_bytes_from_memory_are_those_that_no_cache_keeps(weights, data, all_weights, expected):
    call = {"bytes": weights + data, "constant_bytes": weights}
    assert profiling.far_bytes(call, all_weights, l3_bytes=1000) == expected
