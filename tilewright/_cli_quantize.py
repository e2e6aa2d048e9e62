"""The command `tilewright quantize`; mounted by `tilewright.cli`."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, TypeVar

import typer

from tilewright import _cli_arguments as arguments
from tilewright import _cli_output as output
from tilewright._cli_arguments import AsJson, Debug, Errors
from tilewright._cli_bit_plan import print_plan
from tilewright.errors import ModelError
from tilewright.mixed_precision.choice import CANDIDATES, Goal
from tilewright.plan_quantization import AUTO
from tilewright.quantization import Smooth
from tilewright.weight_quantization import AUTO as WEIGHTS_AUTO

Made = TypeVar("Made")

_WORST = 5


def mount(app: typer.Typer, errors: Errors) -> None:
    """Add the command to the application."""

    @app.command("quantize")
    def quantize_command(
        model: Annotated[Path, typer.Argument(metavar="MODEL", help="An ONNX file in floats.")],
        out: Annotated[Path, typer.Option("--output", "-o", help="The quantized model to write.")],
        calibration: Annotated[
            Path | None,
            typer.Option(
                help="An .npz file of samples by input name, or a folder of them; "
                "with --weights it may be left out."
            ),
        ] = None,
        weights: Annotated[
            str | None,
            typer.Option(
                help="Only weights, activations stay in floats: int4, int8, or auto: 4 or 8 bits "
                "for every 128 input channels, within --max-bytes."
            ),
        ] = None,
        group: Annotated[
            int, typer.Option(help="With --weights: weights that share a scale.")
        ] = 32,
        symmetric: Annotated[
            bool,
            typer.Option(
                "--symmetric/--asymmetric", help="With --weights: without or with zero points."
            ),
        ] = True,
        operators: Annotated[
            str,
            typer.Option(
                "--operators",
                help="With --weights: write MatMulNBits of com.microsoft (nbits), or blocked "
                "DequantizeLinear of opset 21 (dequantize).",
            ),
        ] = "nbits",
        method: Annotated[
            str, typer.Option(help="Of choosing ranges: minmax, percentile, mse, entropy, dobi.")
        ] = "minmax",
        percentile: Annotated[
            float, typer.Option(min=50, max=100, help="Values that 'percentile' keeps.")
        ] = 99.99,
        bias_correction: Annotated[
            bool,
            typer.Option(
                "--bias-correction", help="Make up for the mean of what rounding weights changes."
            ),
        ] = False,
        smooth: Annotated[
            str,
            typer.Option(
                help="Even out the channels behind layer norms: 0 to 1 says how much moves into "
                "the weights, auto is 0.5 where there are such norms (and 8 bits), or none."
            ),
        ] = "auto",
        bits: Annotated[
            str,
            typer.Option(
                help="Of all layers: 8, 4, w4a8 (weights, activations), w2a8, w4g32 (weights in "
                "groups, activations in floats); or auto: of each layer, for the limits below."
            ),
        ] = "8",
        max_drop: Annotated[
            float | None,
            typer.Option(help="With --bits auto: greatest drop of the outputs, in the metric."),
        ] = None,
        max_latency: Annotated[
            float | None,
            typer.Option(metavar="SECONDS", help="With --bits auto: greatest time of a run."),
        ] = None,
        max_bytes: Annotated[
            int | None,
            typer.Option(
                help="With --bits auto: greatest size of all constants; with --weights auto: of "
                "all quantized weights."
            ),
        ] = None,
        metric: Annotated[
            str,
            typer.Option(
                help="Of the drop: error (squared, relative), cosine (one minus it) or top1 (share "
                "of changed decisions)."
            ),
        ] = "error",
        prefer: Annotated[
            str, typer.Option(help="With --max-drop: what is made small, latency or bytes.")
        ] = "latency",
        candidates: Annotated[
            str, typer.Option(help="With --bits auto: what a layer may have.")
        ] = ",".join(CANDIDATES),
        sensitivity: Annotated[
            str, typer.Option(help="With --bits auto: measured (output) or estimated (hessian).")
        ] = "output",
        correction: Annotated[
            str,
            typer.Option(
                help="Of rounding weights to other bits than 8: nearest, clipped or compensated."
            ),
        ] = "compensated",
        curve: Annotated[
            Path | None,
            typer.Option(help="With --bits auto: an SVG file for the trade-off."),
        ] = None,
        shape: Annotated[
            list[str] | None,
            typer.Option("--shape", metavar="NAME=1,3,224,224", help="Shape of an input."),
        ] = None,
        as_json: AsJson = False,
        debug: Debug = False,
    ) -> None:
        """Quantize a model to 8 bits after training, by samples of its inputs; or only weights."""
        from tilewright.quantization import quantize
        from tilewright.weight_quantization import quantize_weights

        shapes = arguments.parse_shapes(shape)
        strength = _strength(smooth)
        if weights is not None and bits != "8":
            raise typer.BadParameter(
                "--weights quantizes only weights, and --bits weights and activations: give one; "
                "--bits w4g32 is both in one"
            )
        if bias_correction and bits != "8":
            raise typer.BadParameter(
                "--bias-correction is for 8 bits; for others it is part of --correction compensated"
            )
        if (weights == WEIGHTS_AUTO) != (weights is not None and max_bytes is not None):
            raise typer.BadParameter("--weights auto and --max-bytes belong together: give both")
        goal = _goal(
            bits,
            (max_drop, max_latency, None if weights is not None else max_bytes),
            (metric, prefer, candidates, sensitivity),
            curve,
        )
        with errors(debug), output.progress() as progress:
            for path in (out, *([] if curve is None else [curve])):
                arguments.check_writable(path)
            if weights is not None:
                result = quantize_weights(
                    *(model, out, weights, group),
                    symmetric=symmetric,
                    operators=operators,
                    calibration=calibration,
                    max_bytes=max_bytes,
                    shapes=shapes,
                    progress=progress,
                )
            elif calibration is None:
                raise typer.BadParameter(
                    "bytes for activations need samples: give --calibration, or --weights int4 "
                    "to quantize only weights"
                )
            else:
                result = quantize(
                    *(model, calibration, out, method),
                    percentile=percentile,
                    bias_correction=bias_correction,
                    smooth=strength,
                    bits=bits,
                    goal=goal,
                    correction=correction,
                    drawing=curve,
                    shapes=shapes,
                    progress=progress,
                )
        if as_json:
            typer.echo(json.dumps({"file": str(out), **result}, indent=2))
        elif weights is not None:
            _print_weights(result, out)
        elif bits != "8":
            print_plan(result, out, curve)
        else:
            _print(result, out)


def _strength(smooth: str) -> Smooth:
    """Return what --smooth says."""
    if smooth == "auto":
        return "auto"
    if smooth == "none":
        return None
    try:
        return float(smooth)
    except ValueError:
        raise typer.BadParameter(
            f"--smooth is auto, none, or a number from 0 to 1; found {smooth!r}"
        ) from None


def _goal(
    bits: str,
    limits: tuple[float | None, float | None, int | None],
    names: tuple[str, str, str, str],
    curve: Path | None,
) -> Goal | None:
    """Return what a choice of bits has to keep, or None where nothing is chosen."""
    from tilewright.compiler.quantize.bit_plan import parse_bits

    if bits != AUTO:
        if curve is not None or any(limit is not None for limit in limits):
            raise typer.BadParameter(
                "--max-drop, --max-latency, --max-bytes and --curve belong to --bits auto"
            )
        if bits != "8":
            _usage(lambda: parse_bits(bits))
        return None
    metric, prefer, candidates, sensitivity = names
    options = tuple(name.strip() for name in candidates.split(","))
    return _usage(lambda: Goal(*limits, metric, prefer, options, sensitivity))


def _usage(make: Callable[[], Made]) -> Made:
    """Turn a value that is not accepted into an error of usage."""
    try:
        return make()
    except ModelError as error:
        raise typer.BadParameter(str(error)) from None


def _print(result: dict[str, Any], out: Path) -> None:
    """Print what was quantized, and where it hurts most."""
    typer.echo(
        f"{out}: {result['tensors']} tensors in bytes, calibrated on {result['samples']} samples"
    )
    if result["smoothed"]:
        typer.echo(
            f"channels behind {result['smoothed']} layer norms evened out, with strength "
            f"{result['smooth']:g} (--smooth)"
        )
    if result["floats"]:
        typer.echo(
            f"results of {len(result['floats'])} integer layers stay in floats: what reads them "
            "(sums before norms, GELU, softmax) does not run on integers"
        )
    typer.echo("signal-to-noise ratios of the outputs, on the first sample:")
    _print_ratios(result["outputs"])
    typer.echo("lowest signal-to-noise ratios:")
    _print_ratios(result["layers"][:_WORST])


def _print_ratios(rows: list[dict[str, Any]]) -> None:
    for row in rows:
        typer.echo(f"  {row['snr_db']:6.1f} dB  {row['tensor']}")


def _print_weights(result: dict[str, Any], out: Path) -> None:
    """Print what weights became, and which came out worst."""
    typer.echo(
        f"{out}: weights of {len(result['layers'])} products in {result['bits']} bits, "
        f"{output.format_size(result['bytes'])} instead of "
        f"{output.format_size(result['float_bytes'])}"
    )
    for name, reason in result["kept"].items():
        typer.echo(f"  in floats: {name}: {reason}")
    typer.echo("lowest signal-to-noise ratios:")
    for layer in result["layers"][:_WORST]:
        typer.echo(f"  {layer['snr_db']:6.1f} dB  {layer['layer']}")
