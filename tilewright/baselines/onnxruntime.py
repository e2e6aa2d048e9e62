"""ONNX Runtime as a peer."""

from __future__ import annotations

from pathlib import Path

from tilewright.baselines.engine import Engine, Feed


def open_model(model: Path, threads: int = 1) -> Engine:
    """Return the model in ONNX Runtime with all its optimisations, run by `threads` threads."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(model, options, ["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]

    def run(feed: Feed) -> dict:
        return dict(zip(names, session.run(names, dict(feed)), strict=True))

    return run
