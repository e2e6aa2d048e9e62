"""The integer program against trying everything, and goals that cannot be kept."""

import itertools
import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tilewright.compiler.quantize.bit_plan import BitPlan, parse_bits
from tilewright.errors import ModelError
from tilewright.mixed_precision.choice import Goal, find_plans
from tilewright.mixed_precision.curve import draw
from tilewright.mixed_precision.program import QUANTITIES, Choice, least, solve, totals

_BITS = [parse_bits(name) for name in ("fp32", "w8a8", "w4a8", "w2a8")]
_COSTS = st.tuples(st.integers(0, 50), st.integers(1, 50), st.integers(1, 50))
_CHOICES = st.lists(st.lists(_COSTS, min_size=1, max_size=4), min_size=1, max_size=4)


def _choices(costs):
    return {
        f"layer{number}": tuple(
            Choice(bits, error / 7, seconds * 1e-6, size)
            for bits, (error, seconds, size) in zip(_BITS, options, strict=False)
        )
        for number, options in enumerate(costs)
    }


def _every_plan(choices):
    for picked in itertools.product(*choices.values()):
        yield BitPlan(tuple((n, c.bits) for n, c in zip(choices, picked, strict=True)))


@given(_CHOICES, st.sampled_from(QUANTITIES), st.floats(0, 1), st.floats(0, 1))
@settings(deadline=None, max_examples=60)
def test_the_program_finds_what_trying_everything_finds(costs, minimise, first, second):
    choices = _choices(costs)
    others = [quantity for quantity in QUANTITIES if quantity != minimise]
    limits = {}
    for quantity, share in zip(others, (first, second), strict=True):
        low = least(choices, quantity)
        high = sum(max(getattr(c, quantity) for c in o) for o in choices.values())
        limits[quantity] = low + share * (high - low)
    plan = solve(choices, minimise, limits)
    kept = [
        getattr(totals(choices, other), minimise)
        for other in _every_plan(choices)
        if all(
            getattr(totals(choices, other), q) <= limit * (1 + 1e-9) + 1e-15
            for q, limit in limits.items()
        )
    ]
    assert (plan is None) == (not kept)
    if plan is not None:
        found = totals(choices, plan)
        # Ties are broken by a share of 1e-4 of the other two.
        assert getattr(found, minimise) <= min(kept) + 1e-3 * (max(kept) + 1e-9)
        for quantity, limit in limits.items():
            assert getattr(found, quantity) <= limit * (1 + 1e-6) + 1e-12


def _three_layers():
    costs = [[(0, 40, 400), (1, 20, 100), (9, 15, 50)]] * 3
    return _choices(costs)


def test_of_plans_that_keep_the_drop_the_fastest_comes_first():
    choices = _three_layers()
    goal = Goal(max_drop=12 / 7, candidates=("fp32", "w8a8", "w4a8"))
    curve, keeping = find_plans(choices, goal, 10, lambda p: totals(choices, p).error)
    assert keeping[0].predicted.error * 7 == pytest.approx(11)
    assert keeping[0].plan.counts() == {"w8a8": 2, "w4a8": 1}
    assert len(curve) >= 4
    drawing = draw(curve, keeping[0].plan, "seconds", "error", 12 / 7)
    assert drawing.count("<circle") == len(curve)
    assert drawing.count('class="chosen"') == 1


def test_bytes_and_seconds_limit_the_plan_of_least_error():
    choices = _three_layers()
    goal = Goal(max_bytes=10 + 250, candidates=("fp32", "w8a8", "w4a8"))
    _, keeping = find_plans(choices, goal, 10, lambda p: totals(choices, p).error)
    assert keeping[0].plan.counts() == {"w8a8": 2, "w4a8": 1}
    goal = Goal(max_latency_s=56e-6, candidates=("fp32", "w8a8", "w4a8"))
    _, keeping = find_plans(choices, goal, 10, lambda p: totals(choices, p).error)
    assert keeping[0].plan.counts() == {"w8a8": 2, "w4a8": 1}


@pytest.mark.parametrize(
    ("limits", "said"),
    [
        ({"max_bytes": 100}, "cannot be made smaller than 160 bytes"),
        ({"max_latency_s": 1e-6}, "fastest plan is predicted to take 45.0 us, and 1.0 us"),
        ({"max_drop": 0.5, "max_bytes": 170}, "or less within 170 bytes; the least"),
        ({"max_drop": 1e-9, "max_latency_s": 100e-6}, "or less within 0.100 ms; the least"),
    ],
)
def test_goals_out_of_reach_say_what_can_be_reached(limits, said):
    choices = _three_layers()
    goal = Goal(**limits, candidates=("fp32", "w8a8", "w4a8"))
    with pytest.raises(ModelError, match=said):
        find_plans(choices, goal, 10, lambda p: totals(choices, p).error)


def test_limits_that_exclude_each_other_say_so():
    choices = _choices([[(0, 40, 10), (0, 10, 40)]] * 2)
    goal = Goal(max_bytes=25, max_latency_s=30e-6, candidates=("fp32", "w8a8"))
    with pytest.raises(ModelError, match=r"no plan keeps 25 bytes and 30\.0 us at once"):
        find_plans(choices, goal, 0, lambda p: 0.0)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({}, "needs something to keep"),
        ({"max_drop": 0.0}, "greater than 0"),
        ({"max_drop": 1, "metric": "psnr"}, "unknown metric 'psnr'"),
        ({"max_drop": 1, "prefer": "speed"}, "unknown preference 'speed'"),
        ({"max_drop": 1, "sensitivity": "fisher"}, "unknown sensitivity 'fisher'"),
        ({"max_drop": 1, "candidates": ("w8a8", "8")}, "at least two candidates"),
        ({"max_drop": 1, "candidates": ("w8a8", "x")}, "unknown precision 'x'"),
    ],
)
def test_goals_that_mean_nothing_are_refused(options, said):
    with pytest.raises(ModelError, match=said):
        Goal(**options)


def test_totals_add_up():
    choices = _three_layers()
    plan = BitPlan.uniform(choices, _BITS[1])
    assert totals(choices, plan).size_bytes == 300
    assert math.isclose(totals(choices, plan).seconds, 60e-6)
