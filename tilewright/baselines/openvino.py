"""OpenVINO as a peer."""

from __future__ import annotations

from pathlib import Path

from tilewright.baselines.engine import Engine, Feed


def open_model(model: Path, threads: int = 1) -> Engine:
    """Return the model in OpenVINO at float32 precision, in its latency mode.

    Inputs and outputs are shared with numpy, so that nothing is copied.
    """
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

    def run(feed: Feed) -> dict:
        found = request.infer(dict(feed), share_inputs=True, share_outputs=True)
        return {name: found[index] for index, name in enumerate(names)}

    return run
