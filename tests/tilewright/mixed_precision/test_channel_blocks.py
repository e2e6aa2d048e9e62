"""Bits for blocks of input channels: the choice, the model written, and what it computes."""

from itertools import product

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper
from typer.testing import CliRunner

import tilewright
from tilewright.cli import app
from tilewright.compiler.quantize.weight_only_model import WeightFormat
from tilewright.errors import ModelError
from tilewright.mixed_precision import channel_blocks


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """A product, and a Gemm with bias; some input channels have weights that are hard to round."""
    rng = np.random.default_rng(0)
    first = rng.standard_normal((300, 64)).astype("float32")
    first[128:256] *= 20
    second = rng.standard_normal((48, 64)).astype("float32")
    bias = rng.standard_normal(48).astype("float32")
    constants = {"a": first, "b": second, "c": bias}
    graph = helper.make_graph(
        [
            helper.make_node("MatMul", ["x", "a"], ["h"], name="first"),
            helper.make_node("Gemm", ["h", "b", "c"], ["y"], name="second", transB=1),
        ],
        "products",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, (5, 300))],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, (5, 48))],
        [numpy_helper.from_array(array, name) for name, array in constants.items()],
    )
    opsets = [helper.make_opsetid("", 17)]
    path = tmp_path_factory.mktemp("blocks") / "model.onnx"
    onnx.save(helper.make_model(graph, opset_imports=opsets, ir_version=8), path)
    return path


def _quantized(model, path, **options):
    return tilewright.quantize_weights(model, path, **options)


def _outputs(path, x):
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    return session.run(None, {"x": x})[0]


def test_more_bytes_give_better_models_and_never_more_than_asked(model, tmp_path):
    x = np.random.default_rng(1).standard_normal((5, 300)).astype("float32")
    (wanted,) = tilewright.compile(model).run({"x": x}).values()
    least = _quantized(model, tmp_path / "int4.onnx", weights="int4")["bytes"]
    most = _quantized(model, tmp_path / "int8.onnx", weights="int8")["bytes"]
    errors = []
    for limit in (least + 300, (least + most) // 2, most + 300):
        path = tmp_path / f"{limit}.onnx"
        report = _quantized(model, path, weights="auto", max_bytes=limit)
        assert report["bytes"] <= limit
        assert 4 <= report["bits"] <= 8
        onnx.checker.check_model(onnx.load(path))
        theirs = _outputs(path, x)
        (ours,) = tilewright.compile(path).run({"x": x}).values()
        np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-5 * theirs.std())
        errors.append(float(np.linalg.norm(ours - wanted)))
    assert errors[0] > errors[1] > errors[2]


def test_channels_that_matter_get_the_bits(model, tmp_path):
    least = _quantized(model, tmp_path / "int4.onnx", weights="int4")["bytes"]
    room = 128 * 64 // 2  # for one block of the first product
    parts = channel_blocks.choose_parts(onnx.load(model), WeightFormat(), None, least + room)
    chosen = {format_.bits: rows for rows, format_ in parts["first"]}
    np.testing.assert_array_equal(chosen[8], np.arange(128, 256))
    assert [format_.bits for _, format_ in parts["second"]] == [4]


def test_the_choice_is_the_best_of_all(model):
    proto, format_ = onnx.load(model), WeightFormat()
    blocks = [
        options
        for _, _, weight in channel_blocks.products(proto)
        for options in channel_blocks._block_choices(weight, format_, None, 128)
    ]
    for limit in (15_000, 17_000, 20_000):
        plans = [
            plan for plan in product(*blocks) if sum(choice.size_bytes for choice in plan) <= limit
        ]
        best = min(sum(choice.error for choice in plan) for plan in plans)
        parts = channel_blocks.choose_parts(proto, format_, None, limit)
        bits = {
            (name, int(row) // 128): how.bits
            for name, formats in parts.items()
            for rows, how in formats
            for row in rows
        }
        keys = [("first", 0), ("first", 1), ("first", 2), ("second", 0)]
        found = sum(
            next(c.error for c in options if c.bits.weights == bits[key])
            for key, options in zip(keys, blocks, strict=True)
        )
        assert found == pytest.approx(best)


def test_samples_weigh_the_channels(model, tmp_path):
    """Channels that are hardly ever used need no bits."""
    rng = np.random.default_rng(2)
    x = rng.standard_normal((8, 5, 300)).astype("float32")
    x[..., 128:256] *= 1e-3
    least = _quantized(model, tmp_path / "int4.onnx", weights="int4")["bytes"]
    moments = {"x": (x.reshape(-1, 300) ** 2).mean(0)}
    parts = channel_blocks.choose_parts(onnx.load(model), WeightFormat(), moments, least + 4096)
    high = [rows for rows, format_ in parts["first"] if format_.bits == 8]
    assert len(high) == 1
    assert not np.isin(np.arange(128, 256), high[0]).any()


def test_too_few_bytes_say_what_is_least(model, tmp_path):
    with pytest.raises(ModelError, match=r"all weights in 4 bits take \d+ bytes, more than the 99"):
        _quantized(model, tmp_path / "x.onnx", weights="auto", max_bytes=99)
    assert not (tmp_path / "x.onnx").exists()


@pytest.mark.parametrize(
    "options", [["--weights", "auto"], ["--weights", "int4", "--max-bytes", "9"]]
)
def test_the_limit_and_auto_belong_together(model, tmp_path, options):
    found = CliRunner().invoke(
        app, ["quantize", str(model), "-o", str(tmp_path / "x.onnx"), *options]
    )
    assert found.exit_code == 2
    assert "belong together" in " ".join(found.output.split())


def test_the_command_prints_the_mean_bits(model, tmp_path):
    out = tmp_path / "x.onnx"
    options = ["--weights", "auto", "--max-bytes", "19000"]
    found = CliRunner().invoke(app, ["quantize", str(model), "-o", str(out), *options])
    assert found.exit_code == 0, found.output
    assert "weights of 2 products in " in found.output
    assert out.exists()
