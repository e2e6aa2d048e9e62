"""One way to run a model in tilewright, ONNX Runtime or OpenVINO, so that scripts compare them."""

from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np

Feed = Mapping[str, np.ndarray]
Engine = Callable[[Feed], dict[str, np.ndarray]]


def open_onnxruntime(model: Path, threads: int = 1) -> Engine:
    """Return the model in ONNX Runtime with all its optimisations, run by `threads` threads."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(model, options, ["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    return lambda feed: dict(zip(names, session.run(names, dict(feed)), strict=True))


def open_openvino(model: Path, threads: int = 1) -> Engine:
    """Return the model in OpenVINO at float32 precision, in its latency mode."""
    import openvino

    settings = {
        "PERFORMANCE_HINT": "LATENCY",
        "INFERENCE_NUM_THREADS": threads,
        "NUM_STREAMS": 1,
        "INFERENCE_PRECISION_HINT": "f32",
        "ENABLE_CPU_PINNING": False,
    }
    compiled = openvino.Core().compile_model(model, "CPU", settings)
    request = compiled.create_infer_request()
    names = [output.get_any_name() for output in compiled.outputs]

    def run(feed: Feed) -> dict[str, np.ndarray]:
        found = request.infer(dict(feed), share_inputs=True, share_outputs=True)
        return {name: found[i] for i, name in enumerate(names)}

    return run


def open_tilewright(module: Path, threads: int = 1) -> Engine:
    """Return a module that `tilewright.compile` made and saved; loads no compiler."""
    from tilewright.runtime import Module

    return Module(module, threads=threads).run


ENGINES = {"onnxruntime": open_onnxruntime, "openvino": open_openvino}
"""Engines that open an ONNX file, by name; `open_tilewright` opens a compiled module."""
