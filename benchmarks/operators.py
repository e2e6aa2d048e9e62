"""Measure the operator suite and write its table: `python -m benchmarks.operators`.

The same as `tilewright bench-ops`, but the result goes to benchmarks/results/operators.json, rows
that are not named stay, and operators.md and operators.html are made from it. The clock is that of
the process, because the machine is shared: give --clock wall on one that is not.
"""

import argparse
import json
import sys

from benchmarks.report import RESULTS, write_json
from benchmarks.worker import ROOT
from tilewright.baselines import OperatorOptions, bench_operators, load_suite, parse_peers
from tilewright.errors import TilewrightError
from tilewright.report import write_report


def merge(old: dict | None, new: dict) -> dict:
    """Return `new` with the rows of `old` that it lacks; within a row, engines that it lacks too.

    Engines of a former run were timed beside the tilewright of that run: their ratios stay, and the
    row says when it was measured.
    """
    if old is None:
        return new
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


def main() -> int:
    """Measure what the command line names and write the tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--suite", default="alt")
    parser.add_argument("--ops", default="", help="classes or ids, comma separated")
    parser.add_argument("--batch", default="1")
    parser.add_argument("--against", default="onnxruntime,openvino,torch")
    parser.add_argument("--trials", type=int, default=0)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--clock", default="cpu")
    args = parser.parse_args()
    data = RESULTS / ("operators.json" if args.threads == 1 else f"operators_{args.threads}.json")
    old = json.loads(data.read_text()) if data.exists() else None

    def finished(result: dict) -> None:
        write_json(data, merge(old, result))
        row = result["rows"][-1]
        ratios = {k: round(v["ratio"], 2) for k, v in row["engines"].items() if "ratio" in v}
        print(row["name"], ratios, row["failed"] or "", flush=True)

    try:
        operators = load_suite(
            args.suite,
            [name for name in args.ops.split(",") if name],
            [int(size) for size in args.batch.split(",")],
        )
        options = OperatorOptions(
            parse_peers(args.against),
            args.trials,
            args.threads,
            args.rounds,
            args.clock,
            ROOT / "tuning_logs",
        )
        bench_operators(operators, options, finished=finished)
        for suffix in (".md", ".html"):
            write_report([data], data.with_suffix(suffix))
    except TilewrightError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
