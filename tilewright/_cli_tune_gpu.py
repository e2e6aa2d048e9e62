"""The command `tune-gpu`: layouts and tiles of a model's products on a GPU."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tilewright import _cli_arguments as arguments
from tilewright._cli_arguments import AsJson, Debug, Errors
from tilewright._cli_output import new_console

if TYPE_CHECKING:
    from tilewright.tuner.cuda.tune import CudaTaskResult


def mount(app: typer.Typer, errors: Errors) -> None:
    """Add the command to the command line; see `_cli_size.mount`."""

    @app.command("tune-gpu")
    def tune_gpu_command(
        model: Annotated[Path, typer.Argument(metavar="MODEL", help="An ONNX file.")],
        target: Annotated[str, typer.Option(help="A CUDA target from 'tilewright targets'.")],
        precision: Annotated[str, typer.Option(help="As for 'compile'.")] = "fp32",
        trials: Annotated[int, typer.Option(min=1, help="Candidates of each operator.")] = 32,
        measure: Annotated[
            str,
            typer.Option(
                help="'device': run candidates on the GPU of this machine. 'estimate': take the "
                "analytical estimate; the log says so, and a compile does not use it."
            ),
        ] = "device",
        log: Annotated[
            Path | None, typer.Option(help="Tuning log; default: the user's log for GPUs.")
        ] = None,
        shape: Annotated[
            list[str] | None,
            typer.Option("--shape", metavar="NAME=1,3,224,224", help="As for 'compile'."),
        ] = None,
        seed: Annotated[int, typer.Option(help="Of the search.")] = 0,
        as_json: AsJson = False,
        debug: Debug = False,
    ) -> None:
        """Tune the matrix products and convolutions of a model for a GPU."""
        from tilewright.tuner.cuda.tune import tune_for_gpu

        shapes = arguments.parse_shapes(shape)
        with errors(debug):
            results = tune_for_gpu(
                *(model, target, precision, shapes),
                trials=trials,
                measure=measure,
                log=log,
                seed=seed,
            )
        rows = [_plain(result) for result in results]
        if as_json:
            typer.echo(json.dumps(rows, indent=2))
            return
        for row in rows:
            best = row["best_s"]
            known = best is not None and row["default_s"] is not None
            gain = f"{row['default_s'] / best:.2f}x the first" if known else row["problem"]
            text = f"{row['trials']} trials ({measure}), {gain}"
            new_console().print(f"{row['name']}: {text}", markup=False)


def _plain(result: CudaTaskResult) -> dict[str, Any]:
    best = result.best
    return {
        "name": result.name,
        "calls": result.calls,
        "trials": result.trials,
        "default_s": result.default_s,
        "best_s": None if best is None else best.seconds,
        "schedule": None if best is None else best.candidate.to_json()["schedule"],
        "problem": "" if best is not None else "every candidate failed",
        "rejected": dict(result.rejected),
    }
