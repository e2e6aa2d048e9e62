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
        calibration: Annotated[
            Path, typer.Option(help="An .npz file of samples by input name, or a folder of them.")
        ],
        out: Annotated[Path, typer.Option("--output", "-o", help="The QDQ model to write.")],
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
        """Quantize a model to 8 bits after training, by samples of its inputs."""
        from tilewright.quantization import quantize

        shapes = arguments.parse_shapes(shape)
        with errors(debug), output.progress() as progress:
            arguments.check_writable(out)
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
