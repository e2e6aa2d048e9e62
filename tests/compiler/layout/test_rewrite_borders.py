"""Borders, overlapping tiles and spatial tiles under layouts, against numpy."""

import numpy as np
import pytest

pytest.importorskip("tvm")

from tvm import s_tir

from tests.compiler.layout.functions import check, divisions, fused, op, run
from tests.compiler.layout.references import conv, conv_function, max_pool, packed_weight
from tilewright.compiler.layout.primitives import Layout, Pad, Reorder, Split, Unfold, blocked
from tilewright.compiler.layout.rewrite import rewrite


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
    assert "pad_temp" in check(func, layouts, max_pool([1, 1], 1))


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
