"""Fuzz the compiler: `python -m benchmarks.fuzz --time 10m`.

Draws random graphs, compiles each in one of several ways (`benchmarks/fuzz/ways.py`) and compares
with ONNX's reference. Seeds go on where the last run stopped. The counts, by way and by commit, are
added to benchmarks/results/fuzz.json, or to the file given with `--results`; `--merge` adds the
counts of such files, of runs side by side, to the results. Failing models, shrunk, are left in
build/fuzz/. Exit code 1 where something failed.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from benchmarks.fuzz.session import Batch, run_batch
from benchmarks.machine import commit

ROOT = Path(__file__).resolve().parents[2]
RESULTS = ROOT / "benchmarks" / "results" / "fuzz.json"
FAILURES = ROOT / "build" / "fuzz"
_BATCH = 24  # drawings of a few graphs each
_UNITS = {"s": 1, "m": 60, "h": 3600}


def _seconds(text: str) -> float:
    match = re.fullmatch(r"(\d+(?:\.\d+)?)([smh]?)", text)
    if match is None:
        raise argparse.ArgumentTypeError(f"{text!r} is not a time such as 90s, 10m or 2h")
    return float(match[1]) * _UNITS[match[2] or "s"]


def main() -> int:
    """Run batches until the time is over; return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--time", type=_seconds, default="10m", help="such as 90s, 10m or 2h")
    parser.add_argument("--seed", type=int, help="first batch; default: after the last one run")
    parser.add_argument("--results", type=Path, default=RESULTS, help="file of the counts")
    parser.add_argument("--merge", type=Path, nargs="+", metavar="FILE", help="add counts only")
    given = parser.parse_args()
    totals = _read(given.results)
    if given.merge:
        for path in given.merge:
            totals = merged(totals, _read(path))
        _write(totals, given.results)
        print(f"{totals['graphs']} graphs clean so far")
        return 0
    FAILURES.mkdir(parents=True, exist_ok=True)
    number = totals["next_seed"] if given.seed is None else given.seed
    end = time.monotonic() + given.time
    failures = 0
    while time.monotonic() < end:
        batch = run_batch(number, _BATCH, FAILURES)
        if batch.failure is not None:
            failures += 1
            print(f"seed {number}: {batch.failure}\n  {FAILURES}/batch{number}.onnx", flush=True)
        _add(totals, number, batch)
        number += 1
        _write(totals, given.results)
    print(f"{totals['graphs']} graphs clean so far, {failures} failures in this run")
    return 1 if failures else 0


def _read(path: Path) -> dict[str, Any]:
    if path.exists():
        return json.loads(path.read_text())
    return {"next_seed": 0, "graphs": 0, "ways": {}, "commits": {}, "operators": {}, "failures": []}


def _write(totals: dict[str, Any], path: Path) -> None:
    path.write_text(json.dumps(totals, indent=1) + "\n")


def merged(totals: dict[str, Any], more: dict[str, Any]) -> dict[str, Any]:
    """Return the sum of two runs; seeds go on after those of the first."""
    return {
        "next_seed": totals["next_seed"],
        "graphs": totals["graphs"] + more["graphs"],
        "ways": _sum(totals["ways"], more["ways"]),
        "commits": _sum(totals["commits"], more["commits"], ordered=False),
        "operators": _sum(totals["operators"], more["operators"]),
        "failures": totals["failures"] + more["failures"],
    }


def _add(totals: dict[str, Any], number: int, batch: Batch) -> None:
    """Add a batch to the totals; the graphs of one that failed do not count as clean."""
    totals["next_seed"] = number + 1
    totals["operators"] = _sum(totals["operators"], batch.operators)
    if batch.failure is not None:
        failure = {"seed": number, "what": batch.failure, "commit": commit()}
        totals["failures"].append(failure)
        return
    totals["graphs"] += batch.graphs
    totals["ways"] = _sum(totals["ways"], {batch.way: batch.graphs})
    totals["commits"] = _sum(totals["commits"], {commit(): batch.graphs}, ordered=False)


def _sum(counts: dict[str, int], more: Mapping[str, int], ordered: bool = True) -> dict[str, int]:
    """Add counts up; by name, or in the order in which the names came."""
    total = dict(counts)
    for name, count in more.items():
        total[name] = total.get(name, 0) + count
    return dict(sorted(total.items())) if ordered else total


if __name__ == "__main__":
    sys.exit(main())
