"""Train the cost model that ships with the package: `python -m benchmarks.tuner_pretrain LOG...`.

Reports pairwise ranking accuracy and top-8 recall on tasks whose shapes the model has not seen
(every fifth task is held out), beside those of the analytical estimate; then trains on all and
writes tuner/pretrained.json. Writes benchmarks/results/tuner_pretrain.md.
"""

import argparse
import sys
from collections import defaultdict
from dataclasses import replace
from pathlib import Path
from statistics import mean

import numpy as np

from benchmarks.machine import describe
from benchmarks.report import RESULTS, markdown_machine, markdown_table, write_text
from tilewright.compiler.targets import parse_target
from tilewright.compiler.tasks import Task
from tilewright.tuner import Explorer, Log, Record
from tilewright.tuner.cost_model import PRETRAINED, RankingModel, ranking_accuracy, top_recall
from tilewright.tuner.features import NAMES
from tilewright.tuner.space import task_space
from tilewright.tuner.tune_model import model_tasks
from tilewright.tuner.worker.build import Builder
from tilewright.tuner.workload import task_request

_FEWEST = 16
_ROUNDS = 150


def samples(
    task: Task, records: list[Record], builder: Builder
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return features [n, len(NAMES)], seconds [n] and scores of the estimate [n]."""
    target = task.target
    space = task_space(builder.choices(task_request(task), target.to_json())["choices"], target)
    explorer = Explorer(target)
    rows, seconds, estimates = [], [], []
    seen = set()
    for record in sorted(records, key=lambda record: record.seconds):
        choice = space.choice_of(record.candidate)
        if choice is None or record.candidate in seen or record.candidate.schedule is None:
            continue
        seen.add(record.candidate)
        rows.append(explorer.features(choice, [record.candidate])[0])
        seconds.append(record.seconds)
        estimates.append(float(explorer.scores(choice, [record.candidate])[0]))
    return np.array(rows).reshape(-1, len(NAMES)), np.array(seconds), np.array(estimates)


def main() -> None:
    """Read logs, judge on held-out tasks, train on all, write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("logs", nargs="+", type=Path)
    parser.add_argument("--model", action="append", required=True, help="whose tasks the logs hold")
    arguments = parser.parse_args()
    records: dict[str, list[Record]] = defaultdict(list)
    for path in arguments.logs:
        for record in Log(path).read().records:
            if record.ok:
                records[record.task_key].append(record)
    target = replace(parse_target("native"), cores=1)
    builder = Builder({"folder": "."})
    data = {}
    for model in arguments.model:
        for task, _count in model_tasks(model, target):
            if task.key in records and task.key not in data:
                found = samples(task, records[task.key], builder)
                if len(found[1]) >= _FEWEST:
                    data[task.key] = found
    keys = sorted(data)
    rows = []
    for fold in range(5):
        held = keys[fold::5]
        model = RankingModel()
        for key in keys:
            if key not in held:
                model.update(key, data[key][0], data[key][1])
        model.fit(_ROUNDS)
        for key in held:
            features, seconds, estimates = data[key]
            scores = model.predict(features)
            assert scores is not None
            rows.append(
                (
                    ranking_accuracy(scores, seconds),
                    top_recall(scores, seconds),
                    ranking_accuracy(estimates, seconds),
                    top_recall(estimates, seconds),
                )
            )
    model = RankingModel()
    for key in keys:
        model.update(key, data[key][0], data[key][1])
    model.fit(_ROUNDS)
    model.save(PRETRAINED)
    learned = [f"{mean(row[i] for row in rows):.3f}" for i in (0, 1)]
    estimated = [f"{mean(row[i] for row in rows):.3f}" for i in (2, 3)]
    count = sum(len(found[1]) for found in data.values())
    text = (
        "# Cost model on shapes it has not seen\n\n"
        f"{count} candidates of {len(keys)} tasks, five folds by task; "
        "`python -m benchmarks.tuner_pretrain`.\n\n"
        + markdown_machine(describe())
        + "\n"
        + markdown_table(
            ("", "pairwise accuracy", "top-8 recall (best time / best of the 8 chosen)"),
            [["ranking model", *learned], ["analytical estimate", *estimated]],
        )
    )
    write_text(RESULTS / "tuner_pretrain.md", text)
    print(text, file=sys.stderr)


if __name__ == "__main__":
    main()
