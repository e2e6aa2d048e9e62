"""Export a model of the zoo and prove that its outputs carry information."""

import os
from pathlib import Path

import numpy as np

from benchmarks.zoo import catalog

MIN_CHANGE = 0.1  # relative difference of the outputs for two inputs, below it the model is "dead"
STD_RANGE = (0.1, 10.0)
OPSET = 17  # of the TorchScript exporter; the dynamo exporter takes its own default


class DeadModelError(Exception):
    """An exported model whose outputs do not depend enough on its inputs."""


def load(name: str, exporter: str = "torchscript") -> Path:
    """Return the path of model `name`, exporting it first where the file does not exist.

    Raises:
        DeadModelError: if the exported model fails `verify`.
    """
    path = catalog.model_path(name, exporter)
    if path.exists():
        return path
    from benchmarks.zoo.builders import build  # slow to import: torch, timm, transformers

    path.parent.mkdir(exist_ok=True)
    temporary = path.with_suffix(".part")
    export_model(build(name), exporter, temporary)
    try:
        verify(name, temporary)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
    return path


def export_model(built, exporter: str, path: Path) -> None:
    """Write a model that `builders.build` built, with its example arguments, to `path`."""
    import torch

    options: dict = {"input_names": built.input_names, "output_names": built.output_names}
    if exporter == "torchscript":
        options |= {"dynamo": False, "opset_version": OPSET}
    else:
        options |= {"dynamo": True, "external_data": False, "verbose": False}
    torch.set_num_threads(1)
    with torch.no_grad():
        torch.onnx.export(built.model, built.args, str(path), **options)


def verify(name: str, path: Path) -> tuple[float, float]:
    """Run the model on two inputs in ONNX Runtime; return the relative change and the deviation.

    Raises:
        DeadModelError: if the first output changes too little or is not at unit scale.
    """
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(path, options, ["CPUExecutionProvider"])
    first, second = (session.run(None, catalog.inputs(name, seed)) for seed in (0, 1))
    a, b = first[0].astype(np.float64), second[0].astype(np.float64)
    change = float(np.linalg.norm(a - b) / np.linalg.norm(a))
    deviation = float(a.std())
    if not change > MIN_CHANGE or not STD_RANGE[0] < deviation < STD_RANGE[1]:
        raise DeadModelError(
            f"{path.name}: outputs change by {change:.3g} between two inputs (wanted above "
            f"{MIN_CHANGE}), their standard deviation is {deviation:.3g} (wanted in {STD_RANGE}); "
            "look at the calibration of its last layers"
        )
    return change, deviation
