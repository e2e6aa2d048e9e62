"""Time a model in tilewright beside its peers, measured in turns on the same inputs."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from tilewright.errors import MeasureError
from tilewright.inputs import random_inputs
from tilewright.runtime.benchmark import compare, interleave, summarize

Feed = Mapping[str, np.ndarray]
Engine = Callable[[Feed], dict[str, np.ndarray]]


def open_onnxruntime(model: Path, threads: int) -> Engine:
    """Return the model in ONNX Runtime with all its optimisations, run by `threads` threads."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 3
    # Its threads must not spin while another engine has its turn.
    options.add_session_config_entry("session.force_spinning_stop", "1")
    session = onnxruntime.InferenceSession(model, options, ["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    return lambda feed: dict(zip(names, session.run(names, dict(feed)), strict=True))


def open_openvino(model: Path, threads: int) -> Engine:
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
        found = request.infer(dict(feed))
        return {name: found[index] for index, name in enumerate(names)}

    return run


PEERS: dict[str, Callable[[Path, int], Engine]] = {
    "onnxruntime": open_onnxruntime,
    "openvino": open_openvino,
}
"""Peers by the name of their Python package."""


def bench(
    model: str | os.PathLike[str],
    against: Sequence[str] = ("onnxruntime",),
    threads: int = 1,
    rounds: int = 30,
    *,
    target: str = "native",
    shapes: Mapping[str, Sequence[int]] | None = None,
    seed: int = 0,
    progress: Callable[[str], None] = lambda _stage: None,
) -> dict[str, Any]:
    """Compile a model and time it beside its peers on one random input.

    The engines take turns, so that a change of the machine's speed hits all of them.

    Args:
        model: path of an ONNX file.
        against: names from `PEERS`; those not installed are left out and named.
        threads: threads of each engine.
        rounds: measured runs of each engine, after one that is not.
        target: as for `compile`.
        shapes: as for `compile`.
        seed: of the input.
        progress: called with the name of each stage.

    Returns:
        "model", "target", "threads", "rounds"; "engines": name, median_s, min_s and ratio (time
        over tilewright's, median over rounds, ratio_low and ratio_high its 95% interval) of each;
        "largest_error": per peer the largest difference of an output over the standard deviation
        of the peer's; "left_out": peer -> why.

    Raises:
        MeasureError: a peer is unknown, or cannot run the model.
        TilewrightError: the model cannot be compiled.
    """
    from tilewright.api import compile as compile_model
    from tilewright.api import load

    for name in against:
        if name not in PEERS:
            raise MeasureError(f"unknown peer '{name}'; known are {', '.join(PEERS)}")
    if threads < 1 or rounds < 1:
        raise MeasureError(f"threads is {threads}, rounds {rounds}; both must be at least 1")
    path = Path(model)
    left_out = {
        name: 'not installed; pip install "tilewright[bench]"'
        for name in against
        if importlib.util.find_spec(name) is None
    }
    compiled = compile_model(path, target, shapes, progress=progress)
    module = load(compiled.path, threads)
    feed = random_inputs(module.inputs, seed)
    engines: dict[str, Engine] = {"tilewright": module.run}
    errors = {}
    ours = module.run(feed)
    for name in against:
        if name in left_out:
            continue
        progress(name)
        engines[name], found = _start(name, path, threads, feed)
        errors[name] = largest_error(found, ours)
    progress("measuring")
    times = interleave({name: partial(run, feed) for name, run in engines.items()}, rounds)
    return {
        "model": str(path),
        "target": target,
        "threads": threads,
        "rounds": rounds,
        "engines": [_row(name, found, times["tilewright"]) for name, found in times.items()],
        "largest_error": errors,
        "left_out": left_out,
    }


def largest_error(reference: Mapping[str, np.ndarray], found: Mapping[str, np.ndarray]) -> float:
    """Return the largest difference of an output over the standard deviation of the reference.

    Where the reference is constant, the difference itself counts.
    """
    worst = 0.0
    for name, expected in reference.items():
        if expected.size == 0:
            continue
        a = expected.astype(np.float64)
        difference = float(np.abs(a - found[name].astype(np.float64)).max())
        worst = max(worst, difference / (float(a.std()) or 1.0))
    return worst


def _start(name: str, path: Path, threads: int, feed: Feed) -> tuple[Engine, dict[str, np.ndarray]]:
    """Open a peer and run it once; its own errors have no common class."""
    try:
        engine = PEERS[name](path, threads)
        return engine, engine(feed)
    except Exception as error:
        first_line = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise MeasureError(f"{name} cannot run {path}: {first_line}") from error


def _row(name: str, samples: np.ndarray, ours: np.ndarray) -> dict[str, Any]:
    ratio = compare(samples, ours)
    return {
        "name": name,
        "median_s": summarize(samples).median_s,
        "min_s": float(samples.min()),
        "ratio": ratio.median,
        "ratio_low": ratio.low,
        "ratio_high": ratio.high,
    }
