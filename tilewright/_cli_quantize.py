"""The command `tilewright quantize`; mounted by `tilewright.cli`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from tilewright import _cli_arguments as arguments
from tilewright import _cli_output as output
from tilewright._cli_arguments import AsJson, Debug, Errors

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
            typer.Option(help="Only weights, activations stay in floats: int4 or int8."),
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
            float | None,
            typer.Option(
                min=0, max=1, help="Even out the channels behind layer norms; 0.5 is usual."
            ),
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
        with errors(debug), output.progress() as progress:
            arguments.check_writable(out)
            if weights is not None:
                result = quantize_weights(
                    *(model, out, weights, group),
                    symmetric=symmetric,
                    operators=operators,
                    calibration=calibration,
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
                    smooth=smooth,
                    shapes=shapes,
                    progress=progress,
                )
        if as_json:
            typer.echo(json.dumps({"file": str(out), **result}, indent=2))
        elif weights is not None:
            _print_weights(result, out)
        else:
            _print(result, out)


def _print(result: dict[str, Any], out: Path) -> None:
    """Print what was quantized, and where it hurts most."""
    typer.echo(
        f"{out}: {result['tensors']} tensors in bytes, calibrated on {result['samples']} samples"
    )
    typer.echo("lowest signal-to-noise ratios:")
    for layer in result["layers"][:_WORST]:
        typer.echo(f"  {layer['snr_db']:6.1f} dB  {layer['tensor']}")


def _print_weights(result: dict[str, Any], out: Path) -> None:
    """Print what weights became, and which came out worst."""
    typer.echo(
        f"{out}: weights of {len(result['layers'])} products in {result['bits']} bits, "
        f"{result['bytes'] / 1e6:.1f} MB instead of {result['float_bytes'] / 1e6:.1f} MB"
    )
    for name, reason in result["kept"].items():
        typer.echo(f"  in floats: {name}: {reason}")
    typer.echo("lowest signal-to-noise ratios:")
    for layer in result["layers"][:_WORST]:
        typer.echo(f"  {layer['snr_db']:6.1f} dB  {layer['layer']}")
