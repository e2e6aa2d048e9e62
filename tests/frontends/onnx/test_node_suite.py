"""A spread of ONNX's own node tests, compiled with plain TVM: none that passed may fail."""

import functools
import warnings
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx.backend.test.case.test_case import TestCase
from onnx.backend.test.loader import load_model_tests

from tests.frontends.onnx.oracle import run
from tilewright.frontends.onnx import import_onnx, shape_inputs

# One name per line, of every case that passed when the list was written.
PASSING = (Path(__file__).parent / "node_tests_passing.txt").read_text().split()
STEP = 23


@functools.cache
def cases() -> dict[str, TestCase]:
    """Load the suite; making its cases warns about overflows and divisions by zero."""
    with warnings.catch_warnings(), np.errstate(all="ignore"):
        warnings.simplefilter("ignore")
        return {case.name: case for case in load_model_tests(kind="node")}


def as_array(value):
    if isinstance(value, onnx.TensorProto):
        return onnx.numpy_helper.to_array(value)
    return np.asarray(value)


def check_case(case):
    """Run the first data set; inputs that decide shapes are bound as constants."""
    inputs, outputs = case.data_sets[0]
    names = [item.name for item in case.model.graph.input]
    feeds = {name: as_array(value) for name, value in zip(names, inputs, strict=False)}
    special = set(shape_inputs(case.model)) & set(feeds)
    imported = import_onnx(
        case.model,
        shapes={name: array.shape for name, array in feeds.items() if name not in special},
        constants={name: feeds[name] for name in special},
    )
    for found, value in zip(run(imported, feeds), outputs, strict=True):
        wanted = as_array(value)
        assert (found.shape, str(found.dtype)) == (wanted.shape, str(wanted.dtype))
        if "float" in str(wanted.dtype):
            found, wanted = found.astype(np.float64), wanted.astype(np.float64)
            np.testing.assert_allclose(found, wanted, rtol=case.rtol, atol=case.atol)
        else:
            np.testing.assert_array_equal(found, wanted)


@pytest.mark.parametrize("name", PASSING[::STEP])
def test_case_still_passes(name):
    check_case(cases()[name])


@pytest.mark.slow
@pytest.mark.parametrize("name", PASSING)
def test_every_case_still_passes(name):
    check_case(cases()[name])
