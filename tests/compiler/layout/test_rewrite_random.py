"""PrimFuncs under random layouts, against numpy."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

pytest.importorskip("tvm")


from tests.compiler.layout.functions import check, fused, op
from tests.compiler.layout.references import conv, conv_function, packed_weight
from tilewright.compiler.layout.primitives import Fuse, Layout, Pad, Reorder, Split, blocked


@settings(deadline=None, max_examples=20)
@given(st.data())
def test_random_convolutions_with_random_blocks_and_borders(data):
    draw = data.draw
    n, c, o = (
        draw(st.integers(1, 2)),
        draw(st.sampled_from([1, 3, 5, 8, 12])),
        draw(st.sampled_from([1, 4, 7, 16])),
    )
    kernel = [draw(st.integers(1, 3)) for _ in range(2)]
    strides = [draw(st.integers(1, 4)) for _ in range(2)]
    padding = [draw(st.integers(0, 2)) for _ in range(4)]
    size = [draw(st.integers(3, 8)) for _ in range(2)]
    x, w = (n, c, *size), (o, c, *kernel)
    func, y = conv_function(x, w, strides, padding)
    blocks = st.sampled_from([1, 4, 8])

    def border():
        return [Pad(2 + d, draw(st.integers(0, 2)), draw(st.integers(0, 2))) for d in range(2)]

    in_block, out_block = draw(blocks), draw(blocks)
    layouts = {
        0: blocked(x, 1, in_block).then(*border()),
        1: packed_weight(w, out_block, draw(st.sampled_from([in_block, None]))),
        2: blocked(y, 1, out_block).then(*border()),
    }
    check(func, layouts, lambda a, b: conv(a, b, strides, padding))


@st.composite
def rearrangements(draw, shape):
    """Random layouts of `shape` that a producer can write through."""
    layout = Layout(shape)
    for _ in range(draw(st.integers(0, 4))):
        current = layout.physical_shape
        dim = draw(st.integers(0, len(current) - 1))
        kind = draw(st.sampled_from(["split", "fuse", "reorder", "pad"]))
        if kind == "split":
            inner = draw(st.sampled_from([d for d in range(1, 9) if current[dim] % d == 0]))
            step = Split(dim, (current[dim] // inner, inner))
        elif kind == "fuse":
            step = Fuse(dim, draw(st.integers(1, len(current) - dim)))
        elif kind == "reorder":
            step = Reorder(tuple(draw(st.permutations(range(len(current))))))
        else:
            step = Pad(dim, draw(st.integers(0, 2)), draw(st.integers(0, 3)))
        if np.prod(step.output_shape(current)) < 5000:
            layout = layout.then(step)
    return layout


@settings(deadline=None, max_examples=40)
@given(rearrangements((2, 6, 5)), rearrangements((6, 1)), rearrangements((2, 6, 5)))
def test_element_wise_under_random_layouts(a, b, c):
    func = fused(lambda x, y: op.nn.relu(op.subtract(op.multiply(x, x), y)), (2, 6, 5), (6, 1))
    check(func, {0: a, 1: b, 2: c}, lambda x, y: np.maximum(x * x - y, 0))


@settings(deadline=None, max_examples=30)
@given(rearrangements((5, 6)), rearrangements((6, 7)), rearrangements((5, 7)))
def test_matmul_under_random_layouts(a, b, c):
    func = fused(op.matmul, (5, 6), (6, 7))
    check(func, {0: a, 1: b, 2: c}, lambda x, y: x @ y)
