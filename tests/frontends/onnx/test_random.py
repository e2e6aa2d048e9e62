"""Random operators: with a seed, the numbers of ONNX's reference implementation."""

import numpy as np
import pytest
from onnx import helper
from onnx.reference import ReferenceEvaluator

import tilewright
from tests.frontends.onnx.oracle import make_model
from tilewright.errors import UnsupportedModelError

X = np.zeros((3, 50), np.float32)
CASES = {
    "uniform": ("RandomUniform", {"shape": [3, 4], "low": -1.0, "high": 2.0, "seed": 7.0}),
    "normal": ("RandomNormal", {"shape": [3, 4], "mean": 1.0, "scale": 0.5, "seed": 3.0}),
    "uniform like": ("RandomUniformLike", {"seed": 5.0}),
    "normal like": ("RandomNormalLike", {"seed": 5.0, "dtype": 1}),
}


def model_of(operator, attributes):
    inputs = ["x"] if operator.endswith("Like") else []
    node = helper.make_node(operator, inputs, ["r"], **attributes)
    add = helper.make_node("Add", ["r", "x" if inputs else "s"], ["y"])
    feeds = {"x": X} if inputs else {"s": np.zeros(4, np.float32)}
    return make_model([node, add], feeds, ["y"], 22), feeds


@pytest.mark.parametrize("case", CASES)
def test_seeded_numbers_are_those_of_the_reference(case):
    model, feeds = model_of(*CASES[case])
    found = tilewright.compile(model, logs=()).run(feeds)["y"]
    wanted = ReferenceEvaluator(model).run(None, feeds)[0]
    np.testing.assert_allclose(found, wanted, rtol=1e-6, atol=1e-6)


def test_too_many_numbers_are_refused():
    model, _ = model_of("RandomNormal", {"shape": [1 << 40, 4], "seed": 1.0})
    with pytest.raises(UnsupportedModelError, match="random numbers would be stored"):
        tilewright.compile(model, logs=())


def test_multinomial_chooses_by_the_probabilities_of_its_input():
    node = helper.make_node("Multinomial", ["x"], ["y"], sample_size=4000, seed=2.0)
    model = make_model([node], {"x": np.zeros((2, 3), np.float32)}, ["y"], 22)
    compiled = tilewright.compile(model, logs=())
    shares = np.array([[0.2, 0.5, 0.3], [0.9, 0.1, 0.0]])
    with np.errstate(divide="ignore"):
        found = compiled.run({"x": np.log(shares).astype(np.float32)})["y"]
    assert (found.shape, found.dtype) == ((2, 4000), np.int32)
    drawn = np.stack([np.bincount(row, minlength=3) for row in found]) / 4000
    np.testing.assert_allclose(drawn, shares, atol=0.03)
