"""Products by warpgroups: descriptors, swizzling and order of waiting, as the PTX ISA has them."""

import numpy as np
import onnxruntime
import pytest
from onnx import helper

from benchmarks.cuda_gpu import in_half
from benchmarks.cuda_structure import describe, faults
from tests.cuda.emulation import Emulator
from tests.cuda.programs import lower, model_of, run
from tests.cuda.test_operators import check, convolution, normal
from tilewright.compiler.cuda.build import compile_kernels
from tilewright.compiler.cuda.nvcc import find_tool
from tilewright.compiler.cuda.structure import read_code
from tilewright.compiler.cuda.targets import parse_cuda_target
from tilewright.compiler.cuda.tile import GemmTile

pytestmark = pytest.mark.filterwarnings("ignore")
needs_nvcc = pytest.mark.skipif(find_tool("nvcc") is None, reason="needs nvcc")
BOTH = (False, True)


def groups(rows, columns, depth, warps, stages=3, split=1):
    return GemmTile(rows, columns, depth, *warps, stages, split, by_warpgroups=True)


@pytest.fixture
def take(monkeypatch):
    """Let products take one tile."""

    def taken(tile):
        monkeypatch.setattr("tilewright.compiler.cuda.build.choose_tile", lambda *_: tile)

    return taken


def product(rows=100, columns=144, depth=200):
    weights = {"w": normal(depth, columns, seed=1), "b": normal(columns, seed=2)}
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["p"]),
        helper.make_node("Add", ["p", "b"], ["y"]),
    ]
    x = normal(rows, depth)
    return model_of(nodes, {"x": x}, weights), {"x": x}


@pytest.mark.parametrize("depth", [16, 32, 64])
@pytest.mark.parametrize(
    ("rows", "columns", "warps"),
    [(64, 64, (4, 1)), (128, 32, (4, 1)), (128, 128, (8, 1)), (64, 256, (4, 2)), (128, 64, (8, 2))],
)
def test_rows_of_every_swizzling_mode(take, rows, columns, warps, depth):
    take(groups(rows, columns, depth, warps))
    schedules = check(*product(), precision="fp16", backwards=BOTH)
    assert schedules[0].startswith(f"gemm fp16 by warpgroups {rows}x{columns}x{depth}")


def test_bfloat16_and_a_split_depth(take):
    take(groups(64, 64, 32, (4, 1), split=3))
    schedules = check(*product(), precision="bf16", backwards=BOTH)
    assert schedules[0].endswith("split 3")


def test_a_convolution_with_padding(take):
    take(groups(64, 64, 32, (4, 1), stages=2))
    model, feeds = convolution(
        normal(1, 32, 9, 11), normal(72, 32, 3, 3, seed=1), pads=[1, 1, 1, 1], strides=[2, 1]
    )
    check(model, feeds, "fp16", "gemm fp16 by warpgroups", BOTH)


@pytest.mark.parametrize("dtype", [np.int8, np.uint8])
def test_bytes_are_multiplied_exactly(take, dtype):
    take(groups(64, 32, 64, (4, 1)))
    rng = np.random.default_rng(0)
    x = rng.integers(*((-128, 128) if dtype == np.int8 else (0, 256)), (70, 96)).astype(dtype)
    w = rng.integers(-128, 128, (96, 40)).astype(np.int8)
    nodes = [helper.make_node("MatMulInteger", ["x", "w"], ["y"])]
    model = model_of(nodes, {"x": x}, {"w": w})
    lowered = lower(model, "int8")
    schedules = [name for names in lowered.schedules.values() for name in names]
    assert any(name.startswith("gemm int8 by warpgroups") for name in schedules), schedules
    emulator = Emulator(list(lowered.kernels.values()))
    for backwards in BOTH:
        found = run(lowered, {"x": x}, backwards, emulator)["y"]
        np.testing.assert_array_equal(found, x.astype(np.int32) @ w.astype(np.int32))


def test_later_chips_get_instructions_of_single_warps(take):
    take(groups(128, 64, 32, (8, 1)))
    model, feeds = product()
    expected = onnxruntime.InferenceSession(model.SerializeToString()).run(None, feeds)[0]
    lowered = lower(model, "fp16")
    emulator = Emulator(list(lowered.kernels.values()), "TW_NO_WARPGROUPS")
    found = run(lowered, feeds, False, emulator)["y"]
    np.testing.assert_allclose(found, expected, atol=2e-3 * np.abs(expected).max())


@needs_nvcc
@pytest.mark.parametrize("warps", [(4, 1), (8, 1)])
def test_machine_code_has_them_and_spills_nothing(take, warps):
    take(groups(128, 128, 64, warps))
    target = parse_cuda_target("cuda:sm_90")
    kernels = lower(in_half(product(256, 256, 256)[0]), "fp16").kernels
    (found,) = read_code(compile_kernels(kernels, target)).items()
    name, use = found
    assert use.instructions["HGMMA"] > 0
    assert not faults(describe(name, kernels[name], use))


@pytest.mark.parametrize(
    ("tile", "target", "reason"),
    [
        (groups(64, 64, 32, (4, 1)), "cuda:sm_80", "no instructions of warpgroups"),
        (groups(64, 64, 32, (2, 2)), "cuda:sm_90", "4 warps along the rows"),
        (groups(64, 64, 128, (4, 1)), "cuda:sm_90", "depth that warpgroups do not read"),
    ],
)
def test_tiles_that_do_not_fit_say_why(take, tile, target, reason):
    from functools import partial

    from tilewright.api import lower_by
    from tilewright.compiler.cuda.lower import lower_for_cuda
    from tilewright.errors import CompileError

    take(tile)
    lowering = partial(lower_for_cuda, target=parse_cuda_target(target), precision="fp16")
    with pytest.raises(CompileError, match=reason):
        lower_by(lowering, product()[0], None, None, lambda _stage: None)
