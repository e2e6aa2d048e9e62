"""Convolutions under layouts, against numpy."""

import numpy as np
import pytest

pytest.importorskip("tvm")


from tests.compiler.layout.functions import check, divisions, fused, op, shapes_of
from tests.compiler.layout.references import conv, conv_function, conv_transpose, packed_weight
from tilewright.compiler.layout.primitives import Layout, Pad, Reorder, Split, blocked
from tilewright.compiler.layout.rewrite import rewrite

CONVOLUTIONS = {
    "blocks divide": ((2, 32, 7, 5), (16, 32, 3, 3), [1, 1], [1, 1, 1, 1], None, 1, 16),
    "channels 24 to 40": ((1, 24, 7, 5), (40, 24, 3, 3), [1, 1], [1, 1, 1, 1], None, 1, 16),
    "primes, asymmetric": ((1, 7, 9, 5), (13, 7, 3, 2), [1, 2], [0, 1, 2, 0], None, 1, 4),
    "stride above kernel": ((1, 5, 11, 9), (6, 5, 2, 1), [3, 2], [0, 0, 0, 0], None, 1, 4),
    "one channel": ((2, 1, 6, 5), (3, 1, 3, 3), [1, 1], [1, 1, 1, 1], None, 1, 8),
    "pointwise": ((1, 20, 4, 3), (33, 20, 1, 1), [1, 1], [0, 0, 0, 0], None, 1, 16),
    "dilated": ((1, 8, 9, 7), (8, 8, 3, 3), [1, 1], [2, 2, 2, 2], [2, 2], 1, 8),
    "one dimension": ((1, 12, 7), (10, 12, 3), [2], [1, 1], None, 1, 8),
    "three dimensions": (
        (1, 6, 3, 5, 4),
        (5, 6, 2, 3, 3),
        [1, 2, 1],
        [0, 1, 1, 1, 1, 1],
        None,
        1,
        4,
    ),
}


@pytest.mark.parametrize("case", CONVOLUTIONS.values(), ids=CONVOLUTIONS)
def test_convolution_blocked_everywhere(case):
    x, w, strides, padding, dilation, groups, block = case
    func, y = conv_function(x, w, strides, padding, dilation, groups)
    layouts = {0: blocked(x, 1, block), 1: packed_weight(w, block, block), 2: blocked(y, 1, block)}
    text = check(func, layouts, lambda a, b: conv(a, b, strides, padding, dilation, groups))
    assert divisions(text) == []


def test_convolution_loops_are_split_as_the_layouts_are():
    func, y = conv_function((1, 32, 7, 5), (48, 32, 3, 3), [1, 1], [1, 1, 1, 1])
    layouts = {0: blocked((1, 32, 7, 5), 1, 16), 2: blocked(y, 1, 16)}
    layouts[1] = packed_weight((48, 32, 3, 3), 16, 16)
    text = rewrite(func, layouts).script()
    assert "nn, ff_o, yy, xx, ff_i, rc_o, ry, rx, rc_i in" in text
    assert "pad_temp[v_nn, v_rc_o, v_yy + v_ry, v_xx + v_rx, v_rc_i]" in text
    assert "p1[v_ff_o, v_rc_o, v_ry, v_rx, v_rc_i, v_ff_i]" in text
    assert "pad_temp = T.sblock_alloc_buffer((T.int64(1), T.int64(2), T.int64(9)" in text


def test_first_layer_keeps_its_three_channels_whole():
    func, y = conv_function((1, 3, 13, 11), (24, 3, 7, 7), [2, 2], [3, 3, 3, 3])
    layouts = {1: packed_weight((24, 3, 7, 7), 16), 2: blocked(y, 1, 16)}
    text = check(func, layouts, lambda a, b: conv(a, b, [2, 2], [3, 3, 3, 3]))
    assert divisions(text) == []
    assert "ff_i, rc, ry, rx in" in text


def test_padded_data_with_whole_weight_channels_is_not_padded_in_the_loop():
    func, y = conv_function((1, 3, 5, 4), (8, 3, 3, 3), [1, 1], [1, 1, 1, 1])
    layouts = {0: blocked((1, 3, 5, 4), 1, 4), 2: blocked(y, 1, 8)}
    layouts[1] = packed_weight((8, 3, 3, 3), 8)
    text = check(func, layouts, lambda a, b: conv(a, b, [1, 1], [1, 1, 1, 1]))
    assert divisions(text) == []


def test_reduction_stays_whole_where_padding_it_would_read_outside():
    func, _ = conv_function((1, 6, 5, 4), (8, 6, 3, 3), [1, 1], [0, 0, 0, 0])
    layouts = {0: blocked((1, 6, 5, 4), 1, 4), 1: packed_weight((8, 6, 3, 3), 8)}
    text = check(func, layouts, lambda a, b: conv(a, b, [1, 1], [0, 0, 0, 0]))
    assert "rc_o" not in text


def test_grouped_convolution_with_blocks_inside_groups():
    x, w = (1, 16, 7, 5), (24, 8, 3, 3)
    func, y = conv_function(x, w, [1, 1], [1, 1, 1, 1], None, 2)
    layouts = {0: blocked(x, 1, 4), 1: packed_weight(w, 4, 4), 2: blocked(y, 1, 4)}
    text = check(func, layouts, lambda a, b: conv(a, b, [1, 1], [1, 1, 1, 1], None, 2))
    assert "v_ff_o // T.int64(3) * T.int64(2) + v_rc_o" in text  # the group, and no remainder
    assert "%" not in "".join(divisions(text))


def test_grouped_convolution_with_padding_inside_groups():
    x, w = (1, 12, 5, 4), (12, 6, 3, 3)
    func, y = conv_function(x, w, [1, 1], [1, 1, 1, 1], None, 2)
    inside = (Split(1, (2, 6)), Pad(2, 0, 2), Split(2, (2, 4)), Reorder((0, 1, 2, 4, 5, 3)))
    outer = (Split(0, (2, 6)), Pad(1, 0, 2), Split(1, (2, 4)), Pad(3, 0, 2), Split(3, (2, 4)))
    weight = Layout(w, (*outer, Reorder((0, 1, 3, 5, 6, 4, 2))))
    layouts = {0: Layout(x, inside), 1: weight, 2: Layout(y, inside)}
    text = check(func, layouts, lambda a, b: conv(a, b, [1, 1], [1, 1, 1, 1], None, 2))
    assert divisions(text) == []


@pytest.mark.parametrize("channels", [1, 3, 8, 24])
def test_depthwise_convolution_is_vectorised_over_channels(channels):
    x, w = (1, channels, 7, 5), (channels, 1, 3, 3)
    func, y = conv_function(x, w, [2, 2], [1, 1, 1, 1], None, channels)
    layouts = {0: blocked(x, 1, 8), 1: packed_weight(w, 8), 2: blocked(y, 1, 8)}
    text = check(func, layouts, lambda a, b: conv(a, b, [2, 2], [1, 1, 1, 1], None, channels))
    assert divisions(text) == []


def test_transposed_convolution():
    x, w = (1, 12, 5, 4), (12, 7, 4, 3)
    func = fused(
        lambda a, b: op.nn.conv2d_transpose(a, b, strides=[2, 1], padding=[1, 0, 1, 1]), x, w
    )
    weight = (Pad(0, 0, 4), Split(0, (2, 8)), Pad(2, 0, 1), Split(2, (1, 8)))
    layouts = {
        0: blocked(x, 1, 8),
        1: Layout(w, (*weight, Reorder((2, 0, 4, 5, 1, 3)))),
        2: blocked(shapes_of(func)[-1], 1, 8),
    }
    check(func, layouts, lambda a, b: conv_transpose(a, b, [2, 1], [1, 0, 1, 1]))


def test_fused_epilogue_follows_the_output():
    x, w, y = (1, 16, 7, 5), (24, 16, 3, 3), (1, 24, 7, 5)
    func = fused(
        lambda a, b, bias, rest: op.nn.relu(
            op.add(op.add(op.nn.conv2d(a, b, padding=[1, 1, 1, 1]), bias), rest)
        ),
        x, w, (24, 1, 1), y,
    )  # fmt: skip
    layouts = {0: blocked(x, 1, 16), 1: packed_weight(w, 16, 16), 2: blocked((24, 1, 1), 0, 16)}
    layouts |= {3: blocked(y, 1, 16), 4: blocked(y, 1, 16)}

    def reference(a, b, bias, rest):
        return np.maximum(conv(a, b, [1, 1], [1, 1, 1, 1]) + bias + rest, 0)

    text = check(func, layouts, reference)
    assert divisions(text) == []
    assert "Select" not in text  # zeros in the padding give zeros
    assert text.count("sblock_alloc_buffer((T.int64(1), T.int64(2), T.int64(7), T.int64(5)") == 3


def test_int8_convolution_with_four_channels_innermost():
    x, w = (1, 6, 5, 4), (10, 6, 3, 3)
    func = fused(
        lambda a, b: op.nn.conv2d(a, b, padding=[1, 1, 1, 1], out_dtype="int32"),
        (x, "int8"), (w, "int8"),
    )  # fmt: skip
    weight = (Pad(0, 0, 6), Split(0, (1, 16)), Pad(2, 0, 2), Split(2, (2, 4)))
    layouts = {
        0: blocked(x, 1, 8),
        1: Layout(w, (*weight, Reorder((0, 2, 4, 5, 1, 3)))),
        2: blocked((1, 10, 5, 4), 1, 16),
    }

    def reference(a, b):
        return conv(a.astype("int32"), b.astype("int32"), [1, 1], [1, 1, 1, 1])

    assert divisions(check(func, layouts, reference)) == []
