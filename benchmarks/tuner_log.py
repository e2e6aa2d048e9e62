"""Tune the models of the zoo into the log that ships: `python -m benchmarks.tuner_log [MODEL ...]`.

Each model is tuned for some trials a task into a working log in `build/tuning/`, which goes on from
the raw records that are committed; `--select` then writes `tuning_logs/raw/<name>.jsonl.gz` (every
record, what the cost model learns from) and `tuning_logs/<name>.jsonl` (what a compile reads).

Selected are, of each task, the layouts that come near its best ones, so that a compile can weigh
them against what the neighbours want; of each of those the winner, and the compiler's own decisions
where those were measured too. The logical layouts always stay: they are what a conversion costs.
"""

from __future__ import annotations

import argparse
import gzip
import json
import shutil
import sys
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import replace
from math import prod
from pathlib import Path

from benchmarks import zoo
from tilewright.compiler.layout.choices import operator_choices
from tilewright.compiler.layout.primitives import Layout
from tilewright.compiler.layout.rewrite import rewrite
from tilewright.compiler.schedule import default_decisions
from tilewright.compiler.targets import Target, parse_target
from tilewright.compiler.tasks import Task
from tilewright.frontends.onnx import import_onnx
from tilewright.tuner import Log, Lookup, MeasureOptions, Record, TuneOptions, tune_tasks
from tilewright.tuner.algorithms import find_convolutions, measure_algorithms
from tilewright.tuner.candidate import Candidate, canonical_json
from tilewright.tuner.lookup import ALGORITHM
from tilewright.tuner.records import is_outgrown, merit
from tilewright.tuner.tune_model import model_tasks

ROOT = Path(__file__).resolve().parent.parent
LOGS = ROOT / "tuning_logs"
WORK = ROOT / "build" / "tuning"
MODELS = (
    *("resnet18", "resnet50", "mobilenetv2", "efficientnet_b0", "bert_base", "vgg16", "vit_tiny"),
    *("minilm", "bert_tiny", "densenet121", "unet", "swin_tiny", "convnext_tiny", "gpt2_small"),
    *("rlfn", "espcn", "resnet3d18"),
)
# Of the time of a task's best layouts, and how many of them: reading a log takes time, too.
_WITHIN = 1.5
_MOST_LAYOUTS = 8
# Of a weight in one call.
_FEWEST_USES = 8
# Small batches let a search learn within few trials.
_BATCH = 6


def select(records: Iterable[Record]) -> list[Record]:
    """Return the records that a compile needs; see the module's docstring.

    Warm measurements of what reads each weight only a few times are left out: in a model the
    weights come from memory, while tuning from a cache, and another schedule wins there
    (MobileNet-V2's classifier, 1x1280x1000: 176 us by default, 257 us by what won warm).
    """
    algorithms: list[Record] = []
    tasks: dict[str, dict[tuple[Layout, ...], list[Record]]] = defaultdict(
        lambda: defaultdict(list)
    )
    for record in records:
        if record.ok and record.task["blocks"] == [ALGORITHM]:
            algorithms.append(record)  # all of a convolution: a compile weighs their weights, too
        elif record.ok and not _misleads(record):
            tasks[record.task_key][record.candidate.layouts].append(record)
    kept = algorithms
    for layouts in tasks.values():
        ranked = sorted(layouts.values(), key=lambda group: min(r.seconds for r in group))
        least = min(record.seconds for record in ranked[0])
        for position, group in enumerate(ranked):
            seconds = min(record.seconds for record in group)
            logical = not any(layout.primitives for layout in group[0].candidate.layouts)
            if logical or (position < _MOST_LAYOUTS and seconds <= _WITHIN * least):
                kept += _winner_and_default(group)
    return kept


def _misleads(record: Record) -> bool:
    shapes, macs = record.task.get("shapes", []), record.task.get("macs", 0)
    weights = max((prod(shapes[p]) for p in record.task.get("constants", [])), default=0)
    is_cold = record.hardware.get("cold", False)
    return not is_cold and 0 < macs < _FEWEST_USES * weights


def _winner_and_default(group: list[Record]) -> list[Record]:
    winner = min(group, key=merit)
    defaults = [record for record in group if record.hardware.get("default")]
    if not defaults:
        return [winner]
    default = min(defaults, key=lambda record: record.seconds)
    return [winner] if default.candidate == winner.candidate else [winner, default]


def tune_model(
    name: str, target: Target, log: Path, per_task: int, measure: MeasureOptions
) -> bool:
    """Give every task `per_task` trials that the log lacks or that the compiler has outgrown.

    Returns:
        Whether to go on: not where it was interrupted.
    """
    choose = Lookup([log], target).algorithm
    tasks = model_tasks(zoo.load(name), target, winograd=choose)
    known: dict[str, set[Candidate]] = {task.key: set() for task, _ in tasks}
    for record in Log(log).read().records:
        if not is_outgrown(record):
            known.get(record.task_key, set()).add(record.candidate)
    due = [(task, calls) for task, calls in tasks if _is_due(task, known[task.key])]
    print(f"{name}: {len(tasks)} tasks, {len(due)} of them due", file=sys.stderr, flush=True)
    if not due:
        return True
    trials = sum(len(known[task.key]) for task, _ in due) + per_task * len(due)
    options = TuneOptions(trials=trials, batch=_BATCH, measure=measure)
    session = tune_tasks(due, target, Log(log), options)
    before, after = session.total_s()
    print(
        f"{name}: {session.measured} trials in {session.elapsed_s:.0f} s, kernels "
        f"{before / max(1e-12, after):.3f}x faster",
        file=sys.stderr,
        flush=True,
    )
    return session.stopped != "interrupted"


def _is_due(task: Task, known: set[Candidate]) -> bool:
    """Say whether what the compiler decides for a task now was never measured."""
    choice = min(operator_choices(task.operator, task.target), key=lambda choice: choice.seconds)
    changed = {p: layout for p, layout in enumerate(choice.layouts) if layout.primitives}
    func = rewrite(task.operator.func, changed) if changed else task.operator.func
    decisions = default_decisions(func, task.target).to_json()
    return Candidate(choice.layouts, canonical_json(json.loads(decisions))) not in known


def tune_algorithms(name: str, target: Target, log: Path, measure: MeasureOptions) -> None:
    """Measure the algorithms of a model's convolutions that the log does not know."""
    lookup = Lookup([log], target)
    unknown = [
        convolution
        for convolution in find_convolutions(import_onnx(zoo.load(name)).module, target)
        if not lookup.knows_algorithm(convolution)
    ]
    count = 0
    for records in measure_algorithms(unknown, target, lookup, measure):
        Log(log).append(records)
        count += len(records)
    print(f"{name}: {count} records of algorithms", file=sys.stderr, flush=True)


def main() -> None:
    """Tune, or select."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("models", nargs="*", default=MODELS)
    parser.add_argument("--name", default="zen3_avx2", help="of the log that ships")
    parser.add_argument("--target", default="native", help="whose code this machine can run")
    parser.add_argument("--per-task", type=int, default=12, help="trials of each new task")
    parser.add_argument("--measure-cpu", type=int)
    parser.add_argument("--lock", type=Path, help="as for 'tilewright tune'")
    parser.add_argument("--algorithms", action="store_true", help="measure those only")
    parser.add_argument("--select", action="store_true", help="write what ships; tune nothing")
    parser.add_argument(
        "--without", nargs="*", default=(), help="models that a compile with the log slows down"
    )
    parser.add_argument("--fresh", action="store_true", help="do not start from committed records")
    arguments = parser.parse_args()
    target = replace(parse_target(arguments.target), cores=1)
    work, packed = WORK / f"{arguments.name}.jsonl", LOGS / "raw" / f"{arguments.name}.jsonl.gz"
    WORK.mkdir(parents=True, exist_ok=True)
    if not work.exists() and packed.exists() and not arguments.fresh:
        with gzip.open(packed) as source, work.open("wb") as unpacked:
            shutil.copyfileobj(source, unpacked)
    if not arguments.select:
        measure = MeasureOptions(cpu=arguments.measure_cpu, lock=arguments.lock)
        for name in arguments.models:
            tune_algorithms(name, target, work, measure)
            if arguments.algorithms:
                continue
            if not tune_model(name, target, work, arguments.per_task, measure):
                break
        return
    contents = Log(work).read()
    left_out = {
        task.key for name in arguments.without for task, _ in model_tasks(zoo.load(name), target)
    }
    kept = select(record for record in contents.records if record.task_key not in left_out)
    shipped = LOGS / f"{arguments.name}.jsonl"
    shipped.write_text("".join(record.to_line() + "\n" for record in kept))
    text = "".join(record.to_line() + "\n" for record in contents.records)
    packed.write_bytes(gzip.compress(text.encode(), mtime=0))
    count = len({record.task_key for record in kept})
    print(f"{shipped.name}: {len(kept)} of {len(contents.records)} records, {count} tasks")


if __name__ == "__main__":
    main()
