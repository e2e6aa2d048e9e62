"""What a model should compute, by an implementation that is not ours."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from tilewright.errors import MeasureError, ModelError

REFERENCES = ("onnxruntime", "onnx")


def reference_outputs(
    model: Any,
    feed: Mapping[str, np.ndarray],
    names: Sequence[str],
    against: str = "onnxruntime",
) -> dict[str, np.ndarray]:
    """Run a model in another implementation.

    Args:
        model: an `onnx.ModelProto`, or the path of a file.
        feed: input name -> array.
        names: outputs to return; outputs of the graph.
        against: "onnxruntime", with its graph optimisations off, or "onnx", the reference in
            numpy, which is slow.

    Raises:
        MeasureError: there is no such reference here, or it cannot run the model.
    """
    if against not in REFERENCES:
        raise MeasureError(f"unknown reference '{against}'; known are {', '.join(REFERENCES)}")
    run = _onnxruntime if against == "onnxruntime" else _onnx
    try:
        values = run(model, dict(feed), list(names))
    except ImportError as error:
        raise MeasureError(
            "onnxruntime is not installed; install it, or compare with --against onnx"
        ) from error
    except Exception as error:  # their errors have no common class
        first = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise MeasureError(f"{against} cannot run the model: {first}") from error
    return dict(zip(names, values, strict=True))


def _onnxruntime(model: Any, feed: dict[str, np.ndarray], names: list[str]) -> Sequence[Any]:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.log_severity_level = 4
    source = model if isinstance(model, str | Path) else model.SerializeToString()
    session = onnxruntime.InferenceSession(source, options, ["CPUExecutionProvider"])
    return session.run(names, feed)


def _onnx(model: Any, feed: dict[str, np.ndarray], names: list[str]) -> Sequence[Any]:
    from onnx.reference import ReferenceEvaluator

    source = str(model) if isinstance(model, Path) else model
    return ReferenceEvaluator(source).run(names, feed)


def load_proto(path: Path) -> Any:
    """Return a model with its weights, checked as a compile checks it.

    Raises:
        ModelError: the file, or that of external weights, is missing or damaged.
    """
    import onnx

    from tilewright.frontends.onnx.loading import load_model

    proto, folder, _ = load_model(path)
    try:
        onnx.load_external_data_for_model(proto, str(folder))
    except Exception as error:
        raise ModelError(f"cannot read the weights of '{path}': {error}") from error
    return proto


def largest_difference(found: np.ndarray, expected: np.ndarray) -> float:
    """Return the largest difference of two arrays.

    Infinite where shapes differ, and where a value is finite in one of the two only.
    """
    if found.shape != expected.shape:
        return float("inf")
    a, b = found.astype(np.float64), expected.astype(np.float64)
    same = (a == b) | (np.isnan(a) & np.isnan(b))
    with np.errstate(invalid="ignore"):
        difference = np.where(same, 0.0, np.abs(a - b))
    largest = float(difference.max(initial=0.0))
    return largest if np.isfinite(largest) else float("inf")


def largest_error(found: np.ndarray, expected: np.ndarray) -> float:
    """Return the largest difference over the standard deviation of what is expected.

    A constant output is taken relative to its size.
    """
    difference = largest_difference(found, expected)
    if difference in (0.0, float("inf")):
        return difference
    finite = expected.astype(np.float64)[np.isfinite(expected)]
    scale = float(finite.std()) or float(np.abs(finite).max(initial=0.0)) or 1.0
    return difference / scale
