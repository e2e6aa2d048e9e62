"""The layouts that an operator may work in."""

import pytest

pytest.importorskip("tvm")

from tests.compiler.layout.functions import fused, op
from tilewright.compiler.layout.choices import operator_choices
from tilewright.compiler.layout.formats import format_of
from tilewright.compiler.layout.operator import Operator
from tilewright.compiler.targets import parse_target

TARGET = parse_target("haswell")


def formats(func, images, constants=()):
    """Return the formats of an operator's parameters, choice by choice."""
    operator = Operator(func, frozenset(constants), frozenset(images))
    return {
        tuple(format_of(layout) for layout in choice.layouts)
        for choice in operator_choices(operator, TARGET)
    }


def test_residual_may_have_the_format_of_the_result_beside_a_transposed_operand():
    func = fused(
        lambda x, y: op.add(op.permute_dims(x, [0, 3, 1, 2]), y), (1, 12, 10, 16), (1, 16, 12, 10)
    )
    found = formats(func, {0, 1, 2})
    assert {("L", "B", "B"), ("L", "C", "C"), ("L", "L", "L"), ("B", "B", "B")} <= found


def test_operands_of_one_shape_share_one_format():
    func = fused(op.add, (1, 16, 12, 10), (1, 16, 12, 10))
    assert {(a, a, b) for a in "LBC" for b in "LBC"} == formats(func, {0, 1, 2})
