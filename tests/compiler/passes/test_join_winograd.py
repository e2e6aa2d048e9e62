"""Winograd convolutions in strips: they replace three kernels, and compute the same."""

from dataclasses import replace

import numpy as np
import pytest
from tvm.relax import op

from tests.relax_models import constant, module, run
from tilewright.compiler.layout.propagation import (
    DECISIONS_ATTRIBUTE,
    apply_layouts,
    choose_layouts,
)
from tilewright.compiler.layout.strategies import fixed
from tilewright.compiler.lower import legalize_and_fuse, read_program
from tilewright.compiler.memory import plan_memory
from tilewright.compiler.package import package
from tilewright.compiler.passes.join_winograd import join_winograd, strips_pay
from tilewright.compiler.passes.lower_winograd import LowerWinograd
from tilewright.compiler.pipeline import schedule_kernels
from tilewright.compiler.program import TensorSpec
from tilewright.compiler.schedule.contraction import ContractionDecisions
from tilewright.compiler.schedule.winograd_strips import StripShape
from tilewright.compiler.targets import parse_target
from tilewright.compiler.winograd import WINOGRAD
from tilewright.runtime.module import Module

# A small second cache level: the images of the tests then have several strips, the last one short.
TARGET = replace(parse_target("x86-64-v3"), l2_bytes=1 << 17)


def _residual_network(rng, channels, outputs, padding):
    """Two convolutions; the first one's result is added to the second one's."""

    def body(emit, x):
        y = emit(op.nn.conv2d(x, constant(rng, outputs, channels, 3, 3), padding=padding))
        y = emit(op.nn.relu(emit(op.add(y, constant(rng, outputs, 1, 1)))))
        z = emit(op.nn.conv2d(y, constant(rng, outputs, outputs, 3, 3), padding=[1, 1, 1, 1]))
        return emit(op.nn.relu(emit(op.add(z, y))))

    return body


def _program(mod, shape, out_shape, outputs, image_format="B"):
    specs = [TensorSpec("x", shape, "float32")], [TensorSpec("y", out_shape, "float32")]
    lowered = LowerWinograd(TARGET, choose=lambda *_shapes: WINOGRAD[outputs])(mod)
    program = read_program(legalize_and_fuse(lowered), *specs)
    plan = choose_layouts(program, TARGET, strategy=fixed(image_format))
    return apply_layouts(program, plan)[0], plan


@pytest.mark.parametrize("outputs", sorted(WINOGRAD))
@pytest.mark.parametrize("image_format", ["L", "B", "C"])
@pytest.mark.parametrize(
    ("shape", "padding"), [((2, 16, 13, 22), [1, 1, 1, 1]), ((1, 8, 41, 35), [0, 1, 2, 0])]
)
def test_strips_compute_the_convolutions(outputs, image_format, shape, padding, tmp_path):
    rng = np.random.default_rng(0)
    height = shape[2] + padding[0] + padding[2] - 2
    width = shape[3] + padding[1] + padding[3] - 2
    mod = module([shape], _residual_network(rng, shape[1], 24, padding))
    program, plan = _program(mod, shape, (shape[0], 24, height, width), outputs, image_format)
    joined = join_winograd(program, plan, TARGET, choose=lambda *_: True)
    after, kernels = joined.program, joined.kernels
    assert len(after.calls) == len(program.calls) - 4
    assert len(joined.plan.choices) == len(plan.choices) - 4
    rest = {name: func for name, func in after.kernels.items() if name not in kernels}
    scheduled = schedule_kernels(rest, TARGET) | kernels
    path = tmp_path / "model.so"
    package(replace(after, kernels=scheduled), TARGET, path)
    x = rng.standard_normal(shape).astype("float32")
    found = Module(path, threads=2).run({"x": x})["y"]
    np.testing.assert_allclose(found, run(mod, x), rtol=0, atol=2e-3)


def _deep_network(rng, channels, outputs, stride):
    """Two convolutions over depth; the first one's result is added to the second one's."""

    def body(emit, x):
        y = emit(
            op.nn.conv3d(
                x,
                constant(rng, outputs, channels, 3, 3, 3),
                strides=[stride, 1, 1],
                padding=[1, 1, 0, 1, 0, 1],
            )
        )
        y = emit(op.nn.relu(emit(op.add(y, constant(rng, outputs, 1, 1, 1)))))
        z = emit(op.nn.conv3d(y, constant(rng, outputs, outputs, 2, 3, 3), padding=[0, 1, 1] * 2))
        return emit(op.nn.relu(z))

    return body


@pytest.mark.parametrize("image_format", ["L", "B", "C"])
@pytest.mark.parametrize(("shape", "stride"), [((2, 16, 5, 13, 22), 1), ((1, 8, 6, 21, 15), 2)])
def test_strips_of_all_slices_compute_the_convolutions(image_format, shape, stride, tmp_path):
    """A stride of the depth is left apart: its slices of V serve M otherwise."""
    mod = module([shape], _deep_network(np.random.default_rng(0), shape[1], 24, stride))
    x = np.random.default_rng(1).standard_normal(shape).astype("float32")
    expected = run(mod, x)
    program, plan = _program(mod, shape, expected.shape, 4, image_format)
    joined = join_winograd(program, plan, TARGET, choose=lambda *_: True)
    after, kernels = joined.program, joined.kernels
    assert len(after.calls) == len(program.calls) - (4 if stride == 1 else 2)
    rest = {name: func for name, func in after.kernels.items() if name not in kernels}
    path = tmp_path / "model.so"
    package(replace(after, kernels=schedule_kernels(rest, TARGET) | kernels), TARGET, path)
    found = Module(path, threads=2).run({"x": x})["y"]
    np.testing.assert_allclose(found, expected, rtol=0, atol=5e-3)


@pytest.mark.parametrize(
    ("row_tile", "order", "follows"),
    [((1, 3), (0,), True), ((2, 4), (0,), True), ((1, 3), (0, 1), False)],
)
def test_strips_follow_the_tuned_decisions_of_their_product(row_tile, order, follows, tmp_path):
    shape = (1, 16, 30, 30)
    mod = module([shape], _residual_network(np.random.default_rng(0), 16, 24, [1, 1, 1, 1]))
    program, plan = _program(mod, shape, (1, 24, 30, 30), 4)
    decisions = ContractionDecisions(row_tile, 1, 1, 64, order, unroll=2)
    tuned = {
        name: func.with_attr(DECISIONS_ATTRIBUTE, decisions.to_json())
        if name.startswith("matmul")
        else func
        for name, func in program.kernels.items()
    }
    join = [
        join_winograd(replace(program, kernels=k), plan, TARGET, choose=lambda *_: True)
        for k in (program.kernels, tuned)
    ]
    texts = [[func.script() for func in joined.kernels.values()] for joined in join]
    assert (texts[0] != texts[1]) is follows
    after, kernels = join[1].program, join[1].kernels
    rest = {name: func for name, func in after.kernels.items() if name not in kernels}
    path = tmp_path / "model.so"
    package(replace(after, kernels=schedule_kernels(rest, TARGET) | kernels), TARGET, path)
    x = np.random.default_rng(1).standard_normal(shape).astype("float32")
    found = Module(path, threads=1).run({"x": x})["y"]
    np.testing.assert_allclose(found, run(mod, x), rtol=0, atol=2e-3)


def test_strips_need_no_memory_for_the_products():
    shape = (1, 16, 40, 40)
    mod = module([shape], _residual_network(np.random.default_rng(0), 16, 16, [1, 1, 1, 1]))
    program, plan = _program(mod, shape, shape, 4)
    joined = join_winograd(program, plan, TARGET, choose=lambda *_: True)
    for choice, call in zip(joined.plan.choices[-2:], joined.program.calls[-3:], strict=False):
        shapes = [joined.program.tensors[tensor].shape for tensor in call.args]
        assert [layout.physical_shape for layout in choice.layouts] == shapes
    assert plan_memory(joined.program).arena_bytes < plan_memory(program).arena_bytes * 0.6


def test_join_declines_what_is_read_elsewhere_or_does_not_pay():
    shape = (1, 16, 12, 12)
    mod = module([shape], _residual_network(np.random.default_rng(0), 16, 16, [1, 1, 1, 1]))
    program, plan = _program(mod, shape, shape, 4)
    same = join_winograd(program, plan, TARGET, choose=lambda *_: False)
    assert same.program is program
    assert same.plan is plan
    first = next(call for call in program.calls if call.kernel.startswith("winograd_input"))
    spec = TensorSpec("v", program.tensors[first.args[-1]].shape, "float32")
    observed = replace(
        program,
        outputs=(*program.outputs, first.args[-1]),
        output_specs=(*program.output_specs, spec),
    )
    partly = join_winograd(observed, plan, TARGET, choose=lambda *_: True)
    assert len(partly.program.calls) == len(program.calls) - 2


def test_strips_pay_for_large_images_with_small_weights():
    target = replace(TARGET, l2_bytes=1 << 20)
    assert strips_pay(StripShape(36, 3136, 64, 64), target)
    assert not strips_pay(StripShape(36, 16, 64, 64), target)
    assert not strips_pay(StripShape(36, 196, 512, 512), target)
    assert not strips_pay(StripShape(36, 196, 256, 256), target)
    # Over a depth, weights are read once for all of it.
    assert strips_pay(StripShape(36, 196, 128, 128, (18, 16)), target)


@pytest.mark.parametrize("tiles", [1, 7, 3136])
def test_every_tile_is_in_a_strip(tiles):
    shape = StripShape(36, tiles, 64, 64)
    assert 1 <= shape.strip_tiles(TARGET) <= tiles
