"""Constants dequantized in blocks: the integers behind them, for products that unpack them."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from tilewright.compiler.quantize.weight_product import IntegerWeights, pack
from tilewright.compiler.weight_only import WORD_BITS

_BITS = {f"{sign}int{bits}": bits for sign in ("", "u") for bits in (2, 4, 8)}


@dataclass(frozen=True, eq=False)
class BlockedConstant:
    """A matrix of integers with a scale for each block along one axis.

    Attributes:
        name: of the tensor that it is dequantized to.
        integers: of ``dtype``, one in an element.
        scales: float32, one for each block.
        zeros: integers, like the scales; None: 0.
        dtype: "int4", "uint8"...
        axis: along which blocks lie, 0 or 1.
        block: elements in a block; the last one may have fewer.
    """

    name: str
    integers: np.ndarray
    scales: np.ndarray
    zeros: np.ndarray | None
    dtype: str
    axis: int
    block: int

    def transposed(self) -> BlockedConstant:
        """Return the matrix with its axes swapped."""
        zeros = None if self.zeros is None else self.zeros.T
        return replace(
            self, integers=self.integers.T, scales=self.scales.T, zeros=zeros, axis=1 - self.axis
        )

    def problem(self) -> str:
        """Return why no product with this as its right operand keeps the integers, or nothing."""
        if self.integers.ndim != 2:
            return f"it has {self.integers.ndim} dimensions"
        if self.dtype not in _BITS:
            return f"its integers are {self.dtype}; kernels unpack {', '.join(_BITS)}"
        if self.axis == 1:
            return "its blocks lie along the columns of a product"
        bits = _BITS[self.dtype]
        if len(self.scales) > 1 and self.block * bits % WORD_BITS:
            return f"{self.block} weights of {bits} bits do not fill words of {WORD_BITS} bits"
        return ""

    def weights(self) -> IntegerWeights:
        """Return the integers as weights of a product; there is no `problem`."""
        bits = _BITS[self.dtype]
        rows, columns = self.integers.shape
        groups = len(self.scales)
        lowest = 0 if self.dtype.startswith("u") else -(2 ** (bits - 1))
        # A single block ends where a word does.
        block = self.block if groups > 1 else rows + -rows % (WORD_BITS // bits)
        codes = np.zeros((columns, groups * block), np.uint8)
        codes[:, :rows] = (self.integers.T.astype(np.int16) - lowest).astype(np.uint8)
        in_blocks = codes.reshape(columns, groups, block)
        zeros = np.zeros(self.scales.shape) if self.zeros is None else self.zeros
        points = np.ascontiguousarray((zeros.astype(np.float32) - lowest).T)
        symmetric = bool((points == 2 ** (bits - 1)).all())
        scales = np.ascontiguousarray(self.scales.T.astype(np.float32))
        return IntegerWeights(
            pack(in_blocks, bits), scales, None if symmetric else points, bits, rows
        )
