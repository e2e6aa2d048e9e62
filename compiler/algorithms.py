"""Which algorithm computes a convolution of few taps: decided on the graph, before there are tasks.

Direct convolution of 3x3 multiplies 9 times for each output and channel; Winograd's F(2x2) and
F(4x4) do 4 and 2.25 times, but they move more data and need larger weights. By default an estimate
decides; a log that has measured times of the alternatives decides better (`tuner/algorithms.py`).
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from math import prod
from typing import TypeAlias

from tilewright.compiler.targets import Target
from tilewright.compiler.winograd import (
    ALONE,
    SIGNAL_RANK,
    WINOGRAD,
    WINOGRAD_OF_TWO,
    Winograd,
)

DIRECT = "direct"
_THREE = 3

# Estimates for one core, from benchmarks on the reference machine; only ratios matter.
_CLOCK_HZ = 3.9e9
_FMA_PIPES = 2
_PRODUCT_SHARE = 0.85
_DIRECT_SHARE = 0.95
_CACHE_BYTES_S = 40e9
_MEMORY_BYTES_S = 20e9
# Of that, what weights get which not even the last cache holds: 3 x 3 x 3 with 512 channels of
# 2 x 7 x 7 takes 12.2 ms by F(4x4) with 113 MB and 11.0 ms directly with 28 MB (Zen 3).
_FAR_SHARE = 0.6
# What a board has of those bandwidths (a Raspberry Pi 4 gets 4 GB/s from memory).
_BOARD_BANDWIDTH = 1 / 8
_GAIN_WANTED = 1.15
_BYTES_FOR_A_PERCENT = 1 << 19


@dataclass(frozen=True, slots=True)
class Convolution:
    """A convolution of stride 1 by its shapes: data NCHW, weight OIHW, output NCHW.

    Its window is 3x3, 2x2 or, of a signal with a height of 1, 1x3. With a depth: data NCDHW, weight
    OIDHW; its window and stride along the depth may be any.

    Attributes:
        data, weight, out: shapes.
        dilation: steps between the window's rows and columns.
    """

    data: tuple[int, ...]
    weight: tuple[int, ...]
    out: tuple[int, ...]
    dilation: tuple[int, int] = (1, 1)

    @property
    def key(self) -> str:
        """Hash by value, hexadecimal: the key of its records in a log."""
        shapes: list[object] = ["algorithm", self.data, self.weight, self.out]
        if self.dilation != (1, 1):
            shapes.append(self.dilation)
        text = json.dumps(shapes)
        return hashlib.sha256(text.encode()).hexdigest()

    @property
    def multiplications(self) -> int:
        """Multiply-adds of the direct convolution."""
        return prod(self.out) * prod(self.weight[1:])

    def tiles(self, variant: Winograd) -> tuple[int, int]:
        """Return the number of tiles along height and width; see `passes.lower_winograd`.

        With dilation, pixels as far apart as the steps of the window make up images of their own;
        the tiles are those of the greatest of them.
        """
        used = (self.along_rows(variant), variant)
        rows, columns = (
            -(-extent // (step * each.outputs))
            for extent, step, each in zip(self.out[-2:], self.dilation, used, strict=True)
        )
        return rows, columns

    @property
    def variants(self) -> dict[str, Winograd | None]:
        """What can be chosen for this window, by name."""
        return VARIANTS if self.weight[-1] == _THREE else _VARIANTS_OF_TWO

    def along_rows(self, variant: Winograd) -> Winograd:
        """Return what is used along the height, beside `variant` along the width."""
        return ALONE if self.weight[-2] == 1 else variant

    def points(self, variant: Winograd) -> int:
        """Return the number of elements of a transformed tile."""
        return self.along_rows(variant).tile * variant.tile


def as_images(
    data: tuple[int, ...],
    weight: tuple[int, ...],
    out: tuple[int, ...],
    dilation: Sequence[int],
) -> Convolution:
    """Return a convolution by its shapes; signals become images of one row."""
    shapes = [
        shape if len(shape) > SIGNAL_RANK else (*shape[:2], 1, shape[2])
        for shape in (data, weight, out)
    ]
    height, width = (1, *dilation)[-2:]
    return Convolution(shapes[0], shapes[1], shapes[2], (height, width))


Chooser: TypeAlias = Callable[[Convolution, Target], Winograd | None]
"""Says which variant of Winograd's algorithm to use; None for direct."""


def algorithm_name(variant: Winograd | None) -> str:
    """Return "direct", "winograd2" or "winograd4"."""
    return DIRECT if variant is None else f"winograd{variant.outputs}"


VARIANTS: dict[str, Winograd | None] = {
    algorithm_name(variant): variant for variant in (None, *WINOGRAD.values())
}
"""What can be chosen for 3 taps, by name."""

_VARIANTS_OF_TWO: dict[str, Winograd | None] = {
    algorithm_name(variant): variant for variant in (None, *WINOGRAD_OF_TWO.values())
}


def has_tiles(convolution: Convolution, variant: Winograd) -> bool:
    """Say whether there are several tiles along both sides, as the transforms need."""
    rows, columns = convolution.tiles(variant)
    return columns > 1 and (rows > 1 or convolution.weight[-2] == 1)


def estimate_seconds(convolution: Convolution, target: Target) -> dict[str, float]:
    """Return the estimated seconds of every algorithm that can be used, on one core, by name."""
    data, weight, out = convolution.data, convolution.weight, convolution.out
    peak = 2 * _FMA_PIPES * target.lanes("float32") * _CLOCK_HZ
    share = 1.0 if target.architecture == "x86_64" else _BOARD_BANDWIDTH
    memory, cache = share * _MEMORY_BYTES_S, share * _CACHE_BYTES_S
    found = {DIRECT: 2 * convolution.multiplications / (peak * _DIRECT_SHARE)}
    for variant in convolution.variants.values():
        if variant is None or not has_tiles(convolution, variant):
            continue
        tiles = out[0] * prod(convolution.tiles(variant)) * prod(convolution.dilation)
        tiles_in, tiles_out = tiles * prod(data[2:-2]), tiles * prod(out[2:-2])
        points = convolution.points(variant)
        pairs = prod(weight[:-2])
        product = 2 * points * tiles_out * pairs / (peak * _PRODUCT_SHARE)
        moved = 8 * points * (tiles_out * weight[0] + tiles_in * weight[1])
        weights = 4 * points * pairs
        kept = weights <= target.l3_bytes
        seconds = product + moved / cache + weights / (memory if kept else memory * _FAR_SHARE)
        found[algorithm_name(variant)] = seconds + 4 * (prod(data) + prod(out)) / cache
    return found


def choose_by_estimate(convolution: Convolution, target: Target) -> Winograd | None:
    """Return the variant that is estimated best by a margin, or None for direct.

    Larger weights must pay for themselves, see `choose_by_time`: of 256 channels of 14 x 14, F(4x4)
    takes no less time in ResNet-18 and ResNet-50 than F(2x2), and 5 MB more; over a depth of 4 it
    saves 2% of ResNet3D-18 for 47 MB of 312 (Zen 3).
    """
    seconds = estimate_seconds(convolution, target)
    best = choose_by_time(convolution, seconds)
    if best is None or seconds[algorithm_name(best)] >= seconds[DIRECT] / _GAIN_WANTED:
        return None
    return best


def choose_by_time(convolution: Convolution, seconds: Mapping[str, float]) -> Winograd | None:
    """Return the fastest of measured algorithms, weighed against the size of their weights.

    Larger weights must save 1% of the time for each `_BYTES_FOR_A_PERCENT` that they add to the
    module and to the memory of whoever runs it: 512 channels of 7 x 7 take 9.4 MB and 2.39 ms
    directly, 16.8 MB and 1.80 ms by F(2x2), 37.7 MB and 1.62 ms by F(4x4) (Zen 3).
    """
    pairs, window = 4 * prod(convolution.weight[:-2]), prod(convolution.weight[-2:])

    def cost(name: str) -> float:
        variant = convolution.variants[name]
        weights = pairs * (window if variant is None else convolution.points(variant))
        return seconds[name] * (1 + 0.01 * weights / _BYTES_FOR_A_PERCENT)

    return convolution.variants[min(seconds, key=cost)]
