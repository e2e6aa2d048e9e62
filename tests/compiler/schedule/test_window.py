"""Depthwise convolution and pooling against numpy, on awkward extents."""

import dataclasses

import numpy as np
import pytest

from tests.compiler.schedule.te_workloads import conv2d, depthwise, max_pool, run
from tilewright.compiler.schedule import decisions_from_json, default_decisions
from tilewright.compiler.schedule.window import WindowDecisions, schedule_window
from tilewright.compiler.targets import parse_target
from tilewright.errors import InvalidScheduleError

NATIVE = parse_target("native")
AVX2 = parse_target("x86-64-v3")
TOLERANCE = {"rtol": 1e-5, "atol": 1e-5}


def windows(data, kernel, stride, pad, fill):
    """Return [N, C/l, OH, OW, KH, KW, l] in float64."""
    border = ((0, 0), (0, 0), (pad, pad), (pad, pad), (0, 0))
    image = np.pad(data.astype("float64"), border, constant_values=fill)
    view = np.lib.stride_tricks.sliding_window_view(image, (kernel, kernel), axis=(2, 3))
    return np.moveaxis(view[:, :, ::stride, ::stride], 4, 6)


def depthwise_reference(arrays, kernel, stride, pad):
    data, weight, _ = arrays
    view = windows(data, kernel, stride, pad, 0.0)
    return np.clip(np.einsum("ncyxhwl,chwl->ncyxl", view, weight.astype("float64")), 0, 6)


SHAPES = [
    ((9, 50), 3, 1, 1),
    ((13, 11), 3, 2, 1),
    ((7, 7), 5, 1, 2),
    ((8, 13), 7, 1, 3),
    ((11, 12), 9, 1, 4),
    ((9, 6), 3, 2, 0),
]


@pytest.mark.parametrize("target", [NATIVE, AVX2], ids=["native", "avx2"])
@pytest.mark.parametrize(("size", "kernel", "stride", "pad"), SHAPES)
def test_depthwise_matches_numpy(size, kernel, stride, pad, target):
    lanes = target.lanes("float32")
    workload = depthwise(2, 3 * lanes, size, kernel, stride, pad, lanes)
    arrays = workload.arrays()
    result = run(schedule_window(workload.func, target), arrays, target)
    want = depthwise_reference(arrays, kernel, stride, pad)
    np.testing.assert_allclose(result, want, **TOLERANCE)


@pytest.mark.parametrize(("kernel", "stride", "pad"), [(3, 2, 1), (2, 2, 0), (5, 1, 2)])
def test_max_pool_matches_numpy_exactly(kernel, stride, pad):
    workload = max_pool(2, 32, (11, 13), kernel, stride, pad)
    arrays = workload.arrays()
    result = run(schedule_window(workload.func, NATIVE), arrays, NATIVE)
    want = windows(arrays[0], kernel, stride, pad, -np.inf).max(axis=(4, 5))
    np.testing.assert_array_equal(result, want.astype("float32"))


VARIATIONS = [
    {"row_tile": 3},
    {"clip_pad": False},
    {"clip_pad": False, "written_out": ()},
    {"written_out": (0, 1), "row_block": 2},
]


@pytest.mark.parametrize("change", VARIATIONS, ids=str)
def test_any_valid_decisions_compute_the_same(change):
    workload = depthwise(1, 32, (9, 13), 3, 1, 1)
    decisions = dataclasses.replace(default_decisions(workload.func, NATIVE), **change)
    arrays = workload.arrays()
    result = run(schedule_window(workload.func, NATIVE, decisions), arrays, NATIVE)
    np.testing.assert_allclose(result, depthwise_reference(arrays, 3, 1, 1), **TOLERANCE)


INVALID = [
    ({"row_tile": 80}, "exceeds twice"),
    ({"written_out": (5,)}, "has reduction axes"),
    ({"written_out": ()}, "only clipped where"),
]


@pytest.mark.parametrize(("change", "message"), INVALID)
def test_decisions_that_do_not_fit_are_refused(change, message):
    workload = depthwise(1, 32, (9, 13), 3, 1, 1)
    decisions = dataclasses.replace(default_decisions(workload.func, NATIVE), **change)
    with pytest.raises(InvalidScheduleError, match=message):
        schedule_window(workload.func, NATIVE, decisions)


def test_clipping_without_padding_is_refused():
    workload = max_pool(1, 16, (8, 8), 2, 2, 0)
    decisions = dataclasses.replace(default_decisions(workload.func, NATIVE), clip_pad=True)
    with pytest.raises(InvalidScheduleError, match="no padding that can be clipped"):
        schedule_window(workload.func, NATIVE, decisions)


def test_a_contraction_is_no_window():
    with pytest.raises(InvalidScheduleError, match="not a window"):
        schedule_window(conv2d(1, 16, (4, 4), 16, 1).func, NATIVE)


def test_decisions_round_trip_and_validate():
    decisions = default_decisions(depthwise(1, 32, (9, 13), 3, 1, 1).func, NATIVE)
    assert decisions_from_json(decisions.to_json()) == decisions
    with pytest.raises(InvalidScheduleError, match="at least 1"):
        WindowDecisions(0, 1, 1, (), False)
    with pytest.raises(InvalidScheduleError, match="not window decisions"):
        WindowDecisions.from_json('{"kind":"window"}')
