"""Random inputs that an operator can be run on."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np


def random_array(
    rng: np.random.Generator, shape: tuple[int, ...], dtype: str, shapes: Sequence[tuple[int, ...]]
) -> np.ndarray:
    """Return an array that an operator whose parameters have `shapes` accepts.

    Wide integers may be indices, so they stay below every extent of the parameters.
    """
    if dtype == "bool":
        return rng.integers(0, 2, shape).astype(bool)
    kind = np.dtype(dtype)
    if kind.kind in "iu" and kind.itemsize <= 2:
        info = np.iinfo(kind)
        return rng.integers(info.min, info.max + 1, shape).astype(kind)
    if kind.kind in "iu":
        limit = min((extent for each in shapes for extent in each if extent > 1), default=1)
        return rng.integers(0, limit, shape).astype(kind)
    return rng.standard_normal(shape, np.float32).astype(kind)
