"""The commands around tuning: `tune`, `tune-op` and `logs`; mounted by `tilewright.cli`.

`mount(app)` adds them, so that errors and Ctrl-C are handled in one place.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tilewright import _cli_arguments as arguments
from tilewright import _cli_tuning_tables as tables
from tilewright._cli_arguments import AsJson, Debug, Errors

if TYPE_CHECKING:
    from tilewright.tuner.device.choose import DeviceOptions
    from tilewright.tuner.session import TuneOptions


Trials = Annotated[
    int | None,
    typer.Option(min=1, help="Candidates to measure in all, those in the log included."),
]
Time = Annotated[
    str | None,
    typer.Option(metavar="10m", help="Time to spend: 90s, 10m, 2h; a number is seconds."),
]
LogFile = Annotated[
    Path | None, typer.Option(help="File of records; default: the user's log, which compile reads.")
]
Threads = Annotated[int, typer.Option(min=1, help="Threads that a kernel may use.")]
Seed = Annotated[int, typer.Option(help="Of the search and the random inputs.")]
Strategy = Annotated[
    str, typer.Option(help="How candidates are proposed: cross, evolutionary, random.")
]
MeasureCpu = Annotated[
    int | None,
    typer.Option(
        min=0, help="Processor to time on, where nothing builds meanwhile; default: the last."
    ),
]
Lock = Annotated[
    Path | None,
    typer.Option(help="File to lock while timing: tuners that share it take turns."),
]
Cold = Annotated[bool, typer.Option("--cold", help="Rotate buffers beyond the last-level cache.")]
TargetName = Annotated[str, typer.Option("--target", help="'native', or a name from 'targets'.")]
Device = Annotated[
    list[str] | None,
    typer.Option(
        "--device",
        metavar="ssh://USER@BOARD",
        help="Board to time on, or exec:COMMAND for an emulator here; may be given several times.",
    ),
]
Tracker = Annotated[
    str, typer.Option(metavar="HOST:PORT", help="TVM's RPC tracker, whose servers time.")
]
Key = Annotated[str, typer.Option(help="Kind of device to ask the tracker for.")]
Measure = Annotated[
    str,
    typer.Option(help="'time', or 'mca': cycles of inner loops in LLVM's model of the target."),
]
LogPath = Annotated[Path, typer.Argument(metavar="LOG", help="A tuning log.", show_default=False)]

# Exit status where results were found, but could not be kept.
_UNWRITTEN = 1
_UNITS = {"s": 1.0, "m": 60.0, "h": 3600.0}


def parse_time(text: str | None) -> float | None:
    """Read 90, 90s, 10m or 2h as seconds."""
    if text is None:
        return None
    number, unit = (text[:-1], text[-1]) if text[-1:] in _UNITS else (text, "s")
    try:
        seconds = float(number) * _UNITS[unit]
    except ValueError:
        seconds = -1.0
    if not 0 < seconds < float("inf"):
        raise typer.BadParameter(f"--time {text}: expected a time such as 90s, 10m or 2h")
    return seconds


def parse_extents(text: str, option: str) -> tuple[int, ...]:
    """Read 1,64,56,56."""
    try:
        extents = tuple(int(part) for part in text.split(","))
    except ValueError:
        extents = ()
    if not extents or min(extents) < 1:
        raise typer.BadParameter(f"{option} {text}: expected positive numbers, as in 1,64,56,56")
    return extents


def print_coverage(tuning: Mapping[str, Any], verbose: bool) -> None:
    """Print how much of a compile is tuned; warnings go to stderr."""
    for warning in tuning["warnings"]:
        typer.echo(f"warning: {warning}", err=True)
    tables.print_coverage(tuning, verbose)


def _options(
    strategy: str,
    cold: bool,
    measure_cpu: int | None,
    lock: Path | None,
    devices: DeviceOptions,
) -> TuneOptions:
    from tilewright.tuner.measure import MeasureOptions
    from tilewright.tuner.session import STRATEGIES, TuneOptions

    if strategy not in STRATEGIES:
        known = ", ".join(STRATEGIES)
        raise typer.BadParameter(f"--strategy {strategy}: expected one of {known}")
    measure = MeasureOptions(cold=cold, cpu=measure_cpu, lock=lock)
    return TuneOptions(strategy=strategy, measure=measure, devices=devices)


def _devices(device: list[str] | None, tracker: str, key: str, measure: str) -> DeviceOptions:
    from tilewright.tuner.device.choose import DeviceOptions

    return DeviceOptions(tuple(device or ()), tracker, key, measure)


def mount(app: typer.Typer, errors: Errors) -> None:
    """Add the commands to the command line.

    Args:
        app: the command line.
        errors: context that turns errors meant for a person into a line and an exit status.
    """

    @app.command("tune")
    def tune_command(
        model: Annotated[Path, typer.Argument(metavar="MODEL", help="An ONNX file.")],
        trials: Trials = None,
        time: Time = None,
        log: LogFile = None,
        target: TargetName = "native",
        threads: Threads = 1,
        seed: Seed = 0,
        strategy: Strategy = "cross",
        cold: Cold = False,
        measure_cpu: MeasureCpu = None,
        lock: Lock = None,
        device: Device = None,
        tracker: Tracker = "",
        key: Key = "",
        measure: Measure = "time",
        shape: Annotated[
            list[str] | None,
            typer.Option("--shape", metavar="NAME=1,3,224,224", help="Shape of an input."),
        ] = None,
        as_json: AsJson = False,
        debug: Debug = False,
    ) -> None:
        """Tune a model's operators here; 'compile' then finds the log by itself."""
        seconds, shapes = parse_time(time), arguments.parse_shapes(shape)
        with errors(debug), tables.live() as show:
            from tilewright.tuner import tune

            devices = _devices(device, tracker, key, measure)
            options = _options(strategy, cold, measure_cpu, lock, devices)

            result = tune(
                *(model, target, shapes),
                trials=trials,
                time_s=seconds,
                log=log,
                threads=threads,
                seed=seed,
                options=options,
                callback=show,
            )
        tables.print_result(result, as_json)
        if result.unwritten:
            raise typer.Exit(_UNWRITTEN)

    @app.command("tune-op")
    def tune_op_command(
        kind: Annotated[str, typer.Argument(metavar="conv2d|matmul", help="Kind of operator.")],
        data: Annotated[str, typer.Option(help="Shape of the data, as 1,64,56,56.")],
        weight: Annotated[str, typer.Option(help="Shape of the weights, as 64,64,3,3.")],
        stride: Annotated[
            int, typer.Option(min=1, help="Of a convolution, in both dimensions.")
        ] = 1,
        pad: Annotated[int, typer.Option(min=0, help="Of a convolution, on every side.")] = 0,
        dilation: Annotated[int, typer.Option(min=1, help="Of a convolution.")] = 1,
        groups: Annotated[int, typer.Option(min=1, help="Of a convolution.")] = 1,
        trials: Trials = 64,
        time: Time = None,
        log: LogFile = None,
        target: TargetName = "native",
        threads: Threads = 1,
        seed: Seed = 0,
        strategy: Strategy = "cross",
        cold: Cold = False,
        measure_cpu: MeasureCpu = None,
        lock: Lock = None,
        device: Device = None,
        tracker: Tracker = "",
        key: Key = "",
        measure: Measure = "time",
        as_json: AsJson = False,
        debug: Debug = False,
    ) -> None:
        """Tune one operator, with bias and ReLU."""
        from tilewright.tuner.operators import KINDS, operator_model

        if kind not in KINDS:
            raise typer.BadParameter(f"{kind}: expected one of {', '.join(KINDS)}")
        shapes = parse_extents(data, "--data"), parse_extents(weight, "--weight")
        seconds = parse_time(time)
        with errors(debug), tables.live() as show:
            from tilewright.tuner import tune

            devices = _devices(device, tracker, key, measure)
            options = _options(strategy, cold, measure_cpu, lock, devices)
            model = operator_model(kind, *shapes, stride, pad, dilation, groups)
            result = tune(
                *(model, target),
                trials=trials,
                time_s=seconds,
                log=log,
                threads=threads,
                seed=seed,
                options=options,
                callback=show,
                winograd=False,
            )
        tables.print_result(result, as_json)
        if result.unwritten:
            raise typer.Exit(_UNWRITTEN)

    logs = typer.Typer(help="Look into tuning logs, and keep them in order.", no_args_is_help=True)
    app.add_typer(logs, name="logs")
    _mount_logs(logs, errors)


def _mount_logs(logs: typer.Typer, errors: Errors) -> None:
    @logs.command("ls")
    def ls_command(as_json: AsJson = False, debug: Debug = False) -> None:
        """List the logs that 'compile' reads, with what they hold."""
        with errors(debug):
            from tilewright.tuner import Log, default_logs

            found = [tables.log_summary(Log(path)) for path in default_logs()]
        _print(found, as_json, tables.print_logs)

    @logs.command("show")
    def show_command(log: LogPath, as_json: AsJson = False, debug: Debug = False) -> None:
        """Show the best record of each task."""
        with errors(debug):
            from tilewright.tuner import Log

            _must_exist(log)
            found = tables.best_of_tasks(Log(log))
            warning = Log(log).read().warning(log)
        if warning:
            typer.echo(f"warning: {warning}", err=True)
        _print(found, as_json, tables.print_records)

    @logs.command("merge")
    def merge_command(
        out: Annotated[Path, typer.Argument(metavar="OUT", help="Log to add to.")],
        others: Annotated[list[Path], typer.Argument(metavar="LOG...", help="Logs to read.")],
        debug: Debug = False,
    ) -> None:
        """Add to one log the records of others that it lacks."""
        with errors(debug):
            from tilewright.tuner import Log

            added = Log(out).merge(others)
        typer.echo(f"{out}: {added} records added")

    @logs.command("prune")
    def prune_command(
        log: LogPath,
        keep: Annotated[int, typer.Option(min=1, help="Records of each task and layouts.")] = 1,
        within: Annotated[
            float, typer.Option(min=1.0, help="Drop layouts slower than the best by this factor.")
        ] = 2.0,
        debug: Debug = False,
    ) -> None:
        """Keep only the fastest records of each task and layouts."""
        with errors(debug):
            from tilewright.tuner import Log

            _must_exist(log)
            before, after = Log(log).prune(keep, within)
        typer.echo(f"{log}: {after} of {before} lines kept")

    @logs.command("doctor")
    def doctor_command(
        log: LogPath,
        repair: Annotated[
            bool, typer.Option("--repair", help="Move damaged lines to LOG.damaged.")
        ] = False,
        as_json: AsJson = False,
        debug: Debug = False,
    ) -> None:
        """Explain the lines of a log that cannot be read; exit status 1 if there are any."""
        with errors(debug):
            from tilewright.tuner import Log
            from tilewright.tuner.records import is_outgrown

            _must_exist(log)
            contents = Log(log).repair() if repair else Log(log).read()
            older = sum(map(is_outgrown, contents.records))
        state = "moved away" if repair else "skipped"
        if as_json:
            lines = [asdict(skipped) for skipped in contents.skipped]
            found = {"records": len(contents.records), "outgrown": older, state: lines}
            typer.echo(json.dumps(found, indent=2))
        else:
            for skipped in contents.skipped:
                typer.echo(f"{log}:{skipped.line}: {skipped.reason}")
            counts = f"{len(contents.records)} records, {len(contents.skipped)} lines"
            typer.echo(f"{log}: {counts} {state}")
            if older:
                typer.echo(
                    f"{log}: {older} records are of older kernels; a compile takes their layouts, "
                    "and their loops only where they won clearly; 'tilewright tune' measures anew"
                )
        if contents.skipped and not repair:
            raise typer.Exit(1)


def _must_exist(path: Path) -> None:
    from tilewright.errors import LogError

    if not path.is_file():
        raise LogError(f"cannot read {path}: no such file")


def _print(result: Any, as_json: bool, as_text: Callable[[Any], None]) -> None:
    if as_json:
        typer.echo(json.dumps(result, indent=2, default=str))
    else:
        as_text(result)
