"""Contractions: every class of shape computes the reference, and the code is a register tile."""

import dataclasses
import re

import numpy as np
import pytest
from tvm import te, tirx

from tests.compiler.schedule.te_workloads import (
    Workload,
    batch_matmul,
    conv2d,
    machine_code,
    matmul,
    max_pool,
    planar_conv1d,
    run,
)
from tilewright.compiler.schedule import decisions_from_json, default_decisions, schedule
from tilewright.compiler.schedule.contraction import ContractionDecisions, schedule_contraction
from tilewright.compiler.schedule.micro_kernel import sequence
from tilewright.compiler.targets import Target, parse_target
from tilewright.errors import InvalidScheduleError

NATIVE = parse_target("native")
AVX2 = parse_target("x86-64-v3")
# Sums of at most a few hundred products of normal numbers, in float32.
TOLERANCE = {"rtol": 2e-5, "atol": 1e-4}


def conv_reference(arrays, stride, pad, dilation):
    """Direct convolution in float64 on blocked arrays, plus bias, residual and ReLU."""
    data, weight, bias, *residual = (array.astype("float64") for array in arrays[:-1])
    n = data.shape[0]
    o, _, kernel, _, _, lanes = weight.shape
    before, after = pad
    image = np.pad(data, ((0, 0), (0, 0), (before, after), (before, after), (0, 0)))
    oh, ow = arrays[-1].shape[2:4]
    out = np.zeros((n, o, oh, ow, lanes)) + bias[None, :, None, None, :]
    for y in range(kernel):
        for x in range(kernel):
            window = image[
                :,
                :,
                y * dilation : y * dilation + (oh - 1) * stride + 1 : stride,
                x * dilation : x * dilation + (ow - 1) * stride + 1 : stride,
            ]
            out += np.einsum("ncyxb,ocbl->noyxl", window, weight[:, :, y, x])
    return np.maximum(out + (residual[0] if residual else 0), 0)


CONVOLUTIONS = {
    "3x3 padded, three kinds of tile": {"size": (9, 50), "kernel": 3, "pad": (1, 1)},
    "3x3 on 7x7": {"size": (7, 7), "kernel": 3, "pad": (1, 1)},
    "3x3 stride 2, uneven pad": {"size": (13, 11), "kernel": 3, "stride": 2, "pad": (0, 1)},
    "3x3 dilated by 2": {"size": (9, 12), "kernel": 3, "pad": (2, 2), "dilation": 2},
    "5x5 with a padded copy": {"size": (9, 13), "kernel": 5, "pad": (2, 2)},
    "1x1, rows fused": {"size": (7, 13), "kernel": 1},
    "1x1 stride 2": {"size": (9, 14), "kernel": 1, "stride": 2},
    "1x1 on one pixel": {"size": (1, 1), "kernel": 1},
    "residual": {"size": (7, 14), "kernel": 3, "pad": (1, 1), "residual": True},
}


@pytest.mark.parametrize("target", [NATIVE, AVX2], ids=["native", "avx2"])
@pytest.mark.parametrize("case", CONVOLUTIONS)
def test_convolution_matches_reference(case, target):
    options = CONVOLUTIONS[case]
    lanes = target.lanes("float32")
    workload = conv2d(2, 2 * lanes, outputs=3 * lanes, lanes=lanes, **options)
    arrays = workload.arrays()
    result = run(schedule_contraction(workload.func, target), arrays, target)
    want = conv_reference(
        arrays, options.get("stride", 1), options.get("pad", (0, 0)), options.get("dilation", 1)
    )
    np.testing.assert_allclose(result, want, **TOLERANCE)


@pytest.mark.parametrize("channels", [1, 3])
def test_first_layer_reads_few_channels(channels):
    workload = conv2d(1, channels, (20, 30), 32, 7, 2, (3, 3), input_block=1)
    arrays = workload.arrays()
    result = run(schedule_contraction(workload.func, NATIVE), arrays, NATIVE)
    np.testing.assert_allclose(result, conv_reference(arrays, 2, (3, 3), 1), **TOLERANCE)


@pytest.mark.parametrize("target", [NATIVE, AVX2], ids=["native", "avx2"])
@pytest.mark.parametrize(
    "shape", [(1, 40, 50), (1, 64, 250), (50, 33, 48), (197, 20, 17), (37, 16, 5)]
)
def test_matmul_with_awkward_extents_matches_numpy(shape, target):
    workload = matmul(*shape, lanes=target.lanes("float32"))
    arrays = workload.arrays()
    result = run(schedule_contraction(workload.func, target), arrays, target)
    data, weight, bias, _ = (array.astype("float64") for array in arrays)
    unpacked = weight.transpose(1, 0, 2).reshape(shape[1], -1)[:, : shape[2]]
    np.testing.assert_allclose(result, np.maximum(data @ unpacked + bias, 0), **TOLERANCE)


def test_costly_epilogue_is_fused():
    workload = matmul(30, 40, 50, lanes=NATIVE.lanes("float32"), activation="sigmoid")
    arrays = workload.arrays()
    result = run(schedule_contraction(workload.func, NATIVE), arrays, NATIVE)
    data, weight, bias, _ = (array.astype("float64") for array in arrays)
    product = data @ weight.transpose(1, 0, 2).reshape(40, -1)[:, :50] + bias
    np.testing.assert_allclose(result, 1 / (1 + np.exp(-product)), **TOLERANCE)


@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("shape", [(3, 49, 32, 49), (2, 5, 7, 33)])
def test_batch_matmul_with_two_runtime_operands_matches_numpy(shape, transposed):
    workload = batch_matmul(*shape, transposed=transposed)
    arrays = workload.arrays()
    result = run(schedule_contraction(workload.func, NATIVE), arrays, NATIVE)
    left, right, _ = (array.astype("float64") for array in arrays)
    want = left @ (right.transpose(0, 2, 1) if transposed else right)
    np.testing.assert_allclose(result, want, **TOLERANCE)


VARIATIONS = [
    {"row_tile": (1, 5), "column_vectors": 2},
    {"row_tile": (1, 28), "column_vectors": 1, "row_block": 1000},
    {"row_tile": (2, 7), "column_vectors": 1, "clip_pad": False},
    {"row_block": 5, "unroll": 3},
    {"unroll": 4, "chains": 2, "row_tile": (1, 3)},
    {"reduction_order": (3, 1, 2, 0)},
    {"clip_pad": False, "reduction_order": (0, 3, 1, 2)},
    {"panel": 4, "row_block": 4},
    {"panel": 2, "row_block": 3, "row_tile": (1, 5), "unroll": 4, "chains": 2},
    {"panel": 1, "row_block": 1, "reduction_order": (3, 1, 2, 0)},
    {"panel": 4, "row_block": 5, "clip_pad": False},
]


@pytest.mark.parametrize("change", VARIATIONS, ids=str)
def test_any_valid_decisions_compute_the_same(change):
    workload = conv2d(2, 32, (7, 17), 48, 3, 1, (1, 1))
    decisions = dataclasses.replace(default_decisions(workload.func, NATIVE), **change)
    arrays = workload.arrays()
    result = run(schedule_contraction(workload.func, NATIVE, decisions), arrays, NATIVE)
    np.testing.assert_allclose(result, conv_reference(arrays, 1, (1, 1), 1), **TOLERANCE)


def test_a_loop_over_steps_that_every_row_skips_does_nothing():
    """Found by fuzzing: a step of the window was padding for a whole tile."""
    nothing = sequence([])
    func = tirx.PrimFunc([], tirx.For(tirx.Var("k", "int32"), 0, 3, tirx.ForKind.SERIAL, nothing))
    assert "for k" in func.script()


def test_comparison_notices_a_wrong_weight():
    workload = conv2d(1, 16, (7, 7), 16, 3, 1, (1, 1))
    arrays = workload.arrays()
    result = run(schedule_contraction(workload.func, NATIVE), arrays, NATIVE)
    arrays[1][0, 0, 1, 1, 3, 4] += 0.01
    with pytest.raises(AssertionError):
        np.testing.assert_allclose(result, conv_reference(arrays, 1, (1, 1), 1), **TOLERANCE)


@pytest.mark.parametrize("kernel", [1, 3])
def test_weights_beyond_the_cache_are_walked_in_panels(kernel):
    """A tile's weights are far more than the second level of AVX2 processors."""
    channels = 12288 // kernel
    workload = conv2d(1, channels, (7, 5), 24, kernel, 1, (kernel // 2,) * 2, lanes=8)
    decisions = default_decisions(workload.func, AVX2)
    assert decisions.panel > 0
    assert decisions.row_block > 1
    arrays = workload.arrays()
    arrays[1] /= np.sqrt(channels)
    result = run(schedule_contraction(workload.func, AVX2, decisions), arrays, AVX2)
    want = conv_reference(arrays, 1, (kernel // 2,) * 2, 1)
    np.testing.assert_allclose(result, want, **TOLERANCE)


PLANES = [
    {},
    {"staged": False},
    {"row_tile": (1, 5), "column_vectors": 3, "row_block": 4, "unroll": 2},
    {"row_tile": (2, 3), "column_vectors": 1, "row_block": 1},
    {"row_tile": (1, 2), "column_vectors": 2, "chains": 2, "unroll": 4, "reduction_order": (0,)},
]


@pytest.mark.parametrize("width", [1024, 1053])
@pytest.mark.parametrize("change", PLANES, ids=str)
def test_what_lies_pages_apart_is_copied_by_each_task(change, width):
    """Columns of a plain matrix that are no whole number of vectors overlap their neighbours."""
    # Rows enough for four of the tallest tiles, those of AVX-512.
    workload = batch_matmul(2, 67, 64, width)
    decisions = default_decisions(workload.func, NATIVE)
    assert decisions.staged
    arrays = workload.arrays()
    chosen = dataclasses.replace(decisions, **change)
    result = run(schedule_contraction(workload.func, NATIVE, chosen), arrays, NATIVE)
    left, right, _ = (array.astype("float64") for array in arrays)
    np.testing.assert_allclose(result, left @ right, **TOLERANCE)


@pytest.mark.parametrize("staged", [True, False])
@pytest.mark.parametrize(("stride", "width"), [(5, 512), (2, 203)])
def test_lanes_that_lie_apart_are_copied_by_each_task(stride, width, staged):
    """A first layer on sound: one channel, its pixels as vectors."""
    workload = planar_conv1d(2, 70, width, 10, stride)
    decisions = default_decisions(workload.func, NATIVE)
    assert decisions.staged
    arrays = workload.arrays()
    chosen = dataclasses.replace(decisions, staged=staged)
    result = run(schedule_contraction(workload.func, NATIVE, chosen), arrays, NATIVE)
    data, weight, _ = (array.astype("float64") for array in arrays)
    windows = np.lib.stride_tricks.sliding_window_view(data, 10, axis=1)[:, ::stride]
    want = np.einsum("ntk,ok->not", windows[:, :width], weight)
    np.testing.assert_allclose(result, want, **TOLERANCE)


def test_copies_are_refused_where_there_is_nothing_to_copy_or_too_much():
    def refused(workload, match, **change):
        decisions = dataclasses.replace(default_decisions(workload.func, NATIVE), **change)
        with pytest.raises(InvalidScheduleError, match=match):
            schedule_contraction(workload.func, NATIVE, decisions)

    refused(batch_matmul(1, 37, 4096, 1024), "at most", staged=True, column_vectors=2, panel=0)
    planes = batch_matmul(1, 37, 64, 1024)
    refused(planes, "no panels", staged=True, panel=8, row_block=2)


def test_decisions_of_before_there_were_panels_are_read():
    old = (
        '{"kind":"contraction","row_tile":[1,6],"column_vectors":2,"fused_rows":1,"row_block":3,'
        '"reduction_order":[0,1],"unroll":1,"chains":1,"clip_pad":false}'
    )
    assert decisions_from_json(old) == ContractionDecisions((1, 6), 2, 1, 3, (0, 1))
    with pytest.raises(InvalidScheduleError, match="not contraction decisions"):
        decisions_from_json(old.replace('"row_block":3,', ""))


INVALID = [
    ({"panel": 3}, "do not cut the .* steps"),
    ({"panel": 64}, "do not cut the .* steps"),
    ({"row_tile": (1, 60), "column_vectors": 4}, "exceed twice the"),
    ({"reduction_order": (0, 1)}, "has 4 reduction axes, reduction_order has 2"),
    ({"fused_rows": 2}, "cannot be walked as one"),
    ({"clip_pad": True, "row_tile": (2, 7)}, "only clipped for tiles within one row"),
    ({"unroll": 3, "chains": 2}, "not a multiple of chains"),
]


@pytest.mark.parametrize(("change", "message"), INVALID)
def test_decisions_that_do_not_fit_are_refused(change, message):
    workload = conv2d(1, 32, (7, 7), 32, 3, 1, (1, 1))
    decisions = dataclasses.replace(default_decisions(workload.func, NATIVE), **change)
    with pytest.raises(InvalidScheduleError, match=message):
        schedule_contraction(workload.func, NATIVE, decisions)


def test_clipping_without_padding_is_refused():
    workload = conv2d(1, 32, (7, 7), 32, 1)
    decisions = dataclasses.replace(default_decisions(workload.func, NATIVE), clip_pad=True)
    with pytest.raises(InvalidScheduleError, match="no padding that can be clipped"):
        schedule_contraction(workload.func, NATIVE, decisions)


def test_a_window_is_no_contraction():
    with pytest.raises(InvalidScheduleError, match="not a contraction"):
        schedule_contraction(max_pool(1, 16, (7, 7), 3, 2, 1).func, NATIVE)


def test_decisions_of_another_class_are_refused():
    decisions = default_decisions(max_pool(1, 16, (7, 7), 3, 2, 1).func, NATIVE)
    with pytest.raises(InvalidScheduleError, match="WindowDecisions do not fit"):
        schedule(matmul(4, 8, 16).func, NATIVE, decisions)


@pytest.mark.parametrize("dtype", ["int32", "float64"])
def test_other_dtypes_accumulate_in_their_own(dtype):
    left, right = te.placeholder((19, 33), dtype), te.placeholder((33, 37), dtype)
    axis = te.reduce_axis((0, 33), "k")
    product = te.compute(
        (19, 37), lambda i, j: te.sum(left[i, axis] * right[axis, j], axis=[axis]), name="matmul"
    )
    rng = np.random.default_rng(3)
    arrays = [rng.integers(-9, 9, shape).astype(dtype) for shape in ((19, 33), (33, 37))]
    func = te.create_prim_func([left, right, product])
    result = run(schedule_contraction(func, NATIVE), [*arrays, np.zeros((19, 37), dtype)], NATIVE)
    np.testing.assert_array_equal(result, arrays[0] @ arrays[1])


def test_decisions_validate_themselves():
    with pytest.raises(InvalidScheduleError, match="at least 1"):
        ContractionDecisions((1, 0), 1, 1, 1, (0,))
    with pytest.raises(InvalidScheduleError, match="not an order"):
        ContractionDecisions((1, 1), 1, 1, 1, (0, 2))


def test_decisions_round_trip_through_json():
    decisions = default_decisions(conv2d(1, 32, (7, 7), 32, 3, 1, (1, 1)).func, NATIVE)
    assert decisions_from_json(decisions.to_json()) == decisions
    with pytest.raises(InvalidScheduleError, match="unknown kind"):
        decisions_from_json('{"kind":"magic"}')
    with pytest.raises(InvalidScheduleError, match="not contraction decisions"):
        ContractionDecisions.from_json('{"kind":"contraction"}')


def _multiply_adds(workload: Workload, target: Target) -> tuple[list[str], list[str]]:
    """Return the lines of the innermost loop with most multiply-adds, and those that spill."""
    text = machine_code(schedule_contraction(workload.func, target), target)
    blocks = re.split(r"^\.L\w+:", text, flags=re.MULTILINE)
    body = max(blocks, key=lambda block: block.count("vfmadd")).splitlines()
    fused = [line for line in body if "vfmadd" in line]
    spills = [line for line in body if re.search(r"vmovups.*%[yz]mm\d+, .*\(%rsp\)", line)]
    return fused, spills


@pytest.mark.parametrize(
    ("name", "register"), [("x86-64-v4", "%zmm"), ("x86-64-v3", "%ymm")], ids=["avx512", "avx2"]
)
def test_inner_loop_keeps_a_full_tile_in_registers(name, register):
    target = parse_target(name)
    workload = matmul(56, 64, 64, lanes=target.lanes("float32"))
    fused, spills = _multiply_adds(workload, target)
    assert len(fused) >= 12
    assert all(register in line for line in fused)
    assert not spills


def _prefetches(workload: Workload, target: Target, **change) -> int:
    decisions = dataclasses.replace(default_decisions(workload.func, target), **change)
    text = machine_code(schedule_contraction(workload.func, target, decisions), target)
    return len(re.findall(r"\bprefetcht1\b", text))


def test_tiles_ask_for_the_weights_of_the_next_task_where_they_compute_long_enough():
    wide, narrow = parse_target("x86-64-v4"), parse_target("x86-64-v3")
    product = matmul(104, 256, 96, lanes=16)
    block = {"row_block": 8}
    assert _prefetches(product, wide, **block) > 0
    assert _prefetches(product, wide, row_block=1) == 0  # a task is as short as what it waits for
    assert _prefetches(product, wide, **block, unroll=1) == 0  # less than a line for each tile
    assert _prefetches(matmul(104, 256, 16, lanes=16), wide, **block) == 0  # there is no next task
    assert _prefetches(matmul(104, 256, 96, lanes=8), narrow, **block) == 0


def test_panels_ask_for_the_next_panel():
    wide = parse_target("x86-64-v4")
    workload = conv2d(1, 512, (7, 7), 96, 3, 1, (1, 1), lanes=16)
    asked = _prefetches(workload, wide, row_tile=(1, 7), panel=4, row_block=7, column_vectors=3)
    assert asked > 0


def test_model_prefers_tiles_that_divide():
    wide = parse_target("x86-64-v4")
    decisions = default_decisions(conv2d(1, 64, (56, 56), 64, 3, 1, (1, 1)).func, wide)
    assert 56 % decisions.row_tile[1] == 0
    rows = default_decisions(matmul(197, 192, 768).func, wide).row_tile
    assert 10 <= rows[1] <= 28


@pytest.mark.parametrize(("inner", "is_apart"), [(1024, False), (1088, True), (3072, False)])
def test_rows_that_share_a_set_of_the_first_cache_level_are_few(inner, is_apart):
    wide = parse_target("x86-64-v4")
    rows = default_decisions(matmul(128, inner, 1024, lanes=16).func, wide).row_tile[1]
    assert (rows > 8) == is_apart


@pytest.mark.parametrize(("inner", "is_cut"), [(512, False), (768, False), (3072, True)])
def test_short_reductions_are_not_cut_into_panels(inner, is_cut):
    wide = parse_target("x86-64-v4")
    decisions = default_decisions(matmul(512, inner, 512, lanes=16).func, wide)
    assert (decisions.panel > 0) == is_cut


@pytest.mark.parametrize("outputs", [24, 56, 96])
def test_odd_numbers_of_vectors_do_not_fall_back_to_tiles_of_one_vector(outputs):
    workload = matmul(784, 144, outputs, lanes=8)
    decisions = default_decisions(workload.func, AVX2)
    assert (decisions.row_tile, decisions.column_vectors) == ((1, 4), 3)
    _fused, spills = _multiply_adds(workload, AVX2)
    assert not spills


@pytest.mark.parametrize("size", [(7, 7), (14, 14)])
def test_clipped_window_with_few_registers_does_not_spill(size):
    workload = conv2d(1, 256, size, 48, 3, 1, (1, 1), lanes=8)
    decisions = default_decisions(workload.func, AVX2)
    assert decisions.clip_pad
    assert decisions.reduction_order == (1, 2, 0, 3)  # the window outside, channels inside
    _fused, spills = _multiply_adds(workload, AVX2)
    assert not spills


def test_pointwise_convolution_over_channels_that_no_vector_divides_does_not_spill():
    # ShuffleNet's, whose data stay channels last.
    workload = conv2d(1, 116, (14, 14), 120, 1, lanes=8, input_block=116)
    assert default_decisions(workload.func, AVX2).unroll == 4
    _fused, spills = _multiply_adds(workload, AVX2)
    assert not spills


def test_window_stays_inside_where_registers_are_many():
    workload = conv2d(1, 256, (14, 14), 64, 3, 1, (1, 1))
    decisions = default_decisions(workload.func, parse_target("x86-64-v4"))
    assert decisions.clip_pad
    assert decisions.reduction_order == (0, 1, 2, 3)


def test_tasks_divide_over_the_cores():
    workload = conv2d(1, 64, (56, 56), 64, 3, 1, (1, 1))
    target = dataclasses.replace(NATIVE, cores=4)
    script = schedule_contraction(workload.func, target).script()
    tasks = int(re.search(r"for task in T\.parallel\((\d+)\)", script).group(1))
    assert tasks >= 4
    assert -(-tasks // 4) * 4 <= 1.15 * tasks


def planar_convolution(channels: int, packed: bool):
    """Return a 3x3 convolution over planes: of stride 2 to blocks of channels, or to planes."""
    data = te.placeholder((channels, 34, 34), name="data")
    shape = (2, channels, 3, 3, 8) if packed else (16, channels, 3, 3)
    weight = te.placeholder(shape, name="weight")
    c, y, x = (te.reduce_axis((0, n), name) for n, name in ((channels, "c"), (3, "y"), (3, "x")))

    def blocks(o, h, w, v):
        return te.sum(data[c, 2 * h + y, 2 * w + x] * weight[o, c, y, x, v], axis=[c, y, x])

    def planes(o, h, w):
        return te.sum(data[c, h + y, w + x] * weight[o, c, y, x], axis=[c, y, x])

    shape, compute = ((2, 16, 16, 8), blocks) if packed else ((16, 32, 32), planes)
    return te.create_prim_func([data, weight, te.compute(shape, compute, name="conv")])


def test_steps_that_share_elements_are_kept_apart_where_a_window_is_innermost():
    rows_slide = planar_convolution(3, packed=True)
    assert default_decisions(rows_slide, AVX2).reduction_order == (2, 1, 0)
    assert default_decisions(rows_slide, parse_target("x86-64-v4")).reduction_order == (0, 1, 2)


def test_steps_stay_in_order_where_rows_share_nothing():
    vectors_slide = planar_convolution(16, packed=False)
    assert default_decisions(vectors_slide, AVX2).reduction_order == (0, 1, 2)
