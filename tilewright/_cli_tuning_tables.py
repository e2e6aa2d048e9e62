"""Tables of the tuning commands: live while tuning, and what logs hold."""

from __future__ import annotations

import contextlib
import json
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import typer
from rich import box
from rich.console import Console
from rich.live import Live
from rich.table import Table

from tilewright._cli_progress import is_silent
from tilewright.labels import short_label

if TYPE_CHECKING:
    from tilewright.tuner.log import Log
    from tilewright.tuner.session import Session
    from tilewright.tuner.tune_model import TuneResult

_SHOWN_TASKS = 24
_REFRESH_S = 0.5


@contextlib.contextmanager
def live() -> Iterator[Callable[[Session], None]]:
    """Show a session as a table that follows it; nothing where stderr is not a terminal."""
    console = Console(stderr=True)
    if not console.is_terminal or is_silent():
        yield lambda _session: None
        return
    shown = 0.0
    with Live(console=console, auto_refresh=False, transient=True) as display:

        def show(session: Session) -> None:
            nonlocal shown
            if time.monotonic() - shown >= _REFRESH_S or session.stopped:
                shown = time.monotonic()
                display.update(session_table(session), refresh=True)

        yield show


def session_table(session: Session) -> Table:
    """Return the state of a session: a row for each task, the heaviest first."""
    table = _table(
        "task", "calls", "trials", "failed", "default", "best", "GFLOP/s", "peak", "gain left"
    )
    measure = session.options.devices.measure
    for state in session.states[:_SHOWN_TASKS]:
        best, gflops = state.best_s, None
        if best and state.flops and measure == "time":
            gflops = state.flops / best / 1e9
        peak = session.peak_flops * state.task.target.cores / 1e9
        gain = state.progress.expected_gain_s()
        table.add_row(
            short_label(state.task.name),
            str(state.weight),
            str(state.trials),
            str(state.failures or ""),
            _amount(state.incumbent_s, measure),
            _amount(best, measure),
            f"{gflops:.0f}" if gflops else "",
            f"{gflops / peak:.0%}" if gflops and peak else "",
            state.problem or (_amount(gain, measure) if 0 < gain < 1 else ""),
        )
    if len(session.states) > _SHOWN_TASKS:
        table.add_row(f".. {len(session.states) - _SHOWN_TASKS} more", *[""] * 8)
    before, after = session.total_s()
    rate = session.measured / max(session.elapsed_s, 1e-9)
    options = session.options
    left = ""
    if options.time_s is not None:
        left = f", {max(0.0, options.time_s - session.elapsed_s):.0f} s left"
    elif options.trials is not None and rate > 0:
        left = f", about {(options.trials - session.trials) / rate:.0f} s left"
    table.caption = (
        f"{session.trials} trials, {rate:.1f} a second, {session.elapsed_s:.0f} s{left}; "
        f"all tasks {_amount(before, measure)} -> {_amount(after, measure)}. "
        "Ctrl-C stops and keeps the best."
    )
    return table


def print_result(result: TuneResult, as_json: bool) -> None:
    """Print the outcome of tuning; warnings go to stderr."""
    for warning in result.warnings:
        typer.echo(f"warning: {warning}", err=True)
    if result.unwritten:
        typer.echo(f"error: {result.unwritten} records are not in {result.log}", err=True)
    if as_json:
        typer.echo(json.dumps(asdict(result), indent=2, default=str))
        return
    table = _table(
        "task", "calls", "space", "trials", "failed", "default", "best", "GFLOP/s", "note"
    )
    for task in result.tasks:
        table.add_row(
            short_label(task.name),
            str(task.calls),
            f"{task.space:.2g}" if task.space else "",
            str(task.trials),
            str(task.failures or ""),
            _amount(task.incumbent_s, result.measure),
            _amount(task.best_s, result.measure),
            f"{task.gflops:.0f}" if task.gflops and result.measure == "time" else "",
            task.problem,
        )
    _console().print(table)
    gained = "nothing was measured"
    if result.after_s:
        gained = (
            f"all tasks {_amount(result.before_s, result.measure)} -> "
            f"{_amount(result.after_s, result.measure)} ({result.before_s / result.after_s:.2f}x)"
        )
    typer.echo(
        f"{gained}, {result.trials} trials in {result.elapsed_s:.0f} s, "
        f"stopped: {result.stopped}; log {result.log}"
    )


def print_coverage(tuning: Mapping[str, Any], verbose: bool) -> None:
    """Print the share of the expected time that is tuned, with `verbose` for each operator."""
    if verbose:
        table = _table("operator", "origin", "expected", "note")
        for row in tuning["operators"]:
            table.add_row(
                short_label(row["label"]), row["origin"], _time(row["expected_s"]), row["reason"]
            )
        _console().print(table)
    origins = [row["origin"] for row in tuning["operators"]]
    reasons = Counter(row["reason"] for row in tuning["operators"] if row["origin"] == "default")
    main = f": {reasons.most_common(1)[0][0]}" if reasons else ""
    typer.echo(
        f"tuned: {origins.count('tuned')} of {len(origins)} operators "
        f"({tuning['tuned_share']:.0%} of the expected time), "
        f"{origins.count('transferred')} transferred, {origins.count('default')} default{main}"
    )


def log_summary(log: Log) -> dict[str, Any]:
    """Return what a log holds, in numbers."""
    contents = log.read()
    return {
        "path": str(log.path),
        "records": len(contents.records),
        "failed": sum(not record.ok for record in contents.records),
        "tasks": len({record.task_key for record in contents.records}),
        "targets": sorted({record.target["mcpu"] for record in contents.records}),
        "skipped": len(contents.skipped),
    }


def best_of_tasks(log: Log) -> list[dict[str, Any]]:
    """Return the best record of each task and target as plain data."""
    from tilewright.tuner.records import merit

    best: dict[tuple[str, str, int], Any] = {}
    counts: dict[tuple[str, str, int], int] = {}
    for record in log.read().records:
        place = (record.task_key, record.target["mcpu"], record.target["cores"])
        counts[place] = counts.get(place, 0) + 1
        if record.ok and (place not in best or merit(record) < merit(best[place])):
            best[place] = record
    return [
        {
            "task": record.task["name"],
            "key": record.task_key[:12],
            "axes": record.task.get("axes", []),
            "target": record.target["mcpu"],
            "threads": record.target["cores"],
            "records": counts[place],
            "best_s": record.seconds,
            "gflops": 2e-9 * record.task.get("macs", 0) / record.seconds,
            "layouts": [str(layout) for layout in record.candidate.layouts],
            "schedule": record.candidate.schedule,
        }
        for place, record in best.items()
    ]


def print_logs(rows: Sequence[Mapping[str, Any]]) -> None:
    """Print `log_summary` of each log."""
    table = _table("log", "records", "failed", "tasks", "targets", "skipped lines")
    for row in rows:
        table.add_row(
            *(str(row[name]) for name in ("path", "records", "failed", "tasks")),
            ", ".join(row["targets"]),
            str(row["skipped"]),
        )
    _console().print(table)


def print_records(rows: Sequence[Mapping[str, Any]]) -> None:
    """Print `best_of_tasks`."""
    table = _table("task", "key", "axes", "target", "threads", "records", "best", "GFLOP/s")
    for row in rows:
        table.add_row(
            short_label(row["task"]),
            row["key"],
            "x".join(map(str, row["axes"])),
            row["target"],
            str(row["threads"]),
            str(row["records"]),
            _time(row["best_s"]),
            f"{row['gflops']:.0f}" if row["gflops"] else "",
        )
    _console().print(table)


def _table(*names: str) -> Table:
    table = Table(box=box.SIMPLE_HEAD)
    for index, name in enumerate(names):
        table.add_column(name, justify="left" if index == 0 or name == "note" else "right")
    return table


def _amount(seconds: float | None, measure: str) -> str:
    """Return a time, or the cycles that a model counted: those are never shown as a time."""
    if measure != "mca" or not seconds:
        return _time(seconds)
    from tilewright.compiler.layout.costs import CLOCK_HZ

    return f"{seconds * CLOCK_HZ / 1e3:.1f} kcycles"


def _time(seconds: float | None) -> str:
    if not seconds:
        return ""
    return f"{seconds * 1e3:.2f} ms" if seconds >= 1e-3 else f"{seconds * 1e6:.1f} us"


def _console() -> Console:
    console = Console(highlight=False, markup=False)
    if not console.is_terminal:
        console.width = 1 << 12
    return console
