"""An operator in layouts of its own computes what the model says."""

import numpy as np
import onnx
import pytest

import tilewright
from tilewright.baselines.in_network import compile_in_network
from tilewright.baselines.suite import Operator, build_model
from tilewright.runtime import Module

# Of a certain processor, so that every machine chooses the same layouts.
_TARGET = "x86-64-v3"
_SIZES = {"size": (9, 11), "kernel": (3, 3)} | dict.fromkeys(("stride", "padding"), (1, 1))


def _saved(folder, operator):
    path = folder / f"{operator.name}.onnx"
    onnx.save(build_model(operator), path)
    rng = np.random.default_rng(0)
    return path, {"data": rng.standard_normal(operator.data_shape, np.float32)}


@pytest.mark.parametrize(("channels", "groups"), [(20, 20), (32, 4)], ids=["depthwise", "grouped"])
def test_layouts_of_its_own_are_those_of_the_results_too(tmp_path, channels, groups):
    operator = Operator(
        "X", "GRP", "test", channels, channels, "relu", groups=groups, dilation=(1, 1), **_SIZES
    )
    model, feed = _saved(tmp_path, operator)
    inside = compile_in_network(model, _TARGET, (), tmp_path)
    assert inside is not None
    assert set(inside.inputs) | set(inside.outputs) == {"data", "output"}
    given = inside.bring(feed)
    assert given["data"].shape != feed["data"].shape
    (found,) = inside.take(Module(inside.path, threads=1).run(given)).values()
    (wanted,) = tilewright.compile(model, logs=()).run(feed).values()
    np.testing.assert_allclose(found, wanted, rtol=1e-5, atol=1e-5)


def test_a_matrix_product_is_fastest_as_it_is(tmp_path):
    operator = Operator("X", "GMM", "test", 64, 48, "none", rows=16)
    model, _ = _saved(tmp_path, operator)
    assert compile_in_network(model, _TARGET, (), tmp_path) is None
