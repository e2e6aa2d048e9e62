"""Commands about other engines: baseline, bench, bench-ops, report."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console

from tilewright import _cli_arguments as arguments
from tilewright import _cli_output as output
from tilewright._cli_arguments import AsJson, Debug, Errors
from tilewright._cli_tune import parse_time

if TYPE_CHECKING:
    from tilewright.baselines import Budget

Against = Annotated[str, typer.Option(help="Peers, comma separated; see: tilewright baseline ls.")]
Trials = Annotated[
    int,
    typer.Option(
        min=0,
        help="Candidates that every tuner measures, ours too (Ansor: in each layout); without "
        "--trials and --time tuners use their logs as they are.",
    ),
]
Time = Annotated[
    str | None,
    typer.Option(metavar="2m", help="Processor time of every tuner, instead of trials: 90s, 2m."),
]
Threads = Annotated[int, typer.Option(min=1, help="Threads of each engine.")]
Rounds = Annotated[int, typer.Option(min=1, help="Samples of each engine.")]
LogFolder = Annotated[Path, typer.Option(help="Folder of the tuning logs.")]
Lock = Annotated[
    Path | None,
    typer.Option(help="File to lock while timing: all that share it take turns."),
]
Cpu = Annotated[int | None, typer.Option("--measure-cpu", min=0, help="Processor to time on.")]
Output = Annotated[
    Path | None, typer.Option("--output", "-o", help="JSON file; bench-ops renews it row by row.")
]


def register(app: typer.Typer, errors: Errors) -> None:
    """Add the commands to `app`; `errors` turns errors for people into one line."""
    baseline = typer.Typer(no_args_is_help=True, help="Install and remove baselines (Ansor).")
    app.add_typer(baseline, name="baseline")
    _register_environment(baseline, errors)

    @app.command("bench")
    def bench_command(
        model: Annotated[Path, typer.Argument(help="An ONNX file.")],
        against: Against = "onnxruntime",
        trials: Trials = 0,
        time: Time = None,
        threads: Threads = 1,
        rounds: Rounds = 30,
        target: Annotated[str, typer.Option(help="As for compile.")] = "native",
        shape: Annotated[
            list[str] | None, typer.Option(help="Shape of an input, as in x=1,3,224,224.")
        ] = None,
        logs: LogFolder = Path("tuning_logs"),
        lock: Lock = None,
        cpu: Cpu = None,
        out: Output = None,
        as_json: AsJson = False,
        debug: Debug = False,
    ) -> None:
        """Time a model in tilewright beside its peers, in turns on the same random input."""
        import tilewright
        from tilewright.baselines import parse_peers

        budget = _budget(trials, time)
        shapes = arguments.parse_shapes(shape)
        with errors(debug), output.progress() as progress:
            result = tilewright.bench(
                model,
                parse_peers(against),
                threads,
                rounds,
                target=target,
                shapes=shapes,
                trials=budget.trials,
                time_s=budget.time_s,
                logs=logs,
                lock=lock,
                cpu=cpu,
                progress=progress,
            )
            if out is not None:
                write_json(out, result)
        if as_json:
            typer.echo(json.dumps(result, indent=1))
        else:
            output.print_bench(result)

    @app.command("bench-ops")
    def bench_ops_command(
        against: Against = "onnxruntime",
        suite: Annotated[str, typer.Option(help="alt (all), core or quick.")] = "alt",
        ops: Annotated[
            str,
            typer.Option(help="Classes or ids, comma separated, as in C2D,GMM-2. All if empty."),
        ] = "",
        batch: Annotated[str, typer.Option(help="Batches, comma separated.")] = "1",
        trials: Trials = 0,
        time: Time = None,
        threads: Threads = 1,
        rounds: Rounds = 20,
        clock: Annotated[
            str, typer.Option(help="wall, or cpu: for one thread where others use the machine too.")
        ] = "wall",
        logs: LogFolder = Path("tuning_logs"),
        lock: Lock = None,
        cpu: Cpu = None,
        out: Output = None,
        as_json: AsJson = False,
        debug: Debug = False,
    ) -> None:
        """Time the operator suite in tilewright beside its peers, in turns."""
        from tilewright.baselines import Options, bench_operators, load_suite, parse_peers

        budget = _budget(trials, time)
        with errors(debug), output.progress() as progress:
            operators = load_suite(suite, _names(ops), _numbers(batch))
            options = Options(
                parse_peers(against), budget, threads, rounds, clock, logs, lock=lock, cpu=cpu
            )

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
    def list_command(as_json: AsJson = False, debug: Debug = False) -> None:
        """List the peers, and which of them can be used here."""
        from tilewright.baselines import PEERS

        with errors(debug):
            rows = [(name, peer.missing(), peer.about) for name, peer in PEERS.items()]
        if as_json:
            names = ("name", "missing", "about")
            typer.echo(json.dumps([dict(zip(names, row, strict=True)) for row in rows], indent=2))
            return
        for name, missing, about in rows:
            typer.echo(f"{name:13}{missing or 'installed':60}{about}")

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


def _budget(trials: int, time: str | None) -> Budget:
    """Return what tuners may spend.

    Raises:
        BadParameter: both are given, or the time means nothing.
    """
    from tilewright.baselines import Budget

    if trials and time is not None:
        raise typer.BadParameter("give --trials or --time, not both")
    return Budget(trials, parse_time(time) or 0.0)


def _names(text: str) -> list[str]:
    return [name.strip() for name in text.split(",") if name.strip()]


def _numbers(text: str) -> list[int]:
    try:
        return [int(item) for item in _names(text)]
    except ValueError:
        raise typer.BadParameter(f"--batch {text}: expected whole numbers, as in 1,16") from None
