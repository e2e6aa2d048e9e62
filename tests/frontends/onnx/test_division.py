"""Integer division and remainder for the operands that stop a processor."""

import numpy as np
import pytest
from onnx.helper import make_node as node

import tilewright
from tests.frontends.onnx.oracle import make_model

DTYPES = ("int8", "int16", "int32", "int64", "uint8", "uint32", "uint64")


def operands(dtype):
    limits = np.iinfo(dtype)
    left = np.array([7, 0, limits.min, limits.max, limits.min, 5, 9, limits.max], dtype)
    right = np.array([0, 0, 0, 0, limits.max, 3, limits.max, 2], dtype)
    if limits.min < 0:
        left = np.append(left, np.array([limits.min, 7, -7, -7], dtype))
        right = np.append(right, np.array([-1, -1, 2, -2], dtype))
    return left, right


def run(kind, left, right, weights=None, **attributes):
    inputs = {"a": left} if weights else {"a": left, "b": right}
    model = make_model([node(kind, ["a", "b"], ["y"], **attributes)], inputs, ["y"], 17, weights)
    return tilewright.compile(model, logs=()).run(inputs)["y"]


def truncated(left, right):
    """Divide towards zero in Python's integers; by zero it is 0, and results wrap."""
    pairs = [(int(a), int(b)) for a, b in zip(left, right, strict=True)]
    exact = [
        0 if b == 0 else abs(a) // abs(b) * (1 if (a < 0) == (b < 0) else -1) for a, b in pairs
    ]
    return exact


@pytest.mark.parametrize("dtype", DTYPES)
def test_integer_division_by_zero_gives_zero_and_overflow_wraps(dtype):
    left, right = operands(dtype)
    bits = 8 * np.dtype(dtype).itemsize
    wanted = [int(q) % 2**bits for q in truncated(left, right)]
    found = run("Div", left, right)
    assert [int(q) % 2**bits for q in found] == wanted


@pytest.mark.parametrize("fmod", [0, 1])
@pytest.mark.parametrize("dtype", DTYPES)
def test_integer_remainder_by_zero_is_zero(dtype, fmod):
    left, right = operands(dtype)
    with np.errstate(all="ignore"):
        wanted = (np.fmod if fmod else np.mod)(left, right)
    np.testing.assert_array_equal(run("Mod", left, right, fmod=fmod), wanted)


def test_division_by_a_constant_with_a_zero_in_it():
    left, right = np.array([5, 6, -7, 8], np.int64), np.array([0, -1, 2, 3], np.int64)
    np.testing.assert_array_equal(run("Div", left, right, {"b": right}), [0, -6, -3, 2])


@pytest.mark.parametrize("zero", [0.0, -0.0])
def test_float_division_by_a_constant_zero_follows_ieee_754(zero):
    left = np.float32([1, -2, 0, -0.0, np.inf, np.nan])
    with np.errstate(all="ignore"):
        wanted = left / np.float32(zero)
    found = run("Div", left, None, {"b": np.array(zero, np.float32)})
    np.testing.assert_array_equal(found, wanted)
