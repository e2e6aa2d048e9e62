"""Bits for every block of input channels of weight-only products, by an integer program.

Some input channels matter more than others: their activations are large, or their weights are hard
to round. A block of 128 of them, over all outputs of a product, gets 4 or 8 bits, so that the
weighted error of all products is least within a number of bytes (the groups of SliM-LLM, arXiv
2405.14917, section 3.2; the error of a block is that of its weights, squared, times the mean square
of its activations).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from tilewright.compiler.quantize.bit_plan import LayerBits, parse_bits
from tilewright.compiler.quantize.group_codes import encode
from tilewright.compiler.quantize.weight_only_model import Parts, WeightFormat, products
from tilewright.errors import ModelError
from tilewright.mixed_precision.program import Choice, least, solve

BLOCK = 128
"""Input channels that have the same bits."""
_BITS = (4, 8)
_SCALE_BYTES = 4


def choose_parts(
    proto: Any,
    format_: WeightFormat,
    moments: Mapping[str, np.ndarray] | None,
    max_bytes: int,
) -> dict[str, Parts]:
    """Return for every product with weights which input channels get how many bits.

    Args:
        proto: the float model.
        format_: groups and zero points; its bits do not count.
        moments: see `compiler.quantize.weight_only_model.quantize_weights`.
        max_bytes: greatest size of all codes, scales and zero points.

    Raises:
        ModelError: there is no product, or not even the fewest bits fit.
    """
    choices: dict[str, list[Choice]] = {}
    rows: dict[str, tuple[str, np.ndarray]] = {}
    block = max(BLOCK, format_.group)
    for name, source, weight in products(proto):
        found = _block_choices(weight, format_, _worth(moments, source), block)
        for number, options in enumerate(found):
            key = f"{name} block {number}"
            choices[key] = options
            first = number * block
            rows[key] = name, np.arange(first, min(first + block, len(weight)))
    if not choices:
        raise ModelError("there is no matrix product to quantize")
    plan = solve(choices, "error", {"size_bytes": max_bytes})
    if plan is None:
        raise ModelError(
            f"all weights in {min(_BITS)} bits take {least(choices, 'size_bytes'):.0f} bytes, more "
            f"than the {max_bytes} asked for; a larger group has fewer scales"
        )
    taken: dict[str, dict[int, list[np.ndarray]]] = {}
    for key, bits in plan.layers:
        name, channels = rows[key]
        taken.setdefault(name, {}).setdefault(bits.weights, []).append(channels)
    return {
        name: tuple(
            (np.concatenate(blocks), replace(format_, bits=bits))
            for bits, blocks in sorted(by_bits.items())
        )
        for name, by_bits in taken.items()
    }


def _worth(moments: Mapping[str, np.ndarray] | None, source: str) -> np.ndarray | None:
    """Return the mean square of each channel of a tensor, where it is known."""
    found = None if moments is None else moments.get(source)
    return np.diagonal(found) if found is not None and found.ndim == 2 else found


def _block_choices(
    weight: np.ndarray, format_: WeightFormat, worth: np.ndarray | None, block: int
) -> list[list[Choice]]:
    """Return the choices of every block of rows of a matrix [rows, columns]."""
    options: list[tuple[LayerBits, np.ndarray]] = []
    for bits in _BITS:
        coded = encode(weight, bits, format_.group, format_.symmetric, worth)
        error = ((weight - coded.decoded()).astype(np.float64) ** 2).sum(axis=1)
        options.append((parse_bits(f"w{bits}g{format_.group}"), error))
    weights = np.ones(len(weight)) if worth is None else worth
    found = []
    for first in range(0, len(weight), block):
        here = slice(first, min(first + block, len(weight)))
        found.append(
            [
                Choice(
                    bits,
                    float((error[here] * weights[here]).sum()),
                    0.0,
                    _stored_bytes(here.stop - here.start, weight.shape[1], bits.weights, format_),
                )
                for bits, error in options
            ]
        )
    return found


def _stored_bytes(rows: int, columns: int, bits: int, format_: WeightFormat) -> int:
    """Return the bytes of codes, scales and zero points, whole groups of rows."""
    groups = -(-rows // format_.group)
    each = groups * (format_.group * bits // 8 + _SCALE_BYTES)
    each += 0 if format_.symmetric else -(-groups * bits // 8)
    return each * columns
