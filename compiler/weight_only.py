"""Products of floats with weights in 2, 4 or 8 bits: how the weights lie in memory, and the sum.

    out[.., n] = sum over k of data[.., k] * (code[n, k] - zero[n, k / group]) * scale[n, k / group]

Codes come in 32-bit words, the first in the lowest bits; the highest bit of each word is flipped.
Words lie in the order in which a kernel reads them, scales (and zero points) in front of the words
of their group, as the bits of floats:

    packed    int32 [columns / lanes, groups, head + words, lanes]    head: scale; scale and zero

`schedule.weight_only` says what a kernel gains from it.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from tvm import te, tirx

PRODUCT_BLOCK = "weight_only_product"
"""Name of the block that sums, by which its schedule knows it."""

WORD_BITS = 32
_SIGN = -(2**31)


@dataclass(frozen=True, slots=True)
class WeightWords:
    """How a matrix of weights is packed.

    Attributes:
        bits: width of a code: 2, 4 or 8.
        rows: extent of the reduction, without padding.
        columns: outputs, without padding.
        group: rows that share a scale; a multiple of the codes in a word.
        symmetric: all zero points are the middle of the codes.
        lanes: columns that lie beside each other.
    """

    bits: int
    rows: int
    columns: int
    group: int
    symmetric: bool
    lanes: int

    @property
    def in_word(self) -> int:
        """Codes in one word."""
        return WORD_BITS // self.bits

    @property
    def middle(self) -> int:
        """Zero point of symmetric weights."""
        return 2 ** (self.bits - 1)

    @property
    def head(self) -> int:
        """Rows of words in front of those of a group: the scale, and the zero point if any."""
        return 1 if self.symmetric else 2

    @property
    def groups(self) -> int:
        """Groups along the reduction, the last one padded."""
        return -(-self.rows // self.group)

    @property
    def words(self) -> int:
        """Words of a group in one column."""
        return self.group // self.in_word

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """Shape of the packed weights."""
        vectors = -(-self.columns // self.lanes)
        return vectors, self.groups, self.head + self.words, self.lanes


def pack_words(
    words: WeightWords, codes: np.ndarray, scales: np.ndarray, zeros: np.ndarray | None
) -> np.ndarray:
    """Return packed weights, int32 of `words.shape`.

    Args:
        words: how.
        codes: uint8 [columns, groups, group].
        scales: float32 [columns, groups].
        zeros: float32 [columns, groups]; None if symmetric.
    """
    vectors, groups, _, lanes = words.shape
    shifts = np.arange(0, WORD_BITS, words.bits, dtype=np.uint32)
    apart = codes.reshape(len(codes), groups, words.words, words.in_word).astype(np.uint32)
    joined = np.bitwise_or.reduce(apart << shifts, axis=-1) ^ np.uint32(2**31)
    heads = [scales] if zeros is None else [scales, zeros]
    head = np.stack([item.astype(np.float32).view(np.uint32) for item in heads], axis=-1)
    rows = np.concatenate([head, joined], axis=-1).view(np.int32)
    padded = np.pad(rows, ((0, vectors * lanes - len(rows)), (0, 0), (0, 0)))
    in_lanes = padded.reshape(vectors, lanes, groups, -1).transpose(0, 2, 3, 1)
    return np.ascontiguousarray(in_lanes)


def with_plain_heads(words: WeightWords, packed: np.ndarray) -> np.ndarray:
    """Return any packed integers with scales and zero points between 0 and 1 in their heads."""
    heads = (packed[:, :, : words.head] & 0xFF).astype(np.float32) / np.float32(256)
    changed = packed.copy()
    changed[:, :, : words.head] = heads.view(np.int32)
    return changed


def product(data: te.Tensor, packed: te.Tensor, words: WeightWords) -> te.Tensor:
    """Return data [.., rows] times the weights, [.., columns]."""
    group = te.reduce_axis((0, words.groups), name="group")
    row = te.reduce_axis((0, words.group), name="row")
    mask = tirx.const(2**words.bits - 1, "int32")

    def value(*at: tirx.Var) -> tirx.PrimExpr:
        *lead, column = at
        k = group * words.group + row
        inside = te.if_then_else(k < words.rows, data(*lead, k), tirx.const(0, "float32"))
        vector, lane = column // words.lanes, column % words.lanes

        def head(place: int) -> tirx.PrimExpr:
            return tirx.reinterpret("float32", packed(vector, group, place, lane))

        word = packed(vector, group, row // words.in_word + words.head, lane)
        shift = (row % words.in_word * words.bits).astype("int32")
        code = ((word ^ tirx.const(_SIGN, "int32")) >> shift) & mask
        zero = tirx.const(words.middle, "float32") if words.symmetric else head(1)
        return te.sum(inside * ((code.astype("float32") - zero) * head(0)), axis=[group, row])

    shape = (*data.shape[:-1], words.columns)
    return te.compute(shape, value, name=_block_name(words))


def _block_name(words: WeightWords) -> str:
    """Return a name that says what shapes do not."""
    kind = "symmetric" if words.symmetric else "asymmetric"
    return f"{PRODUCT_BLOCK}_{words.bits}_{words.rows}_{kind}"


def read_words(name: str, packed_shape: tuple[int, ...], columns: int) -> WeightWords | None:
    """Return how the weights of a block are packed, or None where it is another block.

    Args:
        name: of the block; TVM may have made it unique by a suffix.
        packed_shape: shape of the packed weights.
        columns: outputs.
    """
    if not name.startswith(f"{PRODUCT_BLOCK}_"):
        return None
    bits, rows, kind = name.removeprefix(f"{PRODUCT_BLOCK}_").split("_")[:3]
    symmetric = kind == "symmetric"
    height, lanes = packed_shape[2:]
    group = (height - (1 if symmetric else 2)) * WORD_BITS // int(bits)
    return WeightWords(int(bits), int(rows), columns, group, symmetric, lanes)
