"""Which algorithm a convolution takes: found, measured, chosen from a log."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from tilewright.compiler.algorithms import (
    VARIANTS,
    Convolution,
    algorithm_name,
    choose_by_estimate,
    choose_by_time,
)
from tilewright.compiler.targets import parse_target
from tilewright.frontends.onnx import import_onnx
from tilewright.tuner import Log, Lookup, MeasureOptions, Record
from tilewright.tuner.algorithms import (
    candidate,
    describe_convolution,
    find_convolutions,
    measure_algorithms,
    plausible,
)
from tilewright.tuner.operators import operator_model
from tilewright.tuner.records import target_data
from tilewright.tuner.worker.process import WorkerDied, WorkerProcess

TARGET = replace(parse_target("native"), cores=1)
SMALL = Convolution((1, 64, 12, 10), (64, 64, 3, 3), (1, 64, 12, 10))


def _record(convolution: Convolution, name: str, seconds: float) -> Record:
    task, target = describe_convolution(convolution), target_data(TARGET)
    return Record(convolution.key, task, target, candidate(name), "ok", "", (seconds,))


def test_convolutions_with_a_choice_are_found_with_their_shapes() -> None:
    model = import_onnx(operator_model("conv2d", SMALL.data, SMALL.weight, pad=1))
    assert find_convolutions(model.module, TARGET) == {SMALL: 1}
    strided = import_onnx(operator_model("conv2d", SMALL.data, SMALL.weight, stride=2, pad=1))
    assert not find_convolutions(strided.module, TARGET)


def test_measured_algorithms_become_records_that_a_lookup_reads(tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    (records,) = measure_algorithms([SMALL], TARGET, lambda _task: (), MeasureOptions())
    names = [json.loads(record.candidate.schedule or "")["name"] for record in records]
    assert names == plausible(SMALL, TARGET)
    assert len(names) > 1
    assert all(record.ok and record.seconds < 1e-2 for record in records)
    lookup = Lookup([path], TARGET)
    assert not lookup.knows_algorithm(SMALL)
    Log(path).append(records)
    lookup = Lookup([path], TARGET)
    assert lookup.knows_algorithm(SMALL)
    times = {name: record.seconds for name, record in zip(names, records, strict=True)}
    assert lookup.algorithm(SMALL, TARGET) == choose_by_time(SMALL, times)


@pytest.mark.parametrize("name", VARIANTS)
def test_lookup_chooses_the_fastest_measured_algorithm(name: str, tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    times = {other: 1e-3 if other == name else 5e-3 for other in VARIANTS}
    Log(path).append([_record(SMALL, other, seconds) for other, seconds in times.items()])
    assert Lookup([path], TARGET).algorithm(SMALL, TARGET) == VARIANTS[name]


def test_lookup_falls_back_to_the_estimate_where_nothing_known_was_measured(tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    Log(path).append([_record(SMALL, "a later release's", 1e-6)])
    larger = replace(SMALL, data=(4, *SMALL.data[1:]), out=(4, *SMALL.out[1:]))
    lookup = Lookup([path], TARGET)
    for convolution in (SMALL, larger):
        expected = choose_by_estimate(convolution, TARGET)
        assert lookup.algorithm(convolution, TARGET) == expected


def test_own_number_of_threads_comes_before_others(tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    two = replace(TARGET, cores=2)
    Log(path).append([_record(SMALL, "winograd2", 1e-6)])
    assert not Lookup([path], two).knows_algorithm(SMALL)
    assert Lookup([path], two).algorithm(SMALL, two) == VARIANTS["winograd2"]
    other = replace(_record(SMALL, "direct", 5e-3), target=target_data(two))
    Log(path).append([other])
    assert Lookup([path], two).algorithm(SMALL, two) is None


def test_a_race_that_dies_costs_itself_only(monkeypatch: pytest.MonkeyPatch) -> None:
    def die(*_: object, **__: object) -> None:
        raise WorkerDied("the process was ended by SIGSEGV")

    monkeypatch.setattr(WorkerProcess, "call", die)
    (records,) = measure_algorithms([SMALL], TARGET, lambda _task: (), MeasureOptions())
    assert {record.status for record in records} == {"run_error"}
    assert "SIGSEGV" in records[0].error


def test_larger_weights_must_save_time() -> None:
    wide = Convolution((1, 512, 7, 7), (512, 512, 3, 3), (1, 512, 7, 7))
    times = {"direct": 2.39e-3, "winograd2": 1.80e-3, "winograd4": 1.62e-3}
    assert algorithm_name(choose_by_time(wide, times)) == "winograd2"
    assert algorithm_name(choose_by_time(wide, {**times, "winograd4": 1.2e-3})) == "winograd4"
    assert algorithm_name(choose_by_time(SMALL, times)) == "winograd4"
