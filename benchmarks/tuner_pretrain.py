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
from dataclasses import dataclass
from pathlib import Path
from statistics import geometric_mean, mean
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
MODELS = (
    *("resnet18", "resnet50", "mobilenetv2", "efficientnet_b0", "bert_base", "vgg16", "vit_tiny"),
    *("minilm", "bert_tiny", "densenet121", "unet"),
)
# Fewer candidates say little about an order, and eight of less than sixteen nothing about a choice.
_FEWEST = 4
_FEWEST_FOR_RECALL = 16
_ROUNDS = 60
_FOLDS = 5


@dataclass(frozen=True)
class Samples:
    """Measured candidates of one task.

    Attributes:
        features: float32 [n, len(NAMES)].
        seconds: [n].
        estimates: scores of the analytical estimate [n].
        layouts: number of the layouts of each [n].
        default: whether it is what the compiler decides in its layouts [n].
    """

    features: np.ndarray
    seconds: np.ndarray
    estimates: np.ndarray
    layouts: np.ndarray
    default: np.ndarray

    def first_choices(self, scores: np.ndarray) -> list[float]:
        """Return, for layouts with enough candidates, time of the best score / of the default."""
        found = []
        for number in np.unique(self.layouts):
            here = np.flatnonzero(self.layouts == number)
            default = here[self.default[here]]
            if len(here) >= _FEWEST and len(default):
                chosen = here[np.argmax(scores[here])]
                found.append(float(self.seconds[chosen] / self.seconds[default].min()))
        return found


@dataclass(frozen=True)
class Judgement:
    """How well one task's candidates were ranked: by the model, then by the estimate."""

    key: str
    candidates: int
    accuracy: tuple[float, float]
    recall: tuple[float, float]
    first_choices: tuple[list[float], list[float]]


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
    rows, seconds, estimates, layouts, default = [], [], [], [], []
    seen = set()
    defaults = {record.candidate for record in records if record.hardware.get("default")}
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
            decisions = json.loads(default_decisions(func, task.target).to_json())
            space = LoopSpace(loops, decisions, task.target)
            choices[candidate.layouts] = LayoutChoice("", candidate.layouts, 0.0, space)
        choice = choices[candidate.layouts]
        kind = choice.loops.loops["kind"]
        if kind not in ("contraction", "window") or json.loads(candidate.schedule)["kind"] != kind:
            continue  # of kernels that the compiler has others for by now
        rows.append(explorer.features(choice, [candidate])[0])
        seconds.append(record.seconds)
        estimates.append(float(explorer.scores(choice, [candidate])[0]))
        layouts.append(list(choices).index(candidate.layouts))
        default.append(candidate in defaults)
    return Samples(
        np.array(rows).reshape(-1, len(NAMES)),
        *(np.array(seconds), np.array(estimates), np.array(layouts), np.array(default, bool)),
    )


def collect(logs: list[Path], models: list[str]) -> dict[str, Samples]:
    """Return the samples of every task that is in a log and in a model."""
    data: dict[str, Samples] = {}
    for target, records in by_target(logs).items():
        for name in models:
            for task, _count in model_tasks(zoo.load(name), target):
                key = f"{target.mcpu} {task.key}"
                if task.key in records and key not in data:
                    found = samples(task, records[task.key])
                    if len(found.seconds) >= _FEWEST:
                        data[key] = found
            print(f"{target.mcpu} {name}: {len(data)} tasks", file=sys.stderr)
    return data


def train(data: dict[str, Samples], keys: list[str]) -> RankingModel:
    """Return a model of some of the tasks."""
    model = RankingModel()
    for key in keys:
        model.update(key, data[key].features, data[key].seconds)
    model.fit(_ROUNDS)
    return model


def judge(data: dict[str, Samples]) -> Iterator[Judgement]:
    """Judge every task by a model that has not seen it."""
    keys = sorted(data)
    for fold in range(_FOLDS):
        held = keys[fold::_FOLDS]
        model = train(data, [key for key in keys if key not in held])
        for key in held:
            mine = data[key]
            learnt = model.predict(mine.features)
            assert learnt is not None
            both = (learnt, mine.estimates)
            accuracy, estimated = (ranking_accuracy(each, mine.seconds) for each in both)
            recall, recalled = (top_recall(each, mine.seconds) for each in both)
            first, second = (mine.first_choices(each) for each in both)
            yield Judgement(
                key, len(mine.seconds), (accuracy, estimated), (recall, recalled), (first, second)
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


def _markdown(data: dict[str, Samples], rows: list[Judgement]) -> str:
    lines = []
    for target in sorted({key.split()[0] for key in data}):
        mine = [row for row in rows if row.key.startswith(target)]
        long = [row for row in mine if row.candidates >= _FEWEST_FOR_RECALL]
        for which, name in enumerate(("ranking model", "analytical estimate")):
            first = [ratio for row in mine for ratio in row.first_choices[which]]
            lines.append(
                [
                    *(target, name, str(len(mine)), str(sum(row.candidates for row in mine))),
                    f"{mean(row.accuracy[which] for row in mine):.3f}",
                    f"{mean(row.recall[which] for row in long):.3f} ({len(long)} tasks)"
                    if long
                    else "",
                    f"{geometric_mean(first):.3f} ({len(first)} layouts)" if first else "",
                ]
            )
    header = ("target", "", "tasks", "candidates", "pairwise accuracy", "top-8 recall")
    header = (*header, "first choice / default")
    return (
        "# Cost model on shapes it has not seen\n\n"
        "Five folds by task; accuracy over pairs at least 5% apart; recall is best time / best "
        f"time of the eight chosen, over tasks with at least {_FEWEST_FOR_RECALL} candidates; the "
        "last column is the time of the candidate with the best score over that of the compiler's "
        "own decisions in the same layouts, geometric mean, among what was measured; "
        f"`tuner/pretrained.json` has {PRETRAINED.stat().st_size >> 10} KiB. "
        "`python -m benchmarks.tuner_pretrain`.\n\n"
        + markdown_machine(describe())
        + "\n"
        + markdown_table(header, lines)
    )


if __name__ == "__main__":
    main()
