"""Matrix products under layouts, against numpy."""

import pytest

pytest.importorskip("tvm")


from tests.compiler.layout.functions import check, divisions, fused, op
from tilewright.compiler.layout.primitives import Layout, Pad, Reorder, Split, blocked


@pytest.mark.parametrize("blocked_output", [False, True])
@pytest.mark.parametrize(("m", "k", "n"), [(5, 16, 32), (7, 13, 40), (1, 24, 3)])
def test_matmul_with_packed_weight_and_bias(m, k, n, blocked_output):
    func = fused(lambda a, b, c: op.add(op.matmul(a, b), c), (m, k), (k, n), (n,))
    layouts = {1: blocked((k, n), 1, 16).then(Reorder((1, 0, 2)))}
    if blocked_output:
        layouts |= {2: blocked((n,), 0, 16), 3: blocked((m, n), 1, 16).then(Reorder((1, 0, 2)))}
    text = check(func, layouts, lambda a, b, c: a @ b + c)
    if blocked_output:
        assert divisions(text) == []


def test_matmul_with_both_dimensions_of_the_weight_blocked():
    func = fused(op.matmul, (5, 12), (12, 20))
    weight = (Split(0, (3, 4)), Pad(2, 0, 4), Split(2, (3, 8)), Reorder((2, 0, 3, 1)))
    layouts = {0: blocked((5, 12), 1, 12), 1: Layout((12, 20), weight)}
    layouts[2] = blocked((5, 20), 1, 8).then(Reorder((1, 0, 2)))
    text = check(func, layouts, lambda a, b: a @ b)
    assert divisions(text) == []
    assert "k_o, k_i in" in text


def test_batched_matmul():
    func = fused(op.matmul, (2, 3, 5, 6), (2, 3, 6, 7))
    layouts = {1: blocked((2, 3, 6, 7), 3, 8).then(Reorder((0, 1, 3, 2, 4)))}
    layouts[2] = blocked((2, 3, 5, 7), 3, 8)
    assert divisions(check(func, layouts, lambda a, b: a @ b)) == []
