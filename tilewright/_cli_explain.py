"""The command `explain`: where the time goes, why, and what would help most."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from tilewright import _cli_arguments as arguments
from tilewright import _cli_output as output
from tilewright._cli_arguments import AsJson, Debug, Errors
from tilewright.labels import short_label

_NAMED = 3
_COLUMNS = (
    *("operator", "time", "share", "to win", "waits for", "tuning", "types", "writes"),
    "inner loop",
)
_ALWAYS = 6  # columns that a narrow terminal shows as well


def mount(app: typer.Typer, errors: Errors) -> None:
    """Add the command to the command line.

    Args:
        app: the command line.
        errors: context that turns errors meant for a person into a line and an exit status.
    """

    @app.command("explain")
    def explain_command(
        path: Annotated[Path, typer.Argument(metavar="MODEL|MODULE", help="Either file.")],
        against: Annotated[
            Path | None, typer.Option(help="Another module, to compare each operator with.")
        ] = None,
        input_: Annotated[
            Path | None,
            typer.Option("--input", help="An .npz file: input name -> array. Default: random."),
        ] = None,
        shape: Annotated[
            list[str] | None,
            typer.Option("--shape", metavar="NAME=1,3,224,224", help="Of a model; as 'compile'."),
        ] = None,
        threads: Annotated[int, typer.Option(min=1, help="Threads of the module.")] = 1,
        rounds: Annotated[int, typer.Option(min=1, help="Runs; the fastest counts.")] = 20,
        top: Annotated[int, typer.Option(min=1, help="Operators shown; JSON has all.")] = 15,
        as_json: AsJson = False,
        debug: Debug = False,
    ) -> None:
        """Say where the time goes and why: limit, layout and tuning of each operator."""
        import tilewright
        from tilewright.explaining import explain
        from tilewright.inputs import load_npz
        from tilewright.inspection import is_module

        shapes = arguments.parse_shapes(shape)
        with errors(debug), output.progress() as progress:
            module, compiled = path, None
            if not is_module(path):
                compiled = tilewright.compile(path, shapes=shapes, progress=progress)
                module = compiled.path
            feed = None if input_ is None else load_npz(input_)
            found = explain(
                module,
                against=against,
                inputs=feed,
                threads=threads,
                rounds=rounds,
                progress=progress,
            )
            found["module"] = str(path)
        if as_json:
            typer.echo(json.dumps(found, indent=2))
        else:
            _print(found, top)


def _print(found: Mapping[str, Any], top: int) -> None:
    threads = found["threads"]
    _say(
        f"{found['module']}: {output.format_time(found['seconds'])} on {threads} thread"
        f"{'s' * (threads != 1)}; meanwhile the machine gave {found['peak_gflops']:.0f} GFLOP/s "
        f"and {found['bandwidth_gbytes']:.1f} GB/s"
    )
    rows = [
        (
            short_label(row["label"]),
            output.format_time(row["seconds"]),
            f"{row['share']:.1%}",
            output.format_time(row["to_win_s"]),
            row["waits_for"],
            row["tuning"],
            _types(row["dtypes"]),
            " | ".join(row["layouts"][-1:]),
            row["instructions"] or "",
        )
        for row in found["operators"][:top]
    ]
    shown = len(_COLUMNS)
    while shown > _ALWAYS and output.width_of(_COLUMNS[:shown], rows) > output.new_console().width:
        shown -= 1
    output.print_rows(_COLUMNS[:shown], [row[:shown] for row in rows])
    if shown < len(_COLUMNS):
        left_out = " and ".join(_COLUMNS[shown:][-2:])
        _say(f"a wider terminal, a file or --json also shows {left_out}")
    conversions = found["conversions"]
    _say(
        f"{conversions['count']} layout conversions take "
        f"{output.format_time(conversions['seconds'])}; "
        + (", ".join(f"{share:.0%} {kind}" for kind, share in found["tuned"].items()) or "no tasks")
    )
    if found["quantized"]:
        _print_quantized(found["quantized"], top)
    for label, advice, seconds in _advised(found["operators"])[:top]:
        _say(f"up to {output.format_time(seconds)}: {label}: {advice}")
    if "against" in found:
        _print_beside(found, top)


def _advised(operators: Sequence[Mapping[str, Any]]) -> list[tuple[str, str, float]]:
    """Return what would help and by how much; calls of one kernel share a line."""
    groups: dict[tuple[str, str], list[Mapping[str, Any]]] = {}
    for row in operators:
        if row["advice"]:
            groups.setdefault((row["kernel"], row["advice"]), []).append(row)
    lines = [
        (
            short_label(rows[0]["label"])
            if len(rows) == 1
            else f"{len(rows)} calls of {short_label(kernel)}",
            advice,
            sum(row["to_win_s"] for row in rows),
        )
        for (kernel, advice), rows in groups.items()
    ]
    return sorted(lines, key=lambda line: -line[2])


def _types(dtypes: Sequence[str]) -> str:
    """Return the types of an operator in short: float32 is what everything is otherwise."""
    short = {"float32": "f32", "uint8": "u8", "int8": "s8", "int32": "s32"}
    return " ".join(short.get(dtype, dtype) for dtype in dtypes)


def _print_quantized(operators: Sequence[Mapping[str, Any]], top: int) -> None:
    """Say which operators of a quantized model run in floats; the commonest reason first."""
    floats = [row for row in operators if not row["integer"]]
    _say(f"{len(operators) - len(floats)} of {len(operators)} operators run on integers")
    reasons: dict[str, list[str]] = {}
    for row in floats:
        reasons.setdefault(row["reason"], []).append(f"{row['operator']} {row['name']}")
    for reason, names in sorted(reasons.items(), key=lambda item: -len(item[1]))[:top]:
        more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
        _say(f"in floats: {', '.join(names[:_NAMED])}{more}: {reason}")


def _print_beside(found: Mapping[str, Any], top: int) -> None:
    other = found["against"]
    ratio = found["seconds"] / other["seconds"]
    _say(
        f"{other['module']}: {output.format_time(other['seconds'])}; {found['module']} takes "
        f"{ratio:.2f} times as long"
    )

    def time(seconds: float | None) -> str:
        return "" if seconds is None else output.format_time(seconds)

    rows = [
        (short_label(row["label"]), time(row["seconds"]), time(row["other_seconds"]))
        for row in other["operators"][:top]
    ]
    output.print_rows(("operator", found["module"], other["module"]), rows)


def _say(text: str) -> None:
    output.new_console().print(text, markup=False)
