"""Tuning from a model to a log, and from the log to a compile."""

from dataclasses import replace

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

import tilewright
from tests.tuner.helpers import matmul_task, native
from tilewright.compiler.targets import parse_target
from tilewright.errors import CompileError, LogError
from tilewright.tuner import Log, Lookup, MeasureOptions, TuneOptions, tune, tune_tasks
from tilewright.tuner.budget import Progress, next_task
from tilewright.tuner.candidate import canonical_json, digest
from tilewright.tuner.measure import Measurement, Measurer
from tilewright.tuner.session import STRATEGIES

_TRIALS = 20


def _model(size: int = 9) -> onnx.ModelProto:
    """Return conv 16 -> 32 with relu, twice, on [1, 16, size, size]."""
    rng = np.random.default_rng(0)
    weights = [
        numpy_helper.from_array(rng.standard_normal(shape).astype(np.float32), name)
        for name, shape in (("w0", (32, 16, 3, 3)), ("w1", (32, 32, 1, 1)))
    ]
    graph = helper.make_graph(
        [
            helper.make_node("Conv", ["x", "w0"], ["a"], strides=[2, 2], pads=[1, 1, 1, 1]),
            helper.make_node("Relu", ["a"], ["b"]),
            helper.make_node("Conv", ["b", "w1"], ["c"]),
            helper.make_node("Relu", ["c"], ["y"]),
        ],
        "two convolutions",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 16, size, size])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, 32, *[(size + 1) // 2] * 2])],
        weights,
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


@pytest.fixture(scope="module")
def tuned(tmp_path_factory):
    """Return the outcome of tuning the model, and the sessions that its callback saw."""
    log = tmp_path_factory.mktemp("log") / "log.jsonl"
    seen = []
    options = TuneOptions(batch=5, measure=MeasureOptions(builders=1, budget_s=0.002))
    result = tune(
        _model(), trials=_TRIALS, log=log, options=options, callback=lambda s: seen.append(s.trials)
    )
    return result, seen


def test_tune_measures_and_logs_each_trial(tuned):
    result, seen = tuned
    records = Log(result.log).read().records
    assert result.stopped == f"{_TRIALS} trials"
    assert sum(task.trials for task in result.tasks) == _TRIALS
    assert len([r for r in records if not r.hardware.get("raced")]) == _TRIALS
    assert seen == sorted(seen)
    assert 0 < result.after_s <= result.before_s


def test_incumbent_is_measured_and_winner_was_raced(tuned):
    result, _ = tuned
    assert all(task.incumbent_s is not None for task in result.tasks)
    winners = [r for r in Log(result.log).read().records if r.hardware.get("winner")]
    assert {r.task_key for r in winners} == {r.task_key for r in Log(result.log).read().records}


def test_tuning_again_goes_on_from_the_log(tuned):
    result, _ = tuned
    again = tune(_model(), trials=_TRIALS, log=result.log)
    assert again.trials == 0
    assert again.stopped == f"{_TRIALS} trials"


def test_compile_uses_the_log_and_says_so(tuned):
    result, _ = tuned
    with_log = tilewright.compile(_model(), logs=[result.log], require_tuned=0.9)
    without = tilewright.compile(_model(), logs=())
    tuning = with_log.report["tuning"]
    assert {row["origin"] for row in tuning["operators"]} == {"tuned"}
    assert tuning["tuned_share"] == 1.0
    assert {row["reason"] for row in without.report["tuning"]["operators"]} == {"there is no log"}
    x = np.random.default_rng(1).standard_normal((1, 16, 9, 9)).astype(np.float32)
    assert np.allclose(with_log.run({"x": x})["y"], without.run({"x": x})["y"], atol=1e-4)


def test_nearest_shape_is_transferred(tuned):
    result, _ = tuned
    module = tilewright.compile(_model(13), logs=[result.log])
    rows = module.report["tuning"]["operators"]
    assert {row["origin"] for row in rows} <= {"transferred", "default"}
    assert any(row["origin"] == "transferred" for row in rows)
    assert any(row["reason"].startswith("from [") for row in rows)


def test_too_little_tuned_fails_with_names(tuned):
    result, _ = tuned
    with pytest.raises(CompileError, match=r"of the expected time is tuned, 90.0% is required"):
        tilewright.compile(_model(13), logs=[result.log], require_tuned=0.9)


def test_named_log_must_exist(tmp_path):
    with pytest.raises(LogError, match="no such file"):
        tilewright.compile(_model(), logs=[tmp_path / "none.jsonl"])


def test_records_of_other_instructions_are_a_miss_with_a_reason(tuned):
    result, _ = tuned
    log = Log(result.log.with_name("foreign.jsonl"))
    wide = {"features": [*native().features, "avx10_9"]}
    log.append(
        replace(record, target={**record.target, **wide})
        for record in Log(result.log).read().records
    )
    module = tilewright.compile(_model(), logs=[log.path])
    reasons = {row["reason"] for row in module.report["tuning"]["operators"]}
    assert reasons == {"measured only for processors with other instructions"}


def test_unreadable_task_costs_itself_only(tmp_path):
    broken = matmul_task()
    broken = replace(broken, operator=replace(broken.operator, n_outputs=0))
    session = tune_tasks(
        [(broken, 1)],
        native(),
        Log(tmp_path / "log.jsonl"),
        TuneOptions(trials=8, measure=MeasureOptions(builders=1)),
    )
    assert session.stopped == "nothing left to try"
    assert session.states[0].problem


def test_full_disk_does_not_stop_tuning(tmp_path, monkeypatch):
    def refuse(_log, _records):
        raise LogError("cannot write log.jsonl: No space left on device")

    monkeypatch.setattr(Log, "append", refuse)
    session = tune_tasks(
        [(matmul_task(), 1)],
        native(),
        Log(tmp_path / "log.jsonl"),
        TuneOptions(trials=4, batch=2, measure=MeasureOptions(builders=1, budget_s=0.001)),
    )
    assert session.trials == 4
    assert session.states[0].best_s is not None
    assert len([w for w in session.warnings if "No space left" in w]) == 1


def test_interrupt_keeps_what_was_found(tmp_path):
    def interrupt(session):
        if session.trials == 4 and not session.stopped:
            raise KeyboardInterrupt

    log = Log(tmp_path / "log.jsonl")
    measure = MeasureOptions(builders=1, budget_s=0.001)
    options = TuneOptions(trials=1000, batch=2, measure=measure)
    session = tune_tasks([(matmul_task(), 1)], native(), log, options, interrupt)
    assert session.stopped == "interrupted"
    assert session.states[0].best_s is not None
    assert len(log.read().records) == 4


def test_lookup_warns_of_damaged_lines(tuned):
    result, _ = tuned
    damaged = result.log.with_name("damaged.jsonl")
    damaged.write_bytes(result.log.read_bytes() + b'{"torn')
    lookup = Lookup([damaged], parse_target("native"))
    assert "skipped 1 damaged" in lookup.warnings[0]


def test_budget_goes_to_the_most_time_to_win():
    light = Progress(1, 1e-5, [1e-3, 1e-3, 1e-3])
    heavy = Progress(10, 1e-5, [1e-3, 1e-3, 1e-3])
    assert next_task([light, heavy]) == 1
    assert next_task([light, Progress(1, 1e-5)]) == 1  # every task gets its first rounds
    assert next_task([Progress(1, 1e-5, [], True)]) is None


def test_budget_leaves_what_does_not_count_for_last():
    heavy = Progress(10, 1e-4, [2e-3, 2e-3])
    tiny = Progress(1, 1e-6)
    assert next_task([heavy, tiny]) == 0
    assert next_task([Progress(10, 1e-4, [2e-3], True), tiny]) == 1


def test_budget_asks_another_task_while_results_are_awaited():
    heavy, light = Progress(10, 1e-5, [1e-3, 1e-3]), Progress(1, 1e-5, [1e-3, 1e-3])
    assert next_task([heavy, light], [1, 0]) == 1
    assert next_task([heavy, light], [1, 1]) == 0
    assert next_task([heavy], [1]) == 0
    assert next_task([heavy], [2]) is None


def test_budget_leaves_what_no_longer_improves():
    stuck = Progress(1, 1e-4, [1e-3] * 12)
    moving = Progress(1, 1e-4, [1e-3, 9e-4, 8e-4])
    assert next_task([stuck, moving]) == 1


class _Built:
    """A batch that needs no building."""

    ready = True

    def __init__(self, candidates):
        self.candidates = candidates

    def wait(self):
        pass


def _imagined(candidate):
    """Return what a candidate takes, the same whenever it is asked."""
    return 1e-6 * (1 + int(digest(candidate.to_json())[:6], 16) % 1000)


def _searched(seed, strategy, order):
    tasks = [(matmul_task(), 3), (matmul_task(rows=17, name="z"), 1)]
    options = TuneOptions(trials=24, batch=4, seed=seed, strategy=strategy)
    tune_tasks(tasks, native(), None, options, lambda _session: None)
    asked, order[:] = list(order), []
    return asked


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_a_seed_repeats_a_session_where_measurements_are_the_same(monkeypatch, strategy):
    order = []

    def collect(_self, batch, _best):
        order.extend(canonical_json(candidate.to_json()) for candidate in batch.candidates)
        return [Measurement(c, "ok", "", (_imagined(c),) * 2) for c in batch.candidates]

    def race(_self, _task, candidates):
        return [(_imagined(candidate),) for candidate in candidates]

    monkeypatch.setattr(Measurer, "submit", lambda _self, _task, given, _known: _Built(given))
    monkeypatch.setattr(Measurer, "collect", collect)
    monkeypatch.setattr(Measurer, "race", race)
    first, again, other = (_searched(seed, strategy, order) for seed in (5, 5, 6))
    assert len(first) == 24
    assert first == again
    assert first != other
