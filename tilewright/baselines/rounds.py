"""Contenders take turns: each round times every one, and what the machine gives, once."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np

from tilewright.baselines.engine import Sampler

_LEAST = 1e-9


def take_turns(
    samplers: Mapping[str, Sampler],
    rounds: int,
    clock: str = "wall",
    min_sample_s: float = 2e-3,
    between: Callable[[], None] = lambda: None,
) -> dict[str, np.ndarray]:
    """Return the seconds of a call of each contender, float64 [rounds].

    Every timed sample follows an untimed call of the same contender, which brings its data back
    into the caches and takes the disturbance by whoever ran before. The order rotates.

    Args:
        samplers: by name.
        rounds: samples of each.
        clock: "wall", or "cpu": what the contender's process computed, for one thread on a machine
            that others use too.
        min_sample_s: a contender faster than this is called repeatedly for one sample.
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
            samplers[name](1, clock)
            times[name][index] = samplers[name](calls[name], clock)
        between()
    return times
