"""The form that multiplies narrow integers is a choice of the tuner, each measured and checked."""

import json

import pytest

from tests.compiler.schedule.test_low_bit import product
from tests.tuner.helpers import native
from tilewright.compiler.layout.operator import Operator
from tilewright.compiler.layout.primitives import Layout
from tilewright.compiler.quantize.low_bit import WeightRange
from tilewright.compiler.tasks import task_of
from tilewright.tuner.candidate import Candidate
from tilewright.tuner.measure import MeasureOptions, Measurer


@pytest.mark.parametrize(
    ("weights", "mask"), [(WeightRange(-2, 1, False), 3), (WeightRange(-1, 1, True), 1)]
)
def test_every_form_of_a_product_is_measured(weights, mask):
    target = native()
    func = product(9, 96, 40, weights, mask)
    task = task_of(Operator(func, frozenset({1}), frozenset()), target, "matmul")
    with Measurer(target, MeasureOptions(builders=1)) as measurer:
        choices = measurer.choices(task)
        candidates = [
            Candidate(
                tuple(Layout.from_json(layout) for layout in choice["layouts"]),
                json.dumps(choice["default"]),
            )
            for choice in choices
        ]
        found = measurer.measure(task, candidates)
    assert "packed by 32" in [choice["name"] for choice in choices]
    for choice, record in zip(choices, found, strict=True):
        assert record.ok, (choice["name"], record.error)
