"""Winograd's algorithm: the matrices, the lowering, the scheduled transforms."""

import tempfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import tvm
from hypothesis import assume, given, settings, strategies
from tvm import relax
from tvm.relax import op

from tests.relax_models import constant, module, run
from tilewright.compiler.algorithms import Convolution, as_images, choose_by_estimate
from tilewright.compiler.layout.propagation import apply_layouts, choose_layouts
from tilewright.compiler.layout.strategies import fixed
from tilewright.compiler.lower import legalize_and_fuse, read_program
from tilewright.compiler.package import package
from tilewright.compiler.passes.lower_conv_transpose import LowerConvTranspose
from tilewright.compiler.passes.lower_winograd import LowerWinograd
from tilewright.compiler.pipeline import schedule_kernels
from tilewright.compiler.program import TensorSpec
from tilewright.compiler.relax_utils import bindings, op_name
from tilewright.compiler.targets import parse_target
from tilewright.compiler.winograd import BY_TILE, WINOGRAD, WINOGRAD_OF_TWO
from tilewright.runtime.module import Module

TARGET = parse_target("x86-64-v3")
OUTPUTS = sorted(WINOGRAD)


def _network(rng, channels, outputs, padding):
    def body(emit, x):
        y = emit(op.nn.conv2d(x, constant(rng, outputs, channels, 3, 3), padding=padding))
        y = emit(op.add(y, constant(rng, outputs, 1, 1)))
        return emit(op.multiply(y, emit(op.sigmoid(y))))

    return body


def _force(outputs):
    return LowerWinograd(TARGET, choose=lambda shapes, _target: _of(shapes)[outputs])


def _of(shapes):
    return {each.outputs: each for each in shapes.variants.values() if each is not None}


def _names(mod):
    return [op_name(binding.value) for binding in bindings(mod["main"])]


@pytest.mark.parametrize("tile", sorted(BY_TILE))
def test_one_dimensional_identity_holds_exactly(tile):
    """A^T [(G g) * (B^T d)] is the correlation of d with g, on small integers times 24."""
    variant = BY_TILE[tile]
    rng = np.random.default_rng(0)
    g, d = rng.integers(-4, 5, variant.taps) * 24.0, rng.integers(-4, 5, variant.tile) * 1.0
    product = (np.array(variant.weight) @ g) * (np.array(variant.data) @ d)
    expected = np.correlate(d, g, mode="valid")
    np.testing.assert_allclose(np.array(variant.result) @ product, expected, rtol=1e-12, atol=1e-9)


@pytest.mark.parametrize("outputs", OUTPUTS)
@pytest.mark.parametrize(
    ("shape", "padding"),
    [((1, 16, 8, 8), [1, 1, 1, 1]), ((2, 8, 7, 13), [0, 1, 2, 0]), ((1, 8, 7, 9), [0, 0, 0, 0])],
)
def test_lowered_module_computes_the_convolution(outputs, shape, padding):
    rng = np.random.default_rng(0)
    mod = module([shape], _network(rng, shape[1], 24, padding))
    lowered = _force(outputs)(mod)
    assert "relax.nn.conv2d" not in _names(lowered)
    assert "relax.matmul" in _names(lowered)
    x = rng.standard_normal(shape).astype("float32")
    np.testing.assert_allclose(run(lowered, x), run(mod, x), rtol=0, atol=1e-4)


def _compiled(mod, variant, image_format, shape, out_shape, path):
    """Compile a module for `TARGET` with one variant and one image format everywhere."""
    specs = [TensorSpec("x", shape, "float32")], [TensorSpec("y", out_shape, "float32")]
    program = read_program(legalize_and_fuse(_force(variant)(mod)), *specs)
    plan = choose_layouts(program, TARGET, strategy=fixed(image_format))
    physical, _ = apply_layouts(program, plan)
    physical = replace(physical, kernels=schedule_kernels(physical.kernels, TARGET))
    package(physical, TARGET, path, {})
    return Module(path)


@pytest.mark.parametrize("outputs", OUTPUTS)
@pytest.mark.parametrize("image_format", ["L", "B", "C"])
@pytest.mark.parametrize(("channels", "filters"), [(16, 24), (12, 21)])
def test_scheduled_transforms_are_right_in_every_format(
    outputs, image_format, channels, filters, tmp_path
):
    shape, out_shape = (2, channels, 7, 13), (2, filters, 7, 13)
    rng = np.random.default_rng(0)
    mod = module([shape], _network(rng, channels, filters, [1, 1, 1, 1]))
    x = rng.standard_normal(shape).astype("float32")
    compiled = _compiled(mod, outputs, image_format, shape, out_shape, tmp_path / "model.so")
    np.testing.assert_allclose(compiled(x), run(mod, x), rtol=0, atol=1e-4)


def _check(mod, variant, shape, image_format, path):
    """Compare a module compiled with one variant in one format with the plain one."""
    x = np.random.default_rng(1).standard_normal(shape).astype("float32")
    wanted = run(mod, x)
    assert "winograd" in str(_force(variant)(mod))
    compiled = _compiled(mod, variant, image_format, shape, wanted.shape, path)
    np.testing.assert_allclose(compiled(x), wanted, rtol=0, atol=1e-4)


@pytest.mark.parametrize("outputs", OUTPUTS)
@pytest.mark.parametrize(
    ("size", "padding", "dilation"),
    [
        ((12, 13), [2, 2, 2, 2], [2, 2]),
        ((17, 25), [0, 3, 4, 1], [2, 3]),
        ((13, 9), [3] * 4, [3, 1]),
    ],
)
def test_dilated_images_are_tiled_each_on_its_own(outputs, size, padding, dilation, tmp_path):
    rng = np.random.default_rng(0)

    def body(emit, x):
        y = emit(op.nn.conv2d(x, constant(rng, 21, 12, 3, 3), padding=padding, dilation=dilation))
        return emit(op.nn.relu(emit(op.add(y, constant(rng, 21, 1, 1)))))

    shape = (2, 12, *size)
    _check(module([shape], body), outputs, shape, "B", tmp_path / "model.so")


@pytest.mark.parametrize("image_format", ["L", "B", "C"])
@pytest.mark.parametrize(
    ("outputs", "size", "padding", "dilation"),
    [(2, 19, [1, 1], 1), (4, 37, [0, 3], 1), (4, 64, [4, 4], 4), (2, 29, [3, 0], 3)],
)
def test_signals_have_one_row_that_is_not_transformed(
    outputs, size, padding, dilation, image_format, tmp_path
):
    rng = np.random.default_rng(0)

    def body(emit, x):
        y = emit(op.nn.conv1d(x, constant(rng, 21, 12, 3), padding=padding, dilation=dilation))
        return emit(op.nn.relu(emit(op.add(y, constant(rng, 21, 1)))))

    shape = (2, 12, size)
    _check(module([shape], body), outputs, shape, image_format, tmp_path / "model.so")


@pytest.mark.parametrize("outputs", sorted(WINOGRAD_OF_TWO))
@pytest.mark.parametrize(
    ("size", "padding"), [((7, 13), [1, 0, 0, 1]), ((9, 11), [0, 0, 1, 1]), ((5, 7), [1] * 4)]
)
def test_windows_of_two_by_two_have_tiles_of_their_own(outputs, size, padding, tmp_path):
    rng = np.random.default_rng(0)

    def body(emit, x):
        y = emit(op.nn.conv2d(x, constant(rng, 21, 12, 2, 2), padding=padding))
        return emit(op.nn.relu(emit(op.add(y, constant(rng, 21, 1, 1)))))

    shape = (2, 12, *size)
    _check(module([shape], body), outputs, shape, "B", tmp_path / "model.so")


@settings(max_examples=8, deadline=None, derandomize=True)
@given(
    rank=strategies.sampled_from([1, 2]),
    outputs=strategies.sampled_from(OUTPUTS),
    batch=strategies.sampled_from([1, 3]),
    channels=strategies.sampled_from([(8, 13), (11, 8), (17, 23)]),
    size=strategies.tuples(strategies.integers(1, 19), strategies.integers(3, 31)),
    pads=strategies.lists(strategies.integers(0, 2), min_size=4, max_size=4),
)
def test_any_shape_of_signal_or_phase_is_right(rank, outputs, batch, channels, size, pads):
    inputs, filters = channels
    taps, conv = ((3,), op.nn.conv1d) if rank == 1 else ((2, 2), op.nn.conv2d)
    pads = pads[: 2 * rank]
    extents = [
        extent + pads[axis] + pads[axis + rank] - window + 1
        for axis, (extent, window) in enumerate(zip(size[-rank:], taps, strict=True))
    ]
    assume(min(extents) > outputs)
    rng = np.random.default_rng(0)

    def body(emit, x):
        y = emit(conv(x, constant(rng, filters, inputs, *taps), padding=pads))
        return emit(op.nn.relu(y))

    shape = (batch, inputs, *size[-rank:])
    with tempfile.TemporaryDirectory() as folder:
        _check(module([shape], body), outputs, shape, "B", Path(folder, "model.so"))


@pytest.mark.parametrize(("outputs", "size"), [(2, (5, 6)), (4, (6, 5)), (2, (3, 4, 5))])
def test_phases_of_transposed_convolutions_are_transformed(outputs, size, tmp_path):
    """Error of F(4x4, 2x2) and F(2x2, 2x2) in float32 stays below 1e-4 of unit variance."""
    rng = np.random.default_rng(0)
    rank = len(size)
    transpose = op.nn.conv2d_transpose if rank == 2 else op.nn.conv3d_transpose

    def body(emit, x):
        weight = constant(rng, 16, 16, *(4,) * rank)
        y = emit(transpose(x, weight, strides=[2] * rank, padding=[1] * (2 * rank)))
        return emit(op.nn.relu(y))

    shape = (1, 16, *size)
    mod = LowerConvTranspose()(module([shape], body))
    _check(mod, outputs, shape, "B", tmp_path / "model.so")


@pytest.mark.parametrize("outputs", OUTPUTS)
@pytest.mark.parametrize("image_format", ["L", "B", "C"])
@pytest.mark.parametrize(
    ("taps", "padding", "stride"), [(3, [1] * 6, 1), (2, [0, 1, 1, 1, 1, 2], 2), (1, [0] * 6, 1)]
)
def test_slices_of_a_depth_are_transformed_once(
    outputs, image_format, taps, padding, stride, tmp_path
):
    rng = np.random.default_rng(0)

    def body(emit, x):
        weight = constant(rng, 17, 16, taps, 3, 3)
        y = emit(op.nn.conv3d(x, weight, strides=[stride, 1, 1], padding=padding))
        return emit(op.nn.relu(emit(op.add(y, constant(rng, 17, 1, 1, 1)))))

    shape = (1, 16, 5, 9, 7)
    _check(module([shape], body), outputs, shape, image_format, tmp_path / "model.so")


@pytest.mark.parametrize("side", [3, 4])
def test_an_image_of_one_tile_stays_direct(side):
    """The transforms find the rows of an image by the tile that they are in."""
    rng = np.random.default_rng(0)

    def body(emit, x):
        return emit(op.nn.conv2d(x, constant(rng, 64, 64, 3, 3), padding=[1] * 4))

    shape = (64, 64, side, side)
    convolution = Convolution(shape, (64, 64, 3, 3), shape)
    assert "relax.nn.conv2d" in _names(_force(4)(module([shape], body)))
    assert choose_by_estimate(convolution, parse_target("x86-64-v3")) is not WINOGRAD[4]


def test_channels_that_do_not_fill_vectors_leave_nothing_behind(tmp_path):
    """The padding lanes of a blocked image do not reach the next convolution, not even as NaN."""
    shape = (1, 12, 9, 14)
    rng = np.random.default_rng(0)

    def body(emit, x):
        y = emit(op.nn.conv2d(x, constant(rng, 21, 12, 3, 3), padding=[1, 1, 1, 1]))
        y = emit(op.nn.conv2d(y, constant(rng, 10, 21, 1, 1)))
        return emit(op.nn.conv2d(y, constant(rng, 13, 10, 3, 3), padding=[1, 1, 1, 1]))

    mod = module([shape], body)
    x = rng.standard_normal(shape).astype("float32")
    compiled = _compiled(mod, 4, "B", shape, (1, 13, 9, 14), tmp_path / "model.so")
    assert np.isnan(compiled(np.full(shape, np.nan, "float32"))).all()
    np.testing.assert_allclose(compiled(x), run(mod, x), rtol=0, atol=1e-3)


@pytest.mark.parametrize(
    "attrs",
    [{"strides": [2, 2]}, {"groups": 2}],
    ids=["strided", "grouped"],
)
def test_other_convolutions_are_left_alone(attrs):
    rng = np.random.default_rng(0)
    inputs = 16 // attrs.get("groups", 1)

    def body(emit, x):
        return emit(op.nn.conv2d(x, constant(rng, 16, inputs, 3, 3), **attrs))

    mod = module([(1, 16, 9, 9)], body)
    tvm.ir.assert_structural_equal(_force(4)(mod), mod)


def test_run_time_weights_are_left_alone():
    def body(emit, x, w):
        return emit(op.nn.conv2d(x, w))

    mod = module([(1, 16, 9, 9), (16, 16, 3, 3)], body)
    assert "relax.nn.conv2d" in _names(_force(2)(mod))


def test_weights_that_leave_the_cache_stay_direct():
    """A 512-channel layer on 7 x 7 pixels would read four times its weights for 49 pixels."""
    native = parse_target("x86-64-v4")
    assert (
        choose_by_estimate(Convolution((1, 512, 7, 7), (512, 512, 3, 3), (1, 512, 7, 7)), native)
        is None
    )
    chosen = choose_by_estimate(
        Convolution((1, 64, 56, 56), (64, 64, 3, 3), (1, 64, 56, 56)), native
    )
    assert chosen is WINOGRAD[4]


def test_phases_and_signals_are_estimated_faster_where_weights_are_small():
    """512 channels of 8 x 8 would wait for their weights at batch 1 (no gain in a whole model)."""
    native = parse_target("x86-64-v3")
    wide = [(1, 512, 8, 8), (256, 512, 2, 2), (1, 256, 8, 8)]
    assert choose_by_estimate(as_images(*wide, [1, 1]), native) is None
    phase = as_images((1, 256, 16, 16), (128, 256, 2, 2), (1, 128, 16, 16), [1, 1])
    # F(4x4) would take 4% less time and 2.1 MB more.
    assert choose_by_estimate(phase, native) is WINOGRAD_OF_TWO[2]
    large = as_images((1, 64, 64, 64), (64, 64, 2, 2), (1, 64, 64, 64), [1, 1])
    assert choose_by_estimate(large, native) is WINOGRAD_OF_TWO[4]
    signal = as_images((1, 64, 4096), (128, 64, 3), (1, 128, 4096), [4])
    assert choose_by_estimate(signal, native) is WINOGRAD[4]


def test_a_wide_dilation_stays_direct():
    """28 x 28 pixels dilated by 12 make images of 3 x 3, whose tiles are mostly empty."""
    shapes = (1, 512, 28, 28), (256, 512, 3, 3), (1, 256, 28, 28)
    native = parse_target("x86-64-v3")
    assert choose_by_estimate(Convolution(*shapes, (12, 12)), native) is None
    # F(4x4) would take 12% less time and 10.5 MB more.
    assert choose_by_estimate(Convolution(*shapes, (2, 2)), native) is WINOGRAD[2]


def test_float64_is_left_alone():
    def body(emit, x):
        return emit(op.nn.conv2d(x, relax.const(np.ones((16, 16, 3, 3)), "float64")))

    mod = module([(1, 16, 9, 9)], body, dtype="float64")
    tvm.ir.assert_structural_equal(_force(4)(mod), mod)
