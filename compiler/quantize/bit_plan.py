"""How many bits every layer of a model gets: plain data between the choice and the writer.

A layer is a convolution or a product with constant weights. Its weights are integers of 1 to 8
bits, or floats; what it reads is rounded to unsigned integers of 2, 4 or 8 bits, or stays floats.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from tilewright.errors import ModelError

FLOAT_BITS = 32
_ACTIVATION_BITS = (2, 4, 8)
_NAME = re.compile(r"w([1-8])(?:a([248]))?(?:g(\d+))?")


@dataclass(frozen=True, slots=True, order=True)
class LayerBits:
    """The precision of one layer.

    Attributes:
        weights: bits of a weight, 1 to 8; 32 for floats.
        activations: bits of what the layer reads, 2, 4 or 8; 32 for floats.
        group: input channels that share a scale; 0: all of an output channel. Groups are for
            layers that read floats.

    Raises:
        ModelError: no such combination.
    """

    weights: int = 8
    activations: int = 8
    group: int = 0

    def __post_init__(self) -> None:
        floats = self.weights == FLOAT_BITS
        if not (floats or 1 <= self.weights <= 8):
            raise ModelError(f"weights have 1 to 8 bits, or 32 for floats; found {self.weights}")
        if self.activations not in (*_ACTIVATION_BITS, FLOAT_BITS):
            raise ModelError(
                f"activations have 2, 4 or 8 bits, or 32 for floats; found {self.activations}"
            )
        if floats and self.activations != FLOAT_BITS:
            raise ModelError("a layer with weights in floats reads floats")
        if self.group < 0 or (self.group and (floats or self.activations != FLOAT_BITS)):
            raise ModelError(
                f"groups are for integer weights beside activations in floats, found a group of "
                f"{self.group} for weights of {self.weights} bits, activations of "
                f"{self.activations}"
            )

    @property
    def name(self) -> str:
        """What people write: "fp32", "w8a8", "w4a8", "w4", "w4g32"."""
        if self.weights == FLOAT_BITS:
            return "fp32"
        reads = "" if self.activations == FLOAT_BITS else f"a{self.activations}"
        return f"w{self.weights}{reads}" + (f"g{self.group}" if self.group else "")

    @property
    def reads_integers(self) -> bool:
        """Whether what the layer reads is rounded."""
        return self.activations != FLOAT_BITS

    @property
    def has_integer_weights(self) -> bool:
        """Whether its weights are rounded."""
        return self.weights != FLOAT_BITS


FLOAT = LayerBits(FLOAT_BITS, FLOAT_BITS)
BYTES = LayerBits()


def parse_bits(text: str) -> LayerBits:
    """Read what `LayerBits.name` writes; "8" and "4" stand for weights and activations alike.

    Raises:
        ModelError: it is something else.
    """
    if text == "fp32":
        return FLOAT
    if text in ("8", "4"):
        return LayerBits(int(text), int(text))
    match = _NAME.fullmatch(text)
    if match is None:
        raise ModelError(
            f"unknown precision {text!r}; accepted are 8, 4, fp32, w4a8 (bits of weights and "
            "activations), w4 (activations in floats) and w4g32 (one scale for 32 input channels)"
        )
    weights, activations, group = match.groups()
    return LayerBits(int(weights), int(activations or FLOAT_BITS), int(group or 0))


@dataclass(frozen=True, slots=True)
class BitPlan:
    """The precision of every layer of a model, in the order of the model.

    Attributes:
        layers: name of the layer, and its bits; each name once.
    """

    layers: tuple[tuple[str, LayerBits], ...]

    def __post_init__(self) -> None:
        names = [name for name, _ in self.layers]
        if len(set(names)) != len(names):
            twice = next(name for name in names if names.count(name) > 1)
            raise ModelError(f"a plan names the layer {twice!r} twice")

    @classmethod
    def uniform(cls, names: Iterable[str], bits: LayerBits) -> BitPlan:
        """Return the plan that gives all layers the same."""
        return cls(tuple((name, bits) for name in names))

    def __getitem__(self, name: str) -> LayerBits:
        """Return the bits of a layer.

        Raises:
            KeyError: the plan does not name it.
        """
        for known, bits in self.layers:
            if known == name:
                return bits
        raise KeyError(name)

    def replaced(self, changes: Mapping[str, LayerBits]) -> BitPlan:
        """Return the plan with some layers changed."""
        return BitPlan(tuple((name, changes.get(name, bits)) for name, bits in self.layers))

    def counts(self) -> dict[str, int]:
        """Return how many layers have each precision, by its name, the most bits first."""
        order = sorted({bits for _, bits in self.layers}, reverse=True)
        names = [bits.name for _, bits in self.layers]
        return {bits.name: names.count(bits.name) for bits in order}

    def to_json(self) -> dict[str, str]:
        """Return plain data that `from_json` reads back."""
        return {name: bits.name for name, bits in self.layers}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> BitPlan:
        """Read a plan back.

        Raises:
            ModelError: a precision is unknown.
        """
        return cls(tuple((str(name), parse_bits(str(bits))) for name, bits in data.items()))
