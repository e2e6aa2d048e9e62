"""Quantized operators on ARM: sums are exact with every kind of dot instruction."""

import numpy as np
import pytest

import tilewright
from tests.arm.board import board_for
from tests.compiler.quantize.models import Builder, run_onnxruntime
from tests.compiler.schedule.test_integer import _conv, _expected
from tilewright.compiler.codegen import assembly
from tilewright.compiler.layout.integer_choices import channels_last, grouped_weight
from tilewright.compiler.layout.rewrite import rewrite
from tilewright.compiler.package import package
from tilewright.compiler.program import Call, Program, Tensor, TensorSpec
from tilewright.compiler.schedule import schedule
from tilewright.compiler.schedule.dot_groups import dot_group
from tilewright.compiler.targets import parse_target

pytestmark = pytest.mark.arm

INSTRUCTIONS = {
    "aarch64": r"sadalp",
    "aarch64:cortex-a76": r"sdot",
    "aarch64:neoverse-v1": r"usmmla",
    "armv7:cortex-a7": r"vmlal.s16",
}
# Channels, size, outputs, kernel, stride, pad, value of the padding.
SHAPES = [(8, 9, 32, 3, 1, 1, 0), (16, 8, 24, 3, 2, 1, 131), (20, 6, 40, 1, 1, 0, 0)]


def _scheduled(target, channels, size, outputs, kernel, stride, pad, zero):
    """Return a scheduled convolution, its layouts, and the shape of its weights."""
    func, out = _conv(channels, size, outputs, kernel, stride, pad, zero)
    weight = (outputs, channels, kernel, kernel)
    layouts = {
        0: channels_last((1, channels, size, size)),
        1: grouped_weight(weight, 0, 1, target.lanes("int32"), dot_group(target, channels)),
        2: channels_last(tuple(int(n) for n in out.shape)),
    }
    return schedule(rewrite(func, layouts), target), layouts, weight


@pytest.mark.parametrize("target", INSTRUCTIONS)
def test_the_instruction_of_the_processor_is_used(target):
    description = parse_target(target)
    kernel, _, _ = _scheduled(description, *SHAPES[0])
    assert f"\t{INSTRUCTIONS[target]}" in assembly({"conv": kernel}, description)


@pytest.mark.parametrize("target", INSTRUCTIONS)
@pytest.mark.parametrize("shape", SHAPES, ids=["padded", "stride 2", "1x1"])
def test_convolution_is_exact(target, shape, tmp_path):
    board = board_for(target)
    description = parse_target(target)
    kernel, layouts, weight = _scheduled(description, *shape)
    channels, size, *_, stride, pad, zero = shape
    rng = np.random.default_rng(0)
    # The extremes, at which instructions that saturate would be wrong.
    x = rng.choice(np.array([0, 1, 254, 255], "uint8"), (1, channels, size, size))
    w = rng.choice(np.array([-128, -127, 126, 127], "int8"), weight)
    data, weights = layouts[0].transform(x), layouts[1].transform(w)
    result = tuple(layouts[2].physical_shape)
    program = Program(
        tensors=(
            Tensor("x", data.shape, "uint8", "input"),
            Tensor("w", weights.shape, "int8", "constant", weights),
            Tensor("y", result, "int32", "output"),
        ),
        calls=(Call("conv", (0, 1, 2), "conv"),),
        inputs=(0,),
        outputs=(2,),
        kernels={"conv": kernel},
        input_specs=(TensorSpec("x", data.shape, "uint8"),),
        output_specs=(TensorSpec("y", result, "int32"),),
    )
    package(program, description, tmp_path / "conv.so")
    (got,) = board.run(tmp_path / "conv.so", [data])
    np.testing.assert_array_equal(layouts[2].untransform(got), _expected(x, w, stride, pad, zero))


@pytest.mark.parametrize("target", INSTRUCTIONS)
def test_quantized_network_gives_the_bytes_of_onnx_runtime(target, tmp_path):
    board = board_for(target)
    b = Builder(act="uint8")
    x = b.qdq("x", 0.03, 120)
    y = b.conv(x, 0.03, (24, 12, 3, 3), pads=[1, 1, 1, 1], strides=[2, 2])
    y = b.qdq(b.node("Relu", y), 0.05, 10)
    y = b.conv(y, 0.05, (24, 1, 3, 3), pads=[1, 1, 1, 1], group=24)
    y = b.q(b.node("Relu", y), 0.05, 10)
    model = b.model({"x": ((1, 12, 13, 12), "float32")}, [y])
    feed = {"x": (b.rng.standard_normal((1, 12, 13, 12)) * 1.5).astype("float32")}
    (expected,) = run_onnxruntime(model, feed)
    tilewright.compile(model, target, logs=()).save(tmp_path / "model.so")
    (got,) = board.run(tmp_path / "model.so", feed)
    difference = np.abs(got.astype(int) - expected.astype(int))
    assert difference.max() <= 1
    assert (difference > 0).mean() <= 0.01
