"""Integer contractions: exact sums on every kind of dot instruction."""

import numpy as np
import pytest
from tvm import te, tirx, topi

from tests.kernels import compile_kernel, run_kernel
from tilewright.compiler.layout.integer_choices import channels_last, grouped_weight
from tilewright.compiler.layout.primitives import Layout
from tilewright.compiler.layout.rewrite import rewrite
from tilewright.compiler.schedule import default_decisions, schedule
from tilewright.compiler.schedule.dot_groups import dot_group
from tilewright.compiler.targets import parse_target

TARGETS = ("native", "x86-64-v4", "x86-64-v3")


def _conv(channels, size, outputs, kernel, stride, pad, zero):
    x = te.placeholder((1, channels, size, size), "uint8", name="x")
    w = te.placeholder((outputs, channels, kernel, kernel), "int8", name="w")
    border = [0, 0, pad, pad]
    source = x
    if pad:
        source = topi.nn.pad(x, border, border, tirx.const(zero, "uint8"), name="pad_temp")
    extent = (size + 2 * pad - kernel) // stride + 1
    r, s, c = (
        te.reduce_axis((0, n), name) for n, name in ((kernel, "r"), (kernel, "s"), (channels, "c"))
    )
    out = te.compute(
        (1, outputs, extent, extent),
        lambda n, o, h, v: te.sum(
            source[n, c, h * stride + r, v * stride + s].astype("int32")
            * w[o, c, r, s].astype("int32"),
            axis=[r, s, c],
        ),
        name="conv",
    )
    return te.create_prim_func([x, w, out]), out


def _expected(x, w, stride, pad, zero):
    padded = np.pad(
        x.astype(np.int64), ((0, 0), (0, 0), (pad, pad), (pad, pad)), constant_values=zero
    )
    windows = np.lib.stride_tricks.sliding_window_view(padded, w.shape[2:], (2, 3))
    return np.einsum("nchwrs,ocrs->nohw", windows[:, :, ::stride, ::stride], w.astype(np.int64))


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize(
    ("channels", "size", "outputs", "kernel", "stride", "pad", "zero"),
    [(8, 9, 32, 3, 1, 1, 0), (16, 8, 24, 3, 2, 1, 131), (64, 6, 40, 1, 1, 0, 0)],
)
def test_convolution_is_exact(target, channels, size, outputs, kernel, stride, pad, zero):
    description = parse_target(target)
    func, out = _conv(channels, size, outputs, kernel, stride, pad, zero)
    w_shape = (outputs, channels, kernel, kernel)
    layouts = {
        0: channels_last((1, channels, size, size)),
        1: grouped_weight(w_shape, 0, 1, description.lanes("int32"), dot_group(description)),
        2: channels_last(tuple(int(n) for n in out.shape)),
    }
    rng = np.random.default_rng(0)
    # The extremes, at which instructions that saturate would be wrong.
    x = rng.choice(np.array([0, 1, 254, 255], "uint8"), (1, channels, size, size))
    w = rng.choice(np.array([-128, -127, 126, 127], "int8"), w_shape)
    kernel_func = schedule(rewrite(func, layouts), description)
    given = [layouts[0].transform(x), layouts[1].transform(w)]
    (got,) = run_kernel(kernel_func, given, description)
    np.testing.assert_array_equal(layouts[2].untransform(got), _expected(x, w, stride, pad, zero))


@pytest.mark.parametrize("target", TARGETS)
def test_product_is_exact(target):
    description = parse_target(target)
    x = te.placeholder((7, 24), "uint8", name="x")
    w = te.placeholder((24, 50), "int8", name="w")
    k = te.reduce_axis((0, 24), "k")
    out = te.compute(
        (7, 50),
        lambda i, j: te.sum(x[i, k].astype("int32") * w[k, j].astype("int32"), axis=[k]),
        name="matmul",
    )
    layout = grouped_weight((24, 50), 1, 0, description.lanes("int32"), dot_group(description))
    func = rewrite(te.create_prim_func([x, w, out]), {1: layout})
    rng = np.random.default_rng(1)
    a = rng.integers(0, 256, (7, 24)).astype("uint8")
    b = rng.integers(-128, 128, (24, 50)).astype("int8")
    (got,) = run_kernel(schedule(func, description), [a, layout.transform(b)], description)
    np.testing.assert_array_equal(got, a.astype(np.int32) @ b.astype(np.int32))


def test_target_decides_the_instruction():
    func, _ = _conv(16, 8, 32, 3, 1, 1, 0)
    for name, instruction in (("cascadelake", "vpdpbusd"), ("x86-64-v3", "vpmaddwd")):
        target = parse_target(name)
        layouts = {
            0: channels_last((1, 16, 8, 8)),
            1: grouped_weight((32, 16, 3, 3), 0, 1, target.lanes("int32"), dot_group(target)),
            2: channels_last((1, 32, 8, 8)),
        }
        _, text = compile_kernel(schedule(rewrite(func, layouts), target), target)
        assert instruction in text


def test_decisions_survive_json_and_are_followed():
    target = parse_target("native")
    func, _ = _conv(16, 8, 32, 3, 1, 1, 0)
    layouts = {
        0: channels_last((1, 16, 8, 8)),
        1: grouped_weight((32, 16, 3, 3), 0, 1, target.lanes("int32"), dot_group(target)),
        2: channels_last((1, 32, 8, 8)),
    }
    func = rewrite(func, layouts)
    decisions = default_decisions(func, target)
    # The axis inside of the instruction is no loop.
    assert sorted(decisions.reduction_order) == [0, 1, 2]
    assert type(decisions).from_json(decisions.to_json()) == decisions
    schedule(func, target, decisions)


def test_weights_are_grouped_and_padded():
    weight = np.arange(5 * 6).reshape(5, 6, 1, 1).astype("int8")
    layout: Layout = grouped_weight((5, 6, 1, 1), 0, 1, 16, 4)
    packed = layout.transform(weight)
    assert packed.shape == (1, 2, 1, 1, 16, 4)
    np.testing.assert_array_equal(
        packed[0, 1, 0, 0, 3], [weight[3, 4, 0, 0], weight[3, 5, 0, 0], 0, 0]
    )
