"""A damaged tuning log: what is left of it serves, the rest is skipped and counted."""

from __future__ import annotations

import functools
import json
from pathlib import Path
from typing import Any

import numpy as np

import tilewright
from benchmarks.bad_input.damage import Random, attempt, damage_bytes
from benchmarks.mutations.models import MODELS
from benchmarks.mutations.trial import RAN, Trial
from tilewright._cli_tuning_tables import best_of_tasks, log_summary
from tilewright.api import lower_model
from tilewright.compiler.layout.rewrite import rewrite
from tilewright.compiler.schedule import default_decisions
from tilewright.compiler.targets import parse_target
from tilewright.compiler.tasks import Task, TunedDecision
from tilewright.report.tuning import read_log
from tilewright.tuner import Log
from tilewright.tuner.candidate import Candidate, canonical_json, digest
from tilewright.tuner.layouts import layout_choices
from tilewright.tuner.records import Record, target_data, versions
from tilewright.tuner.workload import describe

_VALUES: tuple[Any, ...] = (
    *(None, "", "x" * 300, -1, 0, 1, 1 << 70, 0.5, -1e300, True, [], {}, [[]], {"kind": "?"}),
    *([1], ["a"], {"a": 1}, "\0", [0, -3], [1e308, 1e308]),
)


@functools.cache
def original() -> bytes:
    """Return a log with several records of every task of the model: defaults in some layouts."""
    target = parse_target("native")
    lines: list[str] = []

    def lookup(task: Task) -> tuple[TunedDecision, ...]:
        for index, choice in enumerate(layout_choices(task.operator, target)[:3]):
            changed = {p: layout for p, layout in enumerate(choice.layouts) if layout.primitives}
            func = rewrite(task.operator.func, changed) if changed else task.operator.func
            decisions = json.loads(default_decisions(func, target).to_json())
            record = Record(
                task_key=task.key,
                task=describe(task),
                target=target_data(target),
                candidate=Candidate(choice.layouts, canonical_json(decisions)),
                status="ok",
                run_times_s=(1e-5 * (index + 1), 1.1e-5 * (index + 1)),
                build_time_s=0.1,
                versions=versions(),
                created_at="2026-01-01T00:00:00Z",
            )
            lines.append(record.to_line())
        return ()

    lower_model(MODELS["convolution"](), target, tuned=lookup)
    return "".join(f"{line}\n" for line in dict.fromkeys(lines)).encode()


def prepare() -> None:
    """Make what every trial needs."""
    original()


def damaged(number: int) -> bytes:
    """Return the log with damaged bytes, or with another value under a right checksum."""
    random = np.random.default_rng(number)
    if number % 2:
        return damage_bytes(original(), random)
    lines = original().decode().splitlines()
    for at in random.choice(len(lines), int(random.integers(1, len(lines) + 1)), replace=False):
        lines[at] = _forged(lines[at], random)
    return "".join(f"{line}\n" for line in lines).encode()


def _forged(line: str, random: Random) -> str:
    """Change one value anywhere in a record, and sign it again."""
    data = json.loads(line)
    del data["checksum"]
    places: list[tuple[Any, Any]] = []

    def visit(node: Any) -> None:
        for key in node if isinstance(node, dict) else range(len(node)):
            places.append((node, key))
            if isinstance(node[key], dict | list):
                visit(node[key])

    visit(data)
    if isinstance(data.get("candidate"), dict) and random.random() < 0.3:
        places = [(data["candidate"], key) for key in data["candidate"]]
    node, key = places[int(random.integers(len(places)))]
    if isinstance(node, dict) and random.random() < 0.15:
        del node[key]
    else:
        node[key] = _VALUES[int(random.integers(len(_VALUES)))]
    return canonical_json({**data, "checksum": digest(data)})


def run_trial(number: int) -> Trial:
    """Read, list, report, merge, prune and repair a damaged log, and compile with it."""
    return attempt(lambda folder: _use(folder, damaged(number)))


def _use(folder: Path, content: bytes) -> Trial:
    path = folder / "log.jsonl"
    path.write_bytes(content)
    log = Log(path)
    found = log.read()
    log_summary(log)
    best_of_tasks(log)
    read_log(path)
    compiled = tilewright.compile(MODELS["convolution"](), logs=[path])
    rng = np.random.default_rng(0)
    result = compiled.run({"x": rng.standard_normal((1, 3, 12, 10)).astype(np.float32)})
    if not np.allclose(result["y"], _expected(), rtol=1e-3, atol=1e-4):
        return Trial("wrong result", "the log changed what is computed")
    Log(folder / "other.jsonl").merge([path])
    log.prune()
    log.repair()
    tuned = sum(r["origin"] == "tuned" for r in compiled.report["tuning"]["operators"])
    return Trial(RAN, f"{len(found.skipped)} lines skipped, {tuned} operators tuned")


@functools.cache
def _expected() -> np.ndarray:
    rng = np.random.default_rng(0)
    x = rng.standard_normal((1, 3, 12, 10)).astype(np.float32)
    return tilewright.compile(MODELS["convolution"](), logs=()).run({"x": x})["y"]
