"""Kernels for weights and data of few bits: exact sums, whatever the shape, on every form."""

import re

import numpy as np
import pytest
from tvm import te, tirx, topi

from tests.kernels import compile_kernel, run_kernel
from tilewright.compiler.layout.integer_choices import channels_last, grouped_weight
from tilewright.compiler.layout.rewrite import rewrite
from tilewright.compiler.quantize.low_bit import WeightRange, narrowed_data, narrowed_weight
from tilewright.compiler.schedule import schedule
from tilewright.compiler.schedule.bit_packing import CODES, PLANES, TABLES, packings
from tilewright.compiler.schedule.blocked_kernel import Blocks, cut
from tilewright.compiler.schedule.low_bit import LowBit, read_low_bit
from tilewright.compiler.schedule.quad_kernel import QUAD, quad_steps
from tilewright.compiler.targets import parse_target
from tilewright.tuner.device.mca import innermost_bodies


def weights_of(bits, shape, rng):
    """Return weights with the extremes that `bits` hold; a sign for one bit."""
    if bits == 1:
        return rng.choice([-1, 1], shape).astype("int8"), WeightRange(-1, 1, True)
    low, high = -(1 << (bits - 1)), (1 << (bits - 1)) - 1
    middle = rng.integers(low, high + 1, shape)
    found = np.where(rng.random(shape) < 0.6, rng.choice([low, high], shape), middle)
    return found.astype("int8"), WeightRange(low, high, False)


def data_of(bits, shape, rng):
    top = (1 << bits) - 1
    found = np.where(rng.random(shape) < 0.6, top, rng.integers(0, top + 1, shape))
    return found.astype("uint8"), top


def _term(x, w, weights, mask):
    return narrowed_data(x, mask).astype("int32") * narrowed_weight(w, weights).astype("int32")


def product(rows, depth, columns, weights, mask):
    x = te.placeholder((rows, depth), "uint8", name="x")
    w = te.placeholder((depth, columns), "int8", name="w")
    k = te.reduce_axis((0, depth), "k")
    out = te.compute(
        (rows, columns),
        lambda i, j: te.sum(_term(x[i, k], w[k, j], weights, mask), axis=[k]),
        name="matmul",
    )
    return te.create_prim_func([x, w, out])


def convolution(data, weight, weights, mask, stride=1, pad=0, zero=0):
    x = te.placeholder(data, "uint8", name="x")
    w = te.placeholder(weight, "int8", name="w")
    border = [0, 0, pad, pad]
    source = x
    if pad:
        source = topi.nn.pad(x, border, border, tirx.const(zero, "uint8"), name="pad_temp")
    extents = [(data[i] + 2 * pad - weight[i]) // stride + 1 for i in (2, 3)]
    r, s, c = (te.reduce_axis((0, weight[i]), n) for i, n in ((2, "r"), (3, "s"), (1, "c")))
    out = te.compute(
        (data[0], weight[0], *extents),
        lambda n, o, h, v: te.sum(
            _term(source[n, c, h * stride + r, v * stride + s], w[o, c, r, s], weights, mask),
            axis=[r, s, c],
        ),
        name="conv",
    )
    return te.create_prim_func([x, w, out]), (data[0], weight[0], *extents)


def convolved(x, w, stride, pad, zero):
    padded = np.pad(
        x.astype(np.int64), ((0, 0), (0, 0), (pad, pad), (pad, pad)), constant_values=zero
    )
    windows = np.lib.stride_tricks.sliding_window_view(padded, w.shape[2:], (2, 3))
    return np.einsum("nchwrs,ocrs->nohw", windows[:, :, ::stride, ::stride], w.astype(np.int64))


def packed(func, weights):
    """Return weights as a scheduled kernel reads them."""
    packing = packings(func).get(1)
    assert (packing is not None) == (weights.shape[-1] in (CODES, PLANES, TABLES))
    return weights if packing is None else packing.pack(weights)


def check_product(target, group, rows, depth, columns, p, q, seed=0):
    rng = np.random.default_rng(seed)
    b, weights = weights_of(p, (depth, columns), rng)
    a, mask = data_of(q, (rows, depth), rng)
    layout = grouped_weight((depth, columns), 1, 0, target.lanes("int32"), group)
    func = schedule(rewrite(product(rows, depth, columns, weights, mask), {1: layout}), target)
    (got,) = run_kernel(func, [a, packed(func, layout.transform(b))], target)
    np.testing.assert_array_equal(got, a.astype(np.int32) @ b.astype(np.int32))


def check_convolution(target, group, data, weight, p, q, stride, pad, zero, seed=0):
    rng = np.random.default_rng(seed)
    w, weights = weights_of(p, weight, rng)
    x, mask = data_of(q, data, rng)
    func, shape = convolution(data, weight, weights, mask, stride, pad, zero)
    layouts = {
        0: channels_last(data),
        1: grouped_weight(weight, 0, 1, target.lanes("int32"), group),
        2: channels_last(shape),
    }
    func = schedule(rewrite(func, layouts), target)
    given = [layouts[0].transform(x), packed(func, layouts[1].transform(w))]
    (got,) = run_kernel(func, given, target)
    np.testing.assert_array_equal(layouts[2].untransform(got), convolved(x, w, stride, pad, zero))


_PRODUCTS = pytest.mark.parametrize(
    ("p", "q", "rows", "cells", "columns"),
    [(1, 1, 7, 3, 50), (2, 2, 5, 35, 17), (2, 8, 1, 5, 24), (4, 4, 9, 4, 33), (8, 2, 4, 2, 100)],
)


@_PRODUCTS
def test_quads_are_exact_products(p, q, rows, cells, columns):
    check_product(parse_target("x86-64-v3"), QUAD, rows, cells * QUAD, columns, p, q)


@pytest.mark.parametrize(
    ("channels", "size", "outputs", "kernel", "stride", "pad", "zero"),
    [(8, 9, 32, 3, 1, 1, 0), (16, 8, 24, 3, 2, 1, 9), (64, 6, 40, 1, 1, 0, 0)],
)
def test_quads_are_exact_convolutions(channels, size, outputs, kernel, stride, pad, zero):
    data, weight = (1, channels, size, size), (outputs, channels, kernel, kernel)
    check_convolution(parse_target("x86-64-v3"), QUAD, data, weight, 4, 4, stride, pad, zero)


@_PRODUCTS
def test_planes_are_exact_products(p, q, rows, cells, columns):
    check_product(parse_target("x86-64-v3"), PLANES, rows, cells * PLANES, columns, p, q)


@pytest.mark.parametrize(
    ("channels", "size", "outputs", "kernel", "stride", "pad", "zero"),
    [(32, 9, 32, 3, 1, 1, 0), (64, 8, 24, 3, 2, 1, 1), (64, 6, 40, 1, 1, 0, 0)],
)
@pytest.mark.parametrize(("p", "q"), [(1, 1), (2, 2)])
def test_planes_are_exact_convolutions(channels, size, outputs, kernel, stride, pad, zero, p, q):
    data, weight = (1, channels, size, size), (outputs, channels, kernel, kernel)
    check_convolution(parse_target("x86-64-v3"), PLANES, data, weight, p, q, stride, pad, zero)


@_PRODUCTS
def test_tables_are_exact_products(p, q, rows, cells, columns):
    q = min(q, 5)  # beyond, bytes do not hold what is looked up
    check_product(parse_target("x86-64-v3"), TABLES, rows, cells * TABLES, columns, p, q)


@pytest.mark.parametrize(
    ("channels", "size", "outputs", "kernel", "stride", "pad", "zero"),
    [(8, 9, 32, 3, 1, 1, 0), (24, 8, 72, 3, 2, 1, 1), (64, 6, 40, 1, 1, 0, 0)],
)
@pytest.mark.parametrize(("p", "q"), [(1, 1), (2, 2)])
def test_tables_are_exact_convolutions(channels, size, outputs, kernel, stride, pad, zero, p, q):
    data, weight = (1, channels, size, size), (outputs, channels, kernel, kernel)
    check_convolution(parse_target("x86-64-v3"), TABLES, data, weight, p, q, stride, pad, zero)


@_PRODUCTS
def test_codes_are_exact_products(p, q, rows, cells, columns):
    check_product(parse_target("x86-64-v3"), CODES, rows, cells * CODES, columns, min(p, 4), q)


@pytest.mark.parametrize(("p", "stride", "pad"), [(4, 1, 1), (2, 2, 0)])
def test_codes_are_exact_convolutions(p, stride, pad):
    data, weight = (1, 32, 7, 6), (24, 32, 3, 3)
    check_convolution(parse_target("x86-64-v3"), CODES, data, weight, p, 8, stride, pad, 9)


_JUMPS = re.compile(r"^\tj\w+\t(\.\w+)")


@pytest.mark.parametrize(("name", "register"), [("x86-64-v3", "ymm"), ("skylake-avx512", "zmm")])
@pytest.mark.parametrize(
    ("group", "p", "q", "instruction", "depth"),
    [
        (QUAD, 4, 4, "vpmaddubsw", 512),
        (TABLES, 1, 1, "vpshufb", 512),
        (PLANES, 2, 2, "vpshufb", 512),
    ],
)
def test_inner_loop_multiplies_whole_vectors(name, register, group, p, q, instruction, depth):
    """AVX-512 cannot run here: its instructions are looked at instead. Accumulators stay put."""
    target = parse_target(name)
    _, weights = weights_of(p, (4, 4), np.random.default_rng(0))
    func = product(64, depth, 256, weights, (1 << q) - 1)
    layout = grouped_weight((depth, 256), 1, 0, target.lanes("int32"), group)
    _, text = compile_kernel(schedule(rewrite(func, {1: layout}), target), target)
    bodies = [list(body) for body in innermost_bodies(text, _JUMPS)]
    body = max(bodies, key=lambda lines: sum(instruction in line for line in lines))
    multiplies = [line for line in body if f"\t{instruction}\t" in line]
    assert len(multiplies) >= 8
    assert all(register in line for line in multiplies)
    assert "vpopcnt" not in text
    stack = [line for line in body if "(%rsp)" in line]
    assert len(stack) <= len(multiplies) // 8, body


def test_ranges_are_read_back():
    x, w = (tirx.decl_buffer((4,), dtype) for dtype in ("uint8", "int8"))
    at = tirx.const(0, "int32")
    load, weight = tirx.BufferLoad(x, [at]), tirx.BufferLoad(w, [at])
    assert read_low_bit(_term(load, weight, WeightRange(-8, 7, False), 15)) == LowBit(
        -8, 7, False, 15
    )
    assert read_low_bit(_term(load, weight, WeightRange(-3, 3, True), 1)) == LowBit(-3, 3, True, 1)
    assert not read_low_bit(load.astype("int32") * weight.astype("int32")).is_narrow


def test_steps_of_narrow_sums():
    assert quad_steps(LowBit(-8, 7, False, 255)) == 8
    assert quad_steps(LowBit(-2, 1, False, 255)) == 32
    assert quad_steps(LowBit(-128, 127, False, 255)) == 0
    assert quad_steps(LowBit(-64, 64, False, 255)) == 1


@pytest.mark.parametrize(
    ("extents", "most", "blocks"),
    [((3, 3, 4), 8, Blocks(2, 2)), ((3, 3, 4), 12, Blocks(1, 0)), ((3, 3, 4), 99, Blocks(0, 0)),
     ((3, 20), 8, Blocks(2, 7)), ((20,), 1, Blocks(1, 0)), ((9, 4), 9, Blocks(1, 2))],
)  # fmt: skip
def test_blocks_of_a_reduction(extents, most, blocks):
    assert cut(extents, most) == blocks
