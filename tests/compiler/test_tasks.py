"""Tasks: one key for operators that differ in names only; decisions come back as data."""

import json
from dataclasses import replace

import pytest

from tests.tuner.helpers import matmul_operator, matmul_task, native
from tilewright.compiler.layout.choices import operator_choices
from tilewright.compiler.tasks import (
    TunedDecision,
    as_lookup,
    canonical_text,
    task_of,
    tuned_choices,
)
from tilewright.errors import LogError


def test_names_do_not_matter():
    assert matmul_task(name="x").key == matmul_task(name="layer1_output_0").key


@pytest.mark.parametrize("shape", [(25, 40, 48), (24, 41, 48), (24, 40, 47)])
def test_shapes_matter(shape):
    assert matmul_task(*shape).key != matmul_task(24, 40, 48).key


def test_which_parameters_are_constants_matters():
    operator = matmul_operator()
    other = replace(operator, constants=frozenset())
    assert task_of(operator, native()).key != task_of(other, native()).key


def test_canonical_text_keeps_what_is_computed():
    text = canonical_text(matmul_operator())
    assert "T.float32(0.0)" in text
    assert "T.max(" in text
    assert "product" not in text


def _decision(layouts, seconds, schedule=None):
    return TunedDecision(matmul_task().key, layouts, schedule, seconds)


def test_decision_round_trips():
    layouts = operator_choices(matmul_operator(), native())[-1].layouts
    decision = _decision(layouts, 1e-5, '{"kind":"contraction"}')
    assert TunedDecision.from_json(json.loads(json.dumps(decision.to_json()))) == decision
    with pytest.raises(LogError, match="a tuned decision has fields"):
        TunedDecision.from_json({**decision.to_json(), "more": 1})


def test_measured_seconds_replace_estimates_and_scale_the_others():
    operator = matmul_operator()
    logical, packed = operator_choices(operator, native())
    slow = packed.seconds * 10
    lookup = as_lookup({matmul_task().key: (_decision(packed.layouts, slow),)})
    first, second = tuned_choices(operator, native(), lookup)
    assert (second.seconds, second.origin) == (slow, "tuned")
    assert first.seconds == pytest.approx(logical.seconds * 10)
    assert first.origin == "default"


def test_best_decision_of_each_layouts_wins():
    operator = matmul_operator()
    packed = operator_choices(operator, native())[-1]
    found = (_decision(packed.layouts, 2e-3, '{"a":1}'), _decision(packed.layouts, 1e-3, '{"a":2}'))
    choices = tuned_choices(operator, native(), lambda _task: found)
    assert [c.decisions for c in choices if c.origin == "tuned"] == ['{"a":2}']


def test_without_records_choices_are_the_estimates():
    operator = matmul_operator()
    choices = tuned_choices(operator, native(), as_lookup({}))
    assert [(c.layouts, c.seconds) for c in choices] == [
        (c.layouts, c.seconds) for c in operator_choices(operator, native())
    ]
