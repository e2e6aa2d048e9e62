"""The layouts that an operator may work in."""

import pytest

pytest.importorskip("tvm")

from tvm.script import tirx as T

from tests.compiler.layout.functions import fused, op
from tilewright.compiler.layout.choices import operator_choices
from tilewright.compiler.layout.formats import format_of
from tilewright.compiler.layout.operator import Operator
from tilewright.compiler.targets import parse_target

TARGET = parse_target("haswell")


@T.prim_func(s_tir=True)
def sum_of_rows(a: T.Buffer((1, 33, 4, 5), "float32"), b: T.Buffer((1, 33, 4, 5), "float32")):
    with T.sblock("root"):
        for i in range(33):
            with T.sblock("scan"):
                c = T.axis.spatial(33, i)
                for y, x in T.grid(4, 5):
                    b[0, c, y, x] = a[0, c, y, x]


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


def test_loops_that_are_not_normal_are_offered_no_padding_to_write():
    found = formats(sum_of_rows, {0, 1})
    assert ("B", "L") in found  # 33 channels in blocks of 8: padding may be read
    assert {result for _, result in found} == {"L", "C"}
