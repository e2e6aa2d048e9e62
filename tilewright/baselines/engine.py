"""What every engine looks like while it is measured, wherever it runs."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from tilewright.reference import largest_difference

Feed = Mapping[str, np.ndarray]
Engine = Callable[[Feed], dict[str, np.ndarray]]
Sampler = Callable[[int, str], float]
"""(calls, clock) -> seconds of one call."""

CLOCKS: dict[str, Callable[[], float]] = {"wall": time.perf_counter, "cpu": time.process_time}
"""Clocks by name; "cpu" counts what the process itself computes, all of its threads together."""


@dataclass(frozen=True)
class Contender:
    """An engine with its input in place.

    Attributes:
        outputs: what it computed, to be checked before any time counts.
        sample: runs it and times it.
        notes: plain data that belongs into the result, for instance the curve of a tuner.
        close: gives back processes and files.
    """

    outputs: Mapping[str, np.ndarray]
    sample: Sampler
    notes: Mapping[str, Any] = field(default_factory=dict)
    close: Callable[[], None] = lambda: None


def local(engine: Engine, feed: Feed, notes: Mapping[str, Any] | None = None) -> Contender:
    """Return the contender that an engine in this process is."""

    def sample(calls: int, clock: str) -> float:
        now = CLOCKS[clock]
        start = now()
        for _ in range(calls):
            engine(feed)
        return (now() - start) / calls

    outputs = {key: np.array(value) for key, value in engine(feed).items()}
    return Contender(outputs, sample, notes or {})


def largest_error(reference: Mapping[str, np.ndarray], found: Mapping[str, np.ndarray]) -> float:
    """Return the largest difference of an output over the standard deviation of the reference.

    Where the reference is constant, the difference itself counts.
    """
    worst = 0.0
    for name, expected in reference.items():
        if expected.size == 0:
            continue
        finite = expected.astype(np.float64)[np.isfinite(expected)]
        scale = float(finite.std()) if finite.size else 0.0
        worst = max(worst, largest_difference(found[name], expected) / (scale or 1.0))
    return worst
