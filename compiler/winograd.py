"""Winograd's minimal filtering for windows of 3 and 2 taps: its matrices, as data.

F(m x m, r x r) computes m x m outputs of an r x r convolution from a tile of t x t inputs,
t = m + r - 1: Y = A^T [(G g G^T) * (B^T d B)] A, element-wise in the middle (Lavin and Gray, "Fast
algorithms for convolutional neural networks", arXiv 1509.09308, section 4.1). The middle is one
matrix product per element of the tile: t^2 multiplications for m^2 outputs, where direct
convolution needs r^2 m^2.

Along one dimension alone, F(1 x m, 1 x r), the rows have F(1, 1), whose matrices are the number 1.
"""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction as F

import numpy as np

Matrix = tuple[tuple[float, ...], ...]
INPUT_BLOCK = "winograd_input"
OUTPUT_BLOCK = "winograd_output"
PRODUCT = "winograd_product"
SIGNAL_RANK = 3
"""Of [N, C, W], a signal without rows."""


@dataclass(frozen=True)
class Winograd:
    """The three matrices of F(m, r); rows outermost.

    Attributes:
        outputs: m, outputs of a tile along one dimension.
        data: B^T [t, t].
        weight: G [t, r].
        result: A^T [m, t].
    """

    outputs: int
    data: Matrix
    weight: Matrix
    result: Matrix

    @property
    def tile(self) -> int:
        """t: inputs of a tile along one dimension."""
        return len(self.data)

    @property
    def taps(self) -> int:
        """r: taps of the window along one dimension."""
        return self.tile - self.outputs + 1


def transform_weight(weight: np.ndarray, rows: Winograd, columns: Winograd) -> np.ndarray:
    """[O, I, (K,) r, r] -> [t, t, (K,) I, O], computed in float64 and rounded once.

    Args:
        weight: of the convolution.
        rows, columns: what is used along either dimension.
    """
    first, second = (np.asarray(each.weight, dtype=np.float64) for each in (rows, columns))
    wide = np.moveaxis(weight.astype(np.float64), (0, 1), (-1, -2))
    transformed = np.einsum("ak,...klio,bl->ab...io", first, wide, second)
    return np.ascontiguousarray(transformed.astype(weight.dtype))


def _matrix(rows: list[list[F | int]]) -> Matrix:
    return tuple(tuple(float(value) for value in row) for row in rows)


ALONE = Winograd(1, ((1.0,),), ((1.0,),), ((1.0,),))
"""F(1, 1): along this dimension nothing is transformed."""

WINOGRAD = {
    2: Winograd(
        2,
        _matrix([[1, 0, -1, 0], [0, 1, 1, 0], [0, -1, 1, 0], [0, 1, 0, -1]]),
        _matrix([[1, 0, 0], [F(1, 2), F(1, 2), F(1, 2)], [F(1, 2), F(-1, 2), F(1, 2)], [0, 0, 1]]),
        _matrix([[1, 1, 1, 0], [0, 1, -1, -1]]),
    ),
    4: Winograd(
        4,
        _matrix(
            [
                [4, 0, -5, 0, 1, 0],
                [0, -4, -4, 1, 1, 0],
                [0, 4, -4, -1, 1, 0],
                [0, -2, -1, 2, 1, 0],
                [0, 2, -1, -2, 1, 0],
                [0, 4, 0, -5, 0, 1],
            ]
        ),
        _matrix(
            [
                [F(1, 4), 0, 0],
                [F(-1, 6), F(-1, 6), F(-1, 6)],
                [F(-1, 6), F(1, 6), F(-1, 6)],
                [F(1, 24), F(1, 12), F(1, 6)],
                [F(1, 24), F(-1, 12), F(1, 6)],
                [0, 0, 1],
            ]
        ),
        _matrix(
            [
                [1, 1, 1, 1, 1, 0],
                [0, 1, -1, 2, -2, 0],
                [0, 1, 1, 4, 4, 0],
                [0, 1, -1, 8, -8, 1],
            ]
        ),
    ),
}
"""For windows of 3 taps, by outputs."""

WINOGRAD_OF_TWO = {
    2: Winograd(
        2,
        _matrix([[1, -1, 0], [0, 1, 0], [0, 1, -1]]),
        _matrix([[1, 0], [1, 1], [0, 1]]),
        _matrix([[1, 1, 0], [0, 1, -1]]),
    ),
    4: Winograd(
        4,
        _matrix(
            [
                [2, -1, -2, 1, 0],
                [0, -2, -1, 1, 0],
                [0, 2, -3, 1, 0],
                [0, -1, 0, 1, 0],
                [0, 2, -1, -2, 1],
            ]
        ),
        _matrix(
            [
                [F(1, 2), 0],
                [F(-1, 2), F(-1, 2)],
                [F(-1, 6), F(1, 6)],
                [F(1, 6), F(1, 3)],
                [0, 1],
            ]
        ),
        _matrix([[1, 1, 1, 1, 0], [0, 1, -1, 2, 0], [0, 1, 1, 4, 0], [0, 1, -1, 8, 1]]),
    ),
}
"""For windows of 2 taps, by outputs: the points 0, 1, -1, 2 and infinity."""

BY_TILE = {each.tile: each for each in (ALONE, *WINOGRAD.values(), *WINOGRAD_OF_TWO.values())}
"""The same by t, which none of them shares."""
