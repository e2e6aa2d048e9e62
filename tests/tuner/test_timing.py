"""Tuners that share a lock take turns; builders that would disturb a timing are stopped."""

import threading
import time

import pytest

from tests.tuner.helpers import native
from tilewright.errors import MeasureError
from tilewright.tuner.build_pool import BuildPool
from tilewright.tuner.processors import Placement
from tilewright.tuner.timing import LocalTimer
from tilewright.tuner.worker.harness import build_harness

_ECHO = "tests.tuner.echo_worker"


@pytest.fixture
def pool():
    made = BuildPool(_ECHO, {}, 0, {}, Placement(0, (), (None,)))
    yield made
    made.close()


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    harness = build_harness(tmp_path_factory.mktemp("harness"), native())
    return {"harness": str(harness), "threads": 1}


def test_job_is_answered(pool):
    assert pool.submit("echo", 30.0, {"value": 7}).result(30) == {"value": 7}


def test_stopped_process_answers_after_it_goes_on_and_is_not_late(pool):
    assert pool.submit("echo", 30.0, {"value": 1}).result(30) == {"value": 1}
    pool.pause()
    stopped = pool.submit("echo", 0.2, {"value": 2})
    time.sleep(0.4)
    assert not stopped.done()
    pool.resume()
    assert stopped.result(30) == {"value": 2}


def test_late_job_is_given_up_and_the_next_is_answered(pool):
    late = pool.submit("sleep", 0.3, {"seconds": 60})
    after = pool.submit("echo", 30.0, {"value": 2})
    assert late.result(30) == {"error": "took over 0.3 s to sleep", "timeout": True}
    assert after.result(30) == {"value": 2}


def test_process_that_cannot_start_is_an_answer():
    broken = BuildPool("tests.tuner.no_such_module", {}, 0, {}, Placement(0, (), (None,)))
    try:
        answer = broken.submit("echo", 30.0, {"value": 1}).result(30)
    finally:
        broken.close()
    assert "ended with status 1" in answer["error"]


def test_closing_answers_what_waits(pool):
    waiting = [pool.submit("sleep", 60.0, {"seconds": 50}) for _ in range(2)]
    pool.close()
    assert [job.result(5) for job in waiting] == [{"error": "the tuner was closed"}] * 2


def test_turns_exclude_each_other(config, tmp_path):
    timers = [LocalTimer(config, 0, {}, tmp_path / "lock") for _ in range(2)]
    entered = threading.Event()

    def enter():
        with timers[1].turn():
            entered.set()

    try:
        other = threading.Thread(target=enter)
        with timers[0].turn(), timers[0].turn():
            other.start()
            assert not entered.wait(0.3)
        assert entered.wait(30)
        other.join()
    finally:
        for timer in timers:
            timer.close()


def test_lock_that_cannot_be_opened_is_named(config, tmp_path):
    timer = LocalTimer(config, 0, {}, tmp_path / "none" / "lock")
    try:
        with pytest.raises(MeasureError, match=r"cannot lock .*none/lock: No such file"):
            timer.turn().__enter__()
    finally:
        timer.close()
