"""Pooling, sums, softmax and the like under layouts, against numpy."""

import numpy as np
import pytest

pytest.importorskip("tvm")


from tests.compiler.layout.functions import check, divisions, fused, op, shapes_of, whole_numbers
from tests.compiler.layout.references import (
    conv,
    max_pool,
)
from tilewright.compiler.layout.primitives import blocked


@pytest.mark.parametrize("channels", [8, 5])
def test_max_pool_keeps_zeros_in_padded_lanes(channels):
    x = (1, channels, 7, 6)
    func = fused(lambda a: op.nn.max_pool2d(a, [3, 3], strides=[2, 1], padding=[1, 1, 1, 1]), x)
    layouts = {0: blocked(x, 1, 4), 1: blocked(shapes_of(func)[-1], 1, 4)}
    assert divisions(check(func, layouts, max_pool([2, 1], 1))) == []


def test_average_pool_that_does_not_count_the_padding():
    x = (1, 5, 7, 6)
    func = fused(
        lambda a: op.nn.avg_pool2d(a, [3, 3], padding=[1, 1, 1, 1], count_include_pad=False), x
    )

    def reference(a):
        kernel = np.ones((5, 1, 3, 3), "float32")
        total = conv(a, kernel, [1, 1], [1, 1, 1, 1], None, 5)
        return total / conv(np.ones_like(a), kernel, [1, 1], [1, 1, 1, 1], None, 5)

    layouts = {0: blocked(x, 1, 4), 1: blocked(x, 1, 4)}
    assert divisions(check(func, layouts, reference, tolerance=1e-6)) == []


@pytest.mark.parametrize("keepdims", [False, True])
def test_mean_over_the_pixels_of_blocked_channels(keepdims):
    x = (2, 5, 4, 3)
    func = fused(lambda a: op.mean(a, [2, 3], keepdims), x)
    layouts = {0: blocked(x, 1, 4), 1: blocked(shapes_of(func)[-1], 1, 4)}
    text = check(func, layouts, lambda a: a.mean((2, 3)), tolerance=1e-6)
    assert divisions(text) == []
    assert "Select" not in text


@pytest.mark.parametrize(
    ("reduce", "numpy"), [(op.sum, np.sum), (op.max, np.max), (op.prod, np.prod)]
)
def test_reduction_over_padded_channels_is_neutral_in_the_padding(reduce, numpy):
    x = (2, 6, 3)
    func = fused(lambda a: reduce(a, [1]), x)
    inputs = [array - 5 for array in whole_numbers(func)]  # negative: a zero would win the maximum
    layouts = {0: blocked(x, 1, 4), 1: blocked((2, 3), 1, 4)}
    text = check(func, layouts, lambda a: numpy(a, axis=1), inputs=inputs, tolerance=1e-6)
    assert divisions(text) == []


def test_reduction_to_a_scalar():
    func = fused(op.sum, (3, 6))
    check(func, {0: blocked((3, 6), 1, 4)}, np.sum)


def test_argmax_over_blocked_channels():
    func = fused(lambda a: op.argmax(a, 1), (2, 6, 3))
    check(func, {0: blocked((2, 6, 3), 1, 4)}, lambda a: a.argmax(1))


def test_argmax_with_a_padded_output():
    func = fused(lambda a: op.argmax(a, 2), (2, 6, 3))
    layouts = {0: blocked((2, 6, 3), 1, 4), 1: blocked((2, 6), 1, 4)}
    check(func, layouts, lambda a: a.argmax(2))


def _softmax(axis):
    def reference(a):
        e = np.exp(a - a.max(axis, keepdims=True))
        return e / e.sum(axis, keepdims=True)

    return reference


@pytest.mark.parametrize("axis", [1, 2])
def test_softmax_over_and_beside_padded_channels(axis):
    x = (2, 6, 5)
    func = fused(lambda a: op.nn.softmax(a, axis), x)
    layouts = {0: blocked(x, 1, 4), 1: blocked(x, 1, 4)}
    text = check(func, layouts, _softmax(axis), tolerance=1e-6)
    assert divisions(text) == []


def test_layer_norm_over_a_padded_row():
    x = (2, 3, 6)
    func = fused(lambda a, g, b: op.nn.layer_norm(a, g, b, [-1]), x, (6,), (6,))
    layouts = {0: blocked(x, 2, 4), 1: blocked((6,), 0, 4), 2: blocked((6,), 0, 4)}
    layouts[3] = blocked(x, 2, 4)

    def reference(a, g, b):
        centred = a - a.mean(-1, keepdims=True)
        return centred / np.sqrt((centred**2).mean(-1, keepdims=True) + 1e-5) * g + b

    assert divisions(check(func, layouts, reference, tolerance=1e-4)) == []
