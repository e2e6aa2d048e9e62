"""How many candidates a second the tuner measures: `python -m benchmarks.tuner_speed [--time 90]`.

The convolutions of ResNet-50 are tuned for a while from an empty log, as `tilewright tune` does it.
A candidate counts as measured when it ran, was checked and was timed; those that failed to build or
that a look at their code rejected are counted apart. The first seconds, in which processes start
and references are computed, are in the rate over everything and not in the sustained one.
Writes benchmarks/results/tuner_speed_<vectors>.json and .md.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections import Counter
from dataclasses import dataclass, field, replace
from pathlib import Path
from statistics import median

from benchmarks import zoo
from benchmarks.machine import describe
from benchmarks.report import RESULTS, markdown_machine, markdown_table, write_json, write_text
from tilewright.baselines.machine import instruction_set
from tilewright.compiler.targets import parse_target
from tilewright.compiler.tasks import Task
from tilewright.tuner import Log, MeasureOptions, Session, TuneOptions, tune_tasks
from tilewright.tuner.tune_model import model_tasks
from tilewright.tuner.workload import describe as describe_task

ASKED_PER_S = 3.0
_START_S = 10.0
_WINDOW_S = 10.0


def convolutions(model: str) -> list[tuple[Task, int]]:
    """Return the convolution tasks of a model of the zoo, Winograd's products among them."""
    target = replace(parse_target("native"), cores=1)
    return [
        (task, calls)
        for task, calls in model_tasks(zoo.load(model), target)
        if describe_task(task)["macs"] and any(len(shape) >= 4 for shape in task.operator.shapes)
    ]


@dataclass
class Clock:
    """Candidates that were known at certain times; called after every batch.

    Attributes:
        marks: (seconds since the start, candidates of each status).
    """

    marks: list[tuple[float, Counter[str]]] = field(default_factory=list)

    def __call__(self, session: Session) -> None:
        """Note how far the session is."""
        statuses: Counter[str] = Counter()
        for state in session.states:
            if state.tuner is not None:
                statuses.update(r.status for r in state.tuner.history.results.values())
        self.marks.append((session.elapsed_s, statuses))

    def rate(self, start: float, end: float) -> float:
        """Return good candidates a second between two times."""
        before = max((m for m in self.marks if m[0] <= start), default=(0.0, Counter()))
        after = max((m for m in self.marks if m[0] <= end), default=before)
        return (after[1]["ok"] - before[1]["ok"]) / max(1e-9, after[0] - before[0])


def main() -> int:
    """Tune for a while, count, write; fail where fewer than `ASKED_PER_S` are sustained."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--time", type=float, default=90.0, help="seconds")
    parser.add_argument("--model", default="resnet50")
    parser.add_argument("--measure-cpu", type=int)
    arguments = parser.parse_args()
    tasks = convolutions(arguments.model)
    options = TuneOptions(time_s=arguments.time, measure=MeasureOptions(cpu=arguments.measure_cpu))
    clock = Clock()
    start = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        session = tune_tasks(
            tasks, tasks[0][0].target, Log(Path(folder, "log.jsonl")), options, clock
        )
    elapsed = time.monotonic() - start
    last, statuses = clock.marks[-1]
    windows = [
        clock.rate(second, second + _WINDOW_S)
        for second in range(int(_START_S), int(last - _WINDOW_S) + 1, int(_WINDOW_S))
    ]
    builds = [
        r.build_time_s
        for state in session.states
        if state.tuner is not None
        for r in state.tuner.history.results.values()
        if r.build_time_s
    ]
    row = {
        "model": arguments.model,
        "tasks": len(tasks),
        "begun": sum(state.tuner is not None for state in session.states),
        "statuses": dict(statuses),
        "elapsed_s": elapsed,
        "per_s": statuses["ok"] / elapsed,
        "sustained_per_s": clock.rate(_START_S, last),
        "slowest_window_per_s": min(windows, default=0.0),
        "build_s": median(builds),
    }
    print(row, file=sys.stderr)
    stem = RESULTS / f"tuner_speed_{instruction_set()}"
    write_json(stem.with_suffix(".json"), {"machine": describe(), "rows": [row]})
    write_text(stem.with_suffix(".md"), _markdown(row))
    return 0 if row["sustained_per_s"] >= ASKED_PER_S else 1


def _markdown(row: dict) -> str:
    others = ", ".join(f"{n} {s}" for s, n in sorted(row["statuses"].items()) if s != "ok")
    lines = [
        ["convolution tasks, of them begun", f"{row['tasks']}, {row['begun']}"],
        ["candidates built, checked and timed", str(row["statuses"]["ok"])],
        ["others", others or "none"],
        ["seconds in all", f"{row['elapsed_s']:.0f}"],
        [f"a second, sustained (after {_START_S:.0f} s)", f"{row['sustained_per_s']:.2f}"],
        [f"a second, slowest {_WINDOW_S:.0f} s", f"{row['slowest_window_per_s']:.2f}"],
        ["a second, start and last races included", f"{row['per_s']:.2f}"],
        ["seconds to build one, median", f"{row['build_s']:.3f}"],
    ]
    return (
        f"# Candidates a second over the convolutions of {row['model']}\n\n"
        "`python -m benchmarks.tuner_speed`; see its docstring. One process builds and one times, "
        f"on a processor each. Asked: {ASKED_PER_S:g} a second.\n\n"
        + markdown_machine(describe())
        + "\n"
        + markdown_table(("", "figure"), lines)
    )


if __name__ == "__main__":
    sys.exit(main())
