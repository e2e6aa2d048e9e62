"""The commands `doctor`, `verify` and `debug-accuracy`: is everything as it should be?"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from tilewright import _cli_arguments as arguments
from tilewright import _cli_output as output
from tilewright._cli_arguments import AsJson, Debug, Errors
from tilewright.verification import TOLERANCE

Model = Annotated[Path, typer.Argument(metavar="MODEL", help="An ONNX file.", show_default=False)]
Against = Annotated[
    str, typer.Option(help="'onnxruntime', unoptimised, or 'onnx', the reference in numpy.")
]
Input = Annotated[
    Path | None,
    typer.Option("--input", help="An .npz file: input name -> array. Default: random."),
]
Tolerance = Annotated[
    float, typer.Option(min=0.0, help="Largest error, in standard deviations of an output.")
]
Seed = Annotated[int, typer.Option(help="Of the random inputs.")]

_WRONG = 1


def mount(app: typer.Typer, errors: Errors) -> None:
    """Add the commands to the command line.

    Args:
        app: the command line.
        errors: context that turns errors meant for a person into a line and an exit status.
    """

    @app.command("doctor")
    def doctor_command(as_json: AsJson = False, debug: Debug = False) -> None:
        """Say what is installed, what the processor has, which peers and logs are there."""
        from tilewright.doctor import examine

        with errors(debug):
            found = examine()
        if as_json:
            typer.echo(json.dumps(found, indent=2))
        else:
            _print_doctor(found)
        if found["problems"]:
            raise typer.Exit(_WRONG)

    @app.command("verify")
    def verify_command(
        module: Annotated[Path, typer.Argument(metavar="MODULE", help="A compiled module.")],
        model: Model,
        against: Against = "onnxruntime",
        input_: Input = None,
        rounds: Annotated[int, typer.Option(min=1, help="How many random inputs.")] = 3,
        seed: Seed = 0,
        tolerance: Tolerance = TOLERANCE,
        as_json: AsJson = False,
        debug: Debug = False,
    ) -> None:
        """Check a module against the model that it was compiled from; exit status 1 if wrong."""
        from tilewright.inputs import load_npz
        from tilewright.verification import verify

        with errors(debug), output.progress() as progress:
            feed = None if input_ is None else load_npz(input_)
            found = verify(
                *(module, model),
                against=against,
                feed=feed,
                rounds=rounds,
                seed=seed,
                tolerance=tolerance,
                progress=progress,
            )
        if as_json:
            typer.echo(json.dumps(found, indent=2))
        else:
            _print_verified(module, model, against, found)
        if not found["passed"]:
            raise typer.Exit(_WRONG)

    @app.command("debug-accuracy")
    def debug_command(
        model: Model,
        against: Against = "onnxruntime",
        target: Annotated[str, typer.Option(help="As for 'compile'; must run here.")] = "native",
        input_: Input = None,
        shape: Annotated[
            list[str] | None,
            typer.Option("--shape", metavar="NAME=1,3,224,224", help="As for 'compile'."),
        ] = None,
        seed: Seed = 0,
        tolerance: Tolerance = TOLERANCE,
        out: Annotated[
            Path | None, typer.Option("--output", "-o", help="Folder for a small wrong model.")
        ] = None,
        as_json: AsJson = False,
        debug: Debug = False,
    ) -> None:
        """Find the first operator whose result is wrong; exit status 1 if there is one."""
        from tilewright.debugging import debug_accuracy
        from tilewright.inputs import load_npz

        shapes = arguments.parse_shapes(shape)
        with errors(debug), output.progress() as progress:
            feed = None if input_ is None else load_npz(input_)
            found = debug_accuracy(
                model,
                shapes=shapes,
                against=against,
                target=target,
                feed=feed,
                seed=seed,
                tolerance=tolerance,
                out=out,
                progress=progress,
            )
        if as_json:
            typer.echo(json.dumps(None if found is None else asdict(found), indent=2, default=str))
            raise typer.Exit(0 if found is None else _WRONG)
        if found is None:
            typer.echo(f"{model}: every output agrees with {against} within {tolerance:g}")
            return
        typer.echo(
            f"{found.node} is the first to differ: its output '{found.tensor}' is off by "
            f"{found.error:.3g} standard deviations; a part of {len(found.reproducer)} nodes shows "
            f"it: {', '.join(found.reproducer)}"
        )
        for path in found.files:
            typer.echo(f"wrote {path}")
        raise typer.Exit(_WRONG)


def _print_verified(module: Path, model: Path, against: str, found: Mapping[str, Any]) -> None:
    origin = "was compiled from" if found["same_model"] else "was NOT compiled from this very"
    verdict = "agrees" if found["passed"] else "DISAGREES"
    typer.echo(
        f"{module} {origin} {model}; its checksums hold; it {verdict} with {against}: largest "
        f"error {found['largest']:.2g} standard deviations, {found['tolerance']:g} allowed"
    )
    if not found["passed"]:
        for name, error in found["outputs"].items():
            typer.echo(f"  {name}: {error:.3g}")


def _print_doctor(found: Mapping[str, Any]) -> None:
    console = Console(highlight=False, soft_wrap=True)

    def say(head: str, text: str) -> None:
        console.print(f"{head:<12} {text}", markup=False)

    say("tilewright", f"{found['tilewright']}, Python {found['python']}, {found['system']}")
    processor = found["processor"]
    if "unavailable" in processor:
        say("processor", processor["unavailable"])
    else:
        say(
            "processor",
            f"{processor['name']}, {processor['cores']} core{'s' * (processor['cores'] != 1)}, "
            f"{processor['vector_registers']} registers of {processor['vector_bits']} bits: "
            f"{' '.join(processor['features'])}",
        )
    packages = found["packages"].items()
    say("packages", ", ".join(f"{name} {number or 'MISSING'}" for name, number in packages))
    for architecture, compiler in found["compilers"].items():
        say("C compiler", f"{architecture}: {compiler.get('command') or 'none'}")
    for name, tool in found["tools"].items():
        say("tool", f"{name}: {tool['path'] or 'not installed'} ({tool['for']})")
    for name, missing in found["peers"].items():
        say("peer", f"{name}: {missing or 'ready'}")
    for path, log in found["logs"].items():
        counts = f"{log['records']} records, {log['for_this_processor']} for this processor"
        say("tuning log", f"{path}: {counts}{'; ' * bool(log['warning'])}{log['warning']}")
    for problem in found["problems"]:
        say("PROBLEM", problem)
