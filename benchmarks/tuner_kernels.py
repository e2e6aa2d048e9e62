"""Tune single operators with 64 trials each: `python -m benchmarks.tuner_kernels [--trials 64]`.

Reported is the winner's arithmetic rate as a share of the multiply-add peak, which a probe measures
in the same process before each round of the final race (median of the rounds' ratios, one thread).
There are several such races, seconds apart, and the table has the best and the worst: a stranger on
the other hardware thread of a rented core takes issue slots for a while, which the probe with its 2
instructions a cycle does not feel but a kernel with 3.3 does (the same code of 256 x 14 x 14 to 256
on Cascade Lake: 185 or 310 us, the probe the same).
The product with one row is bound by memory: its buffers are rotated beyond the last-level cache and
its rate is compared with the read bandwidth (of one stream of loads: several streams read up to 1.3
times faster, so that a kernel may be above 100%). Where Winograd's algorithm may be used, modules
of one convolution with bias and ReLU by each algorithm, compiled with the log of the direct one's
64 trials, take turns: see `tuner.algorithms`.
Writes benchmarks/results/tuner_kernels_<vectors>.json and .md.
"""

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from statistics import median

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
from tilewright.compiler.algorithms import DIRECT, VARIANTS, Convolution
from tilewright.compiler.targets import Target, parse_target
from tilewright.tuner import Log, Lookup, MeasureOptions, Measurer, TuneOptions, tune_tasks
from tilewright.tuner.algorithms import measure_algorithms
from tilewright.tuner.operators import operator_model
from tilewright.tuner.tune_model import model_tasks

OPERATORS = {
    "C2D 64x56x56 -> 64, 3x3": ("conv2d", (1, 64, 56, 56), (64, 64, 3, 3), 1),
    "C2D 128x28x28 -> 128, 3x3": ("conv2d", (1, 128, 28, 28), (128, 128, 3, 3), 1),
    "C2D 256x14x14 -> 256, 3x3": ("conv2d", (1, 256, 14, 14), (256, 256, 3, 3), 1),
    "C2D 512x7x7 -> 512, 3x3": ("conv2d", (1, 512, 7, 7), (512, 512, 3, 3), 1),
    "C2D 256x14x14 -> 1024, 1x1": ("conv2d", (1, 256, 14, 14), (1024, 256, 1, 1), 0),
    "GMM 512x512x512": ("matmul", (512, 512), (512, 512), 0),
    "GMM 128x768x3072": ("matmul", (128, 768), (768, 3072), 0),
    "GMM 1x2048x1000": ("matmul", (1, 2048), (2048, 1000), 0),
}
MEMORY_BOUND = ("GMM 1x2048x1000",)
# Of the last race, and what lies between two of them.
_RACES = 6
_PAUSE_S = 5


def tune_one(name: str, trials: int, seed: int, measure: MeasureOptions) -> dict:
    """Tune one operator; return times, rates and shares of the winner and of the incumbent."""
    kind, data, weight, pad = OPERATORS[name]
    target = replace(parse_target("native"), cores=1)
    ((task, _count),) = [
        pair
        for pair in model_tasks(operator_model(kind, data, weight, pad=pad), target, winograd=False)
        if pair[0].operator.constants
    ]
    options = TuneOptions(trials=trials, seed=seed, measure=measure)
    start = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        log = Log(Path(folder, "log.jsonl"))
        session = tune_tasks([(task, 1)], target, log, options)
        elapsed = time.monotonic() - start
        state = session.states[0]
        assert state.tuner is not None, state.problem
        winner = state.tuner.best()
        assert winner is not None
        algorithms = _algorithms(OPERATORS[name], target, log, measure)
        with Measurer(target, options.measure) as measurer:
            races = []
            for number in range(_RACES):
                time.sleep(_PAUSE_S if number else 0)
                times = measurer.race(task, [winner.candidate, state.tuner.incumbent], rounds=25)
                peaks = measurer.round_peaks
                shares = [_peak_share(state.flops, mine, peaks) for mine in times]
                races.append((shares, times))
    (share, before), times = max(races, key=lambda race: race[0][0])
    choice = state.tuner.space.choice_of(winner.candidate)
    return {
        "operator": name,
        "trials": state.trials,
        "failed": state.failures,
        "space": state.tuner.space.size,
        "best_us": median(times[0]) * 1e6,
        "incumbent_us": median(times[1]) * 1e6,
        "gflops": state.flops / median(times[0]) / 1e9,
        "peak_share": share,
        "incumbent_share": before,
        "worst_share": min(shares[0] for shares, _ in races),
        "trials_per_s": state.trials / elapsed,
        "choice": "" if choice is None else choice.name,
        "schedule": winner.candidate.schedule,
        "seed": seed,
        "algorithms_us": algorithms,
    }


def _peak_share(flops: float, times: Sequence[float], peaks: Sequence[float]) -> float:
    return median(flops / t / peak for t, peak in zip(times, peaks, strict=False))


def _algorithms(
    operator: tuple, target: Target, log: Log, measure: MeasureOptions
) -> dict[str, float]:
    """Return the microseconds of a 3x3 convolution by each algorithm; none for others."""
    kind, data, weight, _pad = operator
    if kind != "conv2d" or weight[2:] != (3, 3):
        return {}
    convolution = Convolution(data, weight, (data[0], weight[0], *data[2:]))
    lookup = Lookup([log.path], target)
    (records,) = measure_algorithms(
        [convolution], target, lookup, measure, worth=lambda *_: list(VARIANTS)
    )
    names = [json.loads(record.candidate.schedule or "")["name"] for record in records]
    return {n: record.seconds * 1e6 for n, record in zip(names, records, strict=True) if record.ok}


def _bandwidth_share(row: dict, probes: Probes) -> dict:
    _kind, data, weight, _pad = OPERATORS[row["operator"]]
    moved = 4 * (weight[0] * weight[1] + data[1] + weight[1])
    rate = moved / row["best_us"] * 1e6 / 1e9
    return {
        **row,
        "gb_s": rate,
        "bandwidth_share": rate / median(probes.read_gb_s() for _ in range(9)),
    }


def main() -> None:
    """Tune, print and write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("operators", nargs="*", help="parts of names; default: all")
    parser.add_argument("--trials", type=int, default=64)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--measure-cpu", type=int)
    arguments = parser.parse_args()
    wanted = [
        name
        for name in OPERATORS
        if not arguments.operators or any(part in name for part in arguments.operators)
    ]
    probes = Probes()
    stem = RESULTS / f"tuner_kernels_{instruction_set()}"
    for name in wanted:
        measure = MeasureOptions(cold=name in MEMORY_BOUND, cpu=arguments.measure_cpu)
        row = tune_one(name, arguments.trials, arguments.seed, measure)
        if name in MEMORY_BOUND:
            row = _bandwidth_share(row, probes)
        print(name, {k: v for k, v in row.items() if k != "schedule"}, file=sys.stderr)
        rows = merge_rows(stem.with_suffix(".json"), [row], ("operator", "seed"))
        write_json(stem.with_suffix(".json"), {"machine": describe(), "rows": rows})
        write_text(stem.with_suffix(".md"), _markdown(rows))


def _winograd(times: dict[str, float]) -> str:
    """Return how much faster than direct the best variant of Winograd's algorithm is."""
    others = [name for name in times if name != DIRECT]
    if not others:
        return ""
    best = min(others, key=lambda name: times[name])
    return f"{best} {times[DIRECT] / times[best]:.2f}x ({times[DIRECT]:.0f} -> {times[best]:.0f})"


def _markdown(rows: list[dict]) -> str:
    header = ("operator", "trials", "default us", "tuned us", "GFLOP/s")
    header = (*header, "default / peak", "tuned / peak", "worst race", "trials/s")
    header = (*header, "winner", "Winograd")
    lines = [
        [
            *(row["operator"], str(row["trials"])),
            *(f"{row['incumbent_us']:.1f}", f"{row['best_us']:.1f}", f"{row['gflops']:.0f}"),
            f"{row['incumbent_share']:.0%}",
            f"{row['bandwidth_share']:.0%} of bandwidth"
            if "bandwidth_share" in row
            else f"{row['peak_share']:.0%}",
            f"{row['worst_share']:.0%}" if "worst_share" in row else "",
            f"{row['trials_per_s']:.1f}",
            row["choice"],
            _winograd(row.get("algorithms_us", {})),
        ]
        for row in rows
    ]
    title = "# Operators tuned with 64 trials, one thread\n\n"
    about = "`python -m benchmarks.tuner_kernels`; see its docstring.\n\n"
    return title + about + markdown_machine(describe()) + "\n" + markdown_table(header, lines)


if __name__ == "__main__":
    main()
