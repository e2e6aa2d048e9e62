"""Integer convolutions of one or two channels read columns side by side."""

import numpy as np
import pytest

import tilewright
from tests.compiler.quantize.models import Builder, run_onnxruntime
from tilewright.compiler.quantize.columns import columns_of
from tilewright.compiler.quantize.qdq import QuantizedOperators
from tilewright.frontends.onnx import import_onnx

_SHAPES = [
    ((1, 1, 9, 11), (8, 1, 5, 5), {"pads": [2, 2, 2, 2]}),
    ((2, 1, 9, 11), (8, 1, 3, 7), {"pads": [0, 1, 1, 3], "strides": [1, 2]}),
    ((1, 2, 8, 10), (16, 2, 3, 3), {"pads": [1, 0, 0, 1], "dilations": [2, 1]}),
    ((1, 1, 30), (8, 1, 4), {"strides": [3]}),
]


@pytest.mark.parametrize(("data", "weight", "attributes"), _SHAPES)
@pytest.mark.parametrize("act", ["uint8", "int8"])
def test_sums_are_those_of_the_convolution(data, weight, attributes, act):
    b = Builder(act=act)
    # A zero point that is not in the middle: the border shows.
    y = b.conv(b.qdq("x", 0.03, 90), 0.03, weight, **attributes)
    model = b.model({"x": (data, "float32")}, [b.q(y, 0.03, 120)])
    kernels = QuantizedOperators()(import_onnx(model).module).functions
    assert any(name.name_hint.startswith("columns") for name in kernels)
    feed = {"x": np.random.default_rng(1).uniform(-2, 4, data).astype("float32")}
    (wanted,) = run_onnxruntime(model, feed)
    (got,) = tilewright.compile(model, "native").run(feed).values()
    assert np.abs(got.astype(int) - wanted.astype(int)).max() <= 1
    assert (got != wanted).mean() < 0.01
    assert wanted.std() > 10


@pytest.mark.parametrize(
    ("weight", "dilation", "groups"),
    [((8, 3, 5, 5), 1, 1), ((8, 1, 5, 1), 1, 1), ((8, 1, 3, 3), 2, 1), ((8, 1, 3, 3), 1, 8)],
)
def test_other_convolutions_are_left_alone(weight, dilation, groups):
    window = ((1, 1), (0, 0, 0, 0), (1, dilation), groups)
    assert columns_of(np.zeros(weight, "int8"), window, 20) is None
