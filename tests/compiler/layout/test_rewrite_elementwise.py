"""Element-wise operators and data movement under layouts, against numpy."""

import numpy as np
import pytest

pytest.importorskip("tvm")


from tests.compiler.layout.functions import check, divisions, fused, op, shapes_of, whole_numbers
from tilewright.compiler.layout.primitives import blocked


def test_element_wise_chain_with_broadcast_constants():
    x = (2, 6, 3, 5)
    func = fused(lambda a, c, d: op.add(op.multiply(op.exp(a), c), d), x, (1, 6, 1, 1), (5,))
    layouts = {0: blocked(x, 1, 4), 1: blocked((1, 6, 1, 1), 1, 4), 3: blocked(x, 1, 4)}
    text = check(func, layouts, lambda a, c, d: np.exp(a) * c + d, tolerance=1e-5)
    assert divisions(text) == []
    assert text.count("T.Select") == 2  # exp and the sum with d are not zero where x is


def test_constant_that_is_not_padded_is_not_read_outside():
    x = (2, 6, 3)
    func = fused(op.add, x, (6, 1))
    text = check(func, {0: blocked(x, 1, 4), 2: blocked(x, 1, 4)}, np.add)
    assert "if_then_else(v_ax1_o * T.int64(4) + v_ax1_i < T.int64(6), p1[" in text


def test_activation_that_is_zero_at_zero_needs_no_select():
    x = (2, 6, 3)
    func = fused(lambda a: op.nn.silu(a), x)
    text = check(
        func, {0: blocked(x, 1, 4), 1: blocked(x, 1, 4)}, lambda a: a / (1 + np.exp(-a)),
        tolerance=1e-5,
    )  # fmt: skip
    assert "T_multiply[v_ax0, v_ax1_o, v_ax2, v_ax1_i] = p0[" in text


MOVEMENTS = {
    "transpose": (lambda a: op.permute_dims(a, [0, 2, 1]), lambda a: a.transpose(0, 2, 1)),
    "reshape": (lambda a: op.reshape(a, [12, 5]), lambda a: a.reshape(12, 5)),
    "tile": (lambda a: op.tile(a, [1, 3, 1]), lambda a: np.tile(a, (1, 3, 1))),
    "slice": (lambda a: op.strided_slice(a, [1], [2], [6]), lambda a: a[:, 2:6]),
    "flip": (lambda a: op.flip(a, 1), lambda a: a[:, ::-1]),
    "repeat": (lambda a: op.repeat(a, 2, 1), lambda a: a.repeat(2, 1)),
    "pad": (
        lambda a: op.nn.pad(a, [0, 0, 1, 2, 0, 1]),
        lambda a: np.pad(a, [(0, 0), (1, 2), (0, 1)]),
    ),
}


@pytest.mark.parametrize(("build", "reference"), MOVEMENTS.values(), ids=MOVEMENTS)
@pytest.mark.parametrize("factor", [3, 4])
def test_data_movement_between_blocked_tensors(build, reference, factor):
    func = fused(build, (2, 6, 5))
    y = shapes_of(func)[-1]
    check(func, {0: blocked((2, 6, 5), 1, factor), 1: blocked(y, 1, factor)}, reference)


def test_concat_of_whole_blocks_has_no_division():
    func = fused(lambda a, b: op.concat([a, b], 1), (2, 8, 3), (2, 12, 3))
    layouts = {0: blocked((2, 8, 3), 1, 4), 1: blocked((2, 12, 3), 1, 4)}
    layouts[2] = blocked((2, 20, 3), 1, 4)
    text = check(func, layouts, lambda a, b: np.concatenate([a, b], 1))
    assert divisions(text) == []


def test_split_into_several_outputs():
    func = fused(lambda a: op.split(a, 2, 1), (2, 8, 3))
    layouts = {i: blocked((2, 4, 3), 1, 4) for i in (1, 2)} | {0: blocked((2, 8, 3), 1, 4)}
    text = check(func, layouts, lambda a: np.split(a, 2, 1), outputs=2)
    assert divisions(text) == []


def test_gather_reads_the_physical_place_of_a_computed_index():
    func = fused(lambda a, i: op.take(a, i, 1), (2, 6, 3), ((5,), "int64"))
    inputs = whole_numbers(func)
    inputs[1] = np.array([5, 0, 3, 3, 1])
    layouts = {0: blocked((2, 6, 3), 1, 4), 2: blocked((2, 5, 3), 1, 4)}
    check(func, layouts, lambda a, i: a[:, i], inputs=inputs)
