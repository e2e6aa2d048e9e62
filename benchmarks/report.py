"""Write benchmark results: JSON that keeps every row, and the Markdown table made from it."""

import json
import os
from collections.abc import Sequence
from pathlib import Path

RESULTS = Path(__file__).with_name("results")


def merge_rows(path: Path, rows: Sequence[dict], keys: Sequence[str]) -> list[dict]:
    """Return the rows in `path` with those replaced that have the same `keys` as one of `rows`."""
    old = json.loads(path.read_text())["rows"] if path.exists() else []
    merged = {tuple(row[key] for key in keys): row for row in [*old, *rows]}
    return list(merged.values())


def write_json(path: Path, content: dict) -> None:
    """Write `content` to `path`, whole or not at all."""
    write_text(path, json.dumps(content, indent=1) + "\n")


def write_text(path: Path, text: str) -> None:
    """Write `text` to `path`, whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(".part")
    temporary.write_text(text)
    os.replace(temporary, path)


def markdown_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return a Markdown table; the first column is aligned left, the others right."""
    lines = [header, ["---", *["--:"] * (len(header) - 1)], *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines) + "\n"


def markdown_machine(facts: dict[str, str]) -> str:
    """Return the lines that say where and with what the figures were measured."""
    return "".join(f"- {name}: {value}\n" for name, value in facts.items())
