"""Operators as ONNX models, lowered for a GPU and run by the emulation."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import numpy as np
import onnx
from onnx import helper, numpy_helper

from tests.cuda.emulation import Emulator
from tilewright.api import lower_by
from tilewright.compiler.cuda.lower import CudaLowered, lower_for_cuda
from tilewright.compiler.cuda.targets import parse_cuda_target


def model_of(nodes, feeds, weights, opset=17):
    """Return a model of nodes whose last output is "y"; feeds and weights are arrays by name."""
    inputs = [
        helper.make_tensor_value_info(
            name, helper.np_dtype_to_tensor_dtype(array.dtype), array.shape
        )
        for name, array in feeds.items()
    ]
    graph = helper.make_graph(
        nodes,
        "operator",
        inputs,
        [helper.make_empty_tensor_value_info("y")],
        [numpy_helper.from_array(array, name) for name, array in weights.items()],
    )
    opsets = [helper.make_opsetid("", opset)]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=8)
    return onnx.shape_inference.infer_shapes(model, strict_mode=True)


def save_matmul(folder: Path) -> Path:
    """Write a small matrix product with bias and return its path."""
    rng = np.random.default_rng(0)
    weights = {
        "w": rng.standard_normal((48, 40), np.float32),
        "b": rng.standard_normal(40, np.float32),
    }
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["p"]),
        helper.make_node("Add", ["p", "b"], ["y"]),
    ]
    path = folder / "matmul.onnx"
    onnx.save(model_of(nodes, {"x": np.zeros((24, 48), np.float32)}, weights), path)
    return path


def lower(model: onnx.ModelProto | Path, precision: str = "fp32", **options) -> CudaLowered:
    """Lower a model for sm_90."""
    target = parse_cuda_target("cuda:sm_90")
    lowering = partial(lower_for_cuda, target=target, precision=precision, **options)
    return lower_by(lowering, model, None, None, lambda _stage: None)[0]


def run(
    lowered: CudaLowered,
    feeds: dict[str, np.ndarray],
    backwards: bool = False,
    emulator: Emulator | None = None,
) -> dict[str, np.ndarray]:
    """Run every launch of a program by the emulation, on arrays that start as rubbish."""
    program = lowered.program
    emulator = emulator or Emulator(list(lowered.kernels.values()))
    memory: dict[int, np.ndarray] = {}
    for index, tensor in enumerate(program.tensors):
        owner = program.storage_of(index)
        if tensor.kind == "input" and index == owner:
            spec = program.input_specs[program.inputs.index(index)]
            memory[index] = np.ascontiguousarray(feeds[spec.name])
        elif tensor.data is not None:
            memory[index] = tensor.data
        elif owner == index:
            memory[index] = np.full(tensor.size_bytes, 0x7F, np.uint8)
    memory = {index: _aligned(array) for index, array in memory.items()}
    for call in program.calls:
        arrays = [memory[program.storage_of(index)] for index in call.args]
        emulator.run(call.kernel, arrays, backwards)
    results = {}
    for index, spec in zip(program.outputs, program.output_specs, strict=True):
        raw = memory[program.storage_of(index)].reshape(-1).view(np.uint8)
        size = program.tensors[index].size_bytes
        results[spec.name] = raw[:size].view(spec.dtype).reshape(spec.shape)
    return results


def _aligned(array: np.ndarray) -> np.ndarray:
    """Return a copy that starts at a multiple of 64 bytes, as tensors do on the device."""
    raw = np.empty(array.nbytes + 64, np.uint8)
    start = -raw.ctypes.data % 64
    view = raw[start : start + array.nbytes]
    view[:] = np.ascontiguousarray(array).reshape(-1).view(np.uint8)
    return view
