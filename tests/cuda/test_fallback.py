"""Operators without a schedule of ours: dlight's, by name, on all threads that may run at once."""

from collections import Counter

import numpy as np
import pytest
from onnx import helper
from onnxruntime import InferenceSession

from tests.cuda.programs import lower, model_of, run
from tests.cuda.test_operators import check, normal
from tilewright.compiler.cuda.build import compile_kernels
from tilewright.compiler.cuda.nvcc import find_tool
from tilewright.compiler.cuda.structure import read_code
from tilewright.compiler.cuda.targets import parse_cuda_target

pytestmark = pytest.mark.filterwarnings("ignore")
BOTH = (False, True)


def scatter(reduction, rows=6, width=40, dtype=np.float32):
    """Update rows of a matrix, one of them twice where the updates are combined."""
    indices = np.array([[2], [5], [0], [2 if reduction != "none" else 3]], np.int64)
    node = helper.make_node("ScatterND", ["x", "i", "u"], ["y"], reduction=reduction)
    x, updates = (3 * normal(*sizes) for sizes in ((rows, width), (4, width)))
    x, updates = x.astype(dtype), (updates + 1).astype(dtype)
    feeds = {"x": x, "i": indices, "u": updates}
    return model_of([node], feeds, {}, 18), feeds


def at_once(schedules):
    """Return how many threads each launch of dlight's has work for."""
    names = [name for name in schedules if name.startswith("dlight fallback")]
    return [int(name.split()[2]) for name in names]


@pytest.mark.parametrize("reduction", ["add", "mul", "max", "min"])
@pytest.mark.parametrize("dtype", [np.float32, np.float16, np.int64, np.int32])
def test_updates_that_are_combined_run_at_once(reduction, dtype):
    model, feeds = scatter(reduction, dtype=dtype)
    lowered = lower(model)
    assert at_once(lowered.schedules["scatter_nd#1"]) == [6 * 40, 4 * 40]
    combine = {"add": np.add, "mul": np.multiply, "max": np.maximum, "min": np.minimum}[reduction]
    expected = feeds["x"].copy()  # ONNX Runtime has no float16 here
    combine.at(expected, feeds["i"][:, 0], feeds["u"])
    for backwards in BOTH:
        np.testing.assert_allclose(run(lowered, feeds, backwards)["y"], expected, rtol=2e-3)


@pytest.mark.skipif(find_tool("nvcc") is None, reason="needs nvcc")
@pytest.mark.parametrize("dtype", [np.float32, np.float16, np.float64, np.int64, np.uint32])
@pytest.mark.parametrize("reduction", ["add", "mul"])
def test_no_other_thread_comes_between(reduction, dtype):
    kernels = dict(lower(scatter(reduction, dtype=dtype)[0]).kernels)
    used = read_code(compile_kernels(kernels, parse_cuda_target("cuda:sm_80")))
    counts = sum((use.instructions for use in used.values()), Counter())
    assert any(name.startswith(("RED", "ATOM")) for name in counts)
    assert reduction == "add" or any(name.startswith("ATOM") for name in counts)


def test_updates_of_bytes_are_steps_of_one_thread():
    """There is no instruction that combines less than a word of memory."""
    model, feeds = scatter("max", dtype=np.int8)
    assert at_once(check(model, feeds)) == [6 * 40, 1]


def test_updates_that_may_come_in_any_order_run_at_once():
    model, feeds = scatter("none")
    assert 4 * 40 in at_once(check(model, feeds, backwards=BOTH))


def test_pieces_of_a_mask_are_counted_at_once():
    x = (normal(5, 9) > 0.3).astype(np.float32)
    model = model_of([helper.make_node("NonZero", ["x"], ["y"])], {"x": x}, {})
    lowered = lower(model)
    schedules = [name for names in lowered.schedules.values() for name in names]
    assert min(at_once(schedules)) > 1
    for backwards in BOTH:
        results = run(lowered, {"x": x}, backwards)
        count = int(results["y.extents"][1])
        np.testing.assert_array_equal(results["y"][:, :count], np.array(np.nonzero(x)))
        assert not results["y"][:, count:].any()


def suppression(batches, classes, count, **inputs):
    """Return a detector's last node, its boxes and scores (some of which are equal)."""
    rng = np.random.default_rng(3)
    boxes = rng.uniform(0, 1, (batches, count, 4)).astype(np.float32)
    boxes[..., 2:] = boxes[..., :2] + 0.4 * boxes[..., 2:]
    scores = rng.integers(0, 20, (batches, classes, count)).astype(np.float32) / 20
    feeds = {"b": boxes, "s": scores}
    names = ["b", "s", "most", "overlap", "least"]
    weights = {
        "most": np.array([inputs["most"]]),
        "overlap": np.array([0.3], np.float32),
        "least": np.array([inputs["least"]], np.float32),
    }
    return model_of([helper.make_node("NonMaxSuppression", names, ["y"])], feeds, weights), feeds


@pytest.mark.parametrize("comparisons_per_s", [2e12, 1e6])
@pytest.mark.parametrize(
    ("sizes", "most", "least"), [((1, 1, 150), 40, -1.0), ((2, 3, 31), 31, 0.5), ((1, 2, 9), 1, 2)]
)
def test_classes_are_suppressed_by_blocks(sizes, most, least, comparisons_per_s, monkeypatch):
    monkeypatch.setattr("tilewright.compiler.cuda.selection._COMPARISONS_PER_S", comparisons_per_s)
    model, feeds = suppression(*sizes, most=most, least=least)
    (expected,) = InferenceSession(model.SerializeToString()).run(None, feeds)
    for precision in ("fp32", "fp16"):
        lowered = lower(model, precision)
        (kept,) = lowered.schedules["nms_keep#1"]
        assert kept == f"suppression, 128 threads for each of {sizes[0] * sizes[1]} classes"
        for backwards in BOTH:
            results = run(lowered, feeds, backwards)
            count = int(results["y.extents"][0])
            np.testing.assert_array_equal(results["y"][:count], expected)
            assert not results["y"][count:].any()


@pytest.mark.parametrize("dtype", [np.float32, np.int64])
@pytest.mark.parametrize(
    "how", [{}, {"reverse": 1}, {"exclusive": 1}, {"reverse": 1, "exclusive": 1}]
)
def test_a_running_product_has_a_thread_for_each_element(how, dtype):
    x = np.random.default_rng(0).choice([-1, 1, 1, 2], (2, 3, 30)).astype(dtype)
    x = x.transpose(0, 2, 1).copy()
    node = helper.make_node("CumProd", ["x", "axis"], ["y"], **how)
    lowered = lower(model_of([node], {"x": x}, {"axis": np.array(1)}, 26))
    assert at_once(lowered.schedules["scan#0"]) == [180]
    turned = x[:, ::-1] if "reverse" in how else x
    expected = np.cumprod(turned, axis=1)
    if "exclusive" in how:
        expected = np.concatenate([np.ones_like(x[:, :1]), expected[:, :-1]], axis=1)
    if "reverse" in how:
        expected = expected[:, ::-1]
    for backwards in BOTH:
        np.testing.assert_array_equal(run(lowered, {"x": x}, backwards)["y"], expected)


@pytest.mark.parametrize("dtype", [np.float32, np.int64])
@pytest.mark.parametrize("how", [{}, {"reverse": 1}, {"exclusive": 1}])
def test_a_running_sum_of_few_rows_is_added_by_all_threads(how, dtype):
    x = np.random.default_rng(0).integers(-9, 9, (2, 300)).astype(dtype)
    node = helper.make_node("CumSum", ["x", "axis"], ["y"], **how)
    model = model_of([node], {"x": x}, {"axis": np.array(1)})
    assert not at_once(check(model, {"x": x}, backwards=BOTH))


def top_k(x, k, axis, **attributes):
    node = helper.make_node("TopK", ["x", "k"], ["v", "y"], axis=axis, **attributes)
    return model_of([node], {"x": x}, {"k": np.array([k], np.int64)})


@pytest.mark.parametrize("dtype", [np.float32, np.int64])
@pytest.mark.parametrize(
    ("shape", "axis", "k", "largest"), [((1, 300), 1, 20, 1), ((2, 3, 40, 5), 2, 7, 0)]
)
def test_a_selection_counts_the_place_of_every_element(shape, axis, k, largest, dtype):
    x = np.random.default_rng(0).integers(-40, 40, shape).astype(dtype)
    schedules = check(top_k(x, k, axis, largest=largest), {"x": x}, backwards=BOTH)
    assert not at_once(schedules)


def test_few_of_many_rows_are_threads(monkeypatch):
    monkeypatch.setattr("tilewright.compiler.cuda.selection._COMPARISONS_PER_S", 1e9)
    x = normal(70, 33)
    assert at_once(check(top_k(x, 1, 1), {"x": x}, backwards=BOTH)) == [70]


@pytest.mark.parametrize("precision", ["fp16", "bf16"])
def test_tensors_in_16_bits_are_read_and_written(precision, monkeypatch):
    x = normal(12, 32)
    weights = {"w": normal(32, 48, seed=1), "axis": np.array(1, np.int64)}
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["p"]),
        helper.make_node("CumSum", ["p", "axis"], ["s"]),
        helper.make_node("Tanh", ["s"], ["y"]),
    ]
    # Rounding adds up along a row, where the tolerance is of one element.
    model = model_of(nodes, {"x": x * 0.05}, weights)
    monkeypatch.setattr("tilewright.compiler.cuda.selection._COMPARISONS_PER_S", 1e6)
    assert at_once(check(model, {"x": x * 0.05}, precision)) == [12]


@pytest.mark.parametrize("values", [-np.inf, np.nan])
def test_the_index_of_a_row_without_a_best_element_is_in_the_row(values):
    x = np.full((3, 40), values, np.float32)
    model = model_of([helper.make_node("ArgMax", ["x"], ["y"], axis=1)], {"x": x}, {})
    assert set(run(lower(model), {"x": x})["y"].reshape(-1)) == {0}


@pytest.mark.skipif(find_tool("nvcc") is None, reason="needs nvcc")
def test_the_machine_code_keeps_its_values_in_registers():
    target = parse_cuda_target("cuda:sm_90")
    kernels = dict(lower(scatter("add")[0]).kernels)
    found = read_code(compile_kernels(kernels, target))
    assert set(found) == set(kernels)
    assert all(use.spills == 0 and use.stack_bytes == 0 for use in found.values())
