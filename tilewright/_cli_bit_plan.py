"""Print a model that was quantized by a bit plan: its layers, and the trade-off it is part of."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import typer

from tilewright import _cli_output as output
from tilewright.report.svg import short_time

_WORST = 8


def print_plan(result: Mapping[str, Any], out: Path, curve: Path | None) -> None:
    """Print what the model became, how far it drops, its worst layers, and the plans beside it."""
    mixed = ", ".join(f"{count} {name}" for name, count in result["bits"].items())
    typer.echo(
        f"{out}: layers of {mixed}; constants {_size(result['size_bytes'])} instead of "
        f"{_size(result['float_bytes'])}"
    )
    drops = ", ".join(f"{name} {value:.3g}" for name, value in result["drop"].items())
    fitted = result["samples"] - result["judged"]
    where = "on samples left out" if fitted else "on the samples themselves, which are few"
    typer.echo(f"drop {where} ({result['judged']} of {result['samples']}): {drops}")
    if "curve" in result:
        _print_curve(result)
        if curve is not None:
            typer.echo(f"drawn in {curve}")
    _print_layers(result)


def _print_curve(result: Mapping[str, Any]) -> None:
    has_times = result["predicted_s"] is not None
    columns = ["drop", *(["predicted time"] if has_times else []), "constants", "layers", ""]
    chosen = {row["layer"]: row["bits"] for row in result["layers"]}
    rows = []
    for point in result["curve"]:
        names = list(point["layers"].values())
        mixed = ", ".join(f"{names.count(name)} {name}" for name in dict.fromkeys(sorted(names)))
        time = [short_time(point["seconds"])] if has_times else []
        mark = "chosen" if point["layers"] == chosen else ""
        rows.append([f"{point['drop']:.3g}", *time, _size(point["size_bytes"]), mixed, mark])
    typer.echo(f"trade-off (drop by {result['metric']}, before layers make up for each other):")
    output.print_rows(columns, rows)
    origins = [row["latency_from"] for row in result["layers"] if "latency_from" in row]
    if origins:
        records = origins.count("record")
        typer.echo(
            f"times of layers: {records} by records of the tuner, {len(origins) - records} "
            "measured now"
        )


def _print_layers(result: Mapping[str, Any]) -> None:
    has_times = "seconds" in result["layers"][0]
    typer.echo("layers with the lowest signal-to-noise ratios:")
    columns = ["layer", "bits", "ratio", "size", *(["time", "from"] if has_times else [])]
    rows = []
    for layer in result["layers"][:_WORST]:
        time = [short_time(layer["seconds"]), layer["latency_from"]] if has_times else []
        ratio = f"{layer['snr_db']:.1f} dB"
        rows.append([layer["layer"], layer["bits"], ratio, _size(layer["size_bytes"]), *time])
    output.print_rows(columns, rows)


def _size(size_bytes: int) -> str:
    return f"{size_bytes / 1e6:,.2f} MB" if size_bytes >= 1e6 else f"{size_bytes / 1e3:,.1f} kB"
