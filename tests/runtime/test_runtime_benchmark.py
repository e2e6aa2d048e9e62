"""Timing in turns."""

import time

import numpy as np
import pytest

from tilewright.runtime.benchmark import compare, interleave, summarize


def _busy(seconds):
    def wait():
        end = time.thread_time() + seconds
        while time.thread_time() < end:
            pass

    return wait


def test_interleave_takes_turns_and_rotates_the_order():
    called = []
    functions = {name: lambda name=name: called.append(name) for name in "abc"}
    samples = interleave(functions, rounds=3, warmup=1, min_sample_s=0.0)
    assert "".join(called) == "abc" + "abc" + "bca" + "cab"
    assert {name: len(values) for name, values in samples.items()} == {"a": 3, "b": 3, "c": 3}


def test_fast_functions_are_repeated_for_one_sample():
    count = []
    samples = interleave({"f": lambda: count.append(1)}, rounds=2, warmup=2, min_sample_s=1e-4)
    assert len(count) > 2 + 2 * 10
    assert samples["f"].max() < 1e-4


def test_ratio_of_known_times():
    functions = {"slow": _busy(3e-4), "fast": _busy(1e-4)}
    samples = interleave(functions, rounds=15, clock=time.thread_time)
    ratio = compare(samples["slow"], samples["fast"])
    assert ratio.low <= ratio.median <= ratio.high
    assert ratio.median == pytest.approx(3, rel=0.3)


def test_summary_and_interval_on_given_samples():
    samples = np.arange(1.0, 102.0)
    timing = summarize(samples)
    assert (timing.lower_quartile_s, timing.median_s, timing.upper_quartile_s) == (26, 51, 76)
    assert timing.rounds == 101
    same = compare(samples, samples)
    assert (same.median, same.low, same.high) == (1, 1, 1)
    noise = np.exp(np.random.default_rng(0).normal(0, 0.1, 101))
    ratio = compare(2 * noise * samples, samples)
    assert ratio.low < 2 < ratio.high
    assert ratio.high - ratio.low < 0.2
    assert str(ratio).startswith("2.0")
