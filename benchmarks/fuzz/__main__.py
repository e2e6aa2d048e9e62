"""Fuzz the compiler: `python -m benchmarks.fuzz --time 10m`.

Draws random graphs, compiles each in one of several ways (untuned, random layouts and loops,
another target) and compares with ONNX's reference. Seeds go on where the last run stopped; counts
are added to benchmarks/results/fuzz.json, and failing models, shrunk, are left in build/fuzz/.
Exit code 1 where something failed.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

from benchmarks.fuzz.session import run_batch
from benchmarks.machine import commit

ROOT = Path(__file__).resolve().parents[2]
RESULTS = ROOT / "benchmarks" / "results" / "fuzz.json"
FAILURES = ROOT / "build" / "fuzz"
_BATCH = 40
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
    given = parser.parse_args()
    FAILURES.mkdir(parents=True, exist_ok=True)
    totals = json.loads(RESULTS.read_text()) if RESULTS.exists() else _nothing()
    number = totals["next_seed"] if given.seed is None else given.seed
    end = time.monotonic() + given.time
    failures = 0
    while time.monotonic() < end:
        batch = run_batch(number, _BATCH, FAILURES)
        if batch.failure is not None:
            failures += 1
            print(f"seed {number}: {batch.failure}\n  {FAILURES}/batch{number}.onnx", flush=True)
        number += 1
        _add(totals, number, batch.graphs, batch.operators, batch.failure)
        RESULTS.write_text(json.dumps(totals, indent=1) + "\n")
    print(f"{totals['graphs']} graphs since {totals['since']}, {failures} failures in this run")
    return 1 if failures else 0


def _nothing() -> dict[str, Any]:
    return {"since": commit(), "next_seed": 0, "graphs": 0, "operators": {}, "failures": []}


def _add(
    totals: dict[str, Any], next_seed: int, graphs: int, operators: Counter, failure: str | None
) -> None:
    """Add a batch to the totals; graphs count from the last failure on."""
    totals["next_seed"] = next_seed
    totals["commit"] = commit()
    if failure is not None:
        totals["failures"].append({"seed": next_seed - 1, "what": failure})
    totals["graphs"] += graphs
    counts = Counter(totals["operators"]) + operators
    totals["operators"] = dict(sorted(counts.items()))


if __name__ == "__main__":
    sys.exit(main())
