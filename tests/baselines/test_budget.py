"""Budgets, what tuners spent, and measuring alone."""

import fcntl
import os
import subprocess
import sys
import time

import pytest

from tilewright.baselines.alone import alone
from tilewright.baselines.budget import (
    Budget,
    Meter,
    best_sums,
    descendants,
    note_round,
    priced,
    processor_seconds,
    trial_costs,
)
from tilewright.errors import MeasureError

CURVE = [(0.5, 10.0), (None, 10.0), (0.4, 10.0), (0.3, 10.0)]


@pytest.mark.parametrize(
    ("budget", "count"),
    [
        (Budget(), 4),
        (Budget(trials=2), 2),
        (Budget(trials=9), 4),
        (Budget(time_s=25.0), 2),
        (Budget(time_s=40.0), 4),
        (Budget(trials=1, time_s=25.0), 1),
        (Budget(time_s=5.0), 0),
    ],
)
def test_trials_of_a_log_that_a_budget_covers(budget, count):
    assert budget.within(CURVE) == count


def test_what_is_left_comes_in_rounds():
    assert Budget().left(0, 0.0, 32) == 0
    assert Budget(trials=40).left(0, 0.0, 32) == 32
    assert Budget(trials=40).left(32, 0.0, 32) == 8
    assert Budget(trials=40).left(40, 0.0, 32) == 0
    assert Budget(time_s=60.0).left(500, 59.0, 32) == 32
    assert Budget(time_s=60.0).left(0, 60.0, 32) == 0
    with pytest.raises(MeasureError, match="neither can be below 0"):
        Budget(trials=-1)


def test_rounds_are_noted_beside_the_log_and_price_its_trials(tmp_path):
    log = tmp_path / "op.json"
    assert trial_costs(log) == []
    note_round(log, 2, 9.0, 3.0)
    note_round(log, 1, 9.0, 5.0)
    assert trial_costs(log) == [1.5, 1.5, 5.0]
    assert priced(CURVE, log) == [(0.5, 1.5), (None, 1.5), (0.4, 5.0), (0.3, 10.0)]


def test_meter_notes_only_rounds_that_measured_something(tmp_path):
    trials = [4]
    meter = Meter(tmp_path / "op.json", lambda: trials[0])
    meter.note()
    assert trial_costs(tmp_path / "op.json") == []
    trials[0] = 6
    meter.note()
    assert len(trial_costs(tmp_path / "op.json")) == 2


def test_processor_time_counts_living_children():
    code = "import time\nend = time.process_time() + 0.2\nwhile time.process_time() < end: pass\n"
    before = processor_seconds()
    child = subprocess.Popen([sys.executable, "-c", code + "input()"], stdin=subprocess.PIPE)
    try:
        deadline = time.monotonic() + 60
        while processor_seconds() < before + 0.15 and time.monotonic() < deadline:
            time.sleep(0.01)
        assert child.pid in descendants(os.getpid())
        assert processor_seconds() >= before + 0.15
    finally:
        child.communicate(b"\n")


def test_alone_pins_children_too_and_gives_everything_back(tmp_path):
    cpus = os.sched_getaffinity(0)
    cpu = min(cpus)
    child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    try:
        with alone(tmp_path / "lock", cpu), (tmp_path / "lock").open() as other:
            assert os.sched_getaffinity(0) == {cpu}
            assert os.sched_getaffinity(child.pid) == {cpu}
            with pytest.raises(BlockingIOError):
                fcntl.flock(other, fcntl.LOCK_EX | fcntl.LOCK_NB)
        assert os.sched_getaffinity(0) == os.sched_getaffinity(child.pid) == cpus
        with (tmp_path / "lock").open() as other:
            fcntl.flock(other, fcntl.LOCK_EX | fcntl.LOCK_NB)
    finally:
        child.communicate(b"\n")


def test_alone_says_what_is_wrong(tmp_path):
    with (
        pytest.raises(MeasureError, match=r"cannot lock .*: No such file"),
        alone(tmp_path / "none" / "lock", None),
    ):
        pass
    with pytest.raises(MeasureError, match="cannot measure on processor 4000"), alone(None, 4000):
        pass
    with alone(None, None):
        pass


def test_time_of_a_model_is_the_sum_over_its_tasks_once_each_has_one():
    trials = [("a", 4.0), ("a", 3.0), ("c", None), ("b", None), ("b", 2.0), ("a", 5.0), ("b", 1.0)]
    assert best_sums(trials) == [None, None, None, None, 5.0, 5.0, 4.0]
    assert best_sums([("a", None)]) == [None]
