"""Tuning for GPUs: the space, what is refused, the search, logs, and a device that fails."""

import os
import re
from collections import Counter
from dataclasses import replace

import numpy as np
import onnx
import pytest

import tilewright
from tests.cuda.emulation import compile_for_cpu, compile_shim
from tests.cuda.programs import model_of, run, save_matmul
from tests.cuda.test_attention import layer
from tilewright.compiler.cuda.lower import HOST, launch, without_layouts
from tilewright.compiler.cuda.nvcc import find_tool
from tilewright.compiler.cuda.targets import parse_cuda_target
from tilewright.compiler.cuda.tile import GemmTile, check_tile
from tilewright.compiler.targets import parse_target
from tilewright.compiler.tasks import extract_tasks
from tilewright.errors import InvalidScheduleError, LogError, MeasureError
from tilewright.tuner.cuda.features import NAMES, features
from tilewright.tuner.cuda.log import CudaLookup, CudaRecord, read_records
from tilewright.tuner.cuda.measure import DeviceTimer, EstimateTimer
from tilewright.tuner.cuda.program import fused_program, operator_program
from tilewright.tuner.cuda.search import CudaTuner, Result
from tilewright.tuner.cuda.space import cuda_space
from tilewright.tuner.cuda.tune import tune_for_gpu

TARGET = parse_cuda_target("cuda:sm_90")


@pytest.fixture(scope="module")
def operator(tmp_path_factory):
    """A matrix product with bias, as a task of the graph."""
    return _operator_of(onnx.load(save_matmul(tmp_path_factory.mktemp("model"))))


def _operator_of(model):
    return extract_tasks(fused_program(model), parse_target(HOST))[0][0].operator


@pytest.fixture
def space(operator):
    return cuda_space(operator, parse_target(HOST), TARGET, "tf32")


def test_the_space_has_every_layout_with_its_tiles(space):
    assert [option.choice.name for option in space.options] == ["L", "packed"]
    assert all(len(space.candidates(option)) > 20 for option in space.options)


def test_a_convolution_may_work_in_blocks_of_channels():
    weights = {"w": np.ones((64, 32, 3, 3), np.float32)}
    node = onnx.helper.make_node("Conv", ["x", "w"], ["y"])
    model = model_of([node], {"x": np.ones((1, 32, 9, 9), np.float32)}, weights)
    found = cuda_space(_operator_of(model), parse_target(HOST), TARGET, "fp16")
    assert {"C -> C", "B -> B", "C -> B", "B -> C"} <= {o.choice.name for o in found.options}
    assert all(found.candidates(option) for option in found.options)


def test_invalid_tiles_are_counted_by_reason_before_anything_is_built(space):
    space.candidates(space.options[0])
    assert space.rejected["multiple"] > 0
    assert space.rejected["split"] > 0
    assert space.rejected["other"] == 0


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"rows": 256, "columns": 256, "depth": 64, "stages": 4}, "bytes of shared memory"),
        ({"rows": 256, "columns": 256}, "registers a thread"),
        ({"warp_rows": 3}, "warps do not divide"),
        ({"rows": 16}, "8x32 is not a multiple of 16x16"),
        ({"depth": 12}, "a depth of 12 float32"),
        ({"stages": 1}, "stages at 2"),
        ({"split": 4}, "3 steps cannot be split 4 times"),
        ({"warp_rows": 8, "warp_columns": 8, "rows": 256, "columns": 256}, "a block has 1024"),
    ],
)
def test_a_tile_that_does_not_fit_says_why(space, change, reason):
    product = space.options[0].product
    good = GemmTile(64, 64, 16, 2, 2, 3)
    check_tile(good, product, "tf32", TARGET)
    with pytest.raises(InvalidScheduleError, match=reason):
        check_tile(replace(good, **change), product, "tf32", TARGET)


def test_a_tile_survives_json_and_other_text_is_refused():
    tile = GemmTile(64, 32, 16, 2, 1, 3, 2)
    assert GemmTile.from_json(tile.to_json()) == tile
    with pytest.raises(InvalidScheduleError, match="not the tile"):
        GemmTile.from_json('{"kind": "contraction"}')
    with pytest.raises(InvalidScheduleError, match="a tile has the fields"):
        GemmTile.from_json('{"kind": "cuda_gemm", "rows": 1}')


def test_features_are_finite_and_tell_tiles_apart(space):
    product = space.options[1].product
    rows = [
        features(tile, product, "tf32", TARGET)
        for tile in (GemmTile(64, 64, 16, 2, 2, 3), GemmTile(16, 64, 16, 1, 2, 2, 2))
    ]
    assert all(len(row) == len(NAMES) and np.isfinite(row).all() for row in rows)
    assert (rows[0] != rows[1]).sum() > 8


def test_every_layout_is_tried_before_the_best_is_explored_alone(space):
    tuner = CudaTuner(space, 20, np.random.default_rng(0))
    seen = Counter()
    while len(tuner.results) < 20:
        candidates = tuner.ask(4)
        # The second layout is made the faster one.
        best = space.options[1].choice.layouts
        tuner.tell([Result(c, 1e-5 if c.layouts == best else 2e-5) for c in candidates])
        seen.update((len(tuner.results) <= 8, c.layouts == best) for c in candidates)
    assert seen[True, False]
    assert seen[True, True]
    assert seen[False, True] == 12


def test_a_candidate_is_proposed_once_and_failures_are_never_best(space):
    tuner = CudaTuner(space, 12, np.random.default_rng(0))
    first = tuner.ask(6)
    tuner.tell([Result(c, None, "run_error: x") for c in first])
    assert tuner.best() is None
    assert not set(first) & set(tuner.ask(6))


def test_tuned_tiles_compute_the_same(operator, space):
    candidate = space.candidates(space.options[1])[-1]
    lookup = CudaLookup([_record(candidate, 1e-6, "device")], TARGET, "tf32")
    (first, *others) = lookup(operator, parse_target(HOST))
    assert first.decisions is None
    assert [choice.origin for choice in others] == ["default"]  # the key is another task's
    program = operator_program(operator, candidate.layouts)
    func = program.kernels["operator"].with_attr("tilewright.decisions", candidate.schedule)
    lowered = launch(without_layouts(replace(program, kernels={"operator": func})), TARGET, "tf32")
    tile = GemmTile.from_json(candidate.schedule)
    assert f"{tile.rows}x{tile.columns}x{tile.depth}" in lowered.schedules["operator"][0]
    feed = {"t0": np.random.default_rng(0).standard_normal((24, 48), np.float32)}
    result = next(iter(run(lowered, feed).values()))
    plain = run(launch(without_layouts(program), TARGET, "fp32"), feed)
    np.testing.assert_allclose(result, next(iter(plain.values())), rtol=1e-2, atol=2e-2)


def _record(candidate, seconds, measure, key="0" * 64):
    return CudaRecord(
        key, "matmul", "cuda:sm_90", "tf32", measure, candidate, seconds, "", {}, "2026-01-01"
    )


def test_an_estimate_is_logged_as_one_and_a_compile_does_not_use_it(tmp_path, operator):
    log = tmp_path / "log.jsonl"
    path = save_matmul(tmp_path)
    results = tune_for_gpu(path, "cuda:sm_90", trials=6, measure="estimate", log=log)
    assert [result.trials for result in results] == [6]
    records, skipped = read_records(log)
    assert {record.measure for record in records} == {"estimate"}
    assert not skipped
    choices = CudaLookup(records, TARGET, "fp32")(operator, parse_target(HOST))
    assert all(choice.origin == "default" for choice in choices)
    measured = [replace(record, measure="device") for record in records]
    choices = CudaLookup(measured, TARGET, "fp32")(operator, parse_target(HOST))
    assert any(choice.origin == "tuned" for choice in choices)


def test_products_inside_attention_are_not_tuned(tmp_path):
    results = tune_for_gpu(
        layer()[0], "cuda:sm_90", trials=1, measure="estimate", log=tmp_path / "log.jsonl"
    )
    # The three projections: those of queries and keys are alike.
    assert sorted(result.calls for result in results) == [1, 2]


def test_a_damaged_line_is_skipped_by_number(tmp_path, space):
    log = tmp_path / "log.jsonl"
    line = _record(space.candidates(space.options[0])[0], 1e-6, "device").to_line()
    log.write_text(f"{line}\n{line[:40]}\n{line.replace('tf32', 'fp32')}\n{line}\n")
    records, skipped = read_records(log)
    assert (len(records), skipped) == (2, [2, 3])
    with pytest.raises(LogError, match="torn"):
        CudaRecord.from_line("[]")


def test_an_unknown_measure_is_refused(tmp_path):
    with pytest.raises(MeasureError, match="unknown measure 'guess'; known are device, estimate"):
        tune_for_gpu(save_matmul(tmp_path), "cuda:sm_90", measure="guess")


def test_the_estimate_times_every_candidate(space):
    candidates = space.candidates(space.options[0])[:3]
    results = EstimateTimer(space).time(candidates)
    assert all(result.seconds and result.seconds > 0 for result in results)


@pytest.mark.skipif(find_tool("nvcc") is None, reason="needs nvcc")
@pytest.mark.skipif(os.path.exists("/dev/nvidiactl"), reason="there is an NVIDIA driver")
def test_without_a_gpu_measuring_says_so(operator, space):
    timer = DeviceTimer(operator, TARGET, "tf32")
    with pytest.raises(MeasureError, match=r"cannot be measured: .*no NVIDIA driver"):
        timer.time(space.candidates(space.options[0])[:1])
    timer.close()


@pytest.mark.skipif(find_tool("nvcc") is None, reason="needs nvcc")
def test_a_device_that_fails_costs_one_candidate_and_gets_a_fresh_process(
    tmp_path, monkeypatch, operator
):
    space = cuda_space(operator, parse_target(HOST), TARGET, "fp32")
    candidates = space.candidates(space.options[1])[:3]
    # The kernels of all candidates have one name: the stand-in runs those of the first, whose
    # results are right; its device fails for the second.
    program = operator_program(operator, candidates[0].layouts)
    func = program.kernels["operator"].with_attr("tilewright.decisions", candidates[0].schedule)
    decided = without_layouts(replace(program, kernels={"operator": func}))
    compile_for_cpu(list(launch(decided, TARGET, "fp32").kernels.values()), tmp_path)
    monkeypatch.setenv("LD_LIBRARY_PATH", str(compile_shim(tmp_path)))
    monkeypatch.setenv("TW_SHIM_KERNELS", str(tmp_path / "kernels.so"))
    timer = DeviceTimer(operator, TARGET, "fp32")
    (good,) = timer.time(candidates[:1])
    assert good.seconds == pytest.approx(1e-3)
    timer.close()
    monkeypatch.setenv("TW_SHIM_LAUNCH_ERROR", "700")
    timer = DeviceTimer(operator, TARGET, "fp32")
    results = timer.time(candidates[:2])
    assert [result.seconds for result in results] == [None, None]
    assert re.search("run_error: .*error 700", results[0].error)
    assert timer.process.starts == 2
    timer.close()


def test_a_compile_takes_what_was_measured(tmp_path, operator, monkeypatch):
    log = tmp_path / "log.jsonl"
    model = save_matmul(tmp_path)
    tune_for_gpu(model, "cuda:sm_90", trials=4, measure="estimate", log=log)
    records, _ = read_records(log)
    slow = replace(records[-1], measure="device", seconds=1e-9)
    log.write_text(slow.to_line() + "\n")
    monkeypatch.setattr("tilewright.compiler.cuda.package.compile_kernels", lambda *_: b"image")
    monkeypatch.setattr("tilewright.compiler.cuda.nvcc.find_nvcc", lambda: tmp_path)
    module = tilewright.compile(model, "cuda:sm_90", logs=[log])
    tile = GemmTile.from_json(slow.candidate.schedule)
    (names,) = module.report["schedules"].values()
    assert f"{tile.rows}x{tile.columns}x{tile.depth} {tile.stages} stages" in names[0]
    assert module.report["tuning"]["tuned_share"] == 1.0
    with pytest.raises(LogError, match="no such file"):
        tilewright.compile(model, "cuda:sm_90", logs=[tmp_path / "none.jsonl"])
