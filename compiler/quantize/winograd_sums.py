"""Integer convolutions of 3x3 by Winograd's F(2x2, 3x3), exact in 16 and 32 bits.

    V = B^T x B           x of unsigned bytes: at most 1020 on either side of 0, int16
    U = 4 G w G^T         w of signed bytes: whole numbers up to 9 * 127, int16
    4 s = A^T (V U) A     sums over channels in int32; every one is 4 times the direct sum

Nothing is rounded, so the sums are those of the direct convolution, bit for bit. It multiplies 4
times for an output and channel where the direct one does 9 times: worth it where the instructions
for bytes are those for 16 bits anyway (vpmaddwd on x86 without VNNI), and weights of four times the
size do not cost more. Whether sums stay within 32 bits is checked by the weights.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import prod

import numpy as np
from tvm import te

from tilewright.compiler.quantize.linear import Linear
from tilewright.compiler.schedule.dot_groups import narrow_gain
from tilewright.compiler.schedule.low_bit import LowBit
from tilewright.compiler.targets import parse_target
from tilewright.compiler.winograd import WINOGRAD
from tilewright.compiler.winograd_tensors import input_transform, output_transform

VARIANT = WINOGRAD[2]
# U has a factor of 2 for each G, so that it is whole.
_HALVES = 2
_SHIFT = 2
_BYTE_MAX = 255
_INT16_MAX, _INT32_LIMIT = 2**15 - 1, 2**31
_LEAST_CHANNELS = 16

# An estimate for one core of x86 with AVX2; only ratios matter. Products of 16 bits in a second,
# and bytes that the transforms write or read again.
_PRODUCTS_S = 70e9
_CACHE_BYTES_S = 40e9
_MEMORY_BYTES_S = 20e9
_TARGET = parse_target("x86-64-v3")
_GAIN_WANTED = 1.1
# Of the estimate that 128 channels of 28 x 28 take; direct ones by vpmaddubsw take 1.0 of theirs.
_AGAINST_NARROW = 0.86


@dataclass(frozen=True, eq=False)
class WinogradSums:
    """The sums of an integer convolution by Winograd's algorithm.

    Attributes:
        linear: the convolution.
        weight: U, int16 [4, 4, I, O].
        out: shape of the sums, [N, O, H, W].
        tiles: number of tiles along height and width.
    """

    linear: Linear
    weight: np.ndarray
    out: tuple[int, ...]
    tiles: tuple[int, int]

    def transformed(self, data: te.Tensor) -> te.Tensor:
        """Return V, int16 [4, 4, N, TH, TW, I]."""
        assert self.linear.window is not None
        padding = self.linear.window[1]
        before, after = padding[:2], padding[2:]
        zero = int(self.linear.affine.zero)
        return input_transform(data, VARIANT, before, after, self.tiles, dtype="int16", border=zero)

    def sums(self, products: te.Tensor) -> te.Tensor:
        """Return the sums, int32, from V U as [4, 4, N, TH, TW, O]."""
        fourfold = output_transform(products, VARIANT, self.out)
        return te.compute(self.out, lambda *at: fourfold(*at) >> _SHIFT, name="sums")

    @property
    def rows(self) -> int:
        """Number of tiles in all."""
        return self.out[0] * prod(self.tiles)


def winograd_sums(linear: Linear, out: tuple[int, ...]) -> WinogradSums | None:
    """Return the sums by Winograd's algorithm, or None where it cannot be used or does not pay.

    Args:
        linear: the convolution.
        out: shape of its result.
    """
    if linear.window is None or linear.weight.ndim != 4:
        return None
    strides, _, dilation, groups = linear.window
    if linear.weight.shape[2:] != (3, 3) or groups != 1 or {*strides, *dilation} != {1}:
        return None
    if min(linear.weight.shape[:2]) < _LEAST_CHANNELS or min(out[2:]) <= VARIANT.outputs:
        return None
    tiles = (-(-out[2] // VARIANT.outputs), -(-out[3] // VARIANT.outputs))
    if not _pays(linear, out, out[0] * prod(tiles)):
        return None
    weight = _transformed_weight(linear.weight)
    if weight is None:
        return None
    return WinogradSums(linear, weight, out, tiles)


def _transformed_weight(weight: np.ndarray) -> np.ndarray | None:
    """Return U of int8 [O, I, 3, 3], or None where sums could leave 32 bits."""
    doubled = np.asarray(VARIANT.weight) * _HALVES
    whole = np.rint(np.einsum("ak,oikl,bl->abio", doubled, weight.astype(np.float64), doubled))
    if np.abs(whole).max(initial=0) > _INT16_MAX:
        return None
    reach = np.abs(np.asarray(VARIANT.data)).sum(axis=1)
    products = np.abs(whole).sum(axis=2) * _BYTE_MAX * np.outer(reach, reach)[:, :, None]
    result = np.abs(np.asarray(VARIANT.result))
    greatest = np.einsum("ra,abo,sb->rso", result, products, result).max(initial=0)
    return whole.astype(np.int16) if greatest < _INT32_LIMIT else None


def _pays(linear: Linear, out: tuple[int, ...], rows: int) -> bool:
    outputs, inputs = linear.weight.shape[:2]
    points = VARIANT.tile**2
    products = inputs * 9
    low_bit = LowBit(linear.weights.low, linear.weights.high, linear.weights.is_sign, linear.mask)
    gain = narrow_gain(_TARGET, inputs, low_bit, products)
    direct = prod(out) * products / (_PRODUCTS_S * gain) + outputs * inputs * 9 / _MEMORY_BYTES_S
    moved = points * rows * (2 * 2 * inputs + 2 * 4 * outputs)
    weights = 2 * points * outputs * inputs
    seconds = points * rows * inputs * outputs / _PRODUCTS_S
    seconds += moved / _CACHE_BYTES_S + weights / _MEMORY_BYTES_S
    return seconds * (_GAIN_WANTED if gain == 1 else _AGAINST_NARROW) < direct
