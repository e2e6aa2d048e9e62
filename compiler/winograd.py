"""Winograd's minimal filtering for 3x3 convolutions: its matrices, as data.

F(m x m, 3 x 3) computes m x m outputs of a 3x3 convolution from a tile of t x t inputs, t = m + 2:
Y = A^T [(G g G^T) * (B^T d B)] A, element-wise in the middle (Lavin and Gray, "Fast algorithms for
convolutional neural networks", arXiv 1509.09308, section 4.1). The middle is one matrix product per
element of the tile: t^2 multiplications for m^2 outputs, where direct convolution needs 9 m^2.
"""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction as F

import numpy as np

Matrix = tuple[tuple[float, ...], ...]
INPUT_BLOCK = "winograd_input"
OUTPUT_BLOCK = "winograd_output"
PRODUCT = "winograd_product"


@dataclass(frozen=True)
class Winograd:
    """The three matrices of F(m x m, 3 x 3); rows outermost.

    Attributes:
        outputs: m, outputs of a tile along one dimension.
        data: B^T [t, t].
        weight: G [t, 3].
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

    def transform_weight(self, weight: np.ndarray) -> np.ndarray:
        """[O, I, (K,) 3, 3] -> [t, t, (K,) I, O], computed in float64 and rounded once."""
        g = np.asarray(self.weight, dtype=np.float64)
        wide = np.moveaxis(weight.astype(np.float64), (0, 1), (-1, -2))
        transformed = np.einsum("ak,...klio,bl->ab...io", g, wide, g)
        return np.ascontiguousarray(transformed.astype(weight.dtype))


def _matrix(rows: list[list[F | int]]) -> Matrix:
    return tuple(tuple(float(value) for value in row) for row in rows)


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
