"""PrimFuncs under random layouts, against numpy."""

from functools import partial

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

pytest.importorskip("tvm")


from tests.compiler.layout.functions import check, fused, op, shapes_of
from tests.compiler.layout.references import (
    conv,
    conv_function,
    conv_transpose,
    max_pool,
    packed_weight,
)
from tilewright.compiler.layout.primitives import Fuse, Layout, Pad, Reorder, Split, blocked


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


def laid_out(draw, func):
    """Return a random layout for every parameter of a function."""
    return {i: draw(rearrangements(shape)) for i, shape in enumerate(shapes_of(func))}


@settings(deadline=None, max_examples=25)
@given(st.data())
def test_convolutions_of_every_kind_under_random_layouts(data):
    """C1D, C2D, C3D; dense, grouped, depthwise; dilated, strided beyond the kernel; int8."""
    draw = data.draw
    rank = draw(st.integers(1, 3))
    groups, inputs, outputs = draw(
        st.sampled_from([(1, 1, 5), (1, 3, 4), (1, 7, 1), (2, 2, 3), (3, 1, 1), (3, 1, 2)])
    )
    each = partial(st.lists, min_size=rank, max_size=rank)
    kernel, strides = draw(each(st.integers(1, 3))), draw(each(st.integers(1, 4)))
    dilation, size = draw(each(st.integers(1, 2))), draw(each(st.sampled_from([5, 6, 7])))
    padding = [draw(st.integers(0, 2)) for _ in range(2 * rank)]
    dtype, sums = draw(st.sampled_from([("float32", "float32"), ("int8", "int32")]))
    x, w = (1, groups * inputs, *size), (groups * outputs, inputs, *kernel)
    make = {1: op.nn.conv1d, 2: op.nn.conv2d, 3: op.nn.conv3d}[rank]

    def build(a, b):
        return make(
            a, b, strides=strides, padding=padding, dilation=dilation, groups=groups, out_dtype=sums
        )

    def reference(a, b):
        return conv(a.astype(sums), b.astype(sums), strides, padding, dilation, groups)

    func = fused(build, (x, dtype), (w, dtype))
    check(func, laid_out(draw, func), reference)


@settings(deadline=None, max_examples=15)
@given(st.data())
def test_transposed_convolutions_under_random_layouts(data):
    """T2D and T3D."""
    draw = data.draw
    rank = draw(st.integers(2, 3))
    each = partial(st.lists, min_size=rank, max_size=rank)
    kernel, strides = draw(each(st.integers(1, 3))), draw(each(st.integers(1, 3)))
    size = draw(each(st.sampled_from([2, 3, 5])))
    padding = [draw(st.integers(0, (kernel[i % rank] - 1) // 2)) for i in range(2 * rank)]
    x, w = (1, draw(st.sampled_from([1, 3])), *size), (draw(st.sampled_from([1, 5])), *kernel)
    w = (x[1], *w)
    make = {2: op.nn.conv2d_transpose, 3: op.nn.conv3d_transpose}[rank]
    func = fused(lambda a, b: make(a, b, strides=strides, padding=padding), x, w)
    check(func, laid_out(draw, func), lambda a, b: conv_transpose(a, b, strides, padding))


@settings(deadline=None, max_examples=15)
@given(st.data())
def test_stacked_matmul_under_random_layouts(data):
    """Batched GMM with a bias of every shape that broadcasts."""
    bias = data.draw(st.sampled_from([(7,), (5, 1), (3, 1, 7), (1, 1, 1)]))
    func = fused(lambda a, b, c: op.add(op.matmul(a, b), c), (3, 5, 6), (3, 6, 7), bias)
    check(func, laid_out(data.draw, func), lambda a, b, c: a @ b + c)


@settings(deadline=None, max_examples=15)
@given(st.data())
def test_pooling_and_sums_under_random_layouts(data):
    draw = data.draw
    strides = [draw(st.integers(1, 4)) for _ in range(2)]
    axes = draw(st.sampled_from([[1], [2, 3], [0, 2], [3]]))
    x = (2, draw(st.sampled_from([1, 3, 5])), 7, 6)
    pool = fused(lambda a: op.nn.max_pool2d(a, [3, 3], strides=strides, padding=[1, 1, 1, 1]), x)
    check(pool, laid_out(draw, pool), max_pool(strides, 1))
    total = fused(lambda a: op.sum(op.multiply(a, a), axes), x)
    check(total, laid_out(draw, total), lambda a: (a * a).sum(tuple(axes)))


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
