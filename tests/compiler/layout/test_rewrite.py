"""The layout rewriter, against numpy: every physical output, its padding included.

Inputs hold small integers, so that float sums are exact whatever their order. Outputs hold NaN
before the run: what nobody writes shows.
"""

import re

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

tvm = pytest.importorskip("tvm")
tvm_ffi = pytest.importorskip("tvm_ffi")

from tvm import relax, s_tir  # noqa: E402
from tvm.script import tirx as T  # noqa: E402

from tilewright.compiler.layout.primitives import (  # noqa: E402
    Crop,
    Fuse,
    Layout,
    Pad,
    Reorder,
    Split,
    StoreAt,
    Unfold,
    blocked,
)
from tilewright.compiler.layout.rewrite import pack_constant, rewrite  # noqa: E402
from tilewright.errors import LayoutError  # noqa: E402

LLVM = tvm.target.Target("llvm")
op = relax.op


def fused(build, *params):
    """Return the one PrimFunc that Relax makes of ``build(*params)``; a param is a shape."""
    builder = relax.BlockBuilder()
    typed = [p if isinstance(p[-1], str) else (p, "float32") for p in params]
    variables = [relax.Var(f"p{i}", relax.TensorType(s, d)) for i, (s, d) in enumerate(typed)]
    with builder.function("main", variables):
        with builder.dataflow():
            result = builder.emit_output(builder.normalize(build(*variables)))
        builder.emit_func_output(result)
    passes = [
        relax.transform.LegalizeOps(),
        relax.transform.AnnotateTIROpPattern(),
        relax.transform.FuseOps(),
        relax.transform.FuseTIR(),
    ]
    module = tvm.ir.transform.Sequential(passes)(builder.get())
    functions = [f for f in module.functions.values() if isinstance(f, tvm.tirx.PrimFunc)]
    assert len(functions) == 1
    return functions[0]


def shapes_of(func):
    return [tuple(int(extent) for extent in param.shape) for param in func.params]


def whole_numbers(func, seed=0):
    """Return an array of small integers per parameter."""
    rng = np.random.default_rng(seed)
    return [
        rng.integers(-4, 5, shape).astype(param.dtype)
        for shape, param in zip(shapes_of(func), func.params, strict=True)
    ]


def run(func, arrays):
    tensors = [tvm.runtime.tensor(array) for array in arrays]
    tvm.compile(func.with_attr("global_symbol", "main"), LLVM)(*tensors)
    return [tensor.numpy() for tensor in tensors]


def check(func, layouts, reference, *, outputs=1, tolerance=0.0, buffers=None, inputs=None):
    """Rewrite, run, and compare each output, padding included; return the function's text.

    Args:
        reference: numpy function of the logical inputs; returns the logical output(s).
    """
    arrays = inputs or whole_numbers(func)
    count = len(arrays) - outputs
    expected = reference(*arrays[:count])
    expected = list(expected) if outputs > 1 else [expected]
    new = rewrite(func, layouts, buffers=buffers)
    assert_normal_form(new)
    layouts = {i: layouts.get(i, Layout(shape)) for i, shape in enumerate(shapes_of(func))}
    physical = [layouts[i].transform(array) for i, array in enumerate(arrays)]
    for array in physical[count:]:
        array.fill(np.nan if array.dtype.kind == "f" else 99)
    results = run(new, physical)
    for i, want in enumerate(expected, start=count):
        want = layouts[i].transform(
            np.asarray(want, dtype=arrays[i].dtype).reshape(arrays[i].shape)
        )
        np.testing.assert_allclose(results[i], want, rtol=tolerance, atol=tolerance)
    return new.script()


def assert_normal_form(func):
    """Each block writes W[v0, v1, ...] with its spatial axes, which are loops in the same order."""
    schedule = s_tir.Schedule(func)
    body = func.body.block.body
    for nest in list(body) if isinstance(body, tvm.tirx.SeqStmt) else [body]:
        loops = []
        while isinstance(nest, tvm.tirx.For):
            loops.append(nest.loop_var)
            nest = nest.body
        block = nest.block
        assert schedule.get_sblock(block.name_hint) is not None
        assert [v.name for v in nest.iter_values] == [loop.name for loop in loops]
        spatial = [v.var for v in block.iter_vars if int(v.iter_type) == 0]
        assert [int(v.iter_type) for v in block.iter_vars] == sorted(
            int(v.iter_type) for v in block.iter_vars
        )
        region = [re.sub(r" \+ T.int\d+\(\d+\)", "", str(r.min)) for r in block.writes[0].region]
        assert region == [v.name for v in spatial]


def divisions(text):
    """Return the stores that still contain a division of an index."""
    return [line for line in text.splitlines() if "] = " in line and re.search(r"//|%", line)]


# --- numpy references -------------------------------------------------------------------------


def conv(data, weight, strides, padding, dilation=None, groups=1):
    """N-dimensional convolution; `padding` is all the leading ends, then all the trailing ones."""
    rank = data.ndim - 2
    dilation = dilation or [1] * rank
    pads = list(zip(padding[:rank], padding[rank:], strict=True))
    data = np.pad(data, [(0, 0), (0, 0), *pads])
    kernel = [(k - 1) * d + 1 for k, d in zip(weight.shape[2:], dilation, strict=True)]
    axes = tuple(range(2, 2 + rank))
    windows = np.lib.stride_tricks.sliding_window_view(data, kernel, axes)
    steps = tuple(slice(None, None, s) for s in strides)
    taps = tuple(slice(None, None, d) for d in dilation)
    windows = windows[(slice(None), slice(None), *steps, *taps)]
    parts = []
    for w, x in zip(np.split(weight, groups), np.split(windows, groups, axis=1), strict=True):
        contracted = (1, *range(2 + rank, 2 + 2 * rank))
        parts.append(np.moveaxis(np.tensordot(w, x, (range(1, 2 + rank), contracted)), 0, 1))
    return np.concatenate(parts, axis=1)


def conv_transpose(data, weight, strides, padding):
    """2-D transposed convolution, weight [I, O, KH, KW]; `padding`: top, left, bottom, right."""
    n, _, h, w = data.shape
    kh, kw = weight.shape[2:]
    out = np.zeros(
        (n, weight.shape[1], (h - 1) * strides[0] + kh, (w - 1) * strides[1] + kw), data.dtype
    )
    for y in range(h):
        for x in range(w):
            patch = np.einsum("ni,iokl->nokl", data[:, :, y, x], weight)
            top, left = y * strides[0], x * strides[1]
            out[:, :, top : top + kh, left : left + kw] += patch
    top, left, bottom, right = padding
    return out[:, :, top : out.shape[2] - bottom, left : out.shape[3] - right]


def packed_weight(shape, out_block, in_block=None):
    """Return the layout of a weight [O, I, ...]: O/b I/b ... bi bo, or O/b I ... bo."""
    rank = len(shape) - 2
    pad_out = -shape[0] % out_block
    steps = [Pad(0, 0, pad_out), Split(0, ((shape[0] + pad_out) // out_block, out_block))]
    if in_block is None:
        return Layout(shape, (*steps, Reorder((0, 2, *range(3, 3 + rank), 1))))
    pad_in = -shape[1] % in_block
    steps += [Pad(2, 0, pad_in), Split(2, ((shape[1] + pad_in) // in_block, in_block))]
    return Layout(shape, (*steps, Reorder((0, 2, *range(4, 4 + rank), 3, 1))))


def conv_function(x, w, strides, padding, dilation=None, groups=1):
    """Return the PrimFunc of a convolution alone, with its output shape."""
    make = {3: op.nn.conv1d, 4: op.nn.conv2d, 5: op.nn.conv3d}[len(x)]
    func = fused(
        lambda a, b: make(
            a, b, strides=strides, padding=padding, groups=groups,
            dilation=dilation or [1] * (len(x) - 2),
        ),
        x,
        w,
    )  # fmt: skip
    return func, shapes_of(func)[-1]


# --- convolutions -----------------------------------------------------------------------------

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


# --- borders ----------------------------------------------------------------------------------


def _bordered_conv(border):
    x, w = (1, 6, 7, 5), (8, 6, 3, 3)
    func, y = conv_function(x, w, [2, 1], [1, 1, 1, 1])
    layouts = {0: blocked(x, 1, 4).then(*border), 1: packed_weight(w, 8, 4), 2: blocked(y, 1, 8)}
    return func, layouts, lambda a, b: conv(a, b, [2, 1], [1, 1, 1, 1])


def test_border_of_the_data_replaces_the_pad_stage():
    text = check(*_bordered_conv([Pad(2, 1, 1), Pad(3, 2, 1)]))
    assert "pad_temp" not in text
    assert "if_then_else" not in text
    assert "p0[v_nn, v_rc_o, v_yy * T.int64(2) + v_ry, v_xx + v_rx + T.int64(1), v_rc_i]" in text


def test_pad_stage_stays_where_the_border_is_too_small():
    text = check(*_bordered_conv([Pad(2, 1, 1), Pad(3, 1, 0)]))
    assert "pad_temp" in text


def test_pad_stage_with_another_value_than_zero_stays():
    x = (1, 8, 7, 5)
    func = fused(lambda a: op.nn.max_pool2d(a, [3, 3], padding=[1, 1, 1, 1]), x)
    layouts = {0: blocked(x, 1, 4).then(Pad(2, 1, 1), Pad(3, 1, 1)), 1: blocked(x, 1, 4)}
    assert "pad_temp" in check(func, layouts, _max_pool([1, 1], 1))


def test_border_of_the_output_is_written_by_stages_of_its_own():
    x = (1, 6, 4, 3)
    func = fused(op.nn.relu, x)
    layout = blocked(x, 1, 4).then(Pad(2, 1, 2), Pad(3, 0, 1))
    text = check(func, {0: blocked(x, 1, 4), 1: layout}, lambda a: np.maximum(a, 0))
    assert text.count('T.sblock("compute_border') == 3
    assert "compute[v_i0, v_i1_o, v_i2 + T.int64(1), v_i3, v_i1_i] = T.max(p0[" in text


def test_block_that_writes_inside_a_border_can_be_scheduled():
    x = (1, 8, 4, 16)
    func = fused(lambda a: op.nn.relu(op.add(a, a)), x)
    new = rewrite(func, {1: Layout(x, (Pad(2, 1, 1),))})
    schedule = s_tir.Schedule(new.with_attr("global_symbol", "main"))
    relu = schedule.get_sblock("compute")
    schedule.compute_at(schedule.get_sblock("T_add"), schedule.get_loops(relu)[2])
    schedule.vectorize(schedule.get_loops(relu)[-1])
    schedule.parallel(schedule.get_loops(relu)[1])
    array = np.arange(np.prod(x), dtype="float32").reshape(x) - 200
    _, result = run(schedule.mod["main"], [array, np.full((1, 8, 6, 16), np.nan, "float32")])
    np.testing.assert_array_equal(result[:, :, 1:-1], np.maximum(array + array, 0))
    assert (result[:, :, 0] == 0).all()
    assert (result[:, :, -1] == 0).all()


# --- unfolded and tiled data ------------------------------------------------------------------


def test_unfolded_data_is_read_in_the_tile_of_the_loops():
    x, w = (1, 4, 8, 8), (4, 4, 3, 3)
    func, y = conv_function(x, w, [1, 1], [1, 1, 1, 1])
    tiles = (Pad(2, 1, 1), Pad(3, 1, 1), Unfold(2, 6, 4), Unfold(4, 4, 2))
    layouts = {
        0: Layout(x, (*tiles, Reorder((0, 2, 4, 1, 3, 5)))),
        2: Layout(y, (Split(2, (2, 4)), Split(4, (4, 2)), Reorder((0, 2, 4, 1, 3, 5)))),
    }
    text = check(func, layouts, lambda a, b: conv(a, b, [1, 1], [1, 1, 1, 1]))
    assert divisions(text) == []
    assert "p0[v_nn, v_yy_o, v_xx_o, v_rc, v_yy_i + v_ry, v_xx_i + v_rx]" in text


def test_unfolded_data_is_read_right_where_tiles_do_not_match_the_loops():
    x = (2, 9)
    func = fused(op.negative, x)
    check(func, {0: Layout(x, (Unfold(1, 5, 4),))}, np.negative)


def test_padded_spatial_tiles_of_the_output():
    x, w = (1, 4, 13, 9), (4, 4, 3, 3)
    func, y = conv_function(x, w, [2, 2], [1, 1, 1, 1])
    tiled = Layout(y, (Pad(2, 0, 1), Split(2, (4, 2)), Reorder((0, 2, 1, 3, 4))))
    check(func, {2: tiled}, lambda a, b: conv(a, b, [2, 2], [1, 1, 1, 1]))


# --- matmul, pooling, reductions --------------------------------------------------------------


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


def _max_pool(strides, pad):
    def reference(a):
        padded = np.pad(a, [(0, 0), (0, 0), (pad, pad), (pad, pad)], constant_values=-np.inf)
        windows = np.lib.stride_tricks.sliding_window_view(padded, (3, 3), (2, 3))
        return windows[:, :, :: strides[0], :: strides[1]].max((-2, -1))

    return reference


@pytest.mark.parametrize("channels", [8, 5])
def test_max_pool_keeps_zeros_in_padded_lanes(channels):
    x = (1, channels, 7, 6)
    func = fused(lambda a: op.nn.max_pool2d(a, [3, 3], strides=[2, 1], padding=[1, 1, 1, 1]), x)
    layouts = {0: blocked(x, 1, 4), 1: blocked(shapes_of(func)[-1], 1, 4)}
    assert divisions(check(func, layouts, _max_pool([2, 1], 1))) == []


def test_average_pool_that_does_not_count_the_padding():
    x = (1, 5, 7, 6)
    func = fused(
        lambda a: op.nn.avg_pool2d(a, [3, 3], padding=[1, 1, 1, 1], count_include_pad=False), x
    )

    def reference(a):
        kernel = np.ones((5, 1, 3, 3), "float32")
        total = conv(a, kernel, [1, 1], [1, 1, 1, 1], None, 5)
        return total / conv(np.ones_like(a), kernel, [1, 1], [1, 1, 1, 1], None, 5)

    layouts = {0: blocked(x, 1, 4), 1: blocked(x, 1, 4)}
    assert divisions(check(func, layouts, reference, tolerance=1e-6)) == []


@pytest.mark.parametrize("keepdims", [False, True])
def test_mean_over_the_pixels_of_blocked_channels(keepdims):
    x = (2, 5, 4, 3)
    func = fused(lambda a: op.mean(a, [2, 3], keepdims), x)
    layouts = {0: blocked(x, 1, 4), 1: blocked(shapes_of(func)[-1], 1, 4)}
    text = check(func, layouts, lambda a: a.mean((2, 3)), tolerance=1e-6)
    assert divisions(text) == []
    assert "Select" not in text


@pytest.mark.parametrize(
    ("reduce", "numpy"), [(op.sum, np.sum), (op.max, np.max), (op.prod, np.prod)]
)
def test_reduction_over_padded_channels_is_neutral_in_the_padding(reduce, numpy):
    x = (2, 6, 3)
    func = fused(lambda a: reduce(a, [1]), x)
    inputs = [array - 5 for array in whole_numbers(func)]  # negative: a zero would win the maximum
    layouts = {0: blocked(x, 1, 4), 1: blocked((2, 3), 1, 4)}
    text = check(func, layouts, lambda a: numpy(a, axis=1), inputs=inputs, tolerance=1e-6)
    assert divisions(text) == []


def test_reduction_to_a_scalar():
    func = fused(op.sum, (3, 6))
    check(func, {0: blocked((3, 6), 1, 4)}, np.sum)


def test_argmax_over_blocked_channels():
    func = fused(lambda a: op.argmax(a, 1), (2, 6, 3))
    check(func, {0: blocked((2, 6, 3), 1, 4)}, lambda a: a.argmax(1))


def test_argmax_with_a_padded_output():
    func = fused(lambda a: op.argmax(a, 2), (2, 6, 3))
    layouts = {0: blocked((2, 6, 3), 1, 4), 1: blocked((2, 6), 1, 4)}
    check(func, layouts, lambda a: a.argmax(2))


def _softmax(axis):
    def reference(a):
        e = np.exp(a - a.max(axis, keepdims=True))
        return e / e.sum(axis, keepdims=True)

    return reference


@pytest.mark.parametrize("axis", [1, 2])
def test_softmax_over_and_beside_padded_channels(axis):
    x = (2, 6, 5)
    func = fused(lambda a: op.nn.softmax(a, axis), x)
    layouts = {0: blocked(x, 1, 4), 1: blocked(x, 1, 4)}
    text = check(func, layouts, _softmax(axis), tolerance=1e-6)
    assert divisions(text) == []


def test_layer_norm_over_a_padded_row():
    x = (2, 3, 6)
    func = fused(lambda a, g, b: op.nn.layer_norm(a, g, b, [-1]), x, (6,), (6,))
    layouts = {0: blocked(x, 2, 4), 1: blocked((6,), 0, 4), 2: blocked((6,), 0, 4)}
    layouts[3] = blocked(x, 2, 4)

    def reference(a, g, b):
        centred = a - a.mean(-1, keepdims=True)
        return centred / np.sqrt((centred**2).mean(-1, keepdims=True) + 1e-5) * g + b

    assert divisions(check(func, layouts, reference, tolerance=1e-4)) == []


# --- element-wise and data movement -----------------------------------------------------------


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


# --- tensors inside of others -----------------------------------------------------------------


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


# --- what the rewriter leaves alone, and refuses ----------------------------------------------


def test_no_layouts_give_the_same_function():
    func, _ = conv_function((1, 3, 5, 4), (2, 3, 3, 3), [1, 1], [1, 1, 1, 1])
    assert tvm_ffi.structural_equal(rewrite(func, {}), func)
    assert tvm_ffi.structural_equal(rewrite(func, {0: Layout((1, 3, 5, 4), (Pad(0, 0, 0),))}), func)


def test_layouts_of_intermediates_can_be_given():
    x = (2, 8, 3)
    func = fused(lambda a: op.nn.relu(op.add(a, a)), x)
    text = check(
        func, {}, lambda a: np.maximum(a + a, 0), buffers={"T_add_intermediate": blocked(x, 1, 4)}
    )
    assert "T_add_intermediate[v_ax0, v_ax1_o, v_ax2, v_ax1_i] = p0[" in text


def test_transform_layout_of_the_scheduler_computes_the_same():
    x, w = (1, 8, 5, 4), (8, 8, 3, 3)
    func, y = conv_function(x, w, [1, 1], [0, 0, 0, 0])
    schedule = s_tir.Schedule(func.with_attr("global_symbol", "main"))
    block = schedule.get_sblock("conv2d_nchw")
    split = lambda n, c, h, w: (n, c // 4, h, w, c % 4)  # noqa: E731
    schedule.transform_layout(block, ("read", 0), split)  # of the padded copy of the data
    schedule.transform_layout(block, ("write", 0), split)
    ours = rewrite(func, {2: blocked(y, 1, 4)}, buffers={"pad_temp": blocked(x, 1, 4)})
    arrays = whole_numbers(ours)
    theirs = run(schedule.mod["main"], arrays)[-1]
    np.testing.assert_array_equal(run(ours, arrays)[-1], theirs)


def test_a_wrong_layout_fails_the_comparison():
    x = (1, 8, 4, 4)
    func = fused(op.nn.relu, x)
    right, wrong = blocked(x, 1, 4), blocked(x, 1, 4).then(Reorder((0, 1, 3, 2, 4)))
    array = whole_numbers(func)[0]
    new = rewrite(func, {0: wrong, 1: right})  # of the same shape, but transposed pixels
    result = run(new, [right.transform(array), np.empty(right.physical_shape, "float32")])[1]
    assert not np.array_equal(result, right.transform(np.maximum(array, 0)))


def test_pack_constant_is_the_weight_that_the_function_reads():
    packed = pack_constant(packed_weight((3, 2, 1, 1), 4), np.ones((3, 2, 1, 1), "float32"))
    assert packed.shape == (1, 2, 1, 1, 4)
    assert packed[..., 3].max() == 0


@T.prim_func(s_tir=True)
def running_sum(a: T.Buffer((3, 8), "float32"), b: T.Buffer((3, 8), "float32")):
    with T.sblock("root"):
        for i in range(3):
            with T.sblock("scan"):
                vi = T.axis.spatial(3, i)
                b[vi, 0] = a[vi, 0]
                for j in range(7):
                    b[vi, j + 1] = b[vi, j] + a[vi, j + 1]


def test_statements_that_are_not_normal_keep_their_loops():
    layout = blocked((3, 8), 1, 4)
    new = rewrite(running_sum, {0: layout, 1: layout})
    array = np.arange(24, dtype="float32").reshape(3, 8)
    result = run(new, [layout.transform(array), np.empty((3, 2, 4), "float32")])[1]
    np.testing.assert_array_equal(result, layout.transform(array.cumsum(1)))


def test_statements_that_are_not_normal_cannot_write_padding():
    with pytest.raises(
        LayoutError, match="'b' is written by a loop nest that is not in normal form"
    ):
        rewrite(running_sum, {1: blocked((3, 8), 1, 5)})


@pytest.mark.parametrize(
    ("layouts", "buffers", "message"),
    [
        ({7: Layout((2, 6))}, {}, "layout given for parameter 7, but the function has 2"),
        ({0: Layout((2, 5))}, {}, r"'p0' has the shape \[2, 6\], but its layout is for \[2, 5\]"),
        (
            {},
            {"nothing": Layout((2, 6))},
            r"buffer 'nothing'; the intermediates are \['T_add_intermediate'\]",
        ),
        (
            {1: Layout((2, 6), (Unfold(1, 4, 2),))},
            {},
            "cannot write 'compute_intermediate' through",
        ),
        ({1: Layout((2, 6), (Crop(1, 0, 1),))}, {}, "repeats or drops elements"),
    ],
)
def test_layouts_that_do_not_fit_raise(layouts, buffers, message):
    func = fused(lambda a: op.nn.relu(op.add(a, a)), (2, 6))
    with pytest.raises(LayoutError, match=message):
        rewrite(func, layouts, buffers=buffers)


@T.prim_func(s_tir=True)
def two_results(
    a: T.Buffer((6,), "float32"), b: T.Buffer((6,), "float32"), c: T.Buffer((6,), "float32")
):
    with T.sblock("root"):
        for i in range(6):
            with T.sblock("both"):
                vi = T.axis.spatial(6, i)
                b[vi] = a[vi] + T.float32(1)
                c[vi] = a[vi] - T.float32(1)


def test_block_with_two_results_needs_one_layout_without_padding():
    half = blocked((6,), 0, 3)
    check(two_results, {1: half, 2: half}, lambda a: (a + 1, a - 1), outputs=2)
    with pytest.raises(LayoutError, match="writes 'b' and 'c' in one loop nest"):
        rewrite(two_results, {1: half})
    with pytest.raises(LayoutError, match="'both' cannot be padded: it writes several values"):
        rewrite(two_results, {1: blocked((6,), 0, 4), 2: blocked((6,), 0, 4)})


def test_dimensions_that_are_not_bound_raise():
    n = tvm.tirx.Var("n", "int64")
    a, b = (tvm.tirx.decl_buffer((n,), "float32", name) for name in "ab")
    root = s_tir.SBlock([], [], [], "root", tvm.tirx.BufferStore(b, tvm.tirx.const(1.0), [0]))
    func = tvm.tirx.PrimFunc([a, b], s_tir.SBlockRealize([], True, root))
    with pytest.raises(
        LayoutError, match=r"'a' has the shape \[n\]; layouts need constant extents"
    ):
        rewrite(func, {0: Layout((4,))})


def test_lowered_function_raises():
    func = tvm.tirx.PrimFunc([], tvm.tirx.Evaluate(0))
    with pytest.raises(LayoutError, match="has no root block"):
        rewrite(func, {})
