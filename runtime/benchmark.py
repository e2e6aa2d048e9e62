"""Time several functions against each other on a machine that others use too.

The functions take turns, so that each meets the same disturbances; the order rotates. Compare them
by the ratio of each round, not by their separate medians: what slows one round slows both.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

_RESAMPLES = 2000


@dataclass(frozen=True, slots=True)
class Timing:
    """Seconds per call over all rounds: median and quartiles."""

    median_s: float
    lower_quartile_s: float
    upper_quartile_s: float
    rounds: int


@dataclass(frozen=True, slots=True)
class Ratio:
    """Median of time(a) / time(b) over rounds, with a 95% bootstrap interval."""

    median: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.median:.2f} [{self.low:.2f} .. {self.high:.2f}]"


def interleave(
    functions: Mapping[str, Callable[[], Any]],
    rounds: int = 30,
    warmup: int = 3,
    min_sample_s: float = 1e-3,
    clock: Callable[[], float] = time.perf_counter,
) -> dict[str, np.ndarray]:
    """Call the functions in turns and return the seconds per call of each, float64 [rounds].

    Args:
        functions: what to time, by name.
        rounds: how many samples of each.
        warmup: calls of each that are not timed.
        min_sample_s: a function faster than this is called repeatedly for one sample.
        clock: seconds. `time.thread_time` leaves out the time in which other processes ran, where
            all functions do their work in the calling thread.
    """
    names = list(functions)
    repeats = {name: _warm_up(functions[name], warmup, min_sample_s, clock) for name in names}
    samples = {name: np.empty(rounds) for name in names}
    for index in range(rounds):
        shift = index % len(names)
        for name in names[shift:] + names[:shift]:
            samples[name][index] = _seconds_per_call(functions[name], repeats[name], clock)
    return samples


def _warm_up(
    function: Callable[[], Any], warmup: int, min_sample_s: float, clock: Callable[[], float]
) -> int:
    """Call the function; return how many calls make a sample that is long enough."""
    fastest = min(_seconds_per_call(function, 1, clock) for _ in range(max(1, warmup)))
    return max(1, int(np.ceil(min_sample_s / max(fastest, 1e-9))))


def _seconds_per_call(
    function: Callable[[], Any], repeats: int, clock: Callable[[], float]
) -> float:
    start = clock()
    for _ in range(repeats):
        function()
    return (clock() - start) / repeats


def summarize(samples: Sequence[float] | np.ndarray) -> Timing:
    """Return median and quartiles of the samples."""
    lower, median, upper = np.quantile(samples, (0.25, 0.5, 0.75))
    return Timing(float(median), float(lower), float(upper), len(samples))


def compare(
    samples: Sequence[float] | np.ndarray, reference: Sequence[float] | np.ndarray, seed: int = 0
) -> Ratio:
    """Return how long `samples` take relative to `reference`, round by round.

    Both come from one call of `interleave`. The interval holds 95% of the medians of ratios drawn
    again with replacement (Efron and Tibshirani, "An Introduction to the Bootstrap", section 13.3).
    """
    ratios = np.asarray(samples) / np.asarray(reference)
    drawn = np.random.default_rng(seed).choice(ratios, (_RESAMPLES, len(ratios)))
    low, high = np.quantile(np.median(drawn, axis=1), (0.025, 0.975))
    return Ratio(float(np.median(ratios)), float(low), float(high))
