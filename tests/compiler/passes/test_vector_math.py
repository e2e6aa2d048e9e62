"""Vectorised math functions: accuracy over sweeps, special values, and no calls of libm."""

import re

import numpy as np
import pytest
import tvm
from scipy import special
from tvm import te, tirx

from tests.kernels import compile_kernel

# Function: (reference in float64, largest error in ulp, largest |x| that is judged).
FUNCTIONS = {
    "exp": (np.exp, 1.2, np.inf),
    "exp2": (np.exp2, 1.2, np.inf),
    "sigmoid": (special.expit, 3.2, np.inf),
    "tanh": (np.tanh, 5, np.inf),
    "erf": (special.erf, 5, np.inf),
    "log": (np.log, 1, np.inf),
    "log2": (np.log2, 1, np.inf),
    "log10": (np.log10, 1, np.inf),
    "log1p": (np.log1p, 1.5, np.inf),
    "sin": (np.sin, 2, 1e6),
    "cos": (np.cos, 2, 1e6),
    "tan": (np.tan, 3.2, 1e6),
    "atan": (np.arctan, 2.8, np.inf),
    "sinh": (np.sinh, 3.5, np.inf),
    "cosh": (np.cosh, 3, np.inf),
}
SPECIAL = np.array(
    [
        *(0.0, -0.0, np.inf, -np.inf, np.nan, 1, -1, 2, 0.5, 1e-40, -1e-45),
        *(88.72283, 88.7229, -87.33, -87.34, -104, 3.4e38, -3.4e38),
        *(127.9999, 128, -126, -126.1, 9.1, -9.1, 4.1, -3.95),
    ],
    np.float32,
)


def _compile(function, count, inputs=1, dtype="float32", target="native"):
    lanes = 16
    data = [te.placeholder((count,), dtype, name=f"x{k}") for k in range(inputs)]
    out = te.compute((count,), lambda i: function(*(x[i] for x in data)), name="y")
    schedule = tvm.s_tir.Schedule(te.create_prim_func([*data, out]))
    (loop,) = schedule.get_loops(schedule.get_sblock("y"))
    _, inner = schedule.split(loop, [None, lanes])
    schedule.vectorize(inner)
    return compile_kernel(schedule.mod["main"], target)


def _apply(function, *arrays, **options):
    count = -(-len(arrays[0]) // 16) * 16
    padded = [tvm.runtime.tensor(np.resize(array, count)) for array in arrays]
    out = tvm.runtime.tensor(np.zeros(count, arrays[0].dtype))
    module, assembly = _compile(function, count, len(arrays), str(arrays[0].dtype), **options)
    module["main"](*padded, out)
    return out.numpy()[: len(arrays[0])], assembly


def _sweep():
    bits = np.arange(0, 2**32, 99991, dtype=np.uint64).astype(np.uint32).view(np.float32)
    return np.concatenate([SPECIAL, bits, np.linspace(-20, 20, 40001, dtype=np.float32)])


def _ulp_error(found, expected):
    """Return |found - expected| in ulp of float32; equal, both NaN, or flushed to zero is 0."""
    with np.errstate(all="ignore"):
        rounded = expected.astype(np.float32)
        error = np.abs(found.astype(np.float64) - expected) / np.spacing(np.abs(rounded))
    same = (found == rounded) | (np.isnan(found) & np.isnan(rounded))
    flushed = (np.abs(expected) < 2.0**-126) & (np.abs(found) < 2.0**-125)
    return np.where(same | flushed, 0.0, np.where(np.isnan(error), np.inf, error))


def _library_calls(assembly):
    called = set(re.findall(r"\bcallq?\s+\*?(\S+)", assembly))
    return {name for name in called if "TVM" not in name and not name.startswith(("__tvm", "main"))}


@pytest.mark.parametrize("name", FUNCTIONS)
def test_function_is_accurate_over_all_floats_and_calls_nothing(name):
    reference, tolerance, largest = FUNCTIONS[name]
    x = _sweep()
    found, assembly = _apply(getattr(tirx, name), x)
    with np.errstate(all="ignore"):
        expected = reference(x.astype(np.float64))
    judged = ~(np.abs(x) > largest) | np.isinf(x)
    assert _ulp_error(found, expected)[judged].max() <= tolerance
    assert not _library_calls(assembly)


@pytest.mark.parametrize("name", ["exp", "tanh", "erf", "log"])
def test_function_on_avx2_gives_the_same_accuracy(name):
    reference, tolerance, _ = FUNCTIONS[name]
    x = _sweep()
    found, assembly = _apply(getattr(tirx, name), x, target="x86-64-v3")
    with np.errstate(all="ignore"):
        expected = reference(x.astype(np.float64))
    assert _ulp_error(found, expected).max() <= tolerance
    assert not _library_calls(assembly)
    assert "zmm" not in assembly


@pytest.mark.parametrize("name", ["tanh", "erf", "sin", "tan", "atan", "sinh"])
def test_odd_function_keeps_the_sign_of_zero(name):
    found, _ = _apply(getattr(tirx, name), np.array([-0.0, 0.0], np.float32))
    assert np.signbit(found).tolist() == [True, False]


def _divisions_per_store(assembly):
    """Return how many divisions a vector takes, however often LLVM wrote the loop out."""
    stores = len(re.findall(r"\bvmov[au]ps\s+%[yz]mm\d+, (?!\S*%rsp)\S*\(", assembly))
    return len(re.findall(r"\bvdivps", assembly)) / stores


@pytest.mark.parametrize("divisor", [2**0.5, -3.0, 1e-38, 1e30])
@pytest.mark.parametrize("name", ["erf", "tanh"])
def test_a_constant_divisor_costs_no_division(name, divisor):
    reference, tolerance, _ = FUNCTIONS[name]
    x = np.concatenate([SPECIAL, np.linspace(-9, 9, 4001, dtype=np.float32)])
    found, assembly = _apply(lambda v: getattr(tirx, name)(v / tirx.const(divisor, "float32")), x)
    with np.errstate(all="ignore"):
        expected = reference(x.astype(np.float64) / np.float64(np.float32(divisor)))
    assert _ulp_error(found, expected).max() <= tolerance + 1.5
    _, plain = _apply(getattr(tirx, name), x)
    costs_none = _divisions_per_store(assembly) == _divisions_per_store(plain)
    assert costs_none == (divisor != 1e-38)


@pytest.mark.parametrize("name", ["tanh", "erf", "sin", "cos"])
def test_bounded_function_never_leaves_its_range(name):
    found, _ = _apply(getattr(tirx, name), _sweep())
    assert np.nanmax(np.abs(found)) <= 1.0


def test_power_of_two_tensors_follows_powf():
    rng = np.random.default_rng(0)
    grid = np.array([0, -0.0, 1, -1, 2, -2, 0.5, 3, -3, 1e-40, 1e30, np.inf, -np.inf, np.nan])
    x, y = (axis.ravel() for axis in np.meshgrid(grid, grid))
    x = np.concatenate([x, np.exp(rng.uniform(-60, 60, 20000))]).astype(np.float32)
    y = np.concatenate([y, rng.uniform(-6, 6, 20000)]).astype(np.float32)
    found, assembly = _apply(tirx.power, x, y)
    with np.errstate(all="ignore"):
        expected = np.power(x.astype(np.float64), y.astype(np.float64))
    assert _ulp_error(found, expected).max() <= 0.6
    assert not _library_calls(assembly)


@pytest.mark.parametrize("exponent", [2.0, 3.0, -1.0, 0.5, -0.5, 0.0, 7.0])
def test_power_with_constant_exponent_uses_products_and_roots(exponent):
    x = np.linspace(0.01, 9, 64, dtype=np.float32)
    found, assembly = _apply(lambda v: tirx.power(v, tirx.const(exponent, "float32")), x)
    np.testing.assert_allclose(found, x.astype(np.float64) ** exponent, rtol=5e-7)
    assert not _library_calls(assembly)


def test_round_is_half_to_even_and_one_instruction():
    x = np.array([0.5, 1.5, 2.5, -0.5, -1.5, 2.4999, 8388609.0, np.inf], np.float32)
    found, assembly = _apply(tirx.round, x)
    np.testing.assert_array_equal(found, np.round(x))
    assert re.search(r"vrndscaleps|vroundps", assembly)


def test_float16_goes_through_float32():
    x = np.linspace(-4, 4, 64, dtype=np.float16)
    found, _ = _apply(tirx.exp, x)
    np.testing.assert_allclose(found, np.exp(x.astype(np.float32)), rtol=1e-3)


def test_a_small_float16_divisor_has_no_reciprocal():
    """1 / 1e-5 is infinite in float16, and 0 times that no number."""
    x = np.zeros(16, np.float16)
    found, _ = _apply(lambda v: tirx.erf(v / tirx.const(1e-5, "float16")), x)
    np.testing.assert_array_equal(found, x)


def test_nested_calls_and_branches_compile():
    def mish_or_root(v):
        softplus = tirx.log(tirx.exp(v) + 1.0)
        return tirx.if_then_else(v > 0, v * tirx.tanh(softplus), tirx.exp(tirx.exp(v)))

    x = np.linspace(-5, 4, 64, dtype=np.float32)
    found, _ = _apply(mish_or_root, x)
    expected = np.where(x > 0, x * np.tanh(np.log1p(np.exp(x))), np.exp(np.exp(x)))
    np.testing.assert_allclose(found, expected, rtol=2e-6)
