"""Products with packed weights are tasks like others: candidates are measured and checked."""

import json
from dataclasses import replace

from tests.compiler.schedule.test_weight_only import function, words_of
from tests.tuner.helpers import native
from tilewright.compiler.layout.operator import Operator
from tilewright.compiler.layout.primitives import Layout
from tilewright.compiler.schedule import default_decisions
from tilewright.compiler.tasks import task_of
from tilewright.tuner.candidate import Candidate
from tilewright.tuner.measure import MeasureOptions, Measurer
from tilewright.tuner.workload import describe_loops


def test_candidates_are_measured_and_agree() -> None:
    target = native()
    func = function(words_of(4, 96, 40, 32, False, target.lanes("float32")), (6,))
    task = task_of(Operator(func, frozenset({1}), frozenset()), target, "matmul")
    default = default_decisions(func, target)
    tried = [default, replace(default, column_vectors=1, row_tile=(1, 3), chains=2)]
    with Measurer(target, MeasureOptions(builders=1)) as measurer:
        (choice,) = measurer.choices(task)
        layouts = tuple(Layout.from_json(layout) for layout in choice["layouts"])
        found = measurer.measure(task, [Candidate(layouts, item.to_json()) for item in tried])
    assert choice["default"] == json.loads(default.to_json())
    assert [record.error for record in found if not record.ok] == []


def test_loops_are_described_in_words_and_in_order() -> None:
    target = native()
    func = function(words_of(4, 96, 40, 32, True, target.lanes("float32")), (6,))
    loops = describe_loops(func, target)
    assert loops["reductions"] == [3, 4]
    assert loops["ordered"]
    assert loops["panels"] == []
