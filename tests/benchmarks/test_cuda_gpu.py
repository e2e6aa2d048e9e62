"""The benchmark on a GPU, as far as it goes without one."""

import argparse
import json
from dataclasses import asdict

import numpy as np
from onnx import numpy_helper

import tilewright
from benchmarks import cuda_gpu
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
    monkeypatch.setattr(cuda_gpu, "_torch", lambda: None)
    monkeypatch.setattr(cuda_gpu, "_ROUNDS", 1)
    model = cuda_gpu.coarse(build_model(operator()))
    tilewright.compile(model).save(tmp_path / "gmm.so")  # a processor stands in for the GPU
    row = {
        "name": operator().name,
        "precision": "fp32",
        "file": "gmm.so",
        "operator": json.loads(json.dumps(asdict(operator()))),
    }
    found = cuda_gpu._measure_row(row, tmp_path, tmp_path)
    assert found["correct"]
    assert found["same_as_a_graph"]
    assert found["ours_device_s"] > 0


def test_the_report_compares_with_the_faster_format(tmp_path):
    rows = [
        {
            "name": "C2D-1-b1",
            "precision": "fp16",
            "correct": True,
            "ours_device_s": 2e-6,
            "ours_call_s": 4e-6,
            "torch_device_s": 8e-6,
            "torch_device_last_s": 3e-6,
            "torch_call_s": 8e-6,
        },
        {"name": "C2D-2-b1", "precision": "fp16", "error": "ModuleError: a kernel failed"},
    ]
    output = tmp_path / "result.json"
    output.write_text(json.dumps({"machine": {"device": "chip"}, "rows": rows}))
    cuda_gpu.report(argparse.Namespace(output=output))
    text = output.with_suffix(".md").read_text()
    assert "| fp16 | device | 1 | 1.50 |" in text
    assert "| fp16 | call | 1 | 2.00 |" in text
    assert "a kernel failed" in text
