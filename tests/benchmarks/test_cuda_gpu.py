"""The benchmark on a GPU, as far as it goes without one."""

import argparse
import json
from dataclasses import asdict

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

import tilewright
from benchmarks import cuda_gpu
from benchmarks.cuda_peers import operator_timers
from tilewright.baselines.suite import build_model, load_suite


def operator():
    return load_suite("quick", ["GMM"])[0]


def test_coarse_weights_have_few_values_and_keep_their_spread():
    before = numpy_helper.to_array(build_model(operator()).graph.initializer[0])
    after = numpy_helper.to_array(cuda_gpu.coarse(build_model(operator())).graph.initializer[0])
    assert len(np.unique(after)) < 100
    assert abs(after.std() / before.std() - 1) < 0.01


def test_a_model_in_half_has_no_float32():
    half = cuda_gpu.in_half(build_model(operator()))
    tensors = [numpy_helper.to_array(tensor) for tensor in half.graph.initializer]
    assert {tensor.dtype.name for tensor in tensors} == {"float16"}


def test_a_row_is_compared_with_onnxruntime(tmp_path, monkeypatch):
    monkeypatch.setattr(cuda_gpu, "cuda_torch", lambda: None)
    monkeypatch.setattr(cuda_gpu, "_ROUNDS", 1)
    model = cuda_gpu.coarse(build_model(operator()))
    tilewright.compile(model).save(tmp_path / "gmm.so")  # a processor stands in for the GPU
    row = {
        "name": operator().name,
        "precision": "fp32",
        "file": "gmm.so",
        "operator": json.loads(json.dumps(asdict(operator()))),
    }
    found = cuda_gpu._measure_row(row, tmp_path)
    assert found["correct"]
    assert found["same_as_a_graph"]
    assert found["ours_device_s"] > 0


@pytest.fixture
def archive(tmp_path, monkeypatch):
    """An archive of one operator and one model; processors stand in for the GPU."""
    monkeypatch.setattr(cuda_gpu, "cuda_torch", lambda: None)
    monkeypatch.setattr(cuda_gpu, "_ROUNDS", 1)
    node = helper.make_node("Relu", ["x"], ["y"])
    values = [helper.make_tensor_value_info(name, 1, (2, 3)) for name in "xy"]
    graph = helper.make_graph([node], "relu", values[:1], values[1:])
    path = tmp_path / "relu.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)]), path)
    rows = [{"name": "relu-b2", "model": "relu", "batch": 2}]
    feed = {"x": np.array([[-1, 2, -3], [4, -5, 6]], np.float32)}
    monkeypatch.setattr(cuda_gpu.model_rows, "rows", lambda: rows)
    monkeypatch.setattr(cuda_gpu.model_rows, "feed_of", lambda _row: feed)
    monkeypatch.setattr(cuda_gpu.model_rows, "path_of", lambda _row, _feed: path)
    monkeypatch.setattr(cuda_gpu, "load_suite", lambda *_, **__: [operator()])
    args = argparse.Namespace(
        archive=tmp_path / "archive.tar.xz",
        output=tmp_path / "result.json",
        target="native",
        precisions=["fp32"],
        suite="quick",
        batches=[1],
        models=["relu-b2"],
        log=(),
        seconds=float("inf"),
        again=False,
    )
    cuda_gpu.build(args)
    return args


def test_what_was_built_is_measured_anywhere(archive):
    cuda_gpu.measure(archive)
    rows = json.loads(archive.output.read_text())["rows"]
    assert [row["name"] for row in rows] == [operator().name, "relu-b2"]
    assert all(row["correct"] and row["ours_device_s"] > 0 for row in rows)


def test_measuring_goes_on_where_the_time_was_over(archive):
    archive.seconds = 0.0
    cuda_gpu.measure(archive)
    assert not archive.output.exists()
    archive.seconds = float("inf")
    cuda_gpu.measure(archive)
    content = json.loads(archive.output.read_text())
    content["rows"] = content["rows"][:1]
    content["rows"][0]["ours_device_s"] = "as it was"
    archive.output.write_text(json.dumps(content))
    cuda_gpu.measure(archive)
    rows = json.loads(archive.output.read_text())["rows"]
    assert [row["name"] for row in rows] == [operator().name, "relu-b2"]
    assert rows[0]["ours_device_s"] == "as it was"


def test_peers_are_eager_and_compiled_in_both_formats():
    pytest.importorskip("torch")
    convolution = load_suite("quick", ["C2D"])[0]
    timers = operator_timers(convolution, "fp32", device="cpu")
    ways = {f"{suffix}{mode}" for suffix in ("", "_last") for mode in ("", "_graphs")}
    assert set(timers) == {"torch_call", "torch_call_last", *(f"inductor_call{w}" for w in ways)}
    assert timers["torch_call_last"]() > 0


def test_the_report_compares_with_the_faster_format(tmp_path):
    rows = [
        {
            "name": "C2D-1-b1",
            "operator": {},
            "precision": "fp16",
            "correct": True,
            "ours_device_s": 2e-6,
            "ours_call_s": 4e-6,
            "torch_device_s": 8e-6,
            "torch_device_last_s": 3e-6,
            "torch_call_s": 8e-6,
            "inductor_call_s": 8e-6,
            "inductor_call_graphs_s": 2e-6,
        },
        {"name": "C2D-2-b1", "operator": {}, "precision": "fp16", "error": "a kernel failed"},
    ]
    output = tmp_path / "result.json"
    output.write_text(json.dumps({"machine": {"device": "chip"}, "rows": rows}))
    cuda_gpu.report(argparse.Namespace(output=output))
    text = output.with_suffix(".md").read_text()
    assert "| operators | fp16 | torch | device | 1 | 1.50 |" in text
    assert "| operators | fp16 | torch | call | 1 | 2.00 |" in text
    assert "| operators | fp16 | inductor | call | 1 | 0.50 |" in text
    assert "a kernel failed" in text
