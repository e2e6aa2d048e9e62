"""Quantize a model by a bit plan: one precision for all layers, or chosen for each of them."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tilewright.calibration import Arrays, read_samples
from tilewright.errors import ModelError
from tilewright.quantization import prepare, save

if TYPE_CHECKING:
    from tilewright.mixed_precision.choice import Goal
    from tilewright.mixed_precision.subject import Settings

AUTO = "auto"


def quantize_by_plan(
    proto: Any,
    calibration: str | os.PathLike[str] | Sequence[Arrays],
    output: Path,
    bits: str,
    goal: Goal | None,
    settings: Settings,
    smooth: float | None = None,
    drawing: Path | None = None,
    progress: Callable[[str], None] = lambda _stage: None,
) -> dict[str, Any]:
    """Quantize a float model by a plan and write it; see `tilewright.quantization.quantize`.

    Raises:
        ModelError: the model, an option or the calibration data cannot be used, or nothing keeps
            the goal.
    """
    from tilewright.compiler.quantize.bit_plan import parse_bits
    from tilewright.mixed_precision.quantizing import quantize_for, quantize_uniformly
    from tilewright.mixed_precision.rounding import CORRECTIONS
    from tilewright.mixed_precision.subject import Subject

    if settings.correction not in CORRECTIONS:
        raise ModelError(
            f"unknown correction {settings.correction!r}; accepted are {', '.join(CORRECTIONS)}"
        )
    if (bits == AUTO) != (goal is not None):
        raise ModelError("limits and a choice of bits belong together: bits 'auto' and a goal")
    uniform = None if bits == AUTO else parse_bits(bits)
    if drawing is not None and goal is None:
        raise ModelError("only a choice of bits has a trade-off to draw; use bits 'auto'")
    samples = read_samples(proto, calibration, settings.shapes)
    if smooth is not None:
        progress("equivalent changes")
        proto = prepare(proto, samples, settings.target, settings.shapes, smooth, False)
    subject = Subject(proto, samples, settings, progress)
    if goal is not None:
        outcome = quantize_for(subject, goal)
    else:
        assert uniform is not None
        outcome = quantize_uniformly(subject, uniform)
    save(outcome.proto.SerializeToString(), output)
    if drawing is not None:
        assert outcome.drawing is not None
        save(outcome.drawing.encode(), drawing)
    return outcome.report
