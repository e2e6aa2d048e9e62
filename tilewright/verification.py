"""Check a deployable module against the model that it came from."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from tilewright.errors import MeasureError, ModuleError
from tilewright.inputs import random_inputs
from tilewright.reference import largest_error, reference_outputs
from tilewright.runtime.module import Module

# Of a standard deviation of the output; what float32 and Winograd's transforms cost is below 1e-3.
TOLERANCE = 1e-3


def verify(
    module: str | os.PathLike[str],
    model: str | os.PathLike[str],
    *,
    against: str = "onnxruntime",
    feed: Mapping[str, np.ndarray] | None = None,
    rounds: int = 3,
    seed: int = 0,
    tolerance: float = TOLERANCE,
    progress: Callable[[str], None] = lambda _stage: None,
) -> dict[str, Any]:
    """Run a module and its model on the same inputs, and compare.

    Args:
        module: a compiled module that runs on this processor.
        model: the ONNX file that it was compiled from.
        against: see `reference.reference_outputs`.
        feed: inputs; None: `rounds` random ones.
        rounds: how many random inputs.
        seed: of the first random input.
        tolerance: largest error that is accepted, in standard deviations of each output.
        progress: called before each run.

    Returns:
        "same_model": whether the module says that it was made from this very file; "weights":
        "intact", the checksums of the module hold; "outputs": name -> largest error; "largest":
        the largest of them; "passed".

    Raises:
        ModuleError: the module is damaged, or the model has other inputs or outputs.
        ModelError: the model cannot be read.
        MeasureError: the reference is missing, or cannot run the model.
    """
    from tilewright.frontends.onnx.loading import load_model
    from tilewright.runtime.library import read_description

    if rounds < 1:
        raise MeasureError(f"rounds is {rounds}; it must be at least 1")
    described = read_description(Path(module), verify_weights=True)
    proto, _, digest = load_model(Path(model))
    loaded = Module(Path(module))
    names = [output.name for output in proto.graph.output]
    if sorted(names) != sorted(spec.name for spec in loaded.outputs):
        raise ModuleError(f"'{module}' does not have the outputs of '{model}': {', '.join(names)}")
    feeds = (
        [feed]
        if feed is not None
        else [random_inputs(loaded.inputs, seed + number) for number in range(rounds)]
    )
    errors = dict.fromkeys(names, 0.0)
    for number, values in enumerate(feeds, start=1):
        progress(f"comparing with {against}, {number} of {len(feeds)}")
        expected = reference_outputs(Path(model), values, names, against)
        found = loaded.run(values)
        for name in names:
            errors[name] = max(errors[name], largest_error(found[name], expected[name]))
    largest = max(errors.values(), default=0.0)
    return {
        "same_model": described.get("model_digest") == digest,
        "weights": "intact",
        "outputs": errors,
        "largest": largest,
        "tolerance": tolerance,
        "passed": largest <= tolerance,
    }
