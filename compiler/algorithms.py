"""Which algorithm computes a 3x3 convolution: decided on the graph, before there are tasks.

Direct convolution multiplies 9 times for each output and channel; Winograd's F(2x2) and F(4x4) do
4 and 2.25 times, but they move more data and need larger weights. By default an estimate decides; a
log that has measured times of the alternatives decides better (`tuner/algorithms.py`).
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from math import prod
from typing import TypeAlias

from tilewright.compiler.targets import Target
from tilewright.compiler.winograd import WINOGRAD, Winograd

DIRECT = "direct"

# Estimates for one core, from benchmarks on the reference machine; only ratios matter.
_CLOCK_HZ = 3.9e9
_FMA_PIPES = 2
_PRODUCT_SHARE = 0.85
_DIRECT_SHARE = 0.95
_CACHE_BYTES_S = 40e9
_MEMORY_BYTES_S = 20e9
# What a board has of those bandwidths (a Raspberry Pi 4 gets 4 GB/s from memory).
_BOARD_BANDWIDTH = 1 / 8
_GAIN_WANTED = 1.15
_BYTES_FOR_A_PERCENT = 5 << 18


@dataclass(frozen=True, slots=True)
class Convolution:
    """A 3x3 convolution of stride 1 by its shapes: data NCHW, weight OIHW, output NCHW."""

    data: tuple[int, ...]
    weight: tuple[int, ...]
    out: tuple[int, ...]

    @property
    def key(self) -> str:
        """Hash by value, hexadecimal: the key of its records in a log."""
        text = json.dumps(["algorithm", self.data, self.weight, self.out])
        return hashlib.sha256(text.encode()).hexdigest()

    @property
    def multiplications(self) -> int:
        """Multiply-adds of the direct convolution."""
        return prod(self.out) * self.weight[1] * 9


Chooser: TypeAlias = Callable[[Convolution, Target], Winograd | None]
"""Says which variant of Winograd's algorithm to use; None for direct."""


def algorithm_name(variant: Winograd | None) -> str:
    """Return "direct", "winograd2" or "winograd4"."""
    return DIRECT if variant is None else f"winograd{variant.outputs}"


VARIANTS: dict[str, Winograd | None] = {
    algorithm_name(variant): variant for variant in (None, *WINOGRAD.values())
}
"""What can be chosen, by name."""


def estimate_seconds(convolution: Convolution, target: Target) -> dict[str, float]:
    """Return the estimated seconds of every algorithm on one core, by name."""
    data, weight, out = convolution.data, convolution.weight, convolution.out
    peak = 2 * _FMA_PIPES * target.lanes("float32") * _CLOCK_HZ
    share = 1.0 if target.architecture == "x86_64" else _BOARD_BANDWIDTH
    memory, cache = share * _MEMORY_BYTES_S, share * _CACHE_BYTES_S
    found = {DIRECT: 2 * convolution.multiplications / (peak * _DIRECT_SHARE)}
    for variant in WINOGRAD.values():
        tiles = out[0] * -(-out[2] // variant.outputs) * -(-out[3] // variant.outputs)
        points = variant.tile**2
        product = 2 * points * tiles * weight[0] * weight[1] / (peak * _PRODUCT_SHARE)
        moved = 8 * points * tiles * (weight[0] + weight[1])
        weights = 4 * points * weight[0] * weight[1]
        seconds = product + moved / cache + weights / memory
        found[algorithm_name(variant)] = seconds + 4 * (prod(data) + prod(out)) / cache
    return found


def choose_by_estimate(convolution: Convolution, target: Target) -> Winograd | None:
    """Return the variant that is estimated fastest by a margin, or None for direct."""
    seconds = estimate_seconds(convolution, target)
    best = min(seconds, key=lambda name: seconds[name])
    return VARIANTS[best] if seconds[best] < seconds[DIRECT] / _GAIN_WANTED else None


def choose_by_time(convolution: Convolution, seconds: Mapping[str, float]) -> Winograd | None:
    """Return the fastest of measured algorithms, weighed against the size of their weights.

    Larger weights must save 1% of the time for each `_BYTES_FOR_A_PERCENT` that they add to the
    module and to the memory of whoever runs it: 512 channels of 7 x 7 take 9.4 MB and 2.39 ms
    directly, 16.8 MB and 1.80 ms by F(2x2), 37.7 MB and 1.62 ms by F(4x4) (Zen 3).
    """
    pairs = 4 * convolution.weight[0] * convolution.weight[1]

    def cost(name: str) -> float:
        variant = VARIANTS[name]
        weights = pairs * (9 if variant is None else variant.tile**2)
        return seconds[name] * (1 + 0.01 * weights / _BYTES_FOR_A_PERCENT)

    return VARIANTS[min(seconds, key=cost)]
