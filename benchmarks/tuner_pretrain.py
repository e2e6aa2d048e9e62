"""Train the cost model that ships with the package: `python -m benchmarks.tuner_pretrain`.

Samples are the records of tuning logs (by default all of tuning_logs/, the raw ones too) whose
tasks are found in the models named. Reports, for shapes that the model has not seen (five folds by
task), pairwise ranking accuracy and top-8 recall, beside those of the analytical estimate; then
trains on all samples and writes tuner/pretrained.json. Writes benchmarks/results/tuner_pretrain.md.
"""

import argparse
import gzip
import json
import sys
import tempfile
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from statistics import mean
from typing import Any

import numpy as np

from benchmarks import zoo
from benchmarks.machine import describe
from benchmarks.report import RESULTS, markdown_machine, markdown_table, write_text
from tilewright.compiler.layout.rewrite import rewrite
from tilewright.compiler.schedule import default_decisions
from tilewright.compiler.targets import Target
from tilewright.compiler.tasks import Task
from tilewright.tuner import Explorer, Log, Record
from tilewright.tuner.cost_model import PRETRAINED, RankingModel, ranking_accuracy, top_recall
from tilewright.tuner.features import NAMES
from tilewright.tuner.space import LayoutChoice, LoopSpace
from tilewright.tuner.tune_model import model_tasks
from tilewright.tuner.workload import describe_loops

LOGS = Path(__file__).resolve().parent.parent / "tuning_logs"
MODELS = ("resnet18", "resnet50", "mobilenetv2", "efficientnet_b0")
# Fewer candidates say little about an order, and eight of less than sixteen nothing about a choice.
_FEWEST = 4
_FEWEST_FOR_RECALL = 16
_ROUNDS = 60
_FOLDS = 5

Samples = tuple[np.ndarray, np.ndarray, np.ndarray]
"""Features [n, len(NAMES)], seconds [n] and scores of the analytical estimate [n]."""


def read(path: Path) -> tuple[Record, ...]:
    """Return the records of a log, packed by gzip or not."""
    if path.suffix != ".gz":
        return Log(path).read().records
    with tempfile.TemporaryDirectory() as folder:
        plain = Path(folder, "log.jsonl")
        plain.write_bytes(gzip.decompress(path.read_bytes()))
        return Log(plain).read().records


def by_target(logs: list[Path]) -> dict[Target, dict[str, list[Record]]]:
    """Return the good records of contractions and windows, by target and key of the task."""
    found: dict[Target, dict[str, list[Record]]] = defaultdict(lambda: defaultdict(list))
    for path in logs:
        for record in read(path):
            if record.ok and record.candidate.schedule is not None:
                text = json.dumps({"name": record.target["mcpu"], **record.target})
                found[Target.from_json(text)][record.task_key].append(record)
    return found


def samples(task: Task, records: list[Record]) -> Samples:
    """Return what the records of a task teach; of a candidate measured twice the faster counts."""
    explorer = Explorer(task.target)
    choices: dict[Any, LayoutChoice] = {}
    rows, seconds, estimates = [], [], []
    seen = set()
    for record in sorted(records, key=lambda record: record.seconds):
        candidate = record.candidate
        if candidate in seen:
            continue
        seen.add(candidate)
        if candidate.layouts not in choices:
            changed = {p: each for p, each in enumerate(candidate.layouts) if each.primitives}
            func = task.operator.func
            func = rewrite(func, changed) if changed else func
            loops = describe_loops(func, task.target)
            default = json.loads(default_decisions(func, task.target).to_json())
            space = LoopSpace(loops, default, task.target)
            choices[candidate.layouts] = LayoutChoice("", candidate.layouts, 0.0, space)
        choice = choices[candidate.layouts]
        if choice.loops.loops["kind"] not in ("contraction", "window"):
            continue
        rows.append(explorer.features(choice, [candidate])[0])
        seconds.append(record.seconds)
        estimates.append(float(explorer.scores(choice, [candidate])[0]))
    return np.array(rows).reshape(-1, len(NAMES)), np.array(seconds), np.array(estimates)


def collect(logs: list[Path], models: list[str]) -> dict[str, Samples]:
    """Return the samples of every task that is in a log and in a model."""
    data: dict[str, Samples] = {}
    for target, records in by_target(logs).items():
        for name in models:
            for task, _count in model_tasks(zoo.load(name), target):
                key = f"{target.mcpu} {task.key}"
                if task.key in records and key not in data:
                    found = samples(task, records[task.key])
                    if len(found[1]) >= _FEWEST:
                        data[key] = found
            print(f"{target.mcpu} {name}: {len(data)} tasks", file=sys.stderr)
    return data


def train(data: dict[str, Samples], keys: list[str]) -> RankingModel:
    """Return a model of some of the tasks."""
    model = RankingModel()
    for key in keys:
        model.update(key, data[key][0], data[key][1])
    model.fit(_ROUNDS)
    return model


def judge(data: dict[str, Samples]) -> Iterator[tuple[str, int, float, float, float, float]]:
    """Yield, for each task held out: key, candidates, accuracy and recall, the estimate's too."""
    keys = sorted(data)
    for fold in range(_FOLDS):
        held = keys[fold::_FOLDS]
        model = train(data, [key for key in keys if key not in held])
        for key in held:
            features, seconds, estimates = data[key]
            scores = model.predict(features)
            assert scores is not None
            yield (
                key,
                len(seconds),
                *(ranking_accuracy(scores, seconds), top_recall(scores, seconds)),
                *(ranking_accuracy(estimates, seconds), top_recall(estimates, seconds)),
            )


def main() -> None:
    """Read logs, judge on held-out tasks, train on all, write."""
    parser = argparse.ArgumentParser(description=__doc__)
    packed = sorted(LOGS.glob("raw/*.jsonl.gz"))
    parser.add_argument("--log", type=Path, action="append", help="default: all of tuning_logs/")
    parser.add_argument("models", nargs="*", default=MODELS, help="whose tasks the logs hold")
    arguments = parser.parse_args()
    data = collect(arguments.log or [*sorted(LOGS.glob("*.jsonl")), *packed], arguments.models)
    rows = list(judge(data))
    train(data, sorted(data)).save(PRETRAINED)
    write_text(RESULTS / "tuner_pretrain.md", _markdown(data, rows))


def _markdown(data: dict[str, Samples], rows: list[tuple]) -> str:
    lines = []
    for target in sorted({key.split()[0] for key in data}):
        mine = [row for row in rows if row[0].startswith(target)]
        long = [row for row in mine if row[1] >= _FEWEST_FOR_RECALL]
        for name, accuracy, recall in (("ranking model", 2, 3), ("analytical estimate", 4, 5)):
            lines.append(
                [
                    *(target, name, str(len(mine)), str(sum(row[1] for row in mine))),
                    f"{mean(row[accuracy] for row in mine):.3f}",
                    f"{mean(row[recall] for row in long):.3f} ({len(long)} tasks)" if long else "",
                ]
            )
    header = ("target", "", "tasks", "candidates", "pairwise accuracy", "top-8 recall")
    return (
        "# Cost model on shapes it has not seen\n\n"
        "Five folds by task; accuracy over pairs at least 5% apart; recall is best time / best "
        f"time of the eight chosen, over tasks with at least {_FEWEST_FOR_RECALL} candidates; "
        f"`tuner/pretrained.json` has {PRETRAINED.stat().st_size >> 10} KiB. "
        "`python -m benchmarks.tuner_pretrain`.\n\n"
        + markdown_machine(describe())
        + "\n"
        + markdown_table(header, lines)
    )


if __name__ == "__main__":
    main()
