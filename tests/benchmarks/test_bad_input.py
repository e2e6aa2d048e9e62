"""Damaged logs, modules, calibration data and command lines: refused, or skipped, never worse."""

import pytest

from benchmarks.bad_input import __main__ as bad_input
from benchmarks.bad_input import calibration, command_lines, logs, modules
from benchmarks.bad_input.damage import attempt, flip
from benchmarks.mutations.trial import RAN, REFUSED, TRACEBACK, Trial


def test_a_seed_damages_always_the_same_way():
    assert modules.damaged(5) == modules.damaged(5) != modules.damaged(6)
    assert len(modules.damaged(5)) == len(modules.original())
    assert logs.damaged(4) == logs.damaged(4)
    assert command_lines.drawn(3) == command_lines.drawn(3)


def test_no_flipped_bit_of_a_module_goes_unnoticed():
    modules.prepare()
    found = {number: modules.run_trial(number) for number in range(1, 25)}
    assert {trial.status for trial in found.values()} == {REFUSED}


# 6 and 20 hold decisions of another type under a right checksum.
@pytest.mark.parametrize("number", [1, 2, 6, 20])
def test_a_damaged_log_serves_as_far_as_it_can(number):
    assert logs.run_trial(number).status == RAN


# 71 has values that overflow on the way.
@pytest.mark.parametrize("number", [1, 2, 71])
def test_odd_calibration_data_is_refused_or_serves(number):
    assert calibration.run_trial(number).status in (RAN, REFUSED)


@pytest.mark.parametrize("number", [21, 31, 32, 33, 34])
def test_odd_command_lines_end_without_a_traceback(number):
    command_lines.prepare()
    assert command_lines.run_trial(number).status in (RAN, REFUSED)


def test_a_run_that_was_stopped_goes_on(tmp_path, monkeypatch):
    journal = tmp_path / "build" / "journal.jsonl"
    ran = []

    def trial(number):
        return Trial(RAN, f"number {number}")

    monkeypatch.setattr(modules, "run_trial", trial)
    monkeypatch.setattr(modules, "prepare", lambda: ran.append("prepared"))
    names = bad_input.names_of({"module": 3})
    first = bad_input.run_trials(names[:2], journal)
    with journal.open("a") as file:
        file.write('\n{"name": "module/3", "sta')  # it was killed here
    known = bad_input.read_journal(journal)
    assert known == first == {"module/1": Trial(RAN, "number 1"), "module/2": trial(2)}
    assert bad_input.run_trials(names[:2], journal, known) == first
    assert ran == ["prepared"]
    assert list(bad_input.run_trials(names, journal, known)) == names
    monkeypatch.setattr(bad_input, "commit", lambda: "another")
    assert bad_input.read_journal(journal) == {}


def test_what_is_no_error_for_people_is_a_bug():
    def job(_folder):
        raise KeyError("blocks")

    trial = attempt(job)
    assert trial.status == TRACEBACK
    assert bad_input.is_bad(trial)
    assert "KeyError" in trial.reason


def test_a_flip_changes_one_bit():
    import numpy as np

    before = bytes(100)
    after = flip(before, np.random.default_rng(0))
    assert sum(bin(a ^ b).count("1") for a, b in zip(before, after, strict=True)) == 1
