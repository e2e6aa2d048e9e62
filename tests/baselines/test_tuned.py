"""Tuners under one budget: they tune, note what it cost, and go on from their logs."""

from dataclasses import replace

import numpy as np
import onnx
import pytest

from tilewright.baselines import Budget, Case, build_model, load_suite, metaschedule, ours
from tilewright.baselines.budget import trial_costs
from tilewright.baselines.machine import instruction_set
from tilewright.errors import MeasureError


@pytest.fixture
def case(tmp_path):
    (operator,) = load_suite("alt", ["GMM-4"])
    path = tmp_path / "op.onnx"
    onnx.save(build_model(operator), path)
    data = np.random.default_rng(0).standard_normal(operator.data_shape, np.float32)
    return Case(path, {"data": data}, 1, logs=tmp_path)


def test_metaschedule_without_database_or_trials_says_so(case):
    with pytest.raises(MeasureError, match="no trials to spend"):
        metaschedule.start(case)


def test_metaschedule_that_fails_says_its_last_line(case, tmp_path):
    if reason := metaschedule.missing():
        pytest.skip(f"metaschedule {reason}")
    stages: list[str] = []
    absent = replace(
        case, model=tmp_path / "absent.onnx", budget=Budget(trials=1), progress=stages.append
    )
    with pytest.raises(MeasureError, match=r"MetaSchedule failed on absent: .*absent\.onnx"):
        metaschedule.start(absent)
    assert stages[0] == "metaschedule, 0 trials so far"


def test_database_of_metaschedule_is_a_curve(tmp_path):
    lines = ("[0, [[], [2e-3, 1e-3, 3e-3], {}, []]]", "[0, [[], [1e10], {}, []]]")
    (tmp_path / metaschedule.RECORDS).write_text("\n".join(lines))
    assert metaschedule.curve(tmp_path) == [(2e-3, 0.0), (None, 0.0)]


@pytest.mark.slow
@pytest.mark.parametrize("name", ["ours", "metaschedule"])
def test_tuner_spends_its_trials_once(name, case, tmp_path):
    if name == "metaschedule" and (reason := metaschedule.missing()):
        pytest.skip(f"metaschedule {reason}")
    start = {"ours": ours.start, "metaschedule": metaschedule.start}[name]
    folder = tmp_path / ("tilewright" if name == "ours" else name) / instruction_set()
    log = folder / ("op.jsonl" if name == "ours" else f"op/{metaschedule.RECORDS}")
    case = replace(case, budget=Budget(trials=4))
    expected = start(case)
    assert expected.notes["trials"] == 4
    assert all(cost > 0 for cost in trial_costs(log))
    before = log.read_bytes()
    again = start(case)
    assert log.read_bytes() == before
    np.testing.assert_allclose(
        again.outputs["output"], expected.outputs["output"], rtol=1e-4, atol=1e-5
    )
