"""Joint search against loop-only and random: `python -m benchmarks.tuner_strategies [ROW ..]`.

On six rows of the operator suite every searcher gets the same number of trials, with several seeds:

- joint: layouts and loops together (ALT's cross-exploration), as `tilewright tune` does it;
- random: any plausible candidate of the same joint space;
- NCHW, NHWC, NCHW8c: loops only, in one layout for the whole suite. Micro-kernels, packing of the
  weights of products, cost model and trials are the same. GRP and GMM have no NHWC of their own and
  take the logical and the packed layout there.

Candidates that several searches want are measured once, and kept in `build/tuning/strategies`: with
--time a row may be measured in pieces. Of each row the winners race each other in turns at the end;
ratios are of those times. With --resume rows that are done are left out.
Writes benchmarks/results/tuner_strategies_<vectors>.json and .md.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from math import exp, log
from pathlib import Path
from statistics import mean, median

import numpy as np

from benchmarks.machine import describe
from benchmarks.report import (
    RESULTS,
    markdown_machine,
    markdown_table,
    merge_rows,
    write_json,
    write_text,
)
from tilewright.baselines.machine import instruction_set
from tilewright.baselines.suite import build_model, load_suite
from tilewright.compiler.targets import parse_target
from tilewright.compiler.tasks import Task
from tilewright.tuner import (
    CrossExploration,
    Explorer,
    Log,
    Measurement,
    MeasureOptions,
    Measurer,
    RandomSearch,
    Record,
    Tuner,
)
from tilewright.tuner.candidate import Candidate
from tilewright.tuner.cost_model import PRETRAINED, RankingModel
from tilewright.tuner.measure import Batch
from tilewright.tuner.records import is_outgrown, kernels_version, now, target_data, versions
from tilewright.tuner.space import TaskSpace, task_space
from tilewright.tuner.tune_model import model_tasks
from tilewright.tuner.workload import describe as describe_task

WORK = Path(__file__).resolve().parent.parent / "build" / "tuning" / "strategies"
ROWS = ("C2D-4", "GRP-3", "DIL-1", "DEP-2", "C1D-3", "GMM-1")
FIXED = {
    "NCHW": ("L", "packed"),
    "NHWC": ("C -> C", "packed", "L"),
    "NCHW8c": ("B -> B", "packed"),
}
# What is far behind anyway is searched with the first seed only.
_ONE_SEED = ("NCHW", "NHWC")
_JOINT_SHARE = 0.4  # of the trials, as `tuner.loop` has it
_BATCH = 8
# Batches that are built ahead. Where others may hold the timing processor for long, more.
_AHEAD = 2
_AHEAD_SHARED = 12
# For which the timing processor is held, where others wait for it.
_LONGEST_TURN_S = 60.0
_RACE_ROUNDS = 21


@dataclass
class Search:
    """One searcher with one seed on one task.

    Attributes:
        name, seed: which.
        tuner: asks and is told.
        curve: best seconds after each trial; None before anything worked.
    """

    name: str
    seed: int
    tuner: Tuner
    curve: list[float | None] = field(default_factory=list)

    def tell(self, measurements: Sequence[Measurement]) -> None:
        """Take in results, in the order in which they were asked for."""
        for measurement in measurements:
            self.tuner.tell([measurement])
            best = self.tuner.best()
            self.curve.append(None if best is None else best.seconds)


def restrict(space: TaskSpace, names: Sequence[str]) -> TaskSpace:
    """Return the space in the first of some layouts that it has; NCHW of a product is packed."""
    known = {choice.name: choice for choice in space.choices}
    if "packed" in known:
        return TaskSpace((known["packed"],))
    return TaskSpace((next(known[name] for name in names if name in known),))


def searches(task: Task, space: TaskSpace, trials: int, seeds: int) -> list[Search]:
    """Return every searcher with every seed."""
    found = []
    for seed in range(seeds):
        for name in ("joint", "random", *FIXED):
            if seed and name in _ONE_SEED:
                continue
            explorer = Explorer(task.target, RankingModel(PRETRAINED))
            mine = restrict(space, FIXED[name]) if name in FIXED else space
            strategy = (
                RandomSearch(explorer)
                if name == "random"
                else CrossExploration(explorer, max(24, int(trials * _JOINT_SHARE)))
            )
            rng = np.random.default_rng(seed)
            found.append(Search(name, seed, Tuner(mine, strategy, explorer, rng, task.key)))
    return found


class Unfinished(Exception):
    """The time is over; what was measured is kept."""


class Kept:
    """What was measured of one task, in memory and in a log.

    Args:
        row: name of the row.
        task: what is measured; records of others and of older kernels are left out.
    """

    def __init__(self, row: str, task: Task) -> None:
        self.task = task
        self.log = Log(WORK / f"{row}.jsonl")
        self.known = {
            r.candidate: Measurement(r.candidate, r.status, r.error, r.run_times_s)
            for r in self.log.read().records
            if r.task_key == task.key and not is_outgrown(r)
        }

    def add(self, results: Sequence[Measurement]) -> None:
        """Keep further results."""
        self.known |= {result.candidate: result for result in results}
        self.log.append(
            Record(
                task_key=self.task.key,
                task=describe_task(self.task),
                target=target_data(self.task.target),
                candidate=result.candidate,
                status=result.status,
                error=result.error,
                run_times_s=result.run_times_s,
                versions={**versions(), **kernels_version(result.candidate)},
                created_at=now(),
            )
            for result in results
        )


def explore(
    measurer: Measurer,
    kept: Kept,
    runs: list[Search],
    trials: int,
    shared: bool = False,
    deadline: float = float("inf"),
) -> None:
    """Let all searches spend their trials, in turns; one builds while another is timed.

    Where the timing processor is `shared`, all batches that are ready are timed in one turn.

    Raises:
        Unfinished: the clock passed the deadline.
    """
    known, task = kept.known, kept.task
    flights: deque[tuple[Search, list[Candidate], Batch]] = deque()
    waiting = deque(runs)
    while waiting or flights:
        while waiting and len(flights) < (_AHEAD_SHARED if shared else _AHEAD):
            run = waiting.popleft()
            asked = run.tuner.ask(min(_BATCH, trials - len(run.curve)))
            fresh = [candidate for candidate in asked if candidate not in known]
            flights.append(
                (run, asked, measurer.submit(task, fresh, run.tuner.space.defaults))
                if fresh
                else (run, asked, Batch(task, (), (), ()))
            )
        if time.monotonic() >= deadline:
            raise Unfinished(f"{len(known)} candidates are measured; run it again")
        flights[0][2].wait()
        until = time.monotonic() + (_LONGEST_TURN_S if shared else 0.0)
        with measurer.turn():
            while flights and flights[0][2].ready:
                run, asked, batch = flights.popleft()
                best = run.tuner.best()
                if batch.candidates:
                    kept.add(measurer.collect(batch, None if best is None else best.seconds))
                run.tell([known[candidate] for candidate in asked])
                if asked and len(run.curve) < trials:
                    waiting.append(run)
                if time.monotonic() >= until:
                    break


def compare(
    name: str, trials: int, seeds: int, measure: MeasureOptions, deadline: float = float("inf")
) -> dict:
    """Return what all searches found for one row of the suite.

    Raises:
        Unfinished: the clock passed the deadline.
    """
    target = replace(parse_target("native"), cores=1)
    (operator,) = load_suite(kinds=(name,))
    ((task, _),) = model_tasks(build_model(operator), target, winograd=False)
    with Measurer(target, measure) as measurer:
        space = task_space(measurer.choices(task), target)
        runs = searches(task, space, trials, seeds)
        explore(measurer, Kept(name, task), runs, trials, measure.lock is not None, deadline)
        winners = [run.tuner.best() for run in runs]
        assert all(winners), "a search found nothing that works"
        candidates = list(dict.fromkeys(winner.candidate for winner in winners if winner))
        times = measurer.race(task, candidates, rounds=_RACE_ROUNDS)
        seconds = {c: median(mine) for c, mine in zip(candidates, times, strict=True)}
        peak = median(measurer.round_peaks)
    return {
        "row": name,
        "trials": trials,
        "space": space.size,
        "layouts": len(space.choices),
        "flops": operator.flops,
        "peak": peak,
        "runs": [
            {
                "search": run.name,
                "seed": run.seed,
                "seconds": seconds[winner.candidate],
                "layout": choice.name if (choice := space.choice_of(winner.candidate)) else "",
                "schedule": winner.candidate.schedule,
                "curve_us": [None if s is None else round(s * 1e6, 2) for s in run.curve],
            }
            for run, winner in zip(runs, winners, strict=True)
            if winner is not None
        ],
    }


def _of(row: dict, search: str) -> list[float]:
    return [run["seconds"] for run in row["runs"] if run["search"] == search]


def _geometric_mean(values: Sequence[float]) -> float:
    return exp(mean(log(value) for value in values))


def markdown(rows: list[dict]) -> str:
    """Return the tables; one of them says what any search could win: the peak over each layout."""
    names = ["joint", "random", *FIXED]
    lines, ratios = [], {name: [] for name in [*names[1:], "best fixed"]}
    shares = []
    for row in rows:
        joint = median(_of(row, "joint"))
        others = {name: median(_of(row, name)) / joint for name in names[1:]}
        best = min(FIXED, key=lambda name: others[name])
        for name, ratio in others.items():
            ratios[name].append(ratio)
        ratios["best fixed"].append(others[best])
        shares.append(row["flops"] / joint / row["peak"])
        spread = [
            f"{min(_of(row, n)) / joint:.2f} .. {max(_of(row, n)) / joint:.2f}" for n in names[1:]
        ]
        lines.append(
            [
                *(row["row"], f"{row['layouts']}, {row['space']}", f"{joint * 1e6:.0f}"),
                f"{shares[-1]:.0%}",
                *(f"{others[n]:.2f} ({s})" for n, s in zip(names[1:], spread, strict=True)),
                f"{best} {others[best]:.2f}",
            ]
        )
    means = {name: _geometric_mean(values) for name, values in ratios.items()}
    columns, share = [*names[1:], "best fixed"], _geometric_mean(shares)
    figures = [f"{means[name]:.2f}" for name in columns]
    lines.append(["geometric mean", "", "", f"{share:.0%}", *figures])
    figures = [f"{means[name] / share:.2f}" for name in columns]
    lines.append(["the same, were joint at the peak", "", "", "100%", *figures])
    header = ["row", "layouts, points", "joint us", "of peak"]
    header += [f"{name} / joint" for name in names[1:]] + ["best fixed of the row"]
    return markdown_table(header, lines) + "\n" + _curves(rows, names)


def _curves(rows: list[dict], names: Sequence[str]) -> str:
    """Return how far each search is after some trials, as time / the row's best at the end."""
    marks = (1, 4, 8, 16, 24, 32, 48, 64)
    lines = []
    for name in names:
        cells = []
        for mark in marks:
            found = []
            for row in rows:
                least = min(min(filter(None, run["curve_us"])) for run in row["runs"])
                for run in row["runs"]:
                    curve = run["curve_us"]
                    at = curve[min(mark, len(curve)) - 1] if curve else None
                    if run["search"] == name and at is not None:
                        found.append((run["seed"], at / least))
            seeds = sorted({seed for seed, _ in found})
            each = [_geometric_mean([r for s, r in found if s == seed]) for seed in seeds]
            cells.append(f"{median(each):.2f} ({min(each):.2f} .. {max(each):.2f})" if each else "")
        lines.append([name, *cells])
    title = "Best so far / best of all at the end, geometric mean over the rows; median of the "
    title += "seeds and their spread, by trials:\n\n"
    return title + markdown_table(["search", *map(str, marks)], lines)


def main() -> None:
    """Search, race, write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("rows", nargs="*", default=ROWS)
    parser.add_argument("--trials", type=int, default=64)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--measure-cpu", type=int)
    parser.add_argument("--lock", type=Path, help="file to lock while candidates are timed")
    parser.add_argument("--time", type=float, default=float("inf"), help="seconds for each row")
    parser.add_argument("--resume", action="store_true")
    parser.add_argument("--most", type=int, default=len(ROWS), help="rows in this call")
    arguments = parser.parse_args()
    stem = RESULTS / f"tuner_strategies_{instruction_set()}"
    path = stem.with_suffix(".json")
    done = {row["row"] for row in json.loads(path.read_text())["rows"]} if path.exists() else set()
    wanted = [row for row in arguments.rows if not (arguments.resume and row in done)]
    measure = MeasureOptions(cpu=arguments.measure_cpu, lock=arguments.lock)
    for name in wanted[: arguments.most]:
        deadline = time.monotonic() + arguments.time
        try:
            row = compare(name, arguments.trials, arguments.seeds, measure, deadline)
        except Unfinished as unfinished:
            print(f"{name}: {unfinished}", file=sys.stderr, flush=True)
            continue
        rows = merge_rows(path, [row], ("row",))
        write_json(path, {"machine": describe(), "rows": rows})
        text = "# Joint, random and loop-only search at equal trials\n\n"
        text += "`python -m benchmarks.tuner_strategies`; see its docstring. One thread, "
        text += f"{arguments.trials} trials, {arguments.seeds} seeds.\n\n"
        text += markdown_machine(describe()) + "\n" + markdown(rows)
        write_text(stem.with_suffix(".md"), text)
        print(text.split("\n\n")[-3], file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
