"""What `tilewright quantize --json` wrote, as part of a report."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class QuantizationReport:
    """The error of a quantized model, tensor by tensor.

    Attributes:
        title: of the section.
        tensors, samples: how many are bytes, and how many it was calibrated on.
        layers: (tensor, signal-to-noise ratio in dB on the first sample), the worst first.
    """

    title: str
    tensors: int
    samples: int
    layers: tuple[tuple[str, float], ...]


def read_quantization(content: Mapping[str, Any]) -> QuantizationReport:
    """Read the result; a field that is missing is a KeyError."""
    layers = [(str(item["tensor"]), float(item["snr_db"])) for item in content["layers"]]
    return QuantizationReport(
        title=f"Quantization of {content.get('file', 'a model')}",
        tensors=int(content["tensors"]),
        samples=int(content["samples"]),
        layers=tuple(sorted(layers, key=lambda layer: layer[1])),
    )
