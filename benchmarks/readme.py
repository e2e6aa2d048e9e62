"""Write the figures of README.md from benchmarks/results: `python -m benchmarks.readme [--check]`.

What stands between the two marks is replaced. With --check nothing is written: the command fails
where the README says something else than the results.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path

from benchmarks.report import RESULTS, markdown_table, write_text
from benchmarks.worker import ROOT
from tilewright.report.comparison import (
    EVEN,
    LOST,
    WON,
    Row,
    geometric_mean,
    ratios,
    read_contest,
)

README = ROOT / "README.md"
START = "<!-- figures: python -m benchmarks.readme -->"
END = "<!-- end of figures -->"
_KINDS = ("operators", "models")
_BUDGETS = {"trials": "{} trials each", "seconds": "{} s of tuning each"}
_PEERS = ("onnxruntime", "openvino", "torch", "inductor", "ansor", "metaschedule")


def figures(folder: Path = RESULTS) -> str:
    """Return the table: one line for each machine, kind of result and batch."""
    lines, machines = [], []
    for vectors in ("avx2", "avx512", "avx512_vnni"):
        for path, title in (found for kind in _KINDS for found in _results(folder, kind, vectors)):
            section = read_contest(json.loads(path.read_text()))
            machine = f"{section.machine['processor']}, {vectors.replace('_', ' ')}"
            machines.append(f"[{title}, {machine}](benchmarks/results/{path.stem}.md)")
            for batch in ("b1", "b16"):
                rows = [row for row in section.rows if row.name.endswith(f"-{batch}")]
                if rows:
                    lines.append(_line(f"{vectors}, {title}, batch {batch[1:]}", rows))
    header = ["time / tilewright's", *_PEERS]
    return (
        "Geometric means of the time of each peer over tilewright's on one thread; in brackets\n"
        "the rows won, even and lost. Where a line says a budget, every tuner had it, ours too,\n"
        "and began without a log; elsewhere ours is untuned unless shipped logs apply.\n\n"
        + markdown_table(header, lines)
        + f"\nEvery row, and how it was measured: {'; '.join(machines)}.\n"
    )


def _results(folder: Path, kind: str, vectors: str) -> Iterator[tuple[Path, str]]:
    """Yield the files of a kind on a machine and what to call them: untuned first, then tuned."""
    untuned = folder / f"{kind}_{vectors}.json"
    if untuned.exists():
        yield untuned, kind
    for unit, words in _BUDGETS.items():
        for path in sorted(folder.glob(f"{kind}_[0-9]*_{unit}_{vectors}.json")):
            yield path, f"{kind}, {words.format(path.stem.split('_')[1])}"


def _line(name: str, rows: list[Row]) -> list[str]:
    cells = [name]
    for peer in _PEERS:
        found = ratios(rows, peer)
        mean = geometric_mean(found)
        if mean is None:
            cells.append("")
            continue
        verdicts = [row.figures[peer].verdict for row in rows if peer in row.figures]
        counts = (str(verdicts.count(verdict)) for verdict in (WON, EVEN, LOST))
        cells.append(f"{mean:.2f} ({', '.join(counts)})")
    return cells


def renewed(text: str, table: str) -> str:
    """Return the README's text with the figures between its marks replaced.

    Raises:
        ValueError: the marks are missing.
    """
    pattern = re.compile(f"{re.escape(START)}.*?{re.escape(END)}", re.DOTALL)
    if not pattern.search(text):
        raise ValueError(f"README.md has no '{START}' with an '{END}' after it")
    return pattern.sub(lambda _match: f"{START}\n{table}{END}", text)


def main() -> int:
    """Write or check."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--check", action="store_true", help="write nothing, fail where it is old")
    args = parser.parse_args()
    text = README.read_text()
    new = renewed(text, figures())
    if text == new:
        return 0
    if args.check:
        print("README.md is older than benchmarks/results: python -m benchmarks.readme")
        return 1
    write_text(README, new)
    return 0


if __name__ == "__main__":
    sys.exit(main())
