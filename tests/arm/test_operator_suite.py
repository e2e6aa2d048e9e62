"""An odd shape of every class of the operator suite, in float32 and in bytes, under qemu.

Every operator of the suite at its real size: `python -m benchmarks.arm_operators`.
"""

import numpy as np
import pytest

from benchmarks.arm_operators import ODD, TARGETS, measure, quantized
from benchmarks.quantized_operators import difference
from tests.arm.board import board_for
from tilewright.baselines.suite import KINDS

pytestmark = pytest.mark.arm


def test_there_is_an_odd_shape_of_every_class():
    assert sorted(operator.kind for operator in ODD) == sorted(KINDS)


@pytest.mark.parametrize("operator", ODD, ids=lambda operator: operator.kind)
@pytest.mark.parametrize(
    ("dtype", "target"),
    # In float32 the two processors have the same instructions.
    [("float32", TARGETS[0]), *(("int8", target) for target in TARGETS)],
)
def test_operator_on_an_odd_shape_is_right(operator, dtype, target):
    board_for(target)
    row = measure(operator, dtype, target)
    assert row["status"] == "right", row


@pytest.mark.parametrize("operator", ODD[:3], ids=lambda operator: operator.kind)
def test_bytes_that_are_off_are_seen(operator):
    case = quantized(operator)
    right = np.clip(np.rint(case.exact), 0, 255).astype(np.uint8)
    assert difference("y", operator.kind, right, right, case.exact).off == 0
    wrong = right.copy()
    wrong.flat[3] ^= 2
    seen = difference("y", operator.kind, wrong, wrong, case.exact)
    assert (seen.off, seen.off_greatest) == (1, 2)
