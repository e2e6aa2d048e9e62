"""Inner loops on ARM: multiply-adds by a lane, everything in registers."""

import re

import pytest

from benchmarks.arm_mca import OPERATORS, measure
from tests.arm.test_integer import SHAPES, _scheduled
from tests.compiler.schedule.te_workloads import conv2d, matmul
from tilewright.compiler.codegen import assembly
from tilewright.compiler.schedule import schedule
from tilewright.compiler.targets import parse_target
from tilewright.errors import TargetError
from tilewright.tuner.device.mca import find_mca, hottest_loop

pytestmark = pytest.mark.arm

WORKLOADS = {
    "convolution": lambda lanes: conv2d(1, 64, (14, 14), 64, 3, 1, (1, 1), lanes=lanes),
    "product": lambda lanes: matmul(64, 128, 96, lanes=lanes),
}


@pytest.mark.parametrize("target", ["aarch64:cortex-a72", "aarch64:neoverse-n1"])
@pytest.mark.parametrize("name", WORKLOADS)
def test_loop_is_multiply_adds_by_lanes_without_spills(name, target):
    description = parse_target(target)
    func = WORKLOADS[name](description.lanes("float32")).func
    loop = hottest_loop(assembly({"main": schedule(func, description)}, description))
    assert loop.spills == 0
    assert loop.multiply_adds > 0.75 * len(loop.lines)
    assert any(".s[3]" in line for line in loop.lines)


@pytest.mark.parametrize("shape", [(128, 14), (256, 7)], ids=str)
def test_matrix_products_of_bytes_do_not_spill(shape):
    description = parse_target("aarch64:neoverse-v1")
    kernel, _, _ = _scheduled(description, *shape, *SHAPES[0][2:])
    loop = hottest_loop(assembly({"conv": kernel}, description))
    assert loop.spills == 0
    assert set(loop.kinds) == {"usmmla"}
    assert loop.multiply_adds >= 0.45 * len(loop.lines)


@pytest.mark.parametrize(
    ("target", "shape"),
    [
        ("aarch64:cortex-a76", (64, 14)),
        ("aarch64:cortex-a76", (256, 7)),
        # Not a multiple of the 8 bytes of a matrix product.
        ("aarch64:neoverse-v1", (68, 14)),
    ],
    ids=str,
)
def test_dot_products_of_bytes_are_by_lanes_without_spills(target, shape):
    description = parse_target(target)
    kernel, _, _ = _scheduled(description, *shape, *SHAPES[0][2:])
    loop = hottest_loop(assembly({"conv": kernel}, description))
    assert loop.spills == 0
    assert loop.multiply_adds >= 0.65 * len(loop.lines)
    assert any("4b[3]" in line for line in loop.lines)


@pytest.mark.parametrize(
    ("dtype", "processor"),
    [
        *(("float32", "cortex-a72"), ("int8", "cortex-a76"), ("int8", "neoverse-n1")),
        ("int8", "neoverse-v1"),
    ],
)
def test_model_of_the_processor_reaches_the_bound(dtype, processor):
    try:
        find_mca()
    except TargetError as error:
        pytest.skip(str(error))
    name = next(name for name in OPERATORS if name.endswith(dtype))
    assert measure(name, processor).share >= 0.85


@pytest.mark.parametrize("name", [*WORKLOADS, "pointwise convolution"])
def test_16_registers_hold_a_step_without_spills(name):
    """On armv7, where LLVM would mix the loads of several steps and spill."""
    description = parse_target("armv7:cortex-a7")
    lanes = description.lanes("float32")
    pointwise = conv2d(1, 128, (28, 28), 128, 1, 1, (0, 0), lanes=lanes)
    func = (WORKLOADS[name](lanes) if name in WORKLOADS else pointwise).func
    body = _armv7_loop(assembly({"main": schedule(func, description)}, description), "vfma.f32")
    assert body.count("vfma.f32") >= 8
    assert not re.search(r"\bsp\b", body)


@pytest.mark.parametrize("shape", [(64, 14), (256, 7)], ids=str)
def test_16_registers_hold_a_step_of_bytes_without_spills(shape):
    description = parse_target("armv7:cortex-a7")
    kernel, _, _ = _scheduled(description, *shape, *SHAPES[0][2:])
    body = _armv7_loop(assembly({"conv": kernel}, description), "vmlal.s16")
    assert body.count("vmlal.s16") >= 0.4 * len(body.splitlines())
    assert not re.search(r"\bsp\b", body)


def _armv7_loop(text, multiply_add):
    """Return the innermost loop with most multiply-adds."""
    loops = re.findall(r"(\.LBB\S+):((?:(?!\n\.L).)*?)\tb\w*\t\1\n", text, re.DOTALL)
    return max((code for _, code in loops), key=lambda code: code.count(multiply_add))
