"""Quantize a model after training: calibrate on samples, write QDQ, say how much it differs."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from tilewright.calibration import Arrays, read_samples
from tilewright.errors import ModelError

if TYPE_CHECKING:
    from tilewright.mixed_precision.choice import Goal

AUTO_SMOOTH = 0.5
"""How much of the range moves into the weights where nothing is said: half, in the exponent."""
Smooth = float | Literal["auto"] | None


def quantize(
    model: str | os.PathLike[str],
    calibration: str | os.PathLike[str] | Sequence[Arrays],
    output: str | os.PathLike[str],
    method: str = "minmax",
    *,
    percentile: float = 99.99,
    bias_correction: bool = False,
    smooth: Smooth = "auto",
    bits: str = "8",
    goal: Goal | None = None,
    correction: str = "compensated",
    drawing: str | os.PathLike[str] | None = None,
    shapes: Mapping[str, Sequence[int]] | None = None,
    target: str = "native",
    progress: Callable[[str], None] = lambda _stage: None,
) -> dict[str, Any]:
    """Quantize an ONNX model and write it as an ordinary QDQ model.

    Other bits than "8" go by a plan for each layer, see `compiler.quantize.plan_model`; every
    fourth sample is left out of all fitting then, and says how far the outputs drop.

    Args:
        model: path of the float model.
        calibration: samples, or the path of an .npz file or a folder of them.
        output: the file to write.
        method: "minmax", "percentile", "mse", "entropy" or "dobi"; see `compiler.quantize.ranges`.
        percentile: values that "percentile" keeps.
        bias_correction: make up for the mean of what rounding the weights changes.
        smooth: scale and shift layer normalisations before, so that channels come to the same
            range; 0 to 1 says how much of it moves into the weights. None: no. "auto": with 8 bits
            `AUTO_SMOOTH` where there is a layer normalisation to smooth, else no.
        bits: "8"; another precision of all layers, as "4", "w4a8", "w2a8", "w4g32"; or "auto": of
            each layer its own, for `goal`.
        goal: what "auto" has to keep; see `mixed_precision.choice.Goal`.
        correction: of rounding weights to other bits than "8": "nearest", "clipped" or
            "compensated"; see `mixed_precision.rounding`.
        drawing: an SVG file for the trade-off that "auto" found.
        shapes: shape per input, where the model leaves dimensions open.
        target: what the samples are run on; must be this machine.
        progress: called with the name of each stage.

    Returns:
        "tensors" (how many are bytes now), "samples", and "layers": name and signal-to-noise
        ratio in dB of every such tensor on the first sample, the worst first; "outputs": the same
        of the model's outputs; "floats": results of integer layers that are not bytes;
        "smooth" and "smoothed": the strength, and how many layer normalisations. With other bits
        than "8" that of every layer for what it reads, with its bits and size; and "bits" (layers
        of each precision), "size_bytes" and "float_bytes" of all constants, "drop" by every metric
        and on how many samples it was "judged". With "auto" also "metric", "predicted_s", "curve"
        (drop, seconds, size and layers of each plan) and, of each layer, its sensitivity, its
        seconds, and whether a record of the tuner or a measurement says so.

    Raises:
        ModelError: the model or the calibration data cannot be used, or nothing keeps the goal.
    """
    from tilewright.compiler.quantize import post_training as ptq
    from tilewright.compiler.quantize.byte_tensors import results_in_floats, tensors_to_quantize
    from tilewright.compiler.quantize.equivalent import norm_outputs
    from tilewright.compiler.quantize.float_model import FloatModel
    from tilewright.compiler.quantize.qdq_writer import dequantized
    from tilewright.compiler.quantize.ranges import METHODS
    from tilewright.reference import load_proto

    if method not in METHODS:
        raise ModelError(f"unknown method {method!r}; known methods: {', '.join(METHODS)}")
    proto = load_proto(Path(model))
    if bits != "8" or goal is not None or drawing is not None:
        from tilewright.mixed_precision.subject import Settings
        from tilewright.plan_quantization import quantize_by_plan

        if bias_correction:
            raise ModelError(
                "bias correction is for 8 bits; for others it is part of the correction "
                "'compensated'"
            )
        settings = Settings(method, percentile, correction, target, shapes)
        drawn = None if drawing is None else Path(drawing)
        strength = None if smooth == "auto" else smooth
        return quantize_by_plan(
            *(proto, calibration, Path(output), bits, goal, settings, strength, drawn, progress)
        )
    names = tensors_to_quantize(proto)
    if not names:
        raise ModelError(f"{model} has no convolution or matrix product to quantize")
    samples = read_samples(proto, calibration, shapes)
    smoothed = len(norm_outputs(FloatModel(proto)))
    if smooth == "auto":
        smooth = AUTO_SMOOTH if smoothed else None
    progress("compile")
    if smooth is not None or bias_correction:
        progress("equivalent changes")
        proto = prepare(proto, samples, target, shapes, smooth, bias_correction)
        names = tensors_to_quantize(proto)
    outputs = [item.name for item in proto.graph.output]
    run = runner(ptq.with_outputs(proto, [*names, *outputs]), target, shapes)
    scales = ptq.calibrate(
        names, samples, _counted(run, len(samples), progress), method, percentile
    )
    names = [name for name in names if name in scales]
    quantized = ptq.insert_qdq(proto, scales)
    save(quantized.SerializeToString(), Path(output))
    progress("comparison")
    quantized_run = runner(
        ptq.with_outputs(quantized, [*map(dequantized, names), *outputs]), target, shapes
    )
    seen, wanted = quantized_run(samples[0]), {**samples[0], **run(samples[0])}
    return {
        "tensors": len(names),
        "samples": len(samples),
        "layers": _ratios(names, [dequantized(name) for name in names], seen, wanted),
        "outputs": _ratios(outputs, outputs, seen, wanted),
        "floats": results_in_floats(FloatModel(proto), names),
        "smooth": smooth,
        "smoothed": 0 if smooth is None else smoothed,
    }


def _ratios(
    names: Sequence[str], given: Sequence[str], seen: Arrays, wanted: Arrays
) -> list[dict[str, Any]]:
    """Return name and signal-to-noise ratio of tensors in floats, the worst first.

    Args:
        names: in the float model.
        given: in the quantized model.
        seen: tensors of the quantized model.
        wanted: tensors of the float model.
    """
    from tilewright.compiler.quantize.post_training import noise

    rows = [
        {"tensor": name, "snr_db": noise(seen[place], wanted[name])}
        for name, place in zip(names, given, strict=True)
        if place in seen and wanted[name].dtype.kind == "f"
    ]
    return sorted(rows, key=lambda row: row["snr_db"])


def _counted(
    run: Callable[[Arrays], Arrays], samples: int, progress: Callable[[str], None]
) -> Callable[[Arrays], Arrays]:
    """Return what runs a sample, and says which one it is; most methods see all samples twice."""
    done = 0

    def run_counted(sample: Arrays) -> Arrays:
        nonlocal done
        progress(
            f"calibration, pass {done // samples + 1}, sample {done % samples + 1} of {samples}"
        )
        done += 1
        return run(sample)

    return run_counted


def save(content: bytes, path: Path) -> None:
    """Write a file; it appears complete or not at all.

    Raises:
        ModelError: it cannot be written.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        temporary.write_bytes(content)
        os.replace(temporary, path)
    except OSError as error:
        raise ModelError(f"cannot write {path}: {error.strerror or error}") from error
    finally:
        temporary.unlink(missing_ok=True)


def prepare(
    proto: Any,
    samples: Sequence[Arrays],
    target: str,
    shapes: Mapping[str, Sequence[int]] | None,
    strength: float | None,
    correct: bool,
) -> Any:
    """Return the float model smoothed and with corrected biases, as far as either is asked for."""
    from tilewright.compiler.quantize import channel_statistics as statistics
    from tilewright.compiler.quantize import post_training as ptq
    from tilewright.compiler.quantize.bias_correction import correct_biases
    from tilewright.compiler.quantize.equivalent import norm_outputs, smooth
    from tilewright.compiler.quantize.float_model import FloatModel

    def seen(axes: Mapping[str, int]) -> dict[str, statistics.ChannelStatistics]:
        run = runner(ptq.with_outputs(proto, axes), target, shapes)
        return statistics.channel_statistics(axes, samples, run)

    if strength is not None:
        if not 0 <= strength <= 1:
            raise ModelError(f"smooth is a share between 0 and 1, found {strength}")
        axes = norm_outputs(FloatModel(proto))
        if not axes:
            raise ModelError(
                "there is no LayerNormalization with constants before a product to smooth; "
                "leave smooth out"
            )
        proto = smooth(proto, seen(axes), strength)
    if correct:
        axes = statistics.linear_inputs(FloatModel(proto))
        proto = correct_biases(proto, seen(axes), ptq.quantize_weights)
    return proto


def runner(
    proto: Any, target: str, shapes: Mapping[str, Sequence[int]] | None
) -> Callable[[Arrays], Arrays]:
    """Compile a model; return what runs it on the inputs that it has."""
    from tilewright.api import compile

    module = compile(proto, target, shapes)
    inputs = [spec.name for spec in module.module.inputs]
    return lambda sample: module.run({name: sample[name] for name in inputs})
