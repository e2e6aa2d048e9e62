"""Where the time of each model goes: `python -m benchmarks.profiles`.

Models are compiled without tuning and run on one thread. Times beside ONNX Runtime's are processor
time of the calling thread (what other programs take from it is left out), the two engines in turns;
those of operators are the fastest of the rounds, judged by the best multiply-add peak and read
bandwidth that were measured between these rounds (`tilewright profile`). Writes
benchmarks/results/profiles_<vectors>.json and .md; rows of models that are not named stay. With
--keep, modules that `python -m benchmarks.untuned` left are profiled and not compiled again.
"""

import argparse
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path

from benchmarks import engines, zoo
from benchmarks.machine import commit, describe
from benchmarks.report import (
    RESULTS,
    markdown_machine,
    markdown_table,
    merge_rows,
    write_json,
    write_text,
)
from benchmarks.untuned import MODELS, MODULES, kept
from benchmarks.worker import StepError, give_result, run_step
from tilewright.baselines.alone import alone
from tilewright.baselines.machine import instruction_set

SHOWN = 8
DISTURBED = 1.15
PEER = "onnxruntime"


def measure(name: str, args: argparse.Namespace) -> dict:
    """Compile a model or take what was compiled, time it beside ONNX Runtime, profile it."""
    with tempfile.TemporaryDirectory() as folder:
        path = MODULES / f"{name}.so"
        source = kept(name) if args.keep else None
        if source is None:
            import tilewright

            path = Path(folder) / f"{name}.so"
            tilewright.compile(zoo.load(name), logs=()).save(path)
        with alone(args.lock, args.measure_cpu):
            row = _profiled(name, path, args.rounds)
    return {"model": name, "commit": source["commit"] if source else commit(), **row}


def _profiled(name: str, path: Path, rounds: int) -> dict:
    from tilewright.profiling import profile
    from tilewright.runtime.benchmark import compare, interleave, summarize

    feed = zoo.inputs(name, 0)
    calls = {
        "tilewright": partial(engines.open_tilewright(path, 1), feed),
        PEER: partial(engines.ENGINES[PEER](zoo.load(name), 1), feed),
    }
    samples = interleave(calls, rounds=rounds, clock=time.thread_time)
    found = profile(path, feed, 1, rounds)
    ratio = compare(samples["tilewright"], samples[PEER])
    medians = {engine: summarize(values).median_s for engine, values in samples.items()}
    row: dict = {"median_s": medians, "ratio": ratio.median, "interval": [ratio.low, ratio.high]}
    kernels: dict[str, list[dict]] = {}
    for operator in found.operators:
        kernels.setdefault(operator.kernel, []).append(asdict(operator))
    row |= {"peak_gflops": found.peak_gflops, "bandwidth_gbytes": found.bandwidth_gbytes}
    row["calls_s"] = found.seconds
    row["kernels"] = [
        {
            **sorted(group, key=lambda item: item["seconds"])[len(group) // 2],
            "calls": len(group),
            "total_s": sum(item["seconds"] for item in group),
        }
        for group in kernels.values()
    ]
    row["kernels"].sort(key=lambda item: -item["total_s"])
    row["gflop"] = sum(o.gflops * o.seconds for o in found.operators if o.gflops)
    return row


def render(rows: Sequence[dict]) -> str:
    """Return the Markdown page: one line per model, then one table for each."""
    header = ["model", "ours, ms", "ONNX Runtime, ms", "ours / it [95%]"]
    header += ["GFLOP executed", "of peak"]
    lines = [_summary(row) for row in rows]
    parts = [
        f"# Where the time goes\n\n{__doc__.split(chr(10), 2)[2]}",
        markdown_table(header, lines),
    ]
    columns = ["kernel", "calls", "ms", "share", "GFLOP/s", "of peak", "GB/s", "of bandwidth"]
    for row in rows:
        shown = [_line(kernel, row) for kernel in row["kernels"][:SHOWN]]
        parts.append(
            f"## {row['model']}\n\nPeak {row['peak_gflops']:.0f} GFLOP/s, bandwidth "
            f"{row['bandwidth_gbytes']:.0f} GB/s, all calls {1e3 * row['calls_s']:.2f} ms, commit "
            f"{row['commit']}.\n\n{_note(row)}"
            + markdown_table([*columns, "waits for", "inner loop"], shown)
        )
    return "\n".join([*parts, markdown_machine(describe())])


def _summary(row: dict) -> list[str]:
    seconds = row["median_s"]["tilewright"]
    return [
        row["model"],
        *(f"{1e3 * row['median_s'][engine]:.2f}" for engine in ("tilewright", PEER)),
        f"{row['ratio']:.2f} [{row['interval'][0]:.2f} .. {row['interval'][1]:.2f}]",
        f"{row['gflop']:.2f}",
        f"{row['gflop'] / seconds / row['peak_gflops']:.0%}",
    ]


def _note(row: dict) -> str:
    """Warn where other programs took time from the calls, which are timed by the wall clock."""
    if row["calls_s"] <= DISTURBED * row["median_s"]["tilewright"]:
        return ""
    return "Disturbed: the calls took longer than the processor time of the whole model.\n\n"


def _line(kernel: dict, row: dict) -> list[str]:
    return [
        kernel["kernel"],
        str(kernel["calls"]),
        f"{1e3 * kernel['total_s']:.2f}",
        f"{kernel['total_s'] / row['calls_s']:.0%}",
        f"{kernel['gflops']:.0f}",
        f"{kernel['peak_share']:.0%}",
        f"{kernel['gbytes']:.0f}",
        f"{kernel['bandwidth_share']:.0%}",
        kernel["waits_for"],
        kernel["instructions"] or "",
    ]


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--models", default=",".join(MODELS))
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--keep", action="store_true", help="profile what was compiled before")
    parser.add_argument("--lock", type=Path, help="file to lock while timing")
    parser.add_argument("--measure-cpu", type=int, help="processor to time on")
    parser.add_argument("--step", action="store_true", help="one model, in this process")
    return parser.parse_args()


def main() -> int:
    """Measure the models named and write the results."""
    args = _parse()
    if args.step:
        give_result(measure(args.models, args))
        return 0
    failed = False
    data = RESULTS / f"profiles_{instruction_set()}.json"
    for name in args.models.split(","):
        options = ["--models", name, "--rounds", str(args.rounds), "--step"]
        options += ["--keep"] if args.keep else []
        options += ["--lock", str(args.lock)] if args.lock else []
        options += [] if args.measure_cpu is None else ["--measure-cpu", str(args.measure_cpu)]
        try:
            row = run_step("benchmarks.profiles", options)
        except StepError as error:
            print(f"{name}: {error}", file=sys.stderr)
            failed = True
            continue
        print("  ".join(_summary(row)), flush=True)
        rows = merge_rows(data, [row], ["model"])
        write_json(data, {"machine": describe(), "rows": rows})
        write_text(data.with_suffix(".md"), render(rows))
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
