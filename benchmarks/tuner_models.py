"""Time models compiled with and without tuning logs: `python -m benchmarks.tuner_models`.

Both modules and the multiply-add probe take turns in one process, one thread; compared are medians
and the median of the rounds' ratios. Times are processor time of the calling thread, which runs all
kernels: on a machine with other work the clock on the wall counts that too.
Writes benchmarks/results/tuner_models.json and .md.
"""

import argparse
import sys
import tempfile
import time
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

MODELS = ("resnet18", "resnet50", "mobilenetv2", "bert_tiny")


def compare(name: str, logs: list[Path] | None, rounds: int, probes: Probes) -> dict:
    """Return the times of one model, untuned and tuned."""
    import tilewright

    model = zoo.load(name)
    untuned = tilewright.compile(model, logs=())
    start = time.monotonic()
    tuned = tilewright.compile(model, logs=logs)
    compile_s = time.monotonic() - start
    inputs = zoo.inputs(name, 0)
    times: dict[str, list[float]] = {"untuned": [], "tuned": []}
    peaks = []
    with tempfile.TemporaryDirectory() as folder:
        modules = {
            label: tilewright.load(module.save(Path(folder, f"{label}.so")), threads=1)
            for label, module in (("untuned", untuned), ("tuned", tuned))
        }
        results = {label: module.run(inputs) for label, module in modules.items()}
        for _ in range(rounds):
            peaks.append(probes.peak_gflops())
            for label, module in modules.items():
                start = time.thread_time()
                module.run(inputs)
                times[label].append(time.thread_time() - start)
    error = max(
        float(np.abs(results["tuned"][key] - value).max() / max(value.std(), 1e-12))
        for key, value in results["untuned"].items()
    )
    ratios = [a / b for a, b in zip(times["untuned"], times["tuned"], strict=True)]
    tuning = tuned.report["tuning"]
    return {
        "model": name,
        "untuned_ms": median(times["untuned"]) * 1e3,
        "tuned_ms": median(times["tuned"]) * 1e3,
        "speedup": median(ratios),
        "untuned_min_ms": min(times["untuned"]) * 1e3,
        "tuned_min_ms": min(times["tuned"]) * 1e3,
        "tuned_share": tuning["tuned_share"],
        "transferred_share": tuning["transferred_share"],
        "largest_difference_std": error,
        "peak_gflops": median(peaks),
        "compile_s": compile_s,
    }


def main() -> None:
    """Compare, print and write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("models", nargs="*", default=MODELS)
    parser.add_argument("--log", type=Path, action="append", help="default: the package's logs")
    parser.add_argument("--rounds", type=int, default=40)
    arguments = parser.parse_args()
    probes = Probes()
    path = RESULTS / "tuner_models.json"
    for name in arguments.models:
        row = compare(name, arguments.log, arguments.rounds, probes)
        print(row, file=sys.stderr)
        rows = merge_rows(path, [row], ("model",))
        write_json(path, {"machine": describe(), "rows": rows})
        write_text(path.with_suffix(".md"), _markdown(rows))


def _markdown(rows: list[dict]) -> str:
    header = ("model", "untuned ms", "tuned ms", "speedup", "least ms, both", "time tuned")
    lines = [
        [
            *(row["model"], f"{row['untuned_ms']:.2f}", f"{row['tuned_ms']:.2f}"),
            f"{row['speedup']:.2f}",
            f"{row['untuned_min_ms']:.2f} -> {row['tuned_min_ms']:.2f}",
            f"{row['tuned_share']:.0%} + {row['transferred_share']:.0%} transferred",
        ]
        for row in rows
    ]
    title = "# Models with and without tuning logs, one thread\n\n"
    about = "`python -m benchmarks.tuner_models`; see its docstring.\n\n"
    return title + about + markdown_machine(describe()) + "\n" + markdown_table(header, lines)


if __name__ == "__main__":
    main()
