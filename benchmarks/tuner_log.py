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
import shutil
import sys
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

from benchmarks import zoo
from tilewright.compiler.layout.primitives import Layout
from tilewright.compiler.targets import parse_target
from tilewright.frontends.onnx import import_onnx
from tilewright.tuner import Log, Lookup, MeasureOptions, Record, TuneOptions, tune
from tilewright.tuner.algorithms import find_convolutions, measure_algorithms
from tilewright.tuner.lookup import ALGORITHM
from tilewright.tuner.records import merit
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
_WITHIN = 1.2
_MOST_LAYOUTS = 4
# Small batches let a search learn within few trials.
_BATCH = 6


def select(records: Iterable[Record]) -> list[Record]:
    """Return the records that a compile needs; see the module's docstring."""
    algorithms: list[Record] = []
    tasks: dict[str, dict[tuple[Layout, ...], list[Record]]] = defaultdict(
        lambda: defaultdict(list)
    )
    for record in records:
        if record.ok and record.task["blocks"] == [ALGORITHM]:
            algorithms.append(record)  # all of a convolution: a compile weighs their weights, too
        elif record.ok:
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


def _winner_and_default(group: list[Record]) -> list[Record]:
    winner = min(group, key=merit)
    defaults = [record for record in group if record.hardware.get("default")]
    if not defaults:
        return [winner]
    default = min(defaults, key=lambda record: record.seconds)
    return [winner] if default.candidate == winner.candidate else [winner, default]


def tune_model(name: str, log: Path, per_task: int, measure: MeasureOptions) -> bool:
    """Tune one model for `per_task` trials of each task that the log lacks; say if to go on."""
    target = replace(parse_target("native"), cores=1)
    choose = Lookup([log], target).algorithm
    tasks = {task.key for task, _ in model_tasks(zoo.load(name), target, winograd=choose)}
    known = {
        (record.task_key, record.candidate.key)
        for record in Log(log).read().records
        if record.task_key in tasks
    }
    fresh = tasks - {key for key, _ in known}
    trials = len(known) + per_task * len(fresh)
    print(f"{name}: {len(tasks)} tasks, {len(fresh)} of them new", file=sys.stderr, flush=True)
    if not fresh:
        return True
    options = TuneOptions(batch=_BATCH, measure=measure)
    result = tune(zoo.load(name), log=log, trials=trials, options=options)
    gain = result.before_s / max(1e-12, result.after_s)
    print(
        f"{name}: {result.trials} trials in {result.elapsed_s:.0f} s, kernels {gain:.3f}x faster",
        file=sys.stderr,
        flush=True,
    )
    return result.stopped != "interrupted"


def tune_algorithms(name: str, log: Path, measure: MeasureOptions) -> None:
    """Measure the algorithms of a model's convolutions that the log does not know."""
    target = replace(parse_target("native"), cores=1)
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
    parser.add_argument("--per-task", type=int, default=12, help="trials of each new task")
    parser.add_argument("--measure-cpu", type=int)
    parser.add_argument("--lock", type=Path, help="as for 'tilewright tune'")
    parser.add_argument("--algorithms", action="store_true", help="measure those only")
    parser.add_argument("--select", action="store_true", help="write what ships; tune nothing")
    parser.add_argument("--fresh", action="store_true", help="do not start from committed records")
    arguments = parser.parse_args()
    work, packed = WORK / f"{arguments.name}.jsonl", LOGS / "raw" / f"{arguments.name}.jsonl.gz"
    WORK.mkdir(parents=True, exist_ok=True)
    if not work.exists() and packed.exists() and not arguments.fresh:
        with gzip.open(packed) as source, work.open("wb") as target:
            shutil.copyfileobj(source, target)
    if not arguments.select:
        measure = MeasureOptions(cpu=arguments.measure_cpu, lock=arguments.lock)
        for name in arguments.models:
            tune_algorithms(name, work, measure)
            if arguments.algorithms:
                continue
            if not tune_model(name, work, arguments.per_task, measure):
                break
        return
    contents = Log(work).read()
    kept = select(contents.records)
    shipped = LOGS / f"{arguments.name}.jsonl"
    shipped.write_text("".join(record.to_line() + "\n" for record in kept))
    text = "".join(record.to_line() + "\n" for record in contents.records)
    packed.write_bytes(gzip.compress(text.encode(), mtime=0))
    count = len({record.task_key for record in kept})
    print(f"{shipped.name}: {len(kept)} of {len(contents.records)} records, {count} tasks")


if __name__ == "__main__":
    main()
