"""torch as a peer: the ONNX model as torch calls, one by one (eager) or compiled by Inductor."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from tilewright.baselines.engine import Engine, Feed

if TYPE_CHECKING:
    import onnx


def open_eager(model: Path, threads: int) -> Engine:
    """Return the model in eager torch."""
    return _open(model, threads, compiled=False)


def open_inductor(model: Path, threads: int) -> Engine:
    """Return the model compiled by torch's Inductor, which needs a C++ compiler."""
    return _open(model, threads, compiled=True)


def _open(path: Path, threads: int, compiled: bool) -> Engine:
    import torch

    declare_torchvision()
    import onnx2torch

    proto = _simplified(path)
    constants = {item.name for item in proto.graph.initializer}
    inputs = [item.name for item in proto.graph.input if item.name not in constants]
    outputs = [item.name for item in proto.graph.output]
    network = onnx2torch.convert(proto).eval()
    torch.set_num_threads(threads)
    call = torch.compile(network, dynamic=False) if compiled else network

    def run(feed: Feed) -> dict:
        with torch.inference_mode():
            found = call(*(torch.from_numpy(feed[name]) for name in inputs))
        found = found if isinstance(found, (tuple, list)) else (found,)
        return {name: value.numpy() for name, value in zip(outputs, found, strict=True)}

    return run


def _simplified(path: Path) -> onnx.ModelProto:
    """Return the model as onnx2torch can take it, with its constants folded.

    It asks for initializers where an exporter leaves an Identity of one, lacks the newest forms of
    operators that only compute shapes and masks, takes an input left out by name for a value, and
    gets Flatten at the last axis wrong.
    """
    import onnx
    import onnxruntime

    with tempfile.TemporaryDirectory(prefix="tilewright-") as folder:
        options = onnxruntime.SessionOptions()
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC
        options.optimized_model_filepath = str(Path(folder, "simplified.onnx"))
        onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        proto = onnx.load(options.optimized_model_filepath)
    known = onnx.shape_inference.infer_shapes(proto).graph
    shapes = {
        value.name: [dim.dim_value for dim in value.type.tensor_type.shape.dim]
        for value in (*known.value_info, *known.output)
    }
    for node in proto.graph.node:
        while node.input and not node.input[-1]:
            node.input.pop()
        shape = shapes.get(node.output[0], [])
        if node.op_type == "Flatten" and shape and all(shape):
            name = f"{node.output[0]}_shape"
            proto.graph.initializer.append(onnx.numpy_helper.from_array(np.array(shape), name))
            node.CopyFrom(onnx.helper.make_node("Reshape", [node.input[0], name], node.output))
    return proto


def declare_torchvision() -> None:
    """Let torchvision, which onnx2torch and timm import, load without its compiled operators.

    Where they do not match the torch build, importing it fails with "operator torchvision::nms does
    not exist". No model here uses them, so that declaring the names is enough.
    """
    import torch

    try:
        import torchvision  # noqa: F401
    except RuntimeError:
        library = torch.library.Library("torchvision", "FRAGMENT")
        _declared.append(library)  # what it declares lives as long as it does
        backwards = tuple(f"{name}_backward" for name in _REGION_OPERATORS)
        for name in ("nms", "qnms", "qroi_align", *_REGION_OPERATORS, *backwards):
            if not hasattr(torch.ops.torchvision, name):
                arguments = _NMS_ARGUMENTS if "nms" in name else "Tensor a"
                library.define(f"{name}({arguments}) -> Tensor")


_NMS_ARGUMENTS = "Tensor dets, Tensor scores, float iou_threshold"
_REGION_OPERATORS = ("roi_align", "roi_pool", "ps_roi_align", "ps_roi_pool", "deform_conv2d")
_declared: list = []
