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
    assert metaschedule.curve(tmp_path) == [(2e-3, 0.0), (2e-3, 0.0)]
    assert metaschedule.failed_kernels(tmp_path, 2) == 0


def test_kernels_whose_candidates_all_failed_are_counted(tmp_path):
    lines = ("[0, [[], [1e10], {}, []]]", "[1, [[], [1e10], {}, []]]", "[1, [[], [2e-3], {}, []]]")
    (tmp_path / metaschedule.RECORDS).write_text("\n".join(lines))
    assert metaschedule.failed_kernels(tmp_path, 2) == 2
    assert metaschedule.failed_kernels(tmp_path, 3) == 1


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


def test_metaschedule_leaves_a_kernel_without_a_valid_candidate_as_it_stands(tmp_path, monkeypatch):
    if reason := metaschedule.missing():
        pytest.skip(f"metaschedule {reason}")
    from tvm import te
    from tvm.ir import IRModule
    from tvm.s_tir import Schedule
    from tvm.s_tir.meta_schedule import tir_integration
    from tvm.s_tir.meta_schedule.database import JSONDatabase, TuningRecord

    from tilewright.baselines.metaschedule_worker import best
    from tilewright.compiler.targets import parse_target

    def doubled(size):
        data = te.placeholder((size,), name="data")
        func = te.create_prim_func([data, te.compute((size,), lambda i: data[i] * 2.0)])
        return func.with_attr("tirx.noalias", True)

    target = parse_target("x86-64-v3").tvm_target()
    kernels = {"good": doubled(4), "failed": doubled(8), "untried": doubled(16)}
    database = JSONDatabase(work_dir=str(tmp_path))
    for name, seconds in (("failed", 1e10), ("good", 1e-6)):
        module = IRModule({"main": kernels[name].with_attr("global_symbol", name)})
        workload = database.commit_workload(module)
        trace = Schedule(module).trace
        database.commit_tuning_record(TuningRecord(trace, workload, [seconds], target))
    failed = {"failed": kernels["failed"]}
    with pytest.raises(RuntimeError, match="all of the first 1 candidates failed"):
        best(failed, target, tmp_path, 1)

    def compile_tir(_database, func, _target):
        is_good = func.attrs["global_symbol"] == "good"
        return Schedule(IRModule({"main": func})) if is_good else None

    monkeypatch.setattr(tir_integration, "compile_tir", compile_tir)
    found = best({**failed, "good": kernels["good"]}, target, tmp_path, 2)
    assert found["failed"].same_as(kernels["failed"])
    assert not found["good"].same_as(kernels["good"])
    with pytest.raises(RuntimeError, match="no record of kernel untried"):
        best(kernels, target, tmp_path, 2)
