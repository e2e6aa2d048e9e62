"""Weights of few bits, packed when a model is compiled: what a kernel reads instead of bytes.

A kernel whose weights are packed carries an attribute that says how; `compiler.pipeline` packs the
constants that its calls pass. Weights come in the groups of `layout.integer_choices`:

    int8 [O / lanes, .., lanes, 32]  ->  int32 [O / lanes, .., bits, lanes], counts [O]       planes
    int8 [O / 8, .., 8, 8]           ->  uint8 [O / 32, .., bits, 32]                         tables
    int8 [O / 8, .., 8, 16]          ->  uint8 [O / 8, .., 16 / n, 8, 4]                     codes

Bit t of a word of a plane is that of channel t. The low half of a byte of a table's index has
channels 0 to 3, the high one 4 to 7. A byte has n codes, of 2 or 4 bits. A sign is one bit, set for
the greater of the two weights; counts are the bits of an output that are set.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass

import numpy as np
from tvm import tirx

from tilewright.compiler.schedule.low_bit import LowBit

ATTRIBUTE = "tilewright.packing"
PLANES, TABLES, CODES = 32, 8, 16
"""Elements in a group of weights, by which the form of a kernel is told."""

TABLE_VECTORS = 4
"""Vectors of 32-bit outputs in one vector of bytes."""


@dataclass(frozen=True, slots=True)
class Packing:
    """How the weights of a kernel are packed.

    Attributes:
        group: `PLANES`, `TABLES` or `CODES`.
        low_bit: which integers they are.
    """

    group: int
    low_bit: LowBit

    @property
    def planes(self) -> int:
        """Bits of a weight."""
        return self.low_bit.weight_bits

    def size(self, shape: tuple[int, ...]) -> int:
        """Return how many words or bytes there are for weights of a grouped shape."""
        if self.group == CODES:
            return int(np.prod(shape, dtype=np.int64)) * code_bits(self.low_bit) // 8
        return _empty_size(shape, self.group, self.planes)

    @property
    def dtype(self) -> str:
        """Dtype of the packed weights."""
        return "int32" if self.group == PLANES else "uint8"

    def pack(self, weights: np.ndarray) -> np.ndarray:
        """Return packed weights, flat.

        Args:
            weights: int8, grouped.
        """
        if self.group == CODES:
            return self._codes(weights)
        bits = self._bits(weights)
        if self.group == TABLES:
            return _tables(bits)
        words = np.packbits(bits, axis=-1, bitorder="little").view("<i4")[..., 0]
        words = np.moveaxis(words, 0, -2)  # planes stand before lanes
        first = bits[0].astype(np.int32).sum(axis=-1)
        counts = first.reshape(first.shape[0], -1, first.shape[-1]).sum(axis=1)
        return np.concatenate([words.ravel(), counts.ravel().astype(np.int32)])

    def _bits(self, weights: np.ndarray) -> np.ndarray:
        """Return the bits of weights as uint8 [planes, ..]; bounds hold for what is beyond."""
        if self.low_bit.is_sign:
            return (weights > 0).astype(np.uint8)[None]
        bounded = np.clip(weights, self.low_bit.low, self.low_bit.high).view(np.uint8)
        return np.stack([bounded >> plane & 1 for plane in range(self.planes)])

    def _codes(self, weights: np.ndarray) -> np.ndarray:
        """Return bytes of several codes each: of weights 4 apart, 4 neighbours in 4 bytes."""
        values = np.array(code_values(self.low_bit), np.int8)
        low_bit = self.low_bit
        bounded = np.clip(weights, low_bit.low, low_bit.high)
        if low_bit.is_sign:
            bounded = np.where(weights > 0, low_bit.high, low_bit.low)
        codes = np.argsort(values)[np.searchsorted(np.sort(values), bounded)].astype(np.uint8)
        bits = code_bits(low_bit)
        per = 8 // bits
        *outer, lanes, _ = codes.shape
        parts = codes.reshape(*outer, lanes, -1, per, 4)
        joined = np.zeros((*parts.shape[:-2], 4), np.uint8)
        for part in range(per):
            joined |= parts[..., part, :] << (part * bits)
        return np.ascontiguousarray(np.swapaxes(joined, -2, -3)).ravel()

    def to_json(self) -> str:
        """Return one line of JSON that `from_json` reads back."""
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> Packing:
        """Read a packing back."""
        data = json.loads(text)
        return cls(data["group"], LowBit(**data["low_bit"]))


def code_bits(low_bit: LowBit) -> int:
    """Return the bits of a code in memory, 0 where weights have too many values for one."""
    return next((bits for bits in (2, 4) if low_bit.weight_bits <= bits), 0)


def code_values(low_bit: LowBit) -> list[int]:
    """Return the weights that codes stand for, by code."""
    if low_bit.is_sign:
        return [low_bit.low, low_bit.high]
    count = 1 << code_bits(low_bit)
    return [code - count if code >= count // 2 else code for code in range(count)]


def _empty_size(shape: tuple[int, ...], group: int, planes: int) -> int:
    outer, *rest, lanes, _ = shape
    cells = int(np.prod(rest, dtype=np.int64))
    if group == PLANES:
        return outer * lanes * (cells * planes + 1)
    return -(-outer // TABLE_VECTORS) * TABLE_VECTORS * lanes * cells * planes


def _tables(bits: np.ndarray) -> np.ndarray:
    """Return bytes of two indices each, of `TABLE_VECTORS` vectors of outputs side by side."""
    planes, outer, *_rest, lanes, _ = bits.shape
    index = np.packbits(bits, axis=-1, bitorder="little")[..., 0]
    index = index.reshape(planes, outer, -1, lanes)
    index = np.pad(index, ((0, 0), (0, -outer % TABLE_VECTORS), (0, 0), (0, 0)))
    grouped = index.reshape(planes, -1, TABLE_VECTORS, index.shape[2], lanes)
    return np.ascontiguousarray(grouped.transpose(1, 3, 0, 2, 4)).ravel()


def packings(func: tirx.PrimFunc) -> dict[int, Packing]:
    """Return how the weights of a scheduled kernel are packed, by parameter."""
    if func.attrs is None or ATTRIBUTE not in func.attrs:
        return {}
    data: Mapping[str, str] = json.loads(str(func.attrs[ATTRIBUTE]))
    return {int(position): Packing.from_json(text) for position, text in data.items()}


def with_packed(
    func: tirx.PrimFunc, position: int, packing: Packing
) -> tuple[tirx.PrimFunc, tirx.Var]:
    """Return a function whose parameter is packed weights, and that parameter.

    Its body still reads the old one, and is to be replaced.
    """
    old = func.params[position]
    shape = tuple(int(extent) for extent in old.shape)
    new = tirx.decl_buffer((packing.size(shape),), packing.dtype, f"{old.name}_packed")
    params = [new if index == position else param for index, param in enumerate(func.params)]
    said = {str(at): each.to_json() for at, each in packings(func).items()}
    said[str(position)] = packing.to_json()
    attrs = func.attrs
    return (
        tirx.PrimFunc(params, func.body, attrs=attrs).with_attr(ATTRIBUTE, json.dumps(said)),
        new,
    )
