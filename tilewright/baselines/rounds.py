"""Contenders take turns: each round times every one, and what the machine gives, once."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from functools import partial

import numpy as np

from tilewright.baselines.engine import Sampler

_LEAST = 1e-9
# Where threads spin after a call: 128 x 768 x 3072 on 2 threads, after torch or ONNX Runtime
# 7.7 ms, alone 3.5 ms.
_SETTLE_S = 0.1


def take_turns(
    samplers: Mapping[str, Sampler],
    rounds: int,
    clock: str = "wall",
    min_sample_s: float = 2e-3,
    settle_s: float = 0.0,
    between: Callable[[], None] = lambda: None,
) -> dict[str, np.ndarray]:
    """Return the seconds of a call of each contender, float64 [rounds].

    Every timed sample follows untimed calls of the same contender, which bring its data back into
    the caches and take the disturbance by whoever ran before. The order rotates.

    Args:
        samplers: by name.
        rounds: samples of each.
        clock: "wall", or "cpu": what the contender's process computed, for one thread on a machine
            that others use too.
        min_sample_s: a contender faster than this is called repeatedly for one sample.
        settle_s: how long the untimed calls go on, one of them at least. Threads of an engine spin
            for a while after a call, and take a processor from the next engine.
        between: called once in each round; measures peak and bandwidth.
    """
    names = list(samplers)
    calls = {}
    for name in names:
        fastest = min(samplers[name](1, clock) for _ in range(3))
        calls[name] = max(1, int(np.ceil(min_sample_s / max(fastest, _LEAST))))
    times = {name: np.empty(rounds) for name in names}
    for index in range(rounds):
        shift = index % len(names)
        for name in names[shift:] + names[:shift]:
            settle(partial(samplers[name], 1, clock), settle_s)
            times[name][index] = samplers[name](calls[name], clock)
        between()
    return times


def settle(call: Callable[[], object], seconds: float) -> None:
    """Call an engine for so long without timing it, at least once."""
    end = time.monotonic() + seconds
    call()
    while time.monotonic() < end:
        call()


def settle_seconds(threads: int) -> float:
    """Return how long an engine on so many threads is to be called before it is timed."""
    return _SETTLE_S if threads > 1 else 0.0
