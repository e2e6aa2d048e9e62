"""Depthwise convolution and pooling over planes against numpy, on awkward extents."""

import dataclasses
import json

import numpy as np
import onnx
import onnx.parser
import pytest
from onnx.reference import ReferenceEvaluator

import tilewright
from tests.compiler.schedule.te_workloads import planar_depthwise, planar_max_pool, run
from tilewright.compiler.schedule import decisions_from_json, default_decisions, schedule
from tilewright.compiler.schedule.window import WindowDecisions
from tilewright.compiler.targets import parse_target
from tilewright.errors import InvalidScheduleError
from tilewright.tuner.space import LoopSpace
from tilewright.tuner.workload import describe_loops

NATIVE = parse_target("native")
AVX2 = parse_target("x86-64-v3")
TOLERANCE = {"rtol": 1e-5, "atol": 1e-5}


def windows(data, kernel, stride, pads, dilation=1, fill=0.0):
    """Return [N, C, OH, OW, KH, KW] in float64."""
    before, after = pads
    border = ((0, 0), (0, 0), (before, after), (before, after))
    image = np.pad(data.astype("float64"), border, constant_values=fill)
    reach = (kernel - 1) * dilation + 1
    view = np.lib.stride_tricks.sliding_window_view(image, (reach, reach), axis=(2, 3))
    return view[:, :, ::stride, ::stride, ::dilation, ::dilation]


def reference(arrays, kernel, stride, pads, dilation=1):
    data, weight, _ = arrays
    view = windows(data, kernel, stride, pads, dilation)
    return np.clip(np.einsum("ncyxhw,chw->ncyx", view, weight[:, 0].astype("float64")), 0, 6)


# size, kernel, stride, padding before and after, dilation
SHAPES = [
    ((9, 50), 3, 1, (1, 1), 1),
    ((13, 40), 3, 2, (1, 1), 1),
    ((12, 37), 3, 2, (0, 1), 1),
    ((31, 33), 5, 2, (2, 2), 1),
    ((17, 16), 5, 1, (2, 2), 1),
    ((14, 21), 3, 1, (2, 2), 2),
    ((8, 13), 7, 1, (3, 3), 1),
    ((3, 8), 3, 1, (1, 1), 1),
    ((6, 5), 3, 1, (1, 1), 1),
    ((40, 19), 3, 1, (0, 0), 1),
]


@pytest.mark.parametrize(("size", "kernel", "stride", "pads", "dilation"), SHAPES)
def test_depthwise_over_planes_matches_numpy(size, kernel, stride, pads, dilation):
    workload = planar_depthwise(2, 3, size, kernel, stride, pads, dilation)
    decisions = default_decisions(workload.func, NATIVE)
    assert isinstance(decisions, WindowDecisions)
    assert decisions.written_out == (0, 1)
    arrays = workload.arrays()
    result = run(schedule(workload.func, NATIVE, decisions), arrays, NATIVE)
    want = reference(arrays, kernel, stride, pads, dilation)
    np.testing.assert_allclose(result, want, **TOLERANCE)


ONE_ROW = {
    "depthwise": (
        "fuzz (float[1,2,3,1] x, float[2,1,4,2] w) => (float[1,2,1,2] y) {"
        " y = Conv <dilations=[2,1], group=2, kernel_shape=[4,2], pads=[1,1,3,1]> (x, w) }"
    ),
    "pool": (
        "fuzz (float[1,8,2,16] x) => (float[1,8,1,9] y) {"
        " y = AveragePool <kernel_shape=[3,3], pads=[2,2,0,1], strides=[3,2]> (x) }"
    ),
}


@pytest.mark.parametrize("name", ONE_ROW)
def test_images_of_one_row_are_no_blocks_of_rows(name):
    """Found by fuzzing: there was no axis of rows to walk."""
    text = f'<ir_version: 10, opset_import: ["" : 21]>\n{ONE_ROW[name]}'
    model = onnx.parser.parse_model(text)
    random = np.random.default_rng(0)
    arrays = {
        value.name: random.standard_normal(
            [d.dim_value for d in value.type.tensor_type.shape.dim], dtype="float32"
        )
        for value in model.graph.input
    }
    for weight in list(model.graph.input)[1:]:
        array = arrays.pop(weight.name)
        model.graph.initializer.append(onnx.numpy_helper.from_array(array, weight.name))
        model.graph.input.remove(weight)
    (want,) = ReferenceEvaluator(model).run(None, arrays)
    found = tilewright.compile(model, logs=()).run(arrays)["y"]
    np.testing.assert_allclose(found, want, **TOLERANCE)


@pytest.mark.parametrize(
    ("kernel", "stride", "pads"), [(3, 2, (1, 1)), (3, 1, (1, 1)), (2, 2, (0, 0))]
)
def test_max_pool_over_planes_is_exact(kernel, stride, pads):
    workload = planar_max_pool(2, 3, (19, 34), kernel, stride, pads)
    arrays = workload.arrays()
    result = run(schedule(workload.func, AVX2), arrays, AVX2)
    want = windows(arrays[0], kernel, stride, pads, fill=-np.inf).max(axis=(4, 5))
    np.testing.assert_array_equal(result, want.astype("float32"))


VARIATIONS = [
    {"row_tile": 3, "row_block": 2},
    {"row_tile": 9, "row_block": 1},
    {"row_tile": 4, "row_block": 3, "column_vectors": 2},
    {"row_tile": 5, "column_vectors": 3, "row_block": 1},
]


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("change", VARIATIONS, ids=str)
def test_any_valid_decisions_over_planes_compute_the_same(change, stride):
    workload = planar_depthwise(1, 2, (25, 43), 3, stride, (1, 1))
    decisions = dataclasses.replace(default_decisions(workload.func, AVX2), **change)
    arrays = workload.arrays()
    result = run(schedule(workload.func, AVX2, decisions), arrays, AVX2)
    np.testing.assert_allclose(result, reference(arrays, 3, stride, (1, 1)), **TOLERANCE)


INVALID = [
    ({"written_out": (0,)}, "all its window is written out"),
    ({"row_tile": 8, "row_block": 100}, "do not stay near, at most"),
]


@pytest.mark.parametrize(("change", "message"), INVALID)
def test_decisions_that_do_not_fit_planes_are_refused(change, message):
    workload = planar_depthwise(1, 2, (900, 43), 3, 1, (1, 1))
    decisions = dataclasses.replace(default_decisions(workload.func, AVX2), **change)
    with pytest.raises(InvalidScheduleError, match=message):
        schedule(workload.func, AVX2, decisions)


def test_a_block_of_rows_reads_no_more_than_stays_near():
    func = planar_depthwise(1, 2, (900, 300), 3, 1, (1, 1)).func
    decisions = default_decisions(func, AVX2)
    rows = decisions.row_tile * decisions.row_block + 2
    assert decisions.row_block == 1 or rows * (300 + 16) * 4 <= 12 << 10


def test_every_plausible_point_of_the_tuners_space_schedules():
    func = planar_depthwise(1, 2, (40, 64), 3, 1, (1, 1)).func
    default = json.loads(default_decisions(func, AVX2).to_json())
    space = LoopSpace(describe_loops(func, AVX2), default, AVX2)
    rng = np.random.default_rng(0)
    found = [space.decisions(space.random(rng)) for _ in range(200)]
    plausible = [decisions for decisions in found if space.plausible(decisions)]
    assert len(plausible) >= 10
    for decisions in plausible[:10]:
        schedule(func, AVX2, decisions_from_json(json.dumps(decisions)))
