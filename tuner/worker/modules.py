"""The process that times whole modules of one convolution, operator by operator."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from tilewright.runtime.module import Module
from tilewright.tuner.worker.inputs import random_array
from tilewright.tuner.worker.run import claim_processor

# How the labels of layout conversions begin: a graph may not need them.
_CONVERSION = "convert "


def handlers(config: Mapping[str, Any]) -> dict[str, Callable[..., dict[str, Any]]]:
    """Return the commands of this process."""
    claim_processor(config)
    return {"race": race}


def race(paths: Sequence[str], rounds: int, seed: int) -> dict[str, Any]:
    """Time modules of one input and one output in turns.

    Returns:
        seconds: of each, those of its operators together, without layout conversions, in each
            round; errors: of each, the largest difference from the first one's output in units of
            that output's standard deviation.
    """
    modules = [Module(Path(path), 1) for path in paths]
    spec = modules[0].inputs[0]
    data = random_array(np.random.default_rng(seed), tuple(spec.shape), str(spec.dtype), ())
    feed = {spec.name: data}
    results = [next(iter(module.run(feed).values())) for module in modules]
    deviation = max(float(results[0].std()), 1e-30)
    errors = [float(np.abs(result - results[0]).max()) / deviation for result in results]
    seconds: list[list[float]] = [[] for _ in modules]
    for _ in range(rounds):
        for mine, module in zip(seconds, modules, strict=True):
            calls = module.profile(feed, rounds=1)
            mine.append(sum(c.seconds for c in calls if not c.label.startswith(_CONVERSION)))
    return {"seconds": seconds, "errors": errors}
