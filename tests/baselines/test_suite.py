"""The operator suite: shapes, operations and the ONNX models made from it."""

import numpy as np
import onnx
import pytest
from onnx.reference import ReferenceEvaluator

from tilewright.baselines import build_model, load_suite
from tilewright.baselines.suite import KINDS
from tilewright.errors import MeasureError


def test_suite_has_four_shapes_of_every_class_and_a_core_of_two():
    for kind in KINDS:
        assert len(load_suite("alt", [kind])) >= 4
    assert len(load_suite("core")) == 2 * len(KINDS)
    assert [op.kind for op in load_suite("quick")] == list(KINDS)


def test_names_are_unique_over_batches():
    operators = load_suite("alt", batches=(1, 16))
    assert len({op.name for op in operators}) == len(operators)


def test_an_id_chooses_one_row():
    (operator,) = load_suite("quick", ["C2D-2"])
    assert operator.name == "C2D-2-b1"


@pytest.mark.parametrize(
    ("suite", "kinds", "batches", "message"),
    [
        ("huge", [], (1,), "unknown suite 'huge'"),
        ("alt", ["C4D"], (1,), "unknown operator 'C4D'"),
        ("alt", [], (0,), "at least 1"),
    ],
)
def test_unknown_names_are_refused(suite, kinds, batches, message):
    with pytest.raises(MeasureError, match=message):
        load_suite(suite, kinds, batches)


@pytest.mark.parametrize("operator", load_suite("alt", batches=(2,)), ids=lambda op: op.id)
def test_models_are_valid_and_have_the_stated_shape(operator):
    model = build_model(operator)
    onnx.checker.check_model(model, full_check=True)
    inferred = onnx.shape_inference.infer_shapes(model, strict_mode=True, data_prop=True)
    (found,) = inferred.graph.output
    extents = tuple(dim.dim_value for dim in found.type.tensor_type.shape.dim)
    assert extents == operator.output_shape


def test_output_has_about_unit_scale():
    (operator,) = load_suite("alt", ["GMM-4"])
    data = np.random.default_rng(0).standard_normal(operator.data_shape, np.float32)
    (output,) = ReferenceEvaluator(build_model(operator)).run(None, {"data": data})
    assert 0.3 < output.std() < 2


def test_operations_count_two_for_each_multiply_add():
    (conv,) = load_suite("alt", ["C2D-1"])
    assert conv.flops == 2 * 64 * 64 * 9 * 56 * 56
    (product,) = load_suite("alt", ["GMM-1"], (16,))
    assert product.flops == 2 * 16 * 128 * 768 * 768
    (transposed,) = load_suite("alt", ["T2D-1"])
    assert transposed.output_shape == (1, 256, 16, 16)
    assert transposed.flops == 2 * 512 * 256 * 16 * 8 * 8


def test_plain_data_leaves_defaults_out():
    (operator,) = load_suite("alt", ["C2D-1"])
    assert not {"groups", "dilation", "rows", "transposed"} & set(operator.to_json())
    (operator,) = load_suite("alt", ["T2D-1"])
    assert operator.to_json()["transposed"]
