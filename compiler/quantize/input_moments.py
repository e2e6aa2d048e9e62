"""Second moments of what a layer reads, in floats and as it will read it: what rounding needs.

With x the columns in floats and q what the rounded model gives instead, a layer W becomes the V
that is best on the samples,

    minimise E |W x - V q|^2  ->  V = W + W E[(x - q) q^T] inv(E[q q^T])

which makes up for the errors of the layers before; V is what is rounded. With a bias, moments are
around the means, and the bias takes what is left of the mean (arXiv 1906.04721, 4.2).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from tilewright.compiler.quantize.layer_matrix import LayerMatrix
from tilewright.compiler.quantize.weight_rounding import damped

MOST_COLUMNS = 6144
"""Layers with more columns are rounded without their second moments: 300 MB for each."""


@dataclass(frozen=True, eq=False)
class InputMoments:
    """What a layer reads, over all samples and positions; float64.

    Attributes:
        second: E[q q^T], [groups, columns, columns].
        cross: E[(x - q) q^T], of the same shape.
        mean: E[q], [groups, columns].
        mean_float: E[x], of the same shape.
    """

    second: np.ndarray
    cross: np.ndarray
    mean: np.ndarray
    mean_float: np.ndarray

    @property
    def diagonal(self) -> np.ndarray:
        """Return E[q^2] of each column, [groups, columns]."""
        return np.diagonal(self.second, axis1=1, axis2=2)

    def centred(self) -> InputMoments:
        """Return the moments around the means."""
        second = self.second - _outer(self.mean, self.mean)
        cross = self.cross - _outer(self.mean_float - self.mean, self.mean)
        return InputMoments(second, cross, self.mean, self.mean_float)


def _outer(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    return np.einsum("gi,gj->gij", a, b)


class MomentSums:
    """Gathers the moments of a layer's input, sample by sample.

    Attributes:
        count: positions so far.
    """

    def __init__(self, layer: LayerMatrix) -> None:
        self._layer = layer
        self.count = 0
        self._sums: list[np.ndarray] = []

    def add(self, plain: np.ndarray, read: np.ndarray) -> None:
        """Take in one sample.

        Args:
            plain: the input in floats.
            read: the input as it will be read; the same array where it is the same.
        """
        q = self._layer.columns(read)
        seen = [np.matmul(q.transpose(0, 2, 1), q), q.sum(axis=1)]
        if plain is read:
            seen += [np.zeros_like(seen[0]), seen[1]]
        else:
            x = self._layer.columns(plain)
            seen += [np.matmul((x - q).transpose(0, 2, 1), q), x.sum(axis=1)]
        self.count += q.shape[1]
        if self._sums:
            seen = [total + new for total, new in zip(self._sums, seen, strict=True)]
        self._sums = seen

    def joined(self, other: MomentSums) -> MomentSums:
        """Return the sums of both."""
        both = MomentSums(self._layer)
        both.count = self.count + other.count
        pairs = zip(self._sums or other._sums, other._sums or self._sums, strict=True)
        both._sums = [a if a is b else a + b for a, b in pairs]
        return both

    def result(self) -> InputMoments:
        """Return the moments of all samples."""
        second, mean, cross, mean_float = (total / self.count for total in self._sums)
        return InputMoments(second, cross, mean, mean_float)


def best_weights(matrix: np.ndarray, moments: InputMoments, damping: float) -> np.ndarray:
    """Return the float weights that make up best for what the layer reads; see the module."""
    if not moments.cross.any():
        return matrix
    groups = len(moments.second)
    parts = matrix.astype(np.float64).reshape(groups, -1, matrix.shape[1])
    change = np.linalg.solve(
        damped(moments.second, damping), np.matmul(parts, moments.cross).transpose(0, 2, 1)
    )
    return (parts + change.transpose(0, 2, 1)).reshape(matrix.shape)


def mean_shift(matrix: np.ndarray, rounded: np.ndarray, moments: InputMoments) -> np.ndarray:
    """Return what the bias has to add, E[W x] - E[V q], float64 [outputs]."""
    groups = len(moments.mean)

    def means(weights: np.ndarray, mean: np.ndarray) -> np.ndarray:
        parts = weights.astype(np.float64).reshape(groups, -1, weights.shape[1])
        return np.einsum("gok,gk->go", parts, mean).reshape(-1)

    return means(matrix, moments.mean_float) - means(rounded, moments.mean)


def output_error(
    matrix: np.ndarray, rounded: np.ndarray, moments: InputMoments
) -> tuple[float, float]:
    """Return E |W q - V q|^2 and E |W q|^2 of a layer, summed over its outputs."""
    groups = len(moments.second)

    def power(weights: np.ndarray) -> float:
        parts = weights.astype(np.float64).reshape(groups, -1, weights.shape[1])
        return float((np.matmul(parts, moments.second) * parts).sum())

    return power(rounded - matrix), power(matrix)


def added_error(matrix: np.ndarray, rounded: np.ndarray, moments: InputMoments) -> float:
    """Return E |W x - V q|^2 - E |W (x - q)|^2, which is least for the best V.

    With d = x - q: W x - V q = W d + (W - V) q, and E |W d|^2 is the same for all V.
    """
    groups = len(moments.second)
    shape = (groups, -1, matrix.shape[1])
    plain = matrix.astype(np.float64).reshape(shape)
    change = plain - rounded.astype(np.float64).reshape(shape)
    own = np.matmul(change, moments.second)
    own += 2 * np.matmul(plain, moments.cross)
    return float((own * change).sum())
