"""The command `profile`: each operator's time against the machine's peak and bandwidth."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from tilewright import _cli_output as output
from tilewright._cli_arguments import AsJson, Debug, Errors
from tilewright.labels import short_label

if TYPE_CHECKING:
    from tilewright.profiling import OperatorProfile, Profile


_COLUMNS = (
    *("operator", "calls", "time", "share", "GFLOP/s", "of peak", "GB/s", "of bandwidth"),
    *("waits for", "inner loop"),
)


def mount(app: typer.Typer, errors: Errors) -> None:
    """Add the command to the command line.

    Args:
        app: the command line.
        errors: context that turns errors meant for a person into a line and an exit status.
    """

    @app.command("profile")
    def profile_command(
        module: Annotated[Path, typer.Argument(metavar="MODULE", help="A compiled module.")],
        input_: Annotated[
            Path | None,
            typer.Option("--input", help="An .npz file: input name -> array. Default: random."),
        ] = None,
        threads: Annotated[int, typer.Option(min=1, help="Threads of the module.")] = 1,
        rounds: Annotated[int, typer.Option(min=1, help="Runs; the fastest counts.")] = 20,
        top: Annotated[int, typer.Option(min=1, help="Kernels shown; JSON has all calls.")] = 20,
        as_json: AsJson = False,
        debug: Debug = False,
    ) -> None:
        """Show where the time of a module goes, and what each operator waits for."""
        from tilewright.inputs import load_npz
        from tilewright.profiling import profile

        with errors(debug), output.progress() as progress:
            feed = None if input_ is None else load_npz(input_)
            found = profile(module, feed, threads, rounds, progress)
        if as_json:
            typer.echo(json.dumps(found.to_json(), indent=2))
        else:
            _print(found, top)


def _print(found: Profile, top: int) -> None:
    console = output.new_console()
    console.print(
        f"{found.module}, target {found.target}, {found.threads} "
        f"thread{'s' * (found.threads != 1)}, fastest of {found.rounds} rounds: "
        f"{found.seconds * 1e3:.2f} ms; meanwhile the machine gave {found.peak_gflops:.0f} GFLOP/s "
        f"and {found.bandwidth_gbytes:.1f} GB/s",
        markup=False,
    )
    kernels: dict[str, list[OperatorProfile]] = {}
    for operator in found.operators:
        kernels.setdefault(operator.kernel, []).append(operator)
    groups = sorted(kernels.values(), key=lambda group: -sum(row.seconds for row in group))
    output.print_rows(_COLUMNS, map(_cells, groups[:top]))
    if groups[top:]:
        rest = sum(row.seconds for group in groups[top:] for row in group)
        console.print(f"{len(groups[top:])} more kernels take {rest / found.seconds:.1%}")
    if not found.has_instructions:
        console.print("no objdump on this machine: inner loops are not shown")


def _cells(group: list[OperatorProfile]) -> list[str]:
    """Return one line for all calls of a kernel: its rates are those of its slowest call."""
    slowest = max(group, key=lambda row: row.seconds)
    seconds = sum(row.seconds for row in group)
    return [
        short_label(slowest.kernel),
        str(len(group)),
        f"{seconds * 1e3:.3f} ms",
        f"{sum(row.share for row in group):.1%}",
        *_rates(("{:.0f}", slowest.gflops), ("{:.0%}", slowest.peak_share)),
        *_rates(("{:.1f}", slowest.gbytes), ("{:.0%}", slowest.bandwidth_share)),
        slowest.waits_for,
        slowest.instructions or "",
    ]


def _rates(*items: tuple[str, float | None]) -> Iterable[str]:
    return ("" if value is None else form.format(value) for form, value in items)
