"""Turns: every contender is warmed before each sample, and the order rotates."""

import time

from tilewright.baselines.rounds import take_turns


def test_contenders_take_turns_and_are_warmed_before_each_sample():
    events = []

    def sampler(name, seconds):
        def sample(calls, clock):
            events.append((name, calls, clock))
            return seconds

        return sample

    times = take_turns(
        {"a": sampler("a", 1e-3), "b": sampler("b", 1e-2)},
        2,
        "cpu",
        min_sample_s=2e-3,
        between=lambda: events.append("between"),
    )
    assert times["a"].tolist() == [1e-3, 1e-3]
    measured = events[6:]
    assert measured == [
        ("a", 1, "cpu"),
        ("a", 2, "cpu"),
        ("b", 1, "cpu"),
        ("b", 1, "cpu"),
        "between",
        ("b", 1, "cpu"),
        ("b", 1, "cpu"),
        ("a", 1, "cpu"),
        ("a", 2, "cpu"),
        "between",
    ]


def test_untimed_calls_go_on_until_other_threads_sleep():
    passed = []

    def sample(calls, _clock):
        if len(passed) >= 3:  # after what finds out how many calls make a sample
            time.sleep(0.01)
        passed.append(calls)
        return 1.0

    take_turns({"a": sample}, 1, settle_s=0.05)
    assert 3 + 1 < len(passed) <= 3 + 6 + 1  # slow machines make fewer calls, none makes more
