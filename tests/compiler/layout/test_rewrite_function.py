"""What the rewriter leaves alone, and what it refuses."""

import numpy as np
import pytest

tvm = pytest.importorskip("tvm")
tvm_ffi = pytest.importorskip("tvm_ffi")

from tvm import s_tir  # noqa: E402
from tvm.script import tirx as T  # noqa: E402

from tests.compiler.layout.functions import check, fused, op, run, whole_numbers  # noqa: E402
from tests.compiler.layout.references import conv_function, packed_weight  # noqa: E402
from tilewright.compiler.layout.primitives import Crop, Layout, Pad, Reorder, Unfold, blocked  # noqa: E402
from tilewright.compiler.layout.rewrite import pack_constant, rewrite  # noqa: E402
from tilewright.errors import LayoutError  # noqa: E402


def test_no_layouts_give_the_same_function():
    func, _ = conv_function((1, 3, 5, 4), (2, 3, 3, 3), [1, 1], [1, 1, 1, 1])
    assert tvm_ffi.structural_equal(rewrite(func, {}), func)
    assert tvm_ffi.structural_equal(rewrite(func, {0: Layout((1, 3, 5, 4), (Pad(0, 0, 0),))}), func)


def test_layouts_of_intermediates_can_be_given():
    x = (2, 8, 3)
    func = fused(lambda a: op.nn.relu(op.add(a, a)), x)
    text = check(
        func, {}, lambda a: np.maximum(a + a, 0), buffers={"T_add_intermediate": blocked(x, 1, 4)}
    )
    assert "T_add_intermediate[v_ax0, v_ax1_o, v_ax2, v_ax1_i] = p0[" in text


def test_transform_layout_of_the_scheduler_computes_the_same():
    x, w = (1, 8, 5, 4), (8, 8, 3, 3)
    func, y = conv_function(x, w, [1, 1], [0, 0, 0, 0])
    schedule = s_tir.Schedule(func.with_attr("global_symbol", "main"))
    block = schedule.get_sblock("conv2d_nchw")
    split = lambda n, c, h, w: (n, c // 4, h, w, c % 4)  # noqa: E731
    schedule.transform_layout(block, ("read", 0), split)  # of the padded copy of the data
    schedule.transform_layout(block, ("write", 0), split)
    ours = rewrite(func, {2: blocked(y, 1, 4)}, buffers={"pad_temp": blocked(x, 1, 4)})
    arrays = whole_numbers(ours)
    theirs = run(schedule.mod["main"], arrays)[-1]
    np.testing.assert_array_equal(run(ours, arrays)[-1], theirs)


def test_a_wrong_layout_fails_the_comparison():
    x = (1, 8, 4, 4)
    func = fused(op.nn.relu, x)
    right, wrong = blocked(x, 1, 4), blocked(x, 1, 4).then(Reorder((0, 1, 3, 2, 4)))
    array = whole_numbers(func)[0]
    new = rewrite(func, {0: wrong, 1: right})  # of the same shape, but transposed pixels
    result = run(new, [right.transform(array), np.empty(right.physical_shape, "float32")])[1]
    assert not np.array_equal(result, right.transform(np.maximum(array, 0)))


def test_pack_constant_is_the_weight_that_the_function_reads():
    packed = pack_constant(packed_weight((3, 2, 1, 1), 4), np.ones((3, 2, 1, 1), "float32"))
    assert packed.shape == (1, 2, 1, 1, 4)
    assert packed[..., 3].max() == 0


@T.prim_func(s_tir=True)
def running_sum(a: T.Buffer((3, 8), "float32"), b: T.Buffer((3, 8), "float32")):
    with T.sblock("root"):
        for i in range(3):
            with T.sblock("scan"):
                vi = T.axis.spatial(3, i)
                b[vi, 0] = a[vi, 0]
                for j in range(7):
                    b[vi, j + 1] = b[vi, j] + a[vi, j + 1]


def test_statements_that_are_not_normal_keep_their_loops():
    layout = blocked((3, 8), 1, 4)
    new = rewrite(running_sum, {0: layout, 1: layout})
    array = np.arange(24, dtype="float32").reshape(3, 8)
    result = run(new, [layout.transform(array), np.empty((3, 2, 4), "float32")])[1]
    np.testing.assert_array_equal(result, layout.transform(array.cumsum(1)))


def test_statements_that_are_not_normal_cannot_write_padding():
    with pytest.raises(
        LayoutError, match="'b' is written by a loop nest that is not in normal form"
    ):
        rewrite(running_sum, {1: blocked((3, 8), 1, 5)})


@pytest.mark.parametrize(
    ("layouts", "buffers", "message"),
    [
        ({7: Layout((2, 6))}, {}, "layout given for parameter 7, but the function has 2"),
        ({0: Layout((2, 5))}, {}, r"'p0' has the shape \[2, 6\], but its layout is for \[2, 5\]"),
        (
            {},
            {"nothing": Layout((2, 6))},
            r"buffer 'nothing'; the intermediates are \['T_add_intermediate'\]",
        ),
        (
            {1: Layout((2, 6), (Unfold(1, 4, 2),))},
            {},
            "cannot write 'compute_intermediate' through",
        ),
        ({1: Layout((2, 6), (Crop(1, 0, 1),))}, {}, "repeats or drops elements"),
    ],
)
def test_layouts_that_do_not_fit_raise(layouts, buffers, message):
    func = fused(lambda a: op.nn.relu(op.add(a, a)), (2, 6))
    with pytest.raises(LayoutError, match=message):
        rewrite(func, layouts, buffers=buffers)


@T.prim_func(s_tir=True)
def two_results(
    a: T.Buffer((6,), "float32"), b: T.Buffer((6,), "float32"), c: T.Buffer((6,), "float32")
):
    with T.sblock("root"):
        for i in range(6):
            with T.sblock("both"):
                vi = T.axis.spatial(6, i)
                b[vi] = a[vi] + T.float32(1)
                c[vi] = a[vi] - T.float32(1)


def test_block_with_two_results_needs_one_layout_without_padding():
    half = blocked((6,), 0, 3)
    check(two_results, {1: half, 2: half}, lambda a: (a + 1, a - 1), outputs=2)
    with pytest.raises(LayoutError, match="writes 'b' and 'c' in one loop nest"):
        rewrite(two_results, {1: half})
    with pytest.raises(LayoutError, match="'both' cannot be padded: it writes several values"):
        rewrite(two_results, {1: blocked((6,), 0, 4), 2: blocked((6,), 0, 4)})


def test_dimensions_that_are_not_bound_raise():
    n = tvm.tirx.Var("n", "int64")
    a, b = (tvm.tirx.decl_buffer((n,), "float32", name) for name in "ab")
    root = s_tir.SBlock([], [], [], "root", tvm.tirx.BufferStore(b, tvm.tirx.const(1.0), [0]))
    func = tvm.tirx.PrimFunc([a, b], s_tir.SBlockRealize([], True, root))
    with pytest.raises(
        LayoutError, match=r"'a' has the shape \[n\]; layouts need constant extents"
    ):
        rewrite(func, {0: Layout((4,))})


def test_lowered_function_raises():
    func = tvm.tirx.PrimFunc([], tvm.tirx.Evaluate(0))
    with pytest.raises(LayoutError, match="has no root block"):
        rewrite(func, {})
