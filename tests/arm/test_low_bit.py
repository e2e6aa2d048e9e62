"""Products by bits on ARM: and, cnt and add, exact in every mix of widths."""

import numpy as np
import pytest

from tests.arm.board import board_for
from tests.compiler.schedule.test_low_bit import convolution, convolved, data_of, weights_of
from tilewright.compiler.codegen import assembly
from tilewright.compiler.layout.integer_choices import channels_last, grouped_weight
from tilewright.compiler.layout.rewrite import rewrite
from tilewright.compiler.package import package
from tilewright.compiler.passes.pack_bits import pack_bits
from tilewright.compiler.program import Call, Program, Tensor, TensorSpec
from tilewright.compiler.schedule import schedule
from tilewright.compiler.schedule.bit_packing import PLANES
from tilewright.compiler.targets import parse_target

pytestmark = pytest.mark.arm

TARGETS = ("aarch64", "armv7:cortex-a7")
DATA, WEIGHT = (1, 64, 5, 6), (20, 64, 3, 3)
ZERO = 1


def _program(target, p, q):
    """Return the program of a padded convolution, its data and what is right."""
    rng = np.random.default_rng(p * 8 + q)
    w, weights = weights_of(p, WEIGHT, rng)
    x, mask = data_of(q, DATA, rng)
    func, shape = convolution(DATA, WEIGHT, weights, mask, 1, 1, ZERO)
    layouts = {
        0: channels_last(DATA),
        1: grouped_weight(WEIGHT, 0, 1, target.lanes("int32"), PLANES),
        2: channels_last(shape),
    }
    func = rewrite(func, layouts)
    data, constant = layouts[0].transform(x), layouts[1].transform(w)
    result = tuple(layouts[2].physical_shape)
    program = Program(
        tensors=(
            Tensor("x", data.shape, "uint8", "input"),
            Tensor("w", constant.shape, "int8", "constant", constant),
            Tensor("y", result, "int32", "output"),
        ),
        calls=(Call("conv", (0, 1, 2), "conv"),),
        inputs=(0,),
        outputs=(2,),
        kernels={"conv": func},
        input_specs=(TensorSpec("x", data.shape, "uint8"),),
        output_specs=(TensorSpec("y", result, "int32"),),
    )
    program = pack_bits(program, {"conv": schedule(func, target)}, {})
    return program, data, layouts[2].transform(convolved(x, w, 1, 1, ZERO))


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize(("p", "q"), [(1, 1), (2, 8), (4, 4)])
def test_convolution_by_bits_is_exact(target, p, q, tmp_path):
    board = board_for(target)
    description = parse_target(target)
    program, data, expected = _program(description, p, q)
    package(program, description, tmp_path / "conv.so")
    (got,) = board.run(tmp_path / "conv.so", [data])
    np.testing.assert_array_equal(got, expected)


@pytest.mark.parametrize(("target", "count"), [(TARGETS[0], "cnt"), (TARGETS[1], "vcnt.8")])
def test_bits_are_counted_by_the_instruction(target, count):
    description = parse_target(target)
    program, _, _ = _program(description, 1, 1)
    text = assembly(program.kernels, description)
    assert f"\t{count}" in text
