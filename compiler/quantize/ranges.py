"""Which interval of a tensor's values the levels of an integer are spread over: 256 of a byte.

    minmax      all values seen
    percentile  all but the rarest values at either end
    mse         the least squared error; both ends are searched, each on its own
    entropy     the least Kullback-Leibler divergence of the quantized distribution, exact zeros
                left out
    dobi        distribution-oriented bounds (2DQuant, arXiv 2406.06649, section 3.2): the least
                squared error over a fine grid; of a one-sided distribution (behind relu, softmax or
                GELU) only the long end is searched, of another both, together and then each alone

Zero is always inside, so that it is exact: padding and relu produce it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial

import numpy as np

LEVELS = 256
METHODS = ("minmax", "percentile", "mse", "entropy", "dobi")
_BINS = 2048
_STEPS = 16
_LEAST_SHARE = 0.3
_BOUND_STEPS = 100
# A distribution whose short end is less than this share of the other is one-sided.
_ONE_SIDED = 0.1
_SMALLEST_SCALE = 1e-8


@dataclass
class Observer:
    """The distribution of a tensor over the calibration samples, seen twice.

    Attributes:
        low, high: least and greatest value, zero included; from the first time.
        counts: histogram between them; from the second time.
    """

    low: float = 0.0
    high: float = 0.0
    counts: np.ndarray | None = None

    def see_range(self, values: np.ndarray) -> None:
        """Take the values of one sample into the range."""
        if values.size:
            self.low = min(self.low, float(values.min()))
            self.high = max(self.high, float(values.max()))

    def see_values(self, values: np.ndarray) -> None:
        """Take the values of one sample into the histogram."""
        counts, _ = np.histogram(values, _BINS, (self.low, max(self.high, self.low + 1e-30)))
        self.counts = counts if self.counts is None else self.counts + counts

    @property
    def centres(self) -> np.ndarray:
        """Return the middle of each bin of the histogram."""
        edges = np.linspace(self.low, self.high, _BINS + 1)
        return (edges[1:] + edges[:-1]) / 2


def parameters(low: float, high: float, levels: int = LEVELS) -> tuple[np.float32, int]:
    """Return scale and zero point (0 .. levels - 1) over an interval around zero."""
    scale = np.float32(max((high - low) / (levels - 1), _SMALLEST_SCALE))
    return scale, int(np.clip(np.rint(-low / scale), 0, levels - 1))


def choose_range(
    observer: Observer, method: str, percentile: float = 99.99, levels: int = LEVELS
) -> tuple[float, float]:
    """Return the interval that a method chooses for a tensor.

    Args:
        observer: of the tensor.
        method: one of `METHODS`.
        percentile: values that the method "percentile" keeps.
        levels: of the integers.
    """
    full = observer.low, observer.high
    if method == "minmax" or observer.counts is None or full[0] == full[1]:
        return full
    if method == "percentile":
        return _percentile(observer, percentile)
    if method == "dobi":
        return _oriented_bounds(observer, levels)
    if method == "entropy":
        observer = replace(observer, counts=_without_zeros(observer))
    error = _squared_error if method == "mse" else _divergence
    return _searched(observer, partial(error, observer, levels=levels))


def _without_zeros(observer: Observer) -> np.ndarray:
    """Return the histogram with no more in the bin of zero than in a bin beside it.

    Half of what is behind a relu is exactly zero, and so it stays at any scale. As a peak among
    small values that share its level it would draw the interval in until each bin has a level.
    pytorch-quantization, TensorRT's calibrator, does the same.
    """
    assert observer.counts is not None
    counts = observer.counts.copy()
    place = int(np.abs(observer.centres).argmin())
    beside = [counts[at] for at in (place - 1, place + 1) if 0 <= at < len(counts)]
    counts[place] = min(counts[place], max(beside))
    return counts


def _percentile(observer: Observer, percentile: float) -> tuple[float, float]:
    assert observer.counts is not None
    share = np.cumsum(observer.counts) / observer.counts.sum()
    outside = 1 - percentile / 100
    centres = observer.centres
    low = centres[np.searchsorted(share, outside)]
    high = centres[min(int(np.searchsorted(share, 1 - outside)), _BINS - 1)]
    return min(float(low), 0.0), max(float(high), 0.0)


def _searched(observer: Observer, error: Callable[[float, float], float]) -> tuple[float, float]:
    """Shrink either end in turn until neither helps."""
    shares = np.linspace(_LEAST_SHARE, 1.0, _STEPS)
    low, high = observer.low, observer.high
    for _ in range(2):
        high = min((observer.high * s for s in shares), key=lambda h: error(low, h))
        low = min((observer.low * s for s in shares), key=lambda v: error(v, high))
    return float(low), float(high)


def _oriented_bounds(observer: Observer, levels: int) -> tuple[float, float]:
    """Return the bounds of 2DQuant's initialisation; see the module's docstring."""
    low, high = observer.low, observer.high
    shares = np.linspace(1 / _BOUND_STEPS, 1.0, _BOUND_STEPS)

    def error(pair: tuple[float, float]) -> float:
        return _squared_error(observer, *pair, levels)

    if -low < _ONE_SIDED * high:
        return min(((low, high * float(s)) for s in shares), key=error)
    if high < _ONE_SIDED * -low:
        return min(((low * float(s), high) for s in shares), key=error)
    best = min(((low * float(s), high * float(s)) for s in shares), key=error)
    best = min(((best[0], high * float(s)) for s in shares), key=error)
    return min(((low * float(s), best[1]) for s in shares), key=error)


def _squared_error(observer: Observer, low: float, high: float, levels: int) -> float:
    assert observer.counts is not None
    scale, zero = parameters(low, high, levels)
    centres = observer.centres
    rounded = np.clip(np.rint(centres / scale) + zero, 0, levels - 1)
    return float((observer.counts * ((rounded - zero) * scale - centres) ** 2).sum())


def _divergence(observer: Observer, low: float, high: float, levels: int) -> float:
    """Return KL(seen, quantized); what lies outside is counted at the ends."""
    assert observer.counts is not None
    scale, zero = parameters(low, high, levels)
    level = np.clip(np.rint(observer.centres / scale) + zero, 0, levels - 1).astype(int)
    seen = observer.counts.astype(np.float64)
    inside = (observer.centres >= low) & (observer.centres <= high)
    clipped = np.where(inside, seen, 0.0)
    clipped[np.argmax(inside)] += seen[~inside & (observer.centres < low)].sum()
    clipped[len(inside) - 1 - np.argmax(inside[::-1])] += seen[
        ~inside & (observer.centres > high)
    ].sum()
    present = clipped > 0
    # Each level's count is spread evenly over the bins that it stands for.
    total = np.bincount(level[inside], seen[inside], levels)
    spread = np.bincount(level[present], minlength=levels)
    quantized = np.where(present, total[level] / np.maximum(spread[level], 1), 0.0)
    p, q = clipped / clipped.sum(), quantized / max(quantized.sum(), 1e-30)
    return float((p[present] * np.log(p[present] / np.maximum(q[present], 1e-12))).sum())
