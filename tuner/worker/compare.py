"""Compare what a candidate computed with what it should have."""

from __future__ import annotations

import numpy as np


def difference(got: np.ndarray, want: np.ndarray, tolerance: float) -> str:
    """Return how two arrays differ, or "" where they agree.

    Integers agree exactly. Floating point values agree within `tolerance` times (their magnitude
    + the mean magnitude of the array): summation order changes small results of large terms.
    """
    if got.shape != want.shape or got.dtype != want.dtype:
        return f"{got.dtype} {list(got.shape)} instead of {want.dtype} {list(want.shape)}"
    if not np.issubdtype(want.dtype, np.floating):
        wrong = got != want
    else:
        wide_got, wide_want = got.astype(np.float32), want.astype(np.float32)
        finite = np.isfinite(wide_want)
        magnitude = np.abs(np.where(finite, wide_want, 0))
        allowed = tolerance * (magnitude + magnitude.mean())
        with np.errstate(invalid="ignore"):
            near = np.abs(wide_got - wide_want) <= allowed
        same = (wide_got == wide_want) | (np.isnan(wide_got) & np.isnan(wide_want))
        wrong = ~np.where(finite, near, same)
    count = int(np.count_nonzero(wrong))
    if not count:
        return ""
    where = tuple(int(i) for i in np.argwhere(wrong)[0])
    return f"{count} of {wrong.size} values are wrong, at {where} {got[where]} not {want[where]}"
