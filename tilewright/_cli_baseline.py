"""Commands about other engines: baseline, bench-ops, report."""

from __future__ import annotations

import json
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from tilewright import _cli_output as output

Debug = Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")]
Errors = Callable[[bool], AbstractContextManager[None]]


def register(app: typer.Typer, errors: Errors) -> None:
    """Add the commands to `app`; `errors` turns errors for people into one line."""
    baseline = typer.Typer(no_args_is_help=True, help="Install and remove baselines (Ansor).")
    app.add_typer(baseline, name="baseline")
    _register_environment(baseline, errors)

    @app.command("bench-ops")
    def bench_ops_command(
        against: Annotated[
            str,
            typer.Option(
                help="Peers, comma separated: onnxruntime, openvino, torch, inductor, ansor, "
                "metaschedule."
            ),
        ] = "onnxruntime",
        suite: Annotated[str, typer.Option(help="alt (all), core or quick.")] = "alt",
        ops: Annotated[
            str,
            typer.Option(help="Classes or ids, comma separated, as in C2D,GMM-2. All if empty."),
        ] = "",
        batch: Annotated[str, typer.Option(help="Batches, comma separated.")] = "1",
        trials: Annotated[
            int,
            typer.Option(min=0, help="For tuners, each layout; 0 takes their logs as they are."),
        ] = 0,
        threads: Annotated[int, typer.Option(min=1, help="Threads of each engine.")] = 1,
        rounds: Annotated[int, typer.Option(min=1, help="Samples of each engine.")] = 20,
        clock: Annotated[
            str, typer.Option(help="wall, or cpu: for one thread where others use the machine too.")
        ] = "wall",
        logs: Annotated[Path, typer.Option(help="Folder of the tuning logs.")] = Path(
            "tuning_logs"
        ),
        out: Annotated[
            Path | None, typer.Option("--output", "-o", help="JSON file, written after every row.")
        ] = None,
        as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
        debug: Debug = False,
    ) -> None:
        """Time the operator suite in tilewright beside its peers, in turns."""
        from tilewright.baselines import OperatorOptions, bench_operators, load_suite, parse_peers

        with errors(debug), output.progress() as progress:
            operators = load_suite(suite, _names(ops), _numbers(batch))
            options = OperatorOptions(parse_peers(against), trials, threads, rounds, clock, logs)

            def finished(result: dict[str, Any]) -> None:
                if out is not None:
                    write_json(out, result)
                if not as_json:
                    _print_row(result["rows"][-1])

            result = bench_operators(operators, options, progress, finished)
        if as_json:
            typer.echo(json.dumps(result, indent=1))
            return
        for name, reason in result["left_out"].items():
            typer.echo(f"{name} left out: {reason}")

    @app.command("report")
    def report_command(
        sources: Annotated[
            list[Path], typer.Argument(metavar="RESULT...", help="Results, logs or modules.")
        ],
        out: Annotated[Path, typer.Option("--output", "-o", help="An .html or .md file.")],
        debug: Debug = False,
    ) -> None:
        """Write a report of results, tuning logs or modules as one page."""
        from tilewright.report import write_report

        with errors(debug):
            typer.echo(str(write_report(sources, out)))


def write_json(path: Path, content: dict[str, Any]) -> None:
    """Write a result, whole or not at all.

    Raises:
        MeasureError: the file cannot be written.
    """
    from tilewright.errors import MeasureError

    temporary = path.with_name(f".{path.name}.tmp")
    try:
        temporary.write_text(json.dumps(content, indent=1) + "\n")
        temporary.replace(path)
    except OSError as error:
        raise MeasureError(f"cannot write {path}: {error.strerror or error}") from error


def _register_environment(baseline: typer.Typer, errors: Errors) -> None:
    @baseline.command("install")
    def install_command(name: str, debug: Debug = False) -> None:
        """Make the baseline's own virtual environment, from PyPI."""
        from tilewright.baselines import environment

        with errors(debug), output.progress() as progress:
            environment.check_name(name)
            place = environment.ansor_environment()
            facts = environment.install(place, progress)
        typer.echo(f"{name}: TVM {facts['tvm']}, LLVM {facts['llvm']}, in {place.folder}")

    @baseline.command("ls")
    def list_command(debug: Debug = False) -> None:
        """List the peers, and which of them can be used here."""
        from tilewright.baselines import PEERS

        with errors(debug):
            for name, peer in PEERS.items():
                typer.echo(f"{name:13}{peer.missing() or 'installed':60}{peer.about}")

    @baseline.command("remove")
    def remove_command(name: str, debug: Debug = False) -> None:
        """Delete the baseline's virtual environment; its logs stay."""
        from tilewright.baselines import environment

        with errors(debug):
            environment.check_name(name)
            found = environment.remove(environment.ansor_environment())
        typer.echo(f"{name}: {'removed' if found else 'was not installed'}")


def _print_row(row: dict[str, Any]) -> None:
    cells = []
    for name, figure in row["engines"].items():
        text = f"{name} {1e3 * figure['median_s']:.3f} ms"
        if "ratio" in figure:
            low, high = figure["interval"]
            text += f" {figure['ratio']:.2f} [{low:.2f} .. {high:.2f}]"
        cells.append(text)
    cells += [f"{name} failed: {reason}" for name, reason in row["failed"].items()]
    Console(highlight=False, soft_wrap=True).print(
        f"{row['name']:10} {'; '.join(cells)}", markup=False
    )


def _names(text: str) -> list[str]:
    return [name.strip() for name in text.split(",") if name.strip()]


def _numbers(text: str) -> list[int]:
    try:
        return [int(item) for item in _names(text)]
    except ValueError:
        raise typer.BadParameter(f"--batch {text}: expected whole numbers, as in 1,16") from None
