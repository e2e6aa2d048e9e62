"""How an injective operator is seen to walk through what it reads, by layouts alone."""

import pytest

pytest.importorskip("tvm")

from tvm import relax

from tests.compiler.layout.functions import fused
from tilewright.compiler.layout.formats import image_layout
from tilewright.compiler.layout.primitives import Layout
from tilewright.compiler.layout.strides import read_walk
from tilewright.compiler.targets import parse_target

TARGET = parse_target("haswell")
LANES = TARGET.lanes("float32")
op = relax.op
IMAGE = (1, 16, 12, 10)


def shares(func, *formats):
    """Return (transposed, gathered) with each parameter in its format."""
    shapes = [tuple(int(extent) for extent in param.shape) for param in func.params]
    layouts = [
        image_layout(shape, name, TARGET) or Layout(shape)
        for shape, name in zip(shapes, formats, strict=True)
    ]
    walk = read_walk(func)
    assert walk is not None
    return walk.strided_shares(layouts, LANES)


@pytest.mark.parametrize("name", ["L", "B", "C"])
def test_one_format_throughout_is_contiguous(name):
    assert shares(fused(op.nn.relu, IMAGE), name, name) == (0, 0)


@pytest.mark.parametrize("formats", [("L", "B"), ("B", "L"), ("L", "C"), ("C", "L")])
def test_channels_that_change_places_with_pixels_are_transposed(formats):
    assert shares(fused(op.nn.relu, IMAGE), *formats) == (1, 0)


def test_blocks_and_channels_last_are_contiguous_to_each_other():
    assert shares(fused(op.nn.relu, IMAGE), "B", "C") == (0, 0)


def test_rows_too_short_for_a_tile_are_gathered():
    assert shares(fused(op.nn.relu, (1, 16, 3, 5)), "L", "B") == (0, 1)


def test_pieces_of_a_concatenation_count_by_their_size():
    func = fused(lambda a, b: op.nn.relu(op.concat([a, b], 1)), IMAGE, (1, 48, 12, 10))
    assert shares(func, "L", "B", "B") == (0.25, 0)


def test_channel_wise_factor_is_contiguous_to_every_format():
    func = fused(lambda x, c: op.add(op.multiply(x, c), c), IMAGE, (16, 1, 1))
    for name in "LBC":
        assert shares(func, name, "L", name) == (0, 0)


def test_gathered_rows_are_gathered():
    func = fused(lambda x, i: op.take(x, i, 3), IMAGE, ((10,), "int64"))
    assert shares(func, "L", "L", "L") == (0, 1)
    assert shares(func, "C", "L", "C") == (0, 0)


def test_reduction_is_not_injective():
    assert read_walk(fused(lambda x: op.sum(x, 1), IMAGE)) is None
