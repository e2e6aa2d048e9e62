"""Measure the operator suite and write its table: `python -m benchmarks.operators`.

The same as `tilewright bench-ops`, but the result goes to benchmarks/results/operators_<vectors>,
so that each machine keeps its own, rows that are not named stay, and the .md and .html are made
from it. With --resume, rows that have a figure of every peer are left out, so that a long run can
be done in slices. Tuners compared at equal trials or time have a file of their own.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks.report import RESULTS, write_json
from benchmarks.worker import ROOT
from tilewright.baselines import Budget, Options, bench_operators, load_suite, parse_peers
from tilewright.baselines.machine import instruction_set
from tilewright.baselines.suite import Operator
from tilewright.errors import TilewrightError
from tilewright.report import write_report


def merge(old: dict | None, new: dict) -> dict:
    """Return `new` with the rows of `old` that it lacks; within a row, engines that it lacks too.

    Engines of a former run were timed beside the tilewright of that run: their ratios stay, and the
    row says when it was measured.

    Raises:
        ValueError: they were measured on different processors.
    """
    if old is None:
        return new
    if old["machine"]["processor"] != new["machine"]["processor"]:
        raise ValueError(
            f"the results so far are of {old['machine']['processor']}, these of "
            f"{new['machine']['processor']}: do not mix them in one file"
        )
    rows = {row["name"]: row for row in old["rows"]}
    for row in new["rows"]:
        former = rows.get(row["name"], {})
        merged = dict(row)
        for key in ("engines", "failed", "largest_error", "notes"):
            kept = {k: v for k, v in former.get(key, {}).items() if k not in row["engines"]}
            kept = {k: v for k, v in kept.items() if k not in row["failed"]}
            merged[key] = {**kept, **row[key]}
        rows[row["name"]] = merged
    peers = {**old["peers"], **new["peers"]}
    left_out = {k: v for k, v in {**old["left_out"], **new["left_out"]}.items() if k not in peers}
    return {**new, "rows": list(rows.values()), "peers": peers, "left_out": left_out}


def is_done(old: dict | None, name: str, peers: tuple[str, ...]) -> bool:
    """Say whether a row has a figure, or a reason for none, of every peer."""
    rows = {row["name"]: row for row in old["rows"]} if old else {}
    row = rows.get(name, {"engines": {}, "failed": {}})
    return all(peer in row["engines"] or peer in row["failed"] for peer in peers)


def result_path(stem: str, threads: int, budget: Budget) -> Path:
    """Return the file of a kind of result on this machine."""
    if budget.trials:
        stem += f"_{budget.trials}_trials"
    elif budget.time_s:
        stem += f"_{budget.time_s:.0f}_seconds"
    threaded = "" if threads == 1 else f"_{threads}_threads"
    return RESULTS / f"{stem}_{instruction_set()}{threaded}.json"


def keep(path: Path, result: dict) -> None:
    """Merge a result into its file, and print its rows."""
    write_json(path, merge(json.loads(path.read_text()) if path.exists() else None, result))
    for row in result["rows"]:
        ratios = {k: round(v["ratio"], 2) for k, v in row["engines"].items() if "ratio" in v}
        print(row["name"], ratios, row["failed"] or "", flush=True)


def write_tables(path: Path) -> None:
    """Make the Markdown and the page of a result file."""
    for suffix in (".md", ".html"):
        write_report([path], path.with_suffix(suffix))


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add what operators and models have in common."""
    parser.add_argument("--against", default="onnxruntime,openvino,torch")
    parser.add_argument("--trials", type=int, default=0)
    parser.add_argument("--time", type=float, default=0.0, help="processor seconds of each tuner")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--clock", default="wall")
    parser.add_argument("--resume", action="store_true", help="leave out rows that are complete")
    parser.add_argument("--stop-after", type=float, default=float("inf"), help="seconds")
    parser.add_argument("--together", type=int, default=1, help="rows that are timed in one go")
    parser.add_argument("--lock", type=Path, help="file to lock while timing")
    parser.add_argument("--measure-cpu", type=int, help="processor to time on")
    parser.add_argument("--name", default="", help="of the file, for instance for a second run")


def options_of(args: argparse.Namespace) -> Options:
    """Return the options that the command line names."""
    return Options(
        parse_peers(args.against),
        Budget(args.trials, args.time),
        args.threads,
        args.rounds,
        args.clock,
        ROOT / "tuning_logs",
        lock=args.lock,
        cpu=args.measure_cpu,
    )


def measure_suite(
    args: argparse.Namespace,
    stem: str,
    rows: Callable[[], Mapping[str, Callable[[], Any]]],
    bench: Callable[[list[Any], Options], dict],
) -> int:
    """Measure rows of a suite, a group at a time, write the tables, and return the exit code.

    Args:
        args: the options of `add_options`.
        stem: of the result file, unless the options name one.
        rows: returns, by name, what makes the operator or model: those that --resume leaves out
            are not made.
        bench: measures some operators or models.
    """
    try:
        options = options_of(args)
        path = result_path(args.name or stem, args.threads, options.budget)
        old = json.loads(path.read_text()) if path.exists() else None
        left = [
            make
            for name, make in rows().items()
            if not (args.resume and is_done(old, name, options.against))
        ]
        end = time.monotonic() + args.stop_after
        for start in range(0, len(left), args.together):
            if time.monotonic() < end:
                keep(path, bench([make() for make in left[start : start + args.together]], options))
        write_tables(path)
    except (TilewrightError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


def main() -> int:
    """Measure what the command line names and write the tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--suite", default="alt")
    parser.add_argument("--ops", default="", help="classes or ids, comma separated")
    parser.add_argument("--batch", default="1")
    add_options(parser)
    args = parser.parse_args()

    def rows() -> dict[str, Callable[[], Operator]]:
        classes = [name for name in args.ops.split(",") if name]
        batches = [int(size) for size in args.batch.split(",")]
        found = load_suite(args.suite, classes, batches)
        return {operator.name: partial(replace, operator) for operator in found}

    return measure_suite(args, "operators", rows, partial(bench_operators, together=args.together))


if __name__ == "__main__":
    sys.exit(main())
