"""What the analysis finds: stages, pads, anchors and roles of axes; and how tiles are cut."""

import itertools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tvm import te

from tests.compiler.schedule.te_workloads import (
    batch_matmul,
    conv2d,
    depthwise,
    matmul,
    max_pool,
)
from tilewright.compiler.schedule.analysis import classify, find_anchor, read_pad, read_stages
from tilewright.compiler.schedule.tiling import partition, refine


def anchor_of(workload, lanes=16):
    return find_anchor(read_stages(workload.func), lanes)


def names(anchor, positions):
    return [anchor.stage.spatial[position].name for position in positions]


def test_pad_stage_is_read_as_bounds():
    stages = read_stages(conv2d(1, 16, (7, 9), 16, 3, 1, (1, 2)).func)
    assert [stage.name for stage in stages] == ["pad", "conv", "bias_add", "relu"]
    assert read_pad(stages[0]).bounds == {2: (1, 8), 3: (1, 10)}
    assert read_pad(stages[2]) is None


@pytest.mark.parametrize(
    ("workload", "kind"),
    [
        (conv2d(1, 16, (7, 9), 16, 3, 1, (1, 1)), "contraction"),
        (matmul(5, 7, 33), "contraction"),
        (batch_matmul(2, 5, 7, 33), "contraction"),
        (depthwise(1, 16, (7, 7), 3, 1, 1), "window"),
        (max_pool(1, 16, (7, 7), 3, 2, 1), "window"),
    ],
)
def test_classes(workload, kind):
    assert classify(workload.func) == kind


def test_sum_over_an_axis_is_a_reduction_and_addition_is_elementwise():
    data = te.placeholder((4, 5), name="data")
    axis = te.reduce_axis((0, 5), "k")
    total = te.compute((4,), lambda i: te.sum(data[i, axis], axis=[axis]), name="total")
    assert classify(te.create_prim_func([data, total])) == "reduction"
    double = te.compute((4, 5), lambda i, j: data[i, j] * 2.0, name="double")
    assert classify(te.create_prim_func([data, double])) == "elementwise"


def test_roles_of_a_convolution():
    anchor = anchor_of(conv2d(2, 32, (7, 9), 48, 3, 1, (1, 1)))
    assert names(anchor, anchor.rows) == ["v_n", "v_y", "v_x"]
    assert names(anchor, anchor.columns) == ["v_o", "v_i"]
    assert anchor.batch == ()
    assert [access.vector for access in anchor.accesses] == [0, 1]


def test_roles_of_a_batched_product():
    anchor = anchor_of(batch_matmul(3, 5, 7, 33))
    assert names(anchor, anchor.batch) == ["v_b"]
    assert names(anchor, anchor.rows) == ["v_i"]
    assert names(anchor, anchor.columns) == ["v_j"]


def test_groups_become_a_batch_axis():
    data = te.placeholder((1, 6, 4, 4, 8), name="data")
    weight = te.placeholder((10, 3, 8, 8), name="weight")
    rc, ri = te.reduce_axis((0, 3), "rc"), te.reduce_axis((0, 8), "ri")
    out = te.compute(
        (1, 10, 4, 4, 8),
        lambda n, o, y, x, i: te.sum(
            data[n, o // 5 * 3 + rc, y, x, ri] * weight[o, rc, ri, i], axis=[rc, ri]
        ),
        name="conv",
    )
    anchor = find_anchor(read_stages(te.create_prim_func([data, weight, out])), 8)
    assert names(anchor, anchor.batch)[-1] == "v_o_group"
    assert names(anchor, anchor.columns) == ["v_o_member", "v_i"]


@given(st.integers(1, 500), st.integers(1, 40))
@settings(deadline=None)
def test_partition_covers_the_extent_with_two_sizes(extent, tile):
    runs = partition(extent, tile)
    assert len(runs) <= 2
    assert runs[0].start == 0
    assert sum(run.count * run.size for run in runs) == extent
    assert max(run.size for run in runs) <= tile
    assert max(run.size for run in runs) - min(run.size for run in runs) <= 1
    for left, right in itertools.pairwise(runs):
        assert right.first == left.end
        assert right.start == left.start + left.count * left.size


@given(st.integers(1, 300), st.integers(1, 40), st.integers(1, 5))
@settings(deadline=None)
def test_refined_runs_have_one_key_each(extent, tile, period):
    def key(start, size):
        return start // period % 2

    refined = refine(partition(extent, tile), key)
    assert sum(run.count * run.size for run in refined) == extent
    for run in refined:
        keys = {key(run.start + i * run.size, run.size) for i in range(run.count)}
        assert len(keys) == 1
