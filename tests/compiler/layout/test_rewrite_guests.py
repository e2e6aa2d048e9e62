"""Tensors that are stored inside of others."""

import numpy as np
import pytest

pytest.importorskip("tvm")


from tests.compiler.layout.functions import fused, op, run, whole_numbers
from tilewright.compiler.layout.primitives import Layout, Pad, Reorder, Split, StoreAt, blocked
from tilewright.compiler.layout.rewrite import rewrite
from tilewright.errors import LayoutError


@pytest.mark.parametrize("rows", [8, 6])
def test_bias_that_is_stored_inside_the_weight(rows):
    func = fused(lambda a, b, c: op.add(op.matmul(a, b), c), (5, rows), (rows, 10), (1, 10))
    columns = (Pad(1, 0, 6), Split(1, (2, 8)))
    layout = Layout((rows, 10), (StoreAt(0, "p2"), *columns, Reorder((1, 0, 2))))
    new = rewrite(func, {1: layout})
    assert [param.name for param in new.params] == ["p0", "p1", "T_add_intermediate"]
    a, b, c, out = whole_numbers(func)
    packed = layout.transform(b, guests={"p2": c[0]})
    result = run(new, [a, packed, np.full_like(out, np.nan)])[-1]
    np.testing.assert_array_equal(result, a @ b + c)


def test_guest_in_the_padding_of_a_reduction_does_not_count():
    func = fused(lambda a, b, c: op.add(op.matmul(a, b), c), (3, 5), (5, 4), (4,))
    stored = Layout((5, 4), (StoreAt(0, "p2"), Pad(0, 0, 2), Split(0, (2, 4))))
    new = rewrite(func, {0: blocked((3, 5), 1, 4), 1: stored})
    assert "k_o, k_i in" in new.script()
    a, b, c, out = whole_numbers(func)
    arrays = [blocked((3, 5), 1, 4).transform(a), stored.transform(b, guests={"p2": c})]
    result = run(new, [*arrays, np.full_like(out, np.nan)])[-1]
    np.testing.assert_array_equal(result, a @ b + c)


@pytest.mark.parametrize(
    ("guest", "layouts", "message"),
    [
        ("bias", {}, "store_at names 'bias', which is not one other parameter"),
        ("T_add", {}, "'T_add' cannot be stored inside 'p1'"),
        ("p0", {}, r"tensor 'p0' has shape \[3, 5\], expected \[4\]"),
        ("p2", {2: Layout((4,))}, "'p2' cannot be stored inside 'p1'"),
    ],
)
def test_guests_that_do_not_fit_raise(guest, layouts, message):
    func = fused(lambda a, b, c: op.add(op.matmul(a, b), c), (3, 5), (5, 4), (4,))
    guest = func.params[-1].name if guest == "T_add" else guest
    with pytest.raises(LayoutError, match=message.replace("T_add", func.params[-1].name)):
        rewrite(func, {1: Layout((5, 4), (StoreAt(0, guest),)), **layouts})
