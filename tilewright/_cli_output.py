"""Print results for people: tables on stdout, progress on stderr."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from tilewright._cli_progress import progress
from tilewright.labels import short_label

__all__ = ["progress"]

_KIB = 1024
_GAP = 2  # between columns
_SHOWN_OPERATORS = 12


def new_console() -> Console:
    console = Console(highlight=False)
    if not console.is_terminal:
        # A pipe has no width: never cut a line there.
        console.width = 1 << 16
    return console


def print_rows(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """Print a table of plain text."""
    table = _table(*columns)
    for row in rows:
        _row(table, *row)
    new_console().print(table)


def width_of(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> int:
    """Return how many characters wide a table is where nothing is folded."""
    cells = [columns, *rows]
    widths = [max(len(row[at]) for row in cells) for at in range(len(columns))]
    return sum(widths) + (_GAP + 1) * len(columns)


def print_compiled(path: Path, target: str, report: Mapping[str, Any], seconds: float) -> None:
    """Print what was compiled."""
    conversions = len(report["conversions"])
    new_console().print(
        f"{path}: {format_size(path.stat().st_size)}, {len(report['operators'])} operators, "
        f"{conversions} layout conversion{'s' * (conversions != 1)}, "
        f"target {target}, compiled in {seconds:.1f} s",
        markup=False,
    )


def print_sizes(kind: str, rows: Sequence[tuple[str, int, str]]) -> None:
    """Print names, sizes in bytes, and what they are."""
    table = _table(kind, "size", "bytes", "")
    for name, size_bytes, meaning in rows:
        _row(table, name, format_size(size_bytes), f"{size_bytes:,}", meaning)
    new_console().print(table)


def summaries(arrays: Mapping[str, np.ndarray]) -> list[dict[str, Any]]:
    """Return name, type, shape and range of each array; the range of an empty one is None."""
    found = []
    for name, array in arrays.items():
        values = array.astype(np.float64)
        numbers = {
            of: float(getattr(np, of)(values)) if array.size else None
            for of in ("min", "mean", "max")
        }
        row = {"output": name, "dtype": array.dtype.name, "shape": list(array.shape)}
        found.append({**row, **numbers})
    return found


def print_arrays(rows: Sequence[Mapping[str, Any]]) -> None:
    """Print what `summaries` found."""
    table = _table("output", "dtype", "shape", "min", "mean", "max")
    for row in rows:
        numbers = ["" if row[of] is None else f"{row[of]:.6g}" for of in ("min", "mean", "max")]
        _row(table, row["output"], row["dtype"], _shape(row["shape"]), *numbers)
    new_console().print(table)


def print_bench(result: Mapping[str, Any]) -> None:
    """Print the times of each engine on the one row of a result, ours first."""
    console = new_console()
    settings, (row,) = result["settings"], result["rows"]
    threads = settings["threads"]
    console.print(
        f"{row['model']}, target {settings['target']}, {threads} "
        f"thread{'s' * (threads != 1)}, {settings['rounds']} rounds in turns",
        markup=False,
    )
    table = _table("engine", "median", "fastest", "time / tilewright", "largest error / std")
    for name, engine in row["engines"].items():
        error = row["largest_error"].get(name)
        low, high = engine.get("interval", (1.0, 1.0))
        _row(
            table,
            name,
            format_time(engine["median_s"]),
            format_time(engine["min_s"]),
            f"{engine.get('ratio', 1.0):.2f} [{low:.2f} .. {high:.2f}]",
            "" if error is None else f"{error:.1e}",
        )
    console.print(table)
    for name, reason in {**result["left_out"], **row["failed"]}.items():
        console.print(f"{name} left out: {reason}", markup=False)


def print_inspection(result: Mapping[str, Any]) -> None:
    """Print the description of a model or a module."""
    if result["kind"] == "module":
        _print_module(result)
    else:
        _print_model(result)


def print_targets(targets: Sequence[Mapping[str, Any]]) -> None:
    """Print one line per target."""
    table = _table("target", "processor", "vectors", "L1", "L2", "L3", "cores", "features")
    for target in targets:
        if "unavailable" in target:
            _row(table, target["name"], target["unavailable"])
            continue
        if "chip" in target:
            shared = format_size(target["shared_bytes"])
            _row(table, target["name"], target["chip"], "", shared, "", "", str(target["sms"]), "")
            continue
        _row(
            table,
            target["name"],
            target["mcpu"],
            f"{target['vector_registers']} x {target['vector_bits']}",
            *(format_size(target[cache]) for cache in ("l1_bytes", "l2_bytes", "l3_bytes")),
            str(target["cores"]),
            " ".join(target["features"]),
        )
    new_console().print(table)


def _print_quantized(operators: Sequence[Mapping[str, Any]]) -> None:
    """Print one line per operator of a quantized model."""
    count = sum(item["integer"] for item in operators)
    table = _table("operator", "result", "integer", "form", "why not")
    for item in operators:
        _row(
            table,
            item["operator"],
            item["name"],
            "yes" if item["integer"] else "no",
            item.get("form", ""),  # modules of earlier releases have none
            item["reason"],
        )
    new_console().print(table)
    new_console().print(f"{count} of {len(operators)} operators run on integers", markup=False)


def _print_model(result: Mapping[str, Any]) -> None:
    console = new_console()
    opsets = ", ".join(f"{domain} {version}" for domain, version in result["opsets"].items())
    console.print(
        f"ONNX model, {format_size(result['size_bytes'])}, {result['parameters']:,} parameters, "
        f"opset {opsets}" + (f", made by {result['producer']}" if result["producer"] else ""),
        markup=False,
    )
    console.print(_signature(result["inputs"], result["outputs"]))
    counts = list(result["operators"].items())
    shown = ", ".join(f"{name} {count}" for name, count in counts[:_SHOWN_OPERATORS])
    more = f", and {len(counts) - _SHOWN_OPERATORS} more" * (len(counts) > _SHOWN_OPERATORS)
    console.print(f"operators: {shown or 'none'}{more}", markup=False)
    if result["unsupported"]:
        names = ", ".join(f"{name} {count}" for name, count in result["unsupported"].items())
        console.print(f"not supported: {names}", markup=False)
    if "quantized" in result:
        _print_quantized(result["quantized"])
    if "layouts" in result:
        _print_layouts(console, result["layouts"])


def _print_layouts(console: Console, layouts: Mapping[str, Any]) -> None:
    table = _table("operator", "kernel", "layouts", "estimate")
    for item in layouts["operators"]:
        cells = short_label(item["label"]), short_label(item["kernel"]), "\n".join(item["layouts"])
        _row(table, *cells, format_time(item["estimated_s"]))
    console.print(table)
    if layouts["conversions"]:
        table = _table("converted tensor", "from", "to", "estimate")
        for item in layouts["conversions"]:
            _row(table, item["tensor"], item["from"], item["to"], format_time(item["estimated_s"]))
        console.print(table)
    quality = "proven least" if layouts["proven_optimal"] else "not proven least"
    console.print(
        f"{len(layouts['conversions'])} conversions, estimate of the whole "
        f"{format_time(layouts['estimated_s'])} ({quality})"
    )


def _print_module(result: Mapping[str, Any]) -> None:
    console = new_console()
    entry = result["entries"][0]
    target = result.get("target", {})
    name = target.get("name", target) if isinstance(target, Mapping) else target
    console.print(
        f"compiled module, {format_size(result['size_bytes'])}, target {name}, "
        f"{len(entry['calls'])} operator call{'s' * (len(entry['calls']) != 1)}",
        markup=False,
    )
    console.print(_signature(entry["inputs"], entry["outputs"]))
    for key, value in result.items():
        if key not in ("kind", "size_bytes", "target", "entries", "quantized"):
            console.print(f"{key.replace('_', ' ')}: {_text(value)}", markup=False)
    if "quantized" in result:
        _print_quantized(result["quantized"])


def _signature(inputs: Sequence[Mapping], outputs: Sequence[Mapping]) -> Table:
    table = _table("", "name", "dtype", "shape")
    for role, items in (("input", inputs), ("output", outputs)):
        for item in items:
            _row(table, role, item["name"], item["dtype"], _shape(item["shape"]))
    return table


def _table(*columns: str) -> Table:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for column in columns:
        table.add_column(column)
    return table


def _row(table: Table, *cells: str) -> None:
    table.add_row(*(Text(cell) for cell in cells))


def _text(value: Any) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{key} {item}" for key, item in value.items())
    return ", ".join(map(str, value)) if isinstance(value, list) else str(value)


def _shape(shape: Sequence[Any]) -> str:
    return "[" + ", ".join("?" if extent is None else str(extent) for extent in shape) + "]"


def format_size(size_bytes: float) -> str:
    for unit in ("B", "KiB", "MiB"):
        if size_bytes < _KIB:
            return f"{size_bytes:.4g} {unit}"
        size_bytes /= _KIB
    return f"{size_bytes:.4g} GiB"


def format_time(seconds: float) -> str:
    """Return a time in microseconds, milliseconds or seconds, whichever reads best."""
    if seconds < 1e-3:
        return f"{seconds * 1e6:.1f} us"
    return f"{seconds * 1e3:.2f} ms" if seconds < 1 else f"{seconds:.2f} s"
