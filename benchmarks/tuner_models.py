"""Time models compiled with and without tuning logs: `python -m benchmarks.tuner_models [NAME]`.

Both modules and the multiply-add probe take turns in one process, one thread; compared are medians
and the median of the rounds' ratios with its 95% interval. By default "tuned" is compiled with the
logs that ship. `--tune 10m` first tunes one model for that long into an empty log in build/tuning/
and stops there; `--tuned 10m` then compares a compile with that log. Two bounds are given: what the
multiply-adds of the model take at the peak if every convolution is direct, and what those take that
the tuned module executes, Winograd's products among them. The peak is this machine's, whatever the
target. Writes benchmarks/results/tuner_models_<vectors or target>.json and .md.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from statistics import median

import numpy as np

from benchmarks import zoo
from benchmarks.machine import Probes, describe
from benchmarks.report import (
    RESULTS,
    markdown_machine,
    markdown_table,
    merge_rows,
    write_json,
    write_text,
)
from tilewright.baselines.machine import instruction_set
from tilewright.compiler.targets import Target, parse_target
from tilewright.runtime.benchmark import compare as compare_samples
from tilewright.runtime.benchmark import interleave
from tilewright.tuner import Lookup, MeasureOptions, TuneOptions, tune
from tilewright.tuner.tune_model import model_tasks
from tilewright.tuner.workload import describe as describe_task

MODELS = ("resnet18", "mobilenetv2", "bert_tiny")
WORK = Path(__file__).resolve().parent.parent / "build" / "tuning"
_SHIPPED = "shipped"


def tune_for(name: str, duration: str, measure: MeasureOptions) -> None:
    """Tune a model for a while into an empty log."""
    path = _log(name, duration)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.unlink(missing_ok=True)
    seconds = float(duration.removesuffix("m")) * 60
    options = TuneOptions(measure=measure)
    result = tune(zoo.load(name), time_s=seconds, log=path, options=options)
    print(f"{name}: {result.trials} trials in {result.elapsed_s:.0f} s", file=sys.stderr)


def _log(name: str, duration: str) -> Path:
    return WORK / f"{name}_{duration}.jsonl"


def multiply_adds(name: str, target: Target, lookup: Lookup | None) -> int:
    """Return the multiply-adds that a model executes: direct without a log, else as it says."""
    winograd = False if lookup is None else lookup.algorithm
    tasks = model_tasks(zoo.load(name), target, winograd=winograd)
    return sum(calls * describe_task(task)["macs"] for task, calls in tasks)


def compare(
    name: str, target_name: str, logs: list[Path] | None, rounds: int, probes: Probes
) -> dict:
    """Return the times of one model, untuned and tuned."""
    import tilewright
    from tilewright.tuner import default_logs

    model = zoo.load(name)
    start = time.monotonic()
    untuned = tilewright.compile(model, target=target_name, logs=())
    middle = time.monotonic()
    tuned = tilewright.compile(model, target=target_name, logs=logs)
    compile_s = (middle - start, time.monotonic() - middle)
    inputs = zoo.inputs(name, 0)
    target = replace(parse_target(target_name), cores=1)
    lookup = Lookup(default_logs() if logs is None else logs, target)
    with tempfile.TemporaryDirectory() as folder:
        modules = {
            label: tilewright.load(module.save(Path(folder, f"{label}.so")), threads=1)
            for label, module in (("untuned", untuned), ("tuned", tuned))
        }
        results = {label: module.run(inputs) for label, module in modules.items()}
        calls = {
            label: (lambda module=module: module.run(inputs)) for label, module in modules.items()
        }
        peaks = []
        calls["peak"] = lambda: peaks.append(probes.peak_gflops())
        samples = interleave(calls, rounds)
    error = max(
        float(np.abs(results["tuned"][key] - value).max() / max(value.std(), 1e-12))
        for key, value in results["untuned"].items()
    )
    tuning = tuned.report["tuning"]
    peak = median(peaks) * 1e9
    gain = compare_samples(samples["untuned"], samples["tuned"])
    return {
        "model": name,
        "untuned_ms": median(samples["untuned"]) * 1e3,
        "tuned_ms": median(samples["tuned"]) * 1e3,
        "speedup": [gain.low, gain.median, gain.high],
        "tuned_share": tuning["tuned_share"],
        "transferred_share": tuning["transferred_share"],
        "largest_difference_std": error,
        "peak_gflops": peak / 1e9,
        "direct_bound_ms": 2e3 * multiply_adds(name, target, None) / peak,
        "executed_bound_ms": 2e3 * multiply_adds(name, target, lookup) / peak,
        "compile_s": compile_s,
    }


def main() -> None:
    """Tune, or compare, print and write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("models", nargs="*", default=MODELS)
    parser.add_argument("--tune", metavar="10m", help="tune for that long and stop")
    parser.add_argument("--tuned", metavar="10m", default=_SHIPPED, help="which log; see above")
    parser.add_argument("--target", default="native", help="whose code this machine can run")
    parser.add_argument("--rounds", type=int, default=40)
    parser.add_argument("--measure-cpu", type=int)
    parser.add_argument("--lock", type=Path)
    arguments = parser.parse_args()
    if arguments.tune:
        for name in arguments.models:
            measure = MeasureOptions(cpu=arguments.measure_cpu, lock=arguments.lock)
            tune_for(name, arguments.tune, measure)
        return
    probes = Probes()
    here = arguments.target == "native"
    stem = RESULTS / f"tuner_models_{instruction_set() if here else arguments.target}"
    for name in arguments.models:
        logs = None if arguments.tuned == _SHIPPED else [_log(name, arguments.tuned)]
        row = {
            "log": arguments.tuned,
            **compare(name, arguments.target, logs, arguments.rounds, probes),
        }
        print(row, file=sys.stderr)
        rows = merge_rows(stem.with_suffix(".json"), [row], ("model", "log"))
        write_json(stem.with_suffix(".json"), {"machine": describe(), "rows": rows})
        write_text(stem.with_suffix(".md"), _markdown(rows))


def _markdown(rows: list[dict]) -> str:
    header = ("model", "log", "untuned ms", "tuned ms", "untuned / tuned", "time tuned")
    header = (*header, "direct bound / tuned", "executed bound / tuned", "compile s, both")
    lines = []
    for row in rows:
        low, middle, high = row["speedup"]
        tuned = row["tuned_ms"]
        lines.append(
            [
                *(row["model"], row["log"], f"{row['untuned_ms']:.2f}", f"{tuned:.2f}"),
                f"{middle:.3f} [{low:.3f} .. {high:.3f}]",
                f"{row['tuned_share']:.0%} + {row['transferred_share']:.0%} transferred",
                f"{row['direct_bound_ms'] / tuned:.0%}",
                f"{row['executed_bound_ms'] / tuned:.0%}",
                "{:.1f}, {:.1f}".format(*row["compile_s"]),
            ]
        )
    title = "# Models with and without tuning logs, one thread\n\n"
    about = "`python -m benchmarks.tuner_models`; see its docstring.\n\n"
    return title + about + markdown_machine(describe()) + "\n" + markdown_table(header, lines)


if __name__ == "__main__":
    main()
