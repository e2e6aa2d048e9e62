"""Records of older kernels never hide what the compiler does better today."""

import json
from dataclasses import replace

import pytest

from tests.tuner.helpers import make_record, matmul_task, native
from tilewright.compiler.layout.primitives import Layout
from tilewright.compiler.schedule import default_decisions, generation
from tilewright.tuner import Log, Lookup
from tilewright.tuner.candidate import Candidate, canonical_json
from tilewright.tuner.records import best_records, kernels_version, target_data
from tilewright.tuner.workload import describe

OLD, NEW = {"kernels": "1"}, {"kernels": "2"}


@pytest.fixture
def newer_kernels(monkeypatch):
    monkeypatch.setitem(generation._GENERATIONS, "contraction", 2)


def record(task, seconds, versions, *, default=False, unroll=1):
    decisions = json.loads(default_decisions(task.operator.func, native()).to_json())
    layouts = tuple(Layout(shape) for shape in task.operator.shapes)
    candidate = Candidate(layouts, canonical_json({**decisions, "unroll": unroll}))
    return make_record(
        seconds,
        task.key,
        task=describe(task),
        candidate=candidate,
        target=target_data(native()),
        hardware={"default": True} if default else {},
        versions=versions,
    )


def found(tmp_path, task, *records):
    log = Log(tmp_path / "log.jsonl")
    log.append(records)
    lookup = Lookup([log.path], native())
    (decision,) = lookup(task)
    return decision, lookup.coverage[task.key]


def test_a_small_win_with_older_kernels_leaves_the_loops_to_the_compiler(tmp_path, newer_kernels):
    task = matmul_task()
    decision, coverage = found(
        tmp_path, task, record(task, 1.0e-3, {}, default=True), record(task, 0.95e-3, OLD, unroll=4)
    )
    assert decision.decisions is None
    assert coverage.origin == "tuned"
    assert coverage.reason.startswith("loops of today: measured with older kernels")


def test_a_clear_win_with_older_kernels_stands(tmp_path, newer_kernels):
    task = matmul_task()
    decision, coverage = found(
        tmp_path, task, record(task, 1.0e-3, OLD, default=True), record(task, 0.7e-3, OLD, unroll=4)
    )
    assert json.loads(decision.decisions)["unroll"] == 4
    assert coverage.reason == ""


def test_without_the_old_default_an_older_record_does_not_win(tmp_path, newer_kernels):
    task = matmul_task()
    decision, _ = found(tmp_path, task, record(task, 0.7e-3, OLD, unroll=4))
    assert decision.decisions is None


def test_what_todays_kernels_took_comes_first(tmp_path, newer_kernels):
    task = matmul_task()
    old, new = record(task, 0.5e-3, OLD, unroll=4), record(task, 0.6e-3, NEW, unroll=2)
    decision, _ = found(tmp_path, task, old, new)
    assert json.loads(decision.decisions)["unroll"] == 2
    assert best_records([old, new]) == [new]


def test_records_say_which_kernels_they_measured(newer_kernels):
    task = matmul_task()
    assert kernels_version(record(task, 1e-3, {}).candidate) == NEW


def test_records_are_taken_as_they_are_while_kernels_stay(tmp_path):
    task = matmul_task()
    now = kernels_version(record(task, 1e-3, {}).candidate)
    decision, _ = found(
        tmp_path, task, record(task, 1e-3, now, default=True), record(task, 0.95e-3, now, unroll=4)
    )
    assert json.loads(decision.decisions)["unroll"] == 4


def test_a_record_that_says_no_more_of_its_task_than_its_name_still_serves(tmp_path):
    task = matmul_task()
    bare = replace(record(task, 1e-3, {}), task={"name": "matmul"})
    decision, coverage = found(tmp_path, task, bare)
    assert decision.seconds == pytest.approx(1e-3)
    assert coverage.origin == "tuned"
