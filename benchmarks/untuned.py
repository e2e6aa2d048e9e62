"""Time modules compiled without tuning against other engines: `python -m benchmarks.untuned`.

All engines, a multiply-add probe and a memory probe take turns in one process, so that they meet
the same machine; compared are the medians, and the ratio of each round with its 95% bootstrap
interval. Load is the number of runnable threads on the machine, those of other programs included;
figures for as many threads as processors mean little where it is above that. Compiling and peak
memory are measured in fresh processes. Writes benchmarks/results/untuned_<vectors>.json and .md, so
that each machine keeps its own; rows of models that are not named stay. On a machine that others
use too, --compile-only first and --keep afterwards time without compiling, --lock and --measure-cpu
time alone.
"""

import argparse
import json
import os
import sys
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from statistics import geometric_mean, median

from benchmarks import engines, zoo
from benchmarks.machine import Probes, commit, describe, peak_rss_mb
from benchmarks.report import (
    RESULTS,
    markdown_machine,
    markdown_table,
    merge_rows,
    write_json,
    write_text,
)
from benchmarks.worker import ROOT, StepError, give_result, run_step
from tilewright.baselines.alone import alone
from tilewright.baselines.machine import instruction_set
from tilewright.baselines.rounds import settle, settle_seconds

MODELS = (
    "resnet18",
    "resnet50",
    "mobilenetv2",
    "efficientnet_b0",
    "vgg16",
    "bert_base",
    "minilm",
    "vit_tiny",
)
MODULES = ROOT / "build" / "untuned"
OURS = "tilewright"
LIMIT = 1.5  # time / ONNX Runtime's on one thread, without tuning


def compile_model(name: str, target: str) -> dict:
    """Compile one model into `MODULES`; return seconds, peak memory, size and commit, as kept."""
    import tilewright

    MODULES.mkdir(parents=True, exist_ok=True)
    start = time.perf_counter()
    tilewright.compile(zoo.load(name), target=target, logs=()).save(MODULES / f"{name}.so")
    seconds = time.perf_counter() - start
    size_mb = (MODULES / f"{name}.so").stat().st_size / 1e6
    figures = {"compile_s": seconds, "compile_peak_mb": peak_rss_mb(), "module_mb": size_mb}
    figures["commit"] = commit()
    write_json(MODULES / f"{name}.json", figures)
    return figures


def kept(name: str) -> dict | None:
    """Return the figures of the module that an earlier run compiled, if it is still there."""
    path = MODULES / f"{name}.json"
    return json.loads(path.read_text()) if path.exists() else None


def open_engine(engine: str, name: str, threads: int) -> engines.Engine:
    """Return model `name` in the engine, ready to run."""
    if engine == OURS:
        return engines.open_tilewright(MODULES / f"{name}.so", threads)
    return engines.ENGINES[engine](zoo.load(name), threads)


def running_memory(engine: str, name: str) -> dict:
    """Load and run a model 5 times on one thread; return the peak memory of this process."""
    run = open_engine(engine, name, 1)
    feed = zoo.inputs(name, 0)
    for _ in range(5):
        run(feed)
    return {"peak_mb": peak_rss_mb()}


def time_engines(names: Sequence[str], name: str, threads: int, rounds: int) -> dict:
    """Time the engines in turns; return medians, quartiles and the ratio of ours to each."""
    from tilewright.runtime.benchmark import compare, interleave, summarize

    probes = Probes()
    peaks: list[float] = []
    bandwidths: list[float] = []
    feed = zoo.inputs(name, 0)
    calls: dict[str, Callable[[], object]] = {
        "bandwidth": lambda: bandwidths.append(probes.read_gb_s()),
        "peak": lambda: peaks.append(probes.peak_gflops()),
    }
    for engine in names:
        run = partial(open_engine(engine, name, threads), feed)
        # What is called before the timed call brings the weights back into the caches, whoever ran
        # before, until worker threads of the engine before that still spin go to sleep.
        calls |= {f"warm {engine}": partial(settle, run, settle_seconds(threads)), engine: run}
    samples = interleave(calls, rounds=rounds)
    row = {"peak_gflops": median(peaks), "read_gb_s": median(bandwidths), "engines": {}}
    row["load"] = os.getloadavg()[0]
    for engine in names:
        timing = summarize(samples[engine])
        ratio = compare(samples[names[0]], samples[engine])
        row["engines"][engine] = {
            "median_s": timing.median_s,
            "quartiles_s": [timing.lower_quartile_s, timing.upper_quartile_s],
            "ratio": ratio.median,
            "interval": [ratio.low, ratio.high],
        }
    return row


def measure(name: str, args: argparse.Namespace) -> dict:
    """Return the row of one model; each step runs in a fresh process.

    Raises:
        StepError: if a step of tilewright or of an engine fails.
    """
    row = {"model": name}
    row |= (kept(name) if args.keep else None) or _step("compile", name, args)
    row["peak_mb"] = {
        engine: _step("memory", name, args, "--engines", engine)["peak_mb"]
        for engine in args.engines.split(",")
    }
    row["times"] = {
        threads: _step("time", name, args, "--engines", args.engines, "--threads", threads)
        for threads in args.threads.split(",")
    }
    return row


def _step(step: str, name: str, args: argparse.Namespace, *options: str) -> dict:
    shared = ["--target", args.target, "--rounds", str(args.rounds)]
    if args.lock:
        shared += ["--lock", str(args.lock)]
    if args.measure_cpu is not None:
        shared += ["--measure-cpu", str(args.measure_cpu)]
    return run_step("benchmarks.untuned", ["--models", name, "--step", step, *shared, *options])


def render(rows: Sequence[dict], target: str) -> str:
    """Return the Markdown page with one table of times and one of compiling and memory."""
    times, costs = [], []
    for row in rows:
        if "error" in row:
            times.append([row["model"], f"FAILS: {row['error']}", *[""] * 7])
            continue
        for threads, timed in row["times"].items():
            times += _time_cells(row["model"], threads, timed)
        memory = row["peak_mb"]
        cells = [f"{row[key]:.0f}" for key in ("compile_s", "compile_peak_mb", "module_mb")]
        peaks = ", ".join(f"{e} {mb:.0f}" for e, mb in memory.items() if e != OURS)
        costs.append([row["model"], *cells, f"{memory[OURS]:.0f}", peaks, row["commit"]])
    time_header = ["model", "threads", "engine", "median, ms", "quartiles, ms"]
    time_header += ["ours / it [95%]", "peak, GFLOP/s", "read, GB/s", "load"]
    cost_header = ["model", "compile, s", "compile peak, MB", "module, MB", "run peak, MB"]
    cost_header += ["others' run peak, MB", "commit"]
    return (
        f"# Modules compiled without tuning\n\n{__doc__.split(chr(10), 2)[2]}\n"
        f"Target: {target}. At most {LIMIT} is wanted for ours / ONNX Runtime's on one thread.\n\n"
        f"{markdown_table(time_header, times)}\n{_means(rows)}\n"
        f"{markdown_table(cost_header, costs)}\n"
        f"{markdown_machine(describe())}"
    )


def _means(rows: Sequence[dict]) -> str:
    """Return lines with the geometric means over the models, for each thread count and engine."""
    ratios: dict[tuple[str, str], list[float]] = {}
    for row in rows:
        for threads, timed in row.get("times", {}).items():
            for engine, figures in timed["engines"].items():
                if engine != OURS:
                    ratios.setdefault((threads, engine), []).append(figures["ratio"])
    return "".join(
        f"- geometric mean of ours / {engine}, threads {threads}: {geometric_mean(found):.2f} over "
        f"{len(found)} models, largest {max(found):.2f}\n"
        for (threads, engine), found in sorted(ratios.items())
    )


def _time_cells(model: str, threads: str, timed: dict) -> list[list[str]]:
    rows = []
    for engine, figures in timed["engines"].items():
        low, high = (f"{1e3 * value:.2f}" for value in figures["quartiles_s"])
        ratio = ""
        if engine != OURS:
            interval = " .. ".join(f"{value:.2f}" for value in figures["interval"])
            ratio = f"{figures['ratio']:.2f} [{interval}]"
        cells = [f"{1e3 * figures['median_s']:.2f}", f"{low} .. {high}", ratio]
        keys = ("peak_gflops", "read_gb_s", "load")
        probes = [f"{timed[key]:.0f}" if key in timed else "" for key in keys]
        rows.append([model, threads, engine, *cells, *probes])
    return rows


def passes(row: dict) -> bool:
    """Say whether a model is fast enough beside ONNX Runtime on one thread, if that was timed."""
    if "error" in row:
        return False
    timed = row["times"].get("1", {"engines": {}})["engines"].get("onnxruntime")
    return timed is None or timed["ratio"] <= LIMIT


def _print_row(row: dict) -> None:
    if "error" in row:
        print(f"{row['model']}: FAILS: {row['error']}", flush=True)
        return
    for threads, timed in row["times"].items():
        for cells in _time_cells(row["model"], threads, timed):
            print("  ".join(cells), flush=True)
    figures = {key: round(row[key], 1) for key in ("compile_s", "compile_peak_mb", "module_mb")}
    print(f"{row['model']}  {figures}  run peak MB {row['peak_mb']}", flush=True)


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--models", default=",".join(MODELS))
    parser.add_argument("--engines", default=f"{OURS},onnxruntime", help="also: openvino")
    parser.add_argument("--threads", default="1,2")
    parser.add_argument("--rounds", type=int, default=40)
    parser.add_argument("--target", default="native")
    parser.add_argument("--compile-only", action="store_true", help="measure nothing else")
    parser.add_argument("--keep", action="store_true", help="time what was compiled before")
    parser.add_argument("--lock", type=Path, help="file to lock while timing")
    parser.add_argument("--measure-cpu", type=int, help="processor to time on, with 1 thread")
    parser.add_argument("--step", help="compile, memory or time: one step in this process")
    return parser.parse_args()


def _run_single_step(args: argparse.Namespace) -> dict:
    if args.step == "compile":
        return compile_model(args.models, args.target)
    if args.step == "memory":
        return running_memory(args.engines, args.models)
    threads = int(args.threads)
    with alone(args.lock, args.measure_cpu if threads == 1 else None):
        return time_engines(args.engines.split(","), args.models, threads, args.rounds)


def main() -> int:
    """Measure what the command line names; return 1 if a model fails or exceeds the limit."""
    args = _parse()
    if args.step:
        give_result(_run_single_step(args))
        return 0
    rows = []
    data = RESULTS / f"untuned_{instruction_set()}.json"
    for name in args.models.split(","):
        if args.compile_only:
            print(name, _step("compile", name, args), flush=True)
            continue
        try:
            row = measure(name, args)
        except StepError as error:
            row = {"model": name, "commit": commit(), "error": str(error).replace("|", "/")}
        rows.append(row)
        _print_row(row)
        merged = merge_rows(data, rows, ["model"])
        write_json(data, {"target": args.target, "machine": describe(), "rows": merged})
        write_text(data.with_suffix(".md"), render(merged, args.target))
    return 0 if all(map(passes, rows)) else 1


if __name__ == "__main__":
    sys.exit(main())
