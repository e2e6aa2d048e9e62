"""Winograd's algorithm on integers gives the direct sums, bit for bit."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.compiler.quantize.models import Builder
from tilewright.api import lower_model
from tilewright.compiler.package import package
from tilewright.compiler.quantize import winograd_sums as sums
from tilewright.compiler.quantize.graph import Graph
from tilewright.compiler.quantize.linear import read_linear
from tilewright.compiler.targets import parse_target
from tilewright.frontends.onnx import import_onnx
from tilewright.runtime.module import Module

# Without the dot product of bytes: pairs of 16 bits are multiplied.
TARGET = parse_target("x86-64-v3")


def _convolution(size, channels=16, filters=16, act="uint8", result="bytes", **attributes):
    b = Builder(act=act)
    y = b.conv(b.dq("x", 0.03, 140), 0.03, (filters, channels, 3, 3), **attributes)
    if result == "bytes":
        y = b.q(b.node("Relu", y), 0.5, 3)
    return b.model({"x": ((*size[:1], channels, *size[1:]), act)}, [y])


def _run(model, feed, path, *, winograd):
    lowered, _ = lower_model(model, TARGET, winograd=winograd)
    package(lowered.program, TARGET, path, {})
    names = " ".join(call.kernel for call in lowered.program.calls)
    assert ("winograd" in names) == winograd
    return Module(path).run(feed)


def _check(model, path):
    feed = {}
    for value in model.graph.input:
        shape = [dim.dim_value for dim in value.type.tensor_type.shape.dim]
        unsigned = value.type.tensor_type.elem_type == 2
        low, dtype = (0, "uint8") if unsigned else (-128, "int8")
        feed[value.name] = np.random.default_rng(1).integers(low, low + 256, shape).astype(dtype)
    direct, fast = (
        _run(model, feed, path / f"{winograd}.so", winograd=winograd) for winograd in (False, True)
    )
    for name, wanted in direct.items():
        assert wanted.std() > 0
        np.testing.assert_array_equal(fast[name], wanted)


@pytest.fixture(autouse=True)
def _always_pays(monkeypatch):
    monkeypatch.setattr(sums, "_pays", lambda *_: True)


@pytest.mark.parametrize("act", ["uint8", "int8"])
@pytest.mark.parametrize("result", ["bytes", "floats"])
def test_sums_are_those_of_the_direct_convolution(act, result, tmp_path):
    model = _convolution((2, 9, 12), 24, 20, act, result, pads=[1, 1, 1, 1])
    _check(model, tmp_path)


@settings(max_examples=5, deadline=None)
@given(
    size=st.tuples(st.integers(1, 2), st.integers(5, 11), st.integers(5, 11)),
    channels=st.integers(16, 37),
    filters=st.integers(16, 37),
    pads=st.lists(st.integers(0, 2), min_size=4, max_size=4),
)
def test_sums_are_exact_for_odd_sizes(tmp_path_factory, size, channels, filters, pads):
    _check(_convolution(size, channels, filters, pads=pads), tmp_path_factory.mktemp("sums"))


def test_a_residual_block_is_exact(tmp_path):
    b = Builder()
    x = b.dq("x", 0.03, 140)
    first = b.qdq(b.node("Relu", b.conv(x, 0.03, (16, 16, 3, 3), pads=[1] * 4)), 0.4, 0)
    second = b.qdq(b.conv(first, 0.4, (16, 16, 3, 3), pads=[1] * 4), 4.0, 128)
    y = b.q(b.node("Relu", b.node("Add", second, x)), 2.0, 5)
    _check(b.model({"x": ((1, 16, 8, 8), "uint8")}, [y]), tmp_path)


def _linear(model):
    graph = Graph(import_onnx(model).module)
    return next(found for var in graph.value if (found := read_linear(graph, var)) is not None)


@pytest.mark.parametrize(
    "attributes", [{"strides": [2, 2]}, {"dilations": [2, 2]}, {"pads": [1, 1, 1, 1]}]
)
def test_only_dense_windows_of_stride_one(attributes):
    linear = _linear(_convolution((1, 12, 12), **attributes))
    found = sums.winograd_sums(linear, (1, 16, 12, 12))
    assert (found is not None) == ("pads" in attributes)


def test_sums_that_could_leave_32_bits_are_refused():
    linear = _linear(_convolution((1, 12, 12), pads=[1] * 4))
    wide = np.full((16, 4096, 3, 3), 127, np.int8)
    assert sums.winograd_sums(replace(linear, weight=wide), (1, 16, 12, 12)) is None


def test_targets_with_dot_products_of_bytes_stay_direct():
    model = _convolution((1, 12, 12), pads=[1] * 4)
    lowered, _ = lower_model(model, parse_target("cascadelake"))
    assert not any("winograd" in call.kernel for call in lowered.program.calls)
