"""Integers of 2 and 4 bits run on the integer kernels, and the bits of each operator are known."""

import numpy as np
import pytest
from onnx.reference import ReferenceEvaluator

import tilewright
from tests.compiler.quantize.low_bit_models import RANGES, quantized_model
from tilewright.compiler.quantize.explain import explain
from tilewright.compiler.quantize.low_bit import WeightRange, weight_range
from tilewright.frontends.onnx import import_onnx


def _explained(model):
    (found,) = (
        e for e in explain(import_onnx(model).module) if e.operator in ("nn.conv2d", "matmul")
    )
    return found


def _check(model, shape, seed=0):
    """Compare with the standard's reference: at most ties of rounding differ, by one step."""
    x = np.random.default_rng(seed).standard_normal(shape).astype("float32")
    (want,) = ReferenceEvaluator(model).run(None, {"x": x})
    got = tilewright.compile(model, "native", logs=()).run({"x": x})["out"]
    steps = np.abs(got - want) / 0.5
    assert steps.max() <= 1.001
    assert (steps > 0.5).mean() <= 0.01
    assert want.std() > 0.2


@pytest.mark.parametrize(
    ("weight", "data"),
    [
        ("int8", "uint4"),
        ("int4", "uint8"),
        ("uint4", "int8"),
        ("int4", "int4"),
        ("int2", "uint8"),
        ("uint2", "int4"),
        ("int2", "uint2"),
        ("uint4", "int2"),
    ],
)
def test_product_of_narrow_integers_is_integer(weight, data):
    rng = np.random.default_rng(1)
    low, high = RANGES[weight]
    weights = rng.integers(low, high + 1, (24, 10))
    middle = (low + high + 1) // 2
    zero = sum(RANGES[data]) // 2
    scale = 3.0 / (RANGES[data][1] - RANGES[data][0])
    model = quantized_model(
        *((6, 24), weights, weight, data),
        zero=zero,
        weight_zero=middle,
        scale=scale,
        out_scale=0.5,
    )
    found = _explained(model)
    bits = {"8": 8, "4": 4, "2": 2}
    assert found.integer
    assert found.form == f"W{bits[weight[-1]]}A{bits[data[-1]]}"
    _check(_louder(model, weight), (6, 24))


def _louder(model, weight):
    """Make results span several steps whatever the weights are."""
    scale = next(t for t in model.graph.initializer if t.name == "ws")
    gain = 64 / (RANGES[weight][1] - RANGES[weight][0])
    for index, value in enumerate(scale.float_data):
        scale.float_data[index] = value * gain
    return model


@pytest.mark.parametrize(("data", "out"), [("uint4", "uint4"), ("int4", "int4"), ("int2", "uint8")])
def test_convolution_of_narrow_integers_keeps_its_border(data, out):
    weights = np.random.default_rng(2).integers(-8, 8, (9, 6, 3, 3))
    model = quantized_model(
        *((1, 6, 7, 8), weights, "int4", data),
        zero=1,
        scale=0.7,
        out_scale=0.5,
        out_dtype=out,
        pads=[1, 1, 1, 0],
        strides=[1, 2],
    )
    assert _explained(model).form == f"W4A{data[-1]}"
    _check(model, (1, 6, 7, 8))


def test_one_bit_is_recognised_by_values():
    rng = np.random.default_rng(3)
    signs = rng.choice([-1, 1], (16, 8))
    shape = (5, 16)
    one = quantized_model(shape, signs, "int2", "uint2", scale=1.0, before=("clip",))
    assert _explained(one).form == "W1A1"
    plus_minus = quantized_model(shape, signs, "int2", "uint2", zero=1, scale=1.0, before=("sign",))
    assert _explained(plus_minus).form == "W1A1"
    five = quantized_model(shape, 5 * signs, "int8", "uint8", scale=1.0, before=("clip",))
    assert _explained(five).form == "W1A1"
    for model in (one, plus_minus, five):
        _check(_louder(model, "int2"), shape)


@pytest.mark.parametrize(
    ("values", "bits", "is_sign"),
    [
        ((-1, 1), 1, True),
        ((-3, 3), 1, True),
        ((-9, 8), 5, False),
        ((-1, 0, 1), 2, False),
        ((0, 1), 2, False),
        ((-2, 1), 2, False),
        ((-8, 7), 4, False),
        ((-8, 0, 8), 5, False),
        ((-128,), 8, False),
    ],
)
def test_bits_of_weights(values, bits, is_sign):
    found = weight_range(np.array(values, "int8"))
    assert (found.bits, found.is_sign) == (bits, is_sign)
    assert isinstance(found, WeightRange)


@pytest.mark.parametrize(
    ("weight", "data", "p", "q"), [("int2", "uint2", 1, 1), ("int2", "uint2", 2, 2)]
)
def test_bits_of_whole_words_are_packed(weight, data, p, q):
    """Depths of which planes are made, border included."""
    rng = np.random.default_rng(4)
    weights = rng.choice([-1, 1], (16, 64, 3, 3)) if p == 1 else rng.integers(-2, 2, (16, 64, 3, 3))
    before = ("clip",) if q == 1 else ()
    shape = (1, 64, 6, 5)
    model = quantized_model(
        *(shape, weights, weight, data), scale=1.0, before=before, out_scale=0.5, pads=[1, 1, 1, 1]
    )
    assert _explained(model).form == f"W{p}A{q}"
    _check(model, shape)
