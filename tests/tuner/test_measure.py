"""Candidates are measured in processes of their own, and what is wrong with one stays with it."""

import json

import pytest

from tests.tuner.helpers import matmul_task, native
from tilewright.compiler.layout.primitives import Layout
from tilewright.tuner.candidate import Candidate
from tilewright.tuner.measure import MeasureOptions, Measurer


@pytest.fixture(scope="module")
def measurer():
    options = MeasureOptions(
        builders=1,
        build_timeout_s=5.0,
        run_timeout_s=2.0,
        memory_bytes=3 << 30,
        build_module="tests.tuner.faulty_builder",
    )
    with Measurer(native(), options) as made:
        yield made


def _candidates(measurer, task):
    return [
        Candidate(
            tuple(Layout.from_json(layout) for layout in choice["layouts"]),
            json.dumps(choice["default"]),
        )
        for choice in measurer.choices(task)
    ]


@pytest.mark.parametrize(
    ("fault", "status", "reason"),
    [
        ("segfault", "run_error", "SIGSEGV"),
        ("spin", "timeout", "over 2 s to run"),
        ("allocate", "run_error", "the kernel failed|SIG"),
        ("wrong", "wrong_output", "values are wrong"),
        ("overrun", "wrong_output", "outside its bounds"),
        ("fail", "run_error", "the kernel failed"),
        ("build crash", "build_error", "SIGABRT"),
        ("build hang", "timeout", "over 5 s to build"),
        ("build error", "build_error", "no such tile"),
    ],
)
def test_faulty_candidate_costs_itself_only(measurer, fault, status, reason):
    task = matmul_task()
    good = _candidates(measurer, task)[-1]
    bad = Candidate(good.layouts, json.dumps({"fault": fault}))
    first, middle, last = measurer.measure(task, [good, bad, good])
    assert first.ok, first.error
    assert last.ok, last.error
    assert middle.status == status
    assert any(part in middle.error for part in reason.split("|")), middle.error
    assert middle.run_times_s == ()


def test_hopeless_candidate_is_stopped_early(measurer):
    task = matmul_task()
    good = _candidates(measurer, task)[-1]
    (found,) = measurer.measure(task, [good], best_s=1e-9)
    assert found.ok
    assert len(found.run_times_s) < MeasureOptions().repeats


def test_race_times_candidates_in_turns(measurer):
    task = matmul_task()
    times = measurer.race(task, _candidates(measurer, task), rounds=4)
    assert [len(mine) for mine in times] == [4, 4]


def test_wrong_schedule_is_a_build_error(measurer):
    task = matmul_task()
    good = _candidates(measurer, task)[-1]
    broken = {**json.loads(good.schedule), "reduction_order": [3, 1]}
    (found,) = measurer.measure(task, [Candidate(good.layouts, json.dumps(broken))])
    assert found.status == "build_error"
    assert "reduction_order" in found.error
