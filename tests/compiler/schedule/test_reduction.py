"""Row operators compute what numpy computes, in vectors, whatever the axis and the row length."""

import re

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tvm import relax, te, topi

from tests.compiler.schedule.test_elementwise import TARGETS, kernel_of, random
from tests.kernels import compile_kernel, run_kernel
from tilewright.compiler.schedule.reduction import (
    ReductionDecisions,
    default_reduction_decisions,
    schedule_reduction,
)
from tilewright.compiler.targets import parse_target
from tilewright.errors import InvalidScheduleError

op = relax.op


def scheduled(func, target):
    """Schedule with the default decisions."""
    return schedule_reduction(func, parse_target(target))


def softmax(x, axis):
    """Reference in float64."""
    e = np.exp(x.astype(np.float64) - x.max(axis, keepdims=True))
    return e / e.sum(axis, keepdims=True)


def normalized(x, axes):
    """Zero mean and unit variance along `axes`, in float64."""
    x = x.astype(np.float64)
    return (x - x.mean(axes, keepdims=True)) / np.sqrt(x.var(axes, keepdims=True) + 1e-5)


CASES = {
    "softmax_49": (lambda x: op.nn.softmax(x, -1), [(3, 5, 49)], lambda x: softmax(x, -1)),
    "softmax_128": (lambda x: op.nn.softmax(x, -1), [(2, 3, 5, 128)], lambda x: softmax(x, -1)),
    "softmax_197": (lambda x: op.nn.softmax(x, -1), [(1, 3, 197)], lambda x: softmax(x, -1)),
    "softmax_1": (lambda x: op.nn.softmax(x, -1), [(3, 7, 1)], lambda x: softmax(x, -1)),
    "softmax_first": (lambda x: op.nn.softmax(x, 0), [(3, 7, 5)], lambda x: softmax(x, 0)),
    "softmax_middle": (lambda x: op.nn.softmax(x, 1), [(3, 7, 50)], lambda x: softmax(x, 1)),
    "log_softmax": (
        lambda x: op.nn.log_softmax(x, -1),
        [(3, 50)],
        lambda x: np.log(softmax(x, -1)),
    ),
    "layer_norm": (
        lambda x, g, b: op.nn.layer_norm(x, g, b, axes=[-1]),
        [(3, 7, 192), (192,), (192,)],
        lambda x, g, b: normalized(x, -1) * g + b,
    ),
    "layer_norm_37": (
        lambda x, g, b: op.nn.layer_norm(x, g, b, axes=[-1]),
        [(3, 37), (37,), (37,)],
        lambda x, g, b: normalized(x, -1) * g + b,
    ),
    "layer_norm_two_axes": (
        lambda x, g, b: op.nn.layer_norm(x, g, b, axes=[-2, -1]),
        [(3, 7, 5), (7, 5), (7, 5)],
        lambda x, g, b: normalized(x, (-2, -1)) * g + b,
    ),
    "instance_norm": (
        lambda x, g, b: op.nn.instance_norm(x, g, b, 1, [2, 3]),
        [(2, 5, 7, 9), (5,), (5,)],
        lambda x, g, b: normalized(x, (2, 3)) * g[:, None, None] + b[:, None, None],
    ),
    "mean_spatial": (
        lambda x: op.mean(x, [2, 3], True),
        [(2, 5, 7, 7)],
        lambda x: x.mean((2, 3), keepdims=True),
    ),
    "mean_nhwc": (lambda x: op.mean(x, [1, 2]), [(2, 7, 7, 40)], lambda x: x.mean((1, 2))),
    "mean_all": (op.mean, [(7, 40)], np.mean),
    "sum_leading": (lambda x: op.sum(x, [0]), [(20, 70)], lambda x: x.sum(0)),
    "max": (lambda x: op.max(x, [1]), [(20, 70)], lambda x: x.max(1)),
    "min_short": (lambda x: op.min(x, [0]), [(20, 7)], lambda x: x.min(0)),
    "prod": (lambda x: op.prod(x, [1]), [(20, 7)], lambda x: x.prod(1)),
    "variance": (lambda x: op.variance(x, [1]), [(3, 9, 50)], lambda x: x.var(1)),
    "large": (lambda x: op.nn.softmax(x, -1), [(130, 129)], lambda x: softmax(x, -1)),
}


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("name", CASES)
def test_schedule_computes_what_numpy_does(name, target):
    build, shapes, reference = CASES[name]
    inputs = [random(*shape) for shape in shapes]
    (found,) = run_kernel(scheduled(kernel_of(build, *shapes), target), inputs, target)
    np.testing.assert_allclose(found, reference(*inputs), rtol=3e-6, atol=3e-6)


@pytest.mark.parametrize("target", TARGETS)
def test_pooling_of_a_blocked_layout(target):
    x = te.placeholder((2, 3, 5, 7, 16), "float32", name="x")
    h, w = te.reduce_axis((0, 5), "rh"), te.reduce_axis((0, 7), "rw")
    total = te.compute((2, 3, 16), lambda n, c, i: te.sum(x[n, c, h, w, i], [h, w]), name="total")
    mean = te.compute((2, 3, 1, 1, 16), lambda n, c, p, q, i: total[n, c, i] / 35.0, name="mean")
    data = random(2, 3, 5, 7, 16)
    (found,) = run_kernel(scheduled(te.create_prim_func([x, mean]), target), [data], target)
    np.testing.assert_allclose(found, data.mean((2, 3), keepdims=True), rtol=1e-5, atol=1e-6)


@settings(max_examples=20, deadline=None)
@given(st.lists(st.integers(1, 40), min_size=1, max_size=4), st.integers(0, 3), st.booleans())
def test_any_row_length_along_any_axis(shape, axis, largest):
    axis %= len(shape)
    reduce, reference = (op.max, np.max) if largest else (op.sum, np.sum)
    func = kernel_of(lambda x: reduce(x, [axis], True), shape)
    x = random(*shape)
    (found,) = run_kernel(scheduled(func, "native"), [x])
    np.testing.assert_allclose(found, reference(x, axis, keepdims=True), rtol=2e-5, atol=2e-5)


def test_integers_are_summed_exactly():
    x = (random(20, 37) * 1000).astype("int64")
    (found,) = run_kernel(
        scheduled(kernel_of(lambda v: op.sum(v, [1]), (20, 37), dtype="int64"), "native"), [x]
    )
    np.testing.assert_array_equal(found, x.sum(1))


@pytest.mark.parametrize("axis", [0, 1])
def test_argmax_takes_the_first_of_equals(axis):
    x = np.round(random(30, 50))
    (found,) = run_kernel(
        scheduled(kernel_of(lambda v: op.argmax(v, axis), (30, 50)), "native"), [x]
    )
    np.testing.assert_array_equal(found, x.argmax(axis))


def test_unusual_combiner_and_scan_still_run():
    x = te.placeholder((20, 30), "bool", name="x")
    flags = random(20, 30) > -4
    (found,) = run_kernel(scheduled(te.create_prim_func([x, topi.all(x, 1)]), "native"), [flags])
    np.testing.assert_array_equal(found, flags.all(1))
    y = te.placeholder((20, 30), "float32", name="y")
    data = random(20, 30)
    (found,) = run_kernel(scheduled(te.create_prim_func([y, topi.cumsum(y, 1)]), "native"), [data])
    np.testing.assert_allclose(found, data.cumsum(1), rtol=1e-4, atol=1e-5)


def test_softmax_of_masked_and_special_rows():
    x = random(4, 37)
    x[0, 5:] = -np.inf
    x[1, 3] = np.nan
    x[2] = 3e38
    (found,) = run_kernel(
        scheduled(kernel_of(lambda v: op.nn.softmax(v, -1), (4, 37)), "native"), [x]
    )
    np.testing.assert_allclose(found[[0, 2, 3]], softmax(x[[0, 2, 3]], -1), rtol=3e-6, atol=1e-9)
    assert np.isnan(found[1]).all()


def test_layer_norm_of_a_large_offset_keeps_its_digits():
    x = random(3, 64) * np.float32(1e-2) + np.float32(100)
    ones, zeros = np.ones(64, np.float32), np.zeros(64, np.float32)
    build, _, _ = CASES["layer_norm"]
    (found,) = run_kernel(
        scheduled(kernel_of(build, (3, 64), (64,), (64,)), "native"), [x, ones, zeros]
    )
    np.testing.assert_allclose(found, normalized(x, -1), atol=2e-3)


@pytest.mark.parametrize("name", ["softmax_197", "layer_norm", "mean_nhwc", "sum_leading"])
def test_rows_are_vectors_on_the_stack(name):
    build, shapes, _ = CASES[name]
    _, assembly = compile_kernel(scheduled(kernel_of(build, *shapes), "x86-64-v4"), "x86-64-v4")
    assert re.search(r"v(add|max)ps\s.*%zmm", assembly)
    assert "Workspace" not in assembly
    assert "expf" not in assembly


def test_decisions_round_trip_and_are_checked():
    build, shapes, _ = CASES["max"]
    decisions = default_reduction_decisions(kernel_of(build, *shapes), parse_target("x86-64-v4"))
    assert decisions.lanes == 16
    assert ReductionDecisions.from_json(decisions.to_json()) == decisions
    with pytest.raises(InvalidScheduleError, match="power of two, found 12"):
        ReductionDecisions(12)
    with pytest.raises(InvalidScheduleError, match="must be positive, found 0"):
        ReductionDecisions(16, accumulators=0)
    with pytest.raises(InvalidScheduleError, match="not reduction decisions"):
        ReductionDecisions.from_json('{"kind":"elementwise","lanes":16}')
