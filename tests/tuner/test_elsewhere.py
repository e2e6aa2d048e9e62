"""What was measured on another processor helps a compile, and is never mixed with what was not."""

import json
from dataclasses import replace

import pytest

from tests.tuner.helpers import make_record, matmul_task, native
from tilewright.compiler.algorithms import VARIANTS, Convolution
from tilewright.compiler.layout.primitives import Layout
from tilewright.compiler.schedule import default_decisions
from tilewright.tuner import Log, Lookup
from tilewright.tuner.algorithms import candidate as algorithm
from tilewright.tuner.algorithms import describe_convolution
from tilewright.tuner.candidate import Candidate, canonical_json
from tilewright.tuner.records import Record, target_data
from tilewright.tuner.workload import describe

TASK = matmul_task()
CONVOLUTION = Convolution((1, 64, 12, 10), (64, 64, 3, 3), (1, 64, 12, 10))


def record(seconds, mcpu, *, default=False, unroll=1):
    decisions = json.loads(default_decisions(TASK.operator.func, native()).to_json())
    layouts = tuple(Layout(shape) for shape in TASK.operator.shapes)
    return make_record(
        seconds,
        TASK.key,
        task=describe(TASK),
        candidate=Candidate(layouts, canonical_json({**decisions, "unroll": unroll})),
        target=target_data(replace(native(), mcpu=mcpu)),
        hardware={"default": True} if default else {},
    )


def found(tmp_path, *records):
    log = Log(tmp_path / "log.jsonl")
    log.append(records)
    lookup = Lookup([log.path], native())
    (decision,) = lookup(TASK)
    return decision, lookup.coverage[TASK.key].reason


@pytest.mark.parametrize(("seconds", "unroll"), [(0.95e-3, None), (0.7e-3, 4)])
def test_loops_of_another_processor_are_taken_where_they_won_clearly(tmp_path, seconds, unroll):
    default, winner = record(1e-3, "other", default=True), record(seconds, "other", unroll=4)
    decision, reason = found(tmp_path, default, winner)
    assert reason == "measured on other"
    loops = None if decision.decisions is None else json.loads(decision.decisions)["unroll"]
    assert loops == unroll


def test_own_processor_comes_before_faster_ones(tmp_path):
    own, other = record(1e-3, native().mcpu, unroll=2), record(1e-6, "other", unroll=4)
    decision, reason = found(tmp_path, other, own)
    assert json.loads(decision.decisions)["unroll"] == 2
    assert reason == ""


def test_times_of_two_other_processors_are_not_compared(tmp_path):
    known = [record(1e-3, "known", default=True), record(0.5e-3, "known", unroll=2)]
    decision, reason = found(tmp_path, record(1e-6, "fast", unroll=4), *known)
    assert json.loads(decision.decisions)["unroll"] == 2
    assert reason == "measured on known"


def test_algorithms_of_two_processors_are_not_compared(tmp_path):
    def timed(name, seconds, mcpu):
        target = target_data(replace(native(), mcpu=mcpu))
        task, chosen = describe_convolution(CONVOLUTION), algorithm(name)
        return Record(CONVOLUTION.key, task, target, chosen, "ok", "", (seconds,))

    path = tmp_path / "log.jsonl"
    slow = [timed("direct", 4e-3, "known"), timed("winograd2", 2e-3, "known")]
    Log(path).append([timed("direct", 1e-3, "fast"), *slow])
    assert Lookup([path], native()).algorithm(CONVOLUTION, native()) == VARIANTS["winograd2"]
