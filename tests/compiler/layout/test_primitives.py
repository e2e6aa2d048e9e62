"""Layout primitives: maps, inverses, simplification, JSON, and what does not fit."""

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tilewright.compiler.layout.base import register
from tilewright.compiler.layout.primitives import (
    Crop,
    Fold,
    Fuse,
    Layout,
    Pad,
    Reorder,
    Split,
    StoreAt,
    TakeOut,
    Unfold,
    blocked,
    pack_constant,
)
from tilewright.errors import LayoutError


def _divisors(n):
    return [d for d in range(1, n + 1) if n % d == 0]


@st.composite
def layouts(draw, kinds=("split", "fuse", "reorder", "pad", "unfold", "store_at", "crop")):
    """Random layouts of small tensors, up to five primitives."""
    shape = tuple(draw(st.lists(st.integers(1, 7), min_size=1, max_size=4)))
    layout = Layout(shape)
    for _ in range(draw(st.integers(0, 5))):
        current = layout.physical_shape
        dim = draw(st.integers(0, len(current) - 1))
        extent = current[dim]
        kind = draw(st.sampled_from(kinds))
        if kind == "split":
            inner = draw(st.sampled_from(_divisors(extent)))
            step = Split(dim, (extent // inner, inner))
        elif kind == "fuse":
            step = Fuse(dim, draw(st.integers(1, len(current) - dim)))
        elif kind == "reorder":
            step = Reorder(tuple(draw(st.permutations(range(len(current))))))
        elif kind == "pad":
            step = Pad(dim, draw(st.integers(0, 2)), draw(st.integers(0, 2)))
        elif kind == "store_at":
            step = StoreAt(dim, "guest")
        elif kind == "crop":
            before = draw(st.integers(0, extent - 1))
            step = Crop(dim, before, draw(st.integers(0, extent - 1 - before)))
        else:
            size = draw(st.integers(1, extent))
            strides = [s for s in range(1, size + 1) if (extent - size) % s == 0]
            step = Unfold(dim, size, draw(st.sampled_from(strides)))
        if np.prod(step.output_shape(current)) > 4000:
            break
        layout = layout.then(step)
    return layout


keeping = layouts(kinds=("split", "fuse", "reorder", "pad", "unfold", "store_at"))


def _numbered(layout):
    return np.arange(1, np.prod(layout.shape) + 1, dtype=np.int64).reshape(layout.shape)


@settings(deadline=None)
@given(keeping)
def test_layout_then_its_inverse_gives_the_array_back(layout):
    array = _numbered(layout)
    physical = layout.transform(array)
    assert physical.shape == layout.physical_shape
    assert physical.flags.c_contiguous
    np.testing.assert_array_equal(layout.untransform(physical), array)
    np.testing.assert_array_equal(layout.inverse().transform(physical), array)


@settings(deadline=None)
@given(keeping)
def test_layout_composed_with_its_inverse_simplifies_to_the_identity(layout):
    assert layout.compose(layout.inverse()).is_identity


@settings(deadline=None)
@given(layouts())
def test_simplify_keeps_the_map_and_is_idempotent(layout):
    simple = layout.simplify()
    assert len(simple.primitives) <= len(layout.primitives)
    assert simple.simplify() == simple
    array = _numbered(layout)
    np.testing.assert_array_equal(simple.transform(array), layout.transform(array))


@settings(deadline=None)
@given(layouts())
def test_json_round_trip_through_text(layout):
    assert Layout.from_json(json.loads(json.dumps(layout.to_json()))) == layout


@settings(deadline=None)
@given(keeping)
def test_map_index_says_where_transform_puts_each_element(layout):
    array = _numbered(layout)
    physical = layout.transform(array)
    for index in np.ndindex(layout.shape):
        assert physical[layout.map_index(index)] == array[index]


@settings(deadline=None)
@given(keeping)
def test_unmap_index_says_what_lies_at_each_place(layout):
    array = _numbered(layout)
    physical = layout.transform(array)
    for place in np.ndindex(physical.shape):
        index, valid = layout.unmap_index(place)
        if valid is None or valid:
            assert physical[place] == array[index]
        else:
            assert physical[place] == 0


@settings(deadline=None)
@given(layouts(kinds=("split", "fuse", "reorder", "pad")))
def test_invertible_layouts_have_one_place_per_element(layout):
    assert layout.is_invertible
    places = {layout.map_index(index) for index in np.ndindex(layout.shape)}
    assert len(places) == np.prod(layout.shape)


def test_blocked_is_nchw16c():
    layout = blocked((2, 24, 5, 7), 1, 16)
    assert layout.physical_shape == (2, 2, 5, 7, 16)
    assert layout.describe("NCHW") == "N C H W -> N (C+8)/16 H W 16c"
    assert layout.map_index((1, 17, 2, 3)) == (1, 1, 2, 3, 1)
    assert layout.unmap_index((1, 1, 2, 3, 8)) == ((1, 24, 2, 3), False)
    assert layout.size_bytes("float32") == 2 * 2 * 5 * 7 * 16 * 4


def test_blocked_of_the_last_dimension_needs_no_reorder():
    assert blocked((4, 32), 1, 16).primitives == (Split(1, (2, 16)),)


def test_str_names_dimensions_by_number():
    assert str(blocked((1, 64, 8, 8), 1, 16)) == "d0 d1 d2 d3 -> d0 d1/16 d2 d3 16d1"


def test_describe_names_every_kind():
    layout = Layout(
        (4, 9, 6),
        (StoreAt(0, "bias"), Unfold(1, 5, 4), Pad(3, 1, 2), Fuse(0, 2), Crop(0, 1, 1)),
    )
    assert layout.describe("ABC") == "A B C -> ((A+bias)*B~4)[1:-1] 5b (1+C+2)"


def test_transposes_of_a_square_tensor_cancel_only_by_their_maps():
    turned = Layout((3, 3, 3), (Reorder((1, 2, 0)),))
    assert not turned.compose(turned).is_identity
    assert turned.compose(turned).compose(turned).is_identity


def test_reshapes_of_equal_shape_cancel_only_by_their_maps():
    # [4, 4] -> [4, 2, 2] -> [2, 4, 2] is not the split and fuse of the same dimensions
    layout = Layout((4, 4), (Split(1, (2, 2)), Reorder((1, 0, 2)), Fuse(1, 2), Reorder((1, 0))))
    assert not layout.is_identity


def test_pad_then_crop_cancels_but_crop_then_pad_loses_data():
    assert Layout((5,), (Pad(0, 1, 2), Crop(0, 1, 2))).is_identity
    assert not Layout((5,), (Crop(0, 1, 2), Pad(0, 1, 2))).is_identity


def test_unfold_lays_overlapping_tiles_apart():
    layout = Layout((7,), (Unfold(0, 3, 2),))
    np.testing.assert_array_equal(layout.transform(np.arange(7)), [[0, 1, 2], [2, 3, 4], [4, 5, 6]])
    assert not layout.is_invertible
    assert layout.map_index((6,)) == (2, 2)


def test_store_at_puts_the_guest_behind_the_host():
    layout = Layout((2, 3), (StoreAt(1, "bias"),))
    host, bias = np.ones((2, 3), np.float32), np.array([7, 8], np.float32)
    physical = layout.transform(host, guests={"bias": bias})
    np.testing.assert_array_equal(physical[:, 3], bias)
    np.testing.assert_array_equal(layout.untransform(physical), host)
    with pytest.raises(LayoutError, match=r"'bias' has shape \[3\], expected \[2\]"):
        layout.transform(host, guests={"bias": np.zeros(3)})


def test_pack_constant_fills_padding_with_zeros():
    packed = pack_constant(blocked((3, 2), 0, 4), np.ones((3, 2), np.int8))
    np.testing.assert_array_equal(packed, [[[1, 1, 1, 0], [1, 1, 1, 0]]])
    assert packed.dtype == np.int8


def test_scalar_and_empty_layouts():
    assert Layout(()).transform(np.array(3.0)).shape == ()
    assert Layout((0, 3)).transform(np.zeros((0, 3))).shape == (0, 3)


def test_map_index_of_tir_expressions_agrees_with_ints():
    tvm = pytest.importorskip("tvm")
    layout = Layout((9, 24), (Unfold(0, 5, 4), Split(2, (3, 8)), Pad(2, 1, 0), Fuse(0, 2)))
    variables = [tvm.tirx.Var(f"i{k}", "int64") for k in range(2)]
    mapped = layout.map_index(variables)
    for index in [(0, 0), (4, 13), (7, 23), (8, 8)]:
        analyzer = tvm.sym.Analyzer()
        for variable, i in zip(variables, index, strict=True):
            analyzer.bind(variable, tvm.tirx.const(i, "int64"))
        assert tuple(int(analyzer.simplify(e)) for e in mapped) == layout.map_index(index)
    place = [tvm.tirx.Var(f"p{k}", "int64") for k in range(len(layout.physical_shape))]
    _, valid = layout.unmap_index(place)
    assert "p1 >= " in str(valid)


@pytest.mark.parametrize(
    ("steps", "message"),
    [
        ((Split(0, (2, 2)),), r"factors \[2, 2\] multiply to 4, but the extent is 6"),
        ((Split(2, (1, 1)),), "split of dimension 2 does not fit"),
        ((Fuse(1, 2),), r"fuse of dimension 1..2 does not fit"),
        ((Reorder((0, 1, 2)),), r"reorder \[0, 1, 2\] does not fit"),
        ((Crop(1, 3, 2),), "leaves nothing"),
        ((Unfold(0, 4, 3),), "do not cover the extent 6 exactly"),
        ((Unfold(0, 2, 2), Fold(0, 3)), "do not overlap"),
        ((TakeOut(2, "x"),), "does not fit"),
    ],
)
def test_primitives_that_do_not_fit_raise(steps, message):
    with pytest.raises(LayoutError, match=message):
        Layout((6, 5), steps)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Split(0, (0, 2)), "factor of a split is 0"),
        (lambda: Split(0, ()), "has no factors"),
        (lambda: Split(-1, (2,)), "dimension of a split is -1"),
        (lambda: Reorder((0, 0)), "not a permutation"),
        (lambda: Pad(0, -1, 0), "padding before is -1"),
        (lambda: Unfold(0, 2, 3), "tile size of an unfold is 2"),
        (lambda: StoreAt(0, ""), "needs the name"),
        (lambda: blocked((3,), 1, 4), "dimension 1 to block"),
        (lambda: Layout((-1,)), "negative extent"),
        (lambda: Layout((3,)).compose(Layout((4,))), "cannot apply a layout"),
        (lambda: Layout((3,)).transform(np.zeros(4)), r"array of shape \[4\]"),
        (lambda: Layout((3,)).untransform(np.zeros(4)), r"physical shape is \[3\]"),
    ],
)
def test_wrong_arguments_raise(make, message):
    with pytest.raises(LayoutError, match=message):
        make()


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ({"kind": "schedule"}, "not a layout"),
        ({"kind": "layout", "shape": [4], "primitives": [], "x": 1}, "has fields"),
        ({"kind": "layout", "shape": [4], "primitives": [{"kind": "swizzle"}]}, "unknown layout"),
        (
            {"kind": "layout", "shape": [4], "primitives": [{"kind": "fuse", "dim": 0}]},
            "'fuse' has fields",
        ),
    ],
)
def test_unknown_json_raises(data, message):
    with pytest.raises(LayoutError, match=message):
        Layout.from_json(data)


def test_kind_that_exists_already_cannot_be_registered():
    with pytest.raises(LayoutError, match="kind 'pad' is registered twice"):
        register(Pad)
