"""Tilewright's tuner and MetaSchedule on the GPU of this machine, with the same number of trials.

    python -m benchmarks.cuda_metaschedule --suite core --trials 64 --precisions fp32 fp16

It needs a GPU, nvcc and what `pip install "tilewright[bench]"` brings. Both tune the same operators
and run in modules of tilewright's (MetaSchedule's kernels are TVM's CUDA C), so that only the
schedules differ. fp16: float16 in and out. Times are of the kernels alone, between events, in
turns. Logs are kept: a second run measures what they have, and tunes only what lacks trials.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import onnx

import tilewright
from benchmarks.cuda_gpu import (
    TOLERANCES,
    coarse,
    error_share,
    expected_results,
    in_half,
    random_feed,
)
from benchmarks.report import RESULTS, markdown_table, write_json, write_text
from tilewright.baselines.budget import Budget
from tilewright.baselines.metaschedule_cuda import (
    lowered_by_tvm,
    on_device,
    tvm_target,
    with_outputs,
)
from tilewright.baselines.metaschedule_worker import best, tune
from tilewright.baselines.suite import Operator, build_model, load_suite
from tilewright.compiler.cuda.package import package_for_cuda
from tilewright.compiler.cuda.targets import parse_cuda_target
from tilewright.errors import TilewrightError
from tilewright.runtime.benchmark import compare
from tilewright.runtime.module import Module
from tilewright.tuner.cuda.program import fused_program
from tilewright.tuner.cuda.tune import tune_for_gpu

RESULT = RESULTS / "cuda_metaschedule.json"
LOGS = Path(__file__).parent.parent / "tuning_logs" / "cuda"
_TUNERS = ("tilewright", "metaschedule")
_ROUNDS, _CALLS = 30, 10


def measure(operator: Operator, precision: str, args: argparse.Namespace) -> dict[str, Any]:
    """Tune an operator by both, check both results, and time them in turns."""
    model = coarse(build_model(operator))
    reference = model
    if precision == "fp16":
        model = in_half(model)
    with tempfile.TemporaryDirectory(prefix="tilewright-") as folder:
        modules = {
            "tilewright": _ours(model, operator.name, precision, args, Path(folder, "t.so")),
            "metaschedule": _theirs(model, operator.name, precision, args, Path(folder, "m.so")),
        }
        feed = random_feed(modules["tilewright"])
        expected = expected_results(reference, feed)
        row: dict[str, Any] = {"name": operator.name, "precision": precision}
        for name, module in modules.items():
            share = error_share(module.run(feed), expected)
            row[f"{name}_error_share"] = share
            row[f"{name}_correct"] = bool(share <= TOLERANCES[precision])
        samples: dict[str, list[float]] = {name: [] for name in modules}
        for _ in range(_ROUNDS):
            for name, module in modules.items():
                calls = module.profile(feed, rounds=_CALLS)
                samples[name].append(sum(call.seconds for call in calls))
    ratio = compare(samples["metaschedule"], samples["tilewright"])
    row |= {f"{name}_s": statistics.median(values) for name, values in samples.items()}
    return {**row, "ratio": ratio.median, "low": ratio.low, "high": ratio.high}


def _ours(
    model: onnx.ModelProto, name: str, precision: str, args: argparse.Namespace, path: Path
) -> Module:
    log = args.logs / "tilewright" / f"{name}-{precision}.jsonl"
    if not log.exists():
        log.parent.mkdir(parents=True, exist_ok=True)
        tune_for_gpu(model, args.target, precision, trials=args.trials, log=log)
    tilewright.compile(model, args.target, precision=precision, logs=[log]).save(path)
    return Module(path)


def _theirs(
    model: onnx.ModelProto, name: str, precision: str, args: argparse.Namespace, path: Path
) -> Module:
    target = parse_cuda_target(args.target)
    program = fused_program(model)
    functions = with_outputs(program)
    folder = args.logs / "metaschedule" / f"{name}-{precision}"
    with on_device(target) as how:
        tune(functions, tvm_target(target), folder, Budget(args.trials), **how)
    found = best(functions, tvm_target(target), folder, args.trials)
    lowered = lowered_by_tvm(replace(program, kernels=found), found, target)
    package_for_cuda(lowered, target, precision, path)
    return Module(path)


def report(rows: list[Mapping[str, Any]], args: argparse.Namespace) -> None:
    """Write the table of what was measured."""
    lines = []
    for row in rows:
        if "error" in row:
            lines.append([row["name"], row["precision"], row["error"], "", "", ""])
            continue
        wrong = [name for name in _TUNERS if not row[f"{name}_correct"]]
        lines.append(
            [
                *(
                    row["name"],
                    row["precision"],
                    "WRONG: " + ", ".join(wrong) if wrong else "right",
                ),
                *(f"{row[f'{n}_s'] * 1e6:.1f}" for n in _TUNERS),
                f"{row['ratio']:.2f} [{row['low']:.2f} .. {row['high']:.2f}]",
            ]
        )
    text = f"# Tilewright and MetaSchedule on {args.target}, {args.trials} trials each\n\n"
    text += "`python -m benchmarks.cuda_metaschedule`; above 1 tilewright is faster.\n\n"
    for precision in args.precisions:
        ratios = [row["ratio"] for row in rows if row["precision"] == precision and _is_right(row)]
        if ratios:
            mean = statistics.geometric_mean(ratios)
            text += (
                f"Geometric mean in {precision} over the {len(ratios)} right rows: {mean:.2f}\n\n"
            )
    header = ["row", "precision", "results", "tilewright, us", "MetaSchedule, us", "ratio"]
    write_text(args.output.with_suffix(".md"), text + markdown_table(header, lines))


def _is_right(row: Mapping[str, Any]) -> bool:
    return all(row.get(f"{name}_correct") for name in _TUNERS)


def main() -> None:
    """Run from the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--target", default="cuda:sm_90")
    parser.add_argument("--suite", default="core", choices=("alt", "core", "quick"))
    parser.add_argument("--only", nargs="*", help="ids of rows, for instance C2D-1")
    parser.add_argument("--precisions", nargs="+", default=["fp32"], choices=("fp32", "fp16"))
    parser.add_argument("--trials", type=int, default=64)
    parser.add_argument("--logs", type=Path, default=LOGS)
    parser.add_argument("-o", "--output", type=Path, default=RESULT)
    args = parser.parse_args()
    rows: list[dict[str, Any]] = []
    for operator in load_suite(args.suite, args.only or ()):
        for precision in args.precisions:
            try:
                row = measure(operator, precision, args)
            except TilewrightError as error:
                row = {"name": operator.name, "precision": precision, "error": str(error)}
            rows.append(row)
            print(json.dumps(row), file=sys.stderr, flush=True)
            write_json(args.output, {"target": args.target, "trials": args.trials, "rows": rows})
            report(rows, args)


if __name__ == "__main__":
    main()
