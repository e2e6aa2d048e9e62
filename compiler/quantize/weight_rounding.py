"""Weights as integers of few bits: the scale of each channel or group, and how to round to it.

    weight = scale * integer        integer in -2^(b-1) .. 2^(b-1) - 1; of 8 bits from -127,
                                    of one bit -1 or 1

`clipped_scales` searches the scale with the least squared error, each weight counted by the second
moment of what it multiplies: a layer's error is sum over k of E[x_k^2] (error of w_k)^2 as far as
its inputs are uncorrelated. `compensated` rounds column by column and makes up for every error in
the columns that follow (GPTQ, Frantar et al., arXiv 2210.17323, from OBQ, arXiv 2208.11580).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

# Shares of the greatest weight that are tried as the range. The fewer levels, the more is worth
# cutting off; above 1 the last level is given up.
_LEAST_SHARES = {8: 0.85, 7: 0.8, 6: 0.7, 5: 0.6, 4: 0.45, 3: 0.35, 2: 0.3}
_STEPS = 23
_ABOVE = 1.04
_SMALLEST_SCALE = 1e-12
_BLOCK = 128


@dataclass(frozen=True, eq=False)
class RoundedWeights:
    """The weights of one layer as integers.

    Attributes:
        integers: int8 [outputs, columns].
        scale: float32 [outputs, groups of columns].
        bits: of a weight, 1 to 8.
        group: columns that share a scale; 0: all.
    """

    integers: np.ndarray
    scale: np.ndarray
    bits: int
    group: int = 0

    @property
    def matrix(self) -> np.ndarray:
        """Return the weights that the integers stand for, float32 [outputs, columns]."""
        return self.integers * _spread(self.scale, self.integers.shape[1], self.group)


def levels(bits: int) -> tuple[int, int]:
    """Return the least and the greatest integer."""
    if bits == 1:
        return -1, 1
    return (-127, 127) if bits == 8 else (-(1 << (bits - 1)), (1 << (bits - 1)) - 1)


def to_levels(values: np.ndarray, bits: int) -> np.ndarray:
    """Round weights in units of their scale to integers; of one bit zero counts as positive."""
    if bits == 1:
        return np.where(values < 0, -1.0, 1.0)
    return np.clip(np.rint(values), *levels(bits))


def clipped_scales(
    matrix: np.ndarray, bits: int, moments: np.ndarray | None = None, group: int = 0
) -> np.ndarray:
    """Return the scales of the least weighted squared error.

    Args:
        matrix: weights [outputs, columns].
        bits: of a weight.
        moments: E[x^2] of each column, [columns] or [outputs, columns]; None: all alike.
        group: columns that share a scale, the last group may have fewer; 0: all.

    Returns:
        float32 [outputs, groups].
    """
    outputs, columns = matrix.shape
    size = group or columns
    padding = ((0, 0), (0, -columns % size))
    weights = np.ones_like(matrix) if moments is None else np.broadcast_to(moments, matrix.shape)
    # Columns that only fill the last group have no weight.
    rows = np.pad(matrix, padding).reshape(-1, size)
    scales = _searched(rows, np.pad(weights, padding).reshape(-1, size), bits)
    return scales.astype(np.float32).reshape(outputs, -1)


def _searched(rows: np.ndarray, weights: np.ndarray, bits: int) -> np.ndarray:
    """Return the best scale of each row."""
    rows = rows.astype(np.float32)
    weights = (weights / max(float(weights.mean()), _SMALLEST_SCALE)).astype(np.float32)
    if bits == 1:  # Rastegari et al., arXiv 1603.05279: the mean of the absolute values
        total = np.maximum(weights.sum(axis=1), _SMALLEST_SCALE)
        return np.maximum((np.abs(rows) * weights).sum(axis=1) / total, _SMALLEST_SCALE)
    low, high = levels(bits)
    whole = np.maximum(np.maximum(rows.max(axis=1) / high, rows.min(axis=1) / low), _SMALLEST_SCALE)
    best, least = whole, np.full(len(rows), np.inf, np.float32)
    for share in (*np.linspace(_LEAST_SHARES[bits], 1.0, _STEPS), _ABOVE):
        scale = (whole * np.float32(share))[:, np.newaxis]
        change = np.clip(np.rint(rows / scale), low, high)
        change *= scale
        change -= rows
        change *= change
        error = np.einsum("rc,rc->r", change, weights)
        better = error < least
        best, least = np.where(better, scale[:, 0], best), np.where(better, error, least)
    return best


def nearest(matrix: np.ndarray, scale: np.ndarray, bits: int, group: int = 0) -> RoundedWeights:
    """Round every weight to the nearest integer; arguments as of `compensated`."""
    integers = to_levels(matrix / _spread(scale, matrix.shape[1], group), bits)
    return RoundedWeights(integers.astype(np.int8), scale, bits, group)


def compensated(
    matrix: np.ndarray, scale: np.ndarray, bits: int, hessian: np.ndarray, group: int = 0
) -> RoundedWeights:
    """Round the columns one after the other, the heaviest first, each making up for those before.

    Args:
        matrix: weights [outputs, columns].
        scale: [outputs, groups of columns].
        bits: of a weight.
        hessian: E[x x^T], float64 [groups of outputs, columns, columns], `damped`.
        group: columns that share a scale; 0: all.
    """
    outputs, columns = matrix.shape
    groups = len(hessian)
    spread = _spread(scale, columns, group).astype(np.float64)
    integers = np.empty((outputs, columns), np.int8)
    per_group = outputs // groups
    for number in range(groups):
        rows = slice(number * per_group, (number + 1) * per_group)
        integers[rows] = _column_by_column(matrix[rows], spread[rows], bits, hessian[number])
    return RoundedWeights(integers, scale, bits, group)


def damped(hessian: np.ndarray, share: float) -> np.ndarray:
    """Return a second moment that can be inverted: a share of its mean diagonal is added."""
    diagonal = np.diagonal(hessian, axis1=-2, axis2=-1).mean(axis=-1)
    added = np.maximum(share * diagonal, 1e-8)[..., np.newaxis, np.newaxis]
    return hessian + added * np.eye(hessian.shape[-1])


def _column_by_column(
    matrix: np.ndarray, spread: np.ndarray, bits: int, hessian: np.ndarray
) -> np.ndarray:
    order = np.argsort(-np.diagonal(hessian), kind="stable")
    hessian = hessian[np.ix_(order, order)]
    # inv(H) = U^T U with U upper triangular: row j of U says how the error of column j is shared.
    upper = np.linalg.cholesky(np.linalg.inv(hessian)).T
    left, spread = matrix.astype(np.float64)[:, order], spread[:, order]
    rounded = np.empty_like(left)
    for start in range(0, left.shape[1], _BLOCK):
        stop = min(start + _BLOCK, left.shape[1])
        errors = np.empty((len(left), stop - start))
        for j in range(start, stop):
            rounded[:, j] = to_levels(left[:, j] / spread[:, j], bits)
            error = (left[:, j] - rounded[:, j] * spread[:, j]) / upper[j, j]
            left[:, j:stop] -= np.outer(error, upper[j, j:stop])
            errors[:, j - start] = error
        left[:, stop:] -= errors @ upper[start:stop, stop:]
    back = np.empty_like(order)
    back[order] = np.arange(len(order))
    return rounded[:, back].astype(np.int8)


def _spread(scale: np.ndarray, columns: int, group: int) -> np.ndarray:
    """Return the scale of every weight, [outputs, columns]."""
    return np.repeat(scale, group or columns, axis=1)[:, :columns]
