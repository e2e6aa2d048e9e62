"""Layouts taken apart: borders, chains per dimension, and layouts of related tensors."""

from tilewright.compiler.layout.primitives import (
    Fuse,
    Layout,
    Pad,
    Reorder,
    Split,
    Unfold,
    blocked,
)
from tilewright.compiler.layout.structure import carry_over, per_dimension, split_border

IMAGE = (2, 24, 7, 5)
BLOCKED = blocked(IMAGE, 1, 16)


def test_per_dimension_has_a_chain_for_each_dimension_and_the_order_of_the_parts():
    parts = per_dimension(BLOCKED.then(Pad(2, 1, 1)))
    assert parts.chains == ((), (Pad(0, 0, 8), Split(0, (2, 16))), (Pad(0, 1, 1),), ())
    assert parts.order == ((0, 0), (1, 0), (2, 0), (3, 0), (1, 1))


def test_layout_that_fuses_dimensions_has_no_parts():
    assert per_dimension(Layout((2, 3), (Fuse(0, 2),))) is None
    assert carry_over(Layout((2, 3), (Fuse(0, 2),)), (2,), [0]) is None


def test_split_border_takes_the_padding_of_whole_dimensions_only():
    core, border = split_border(BLOCKED.then(Pad(2, 1, 2), Pad(3, 0, 1)))
    assert core == BLOCKED
    assert border == ((0, 0), (0, 0), (1, 2), (0, 1), (0, 0))


def test_padding_that_is_split_afterwards_is_no_border():
    tiled = Layout((6,), (Pad(0, 1, 1), Split(0, (2, 4))))
    assert split_border(tiled) == (tiled, ((0, 0), (0, 0)))


def test_bias_takes_the_channels_of_the_image():
    assert carry_over(BLOCKED, (1, 24, 1, 1), [None, 1, None, None]) == blocked(
        (1, 24, 1, 1), 1, 16
    )
    assert carry_over(BLOCKED, (24, 1, 1), [1, None, None]) == blocked((24, 1, 1), 0, 16)


def test_mean_over_the_pixels_takes_batch_and_channels():
    assert carry_over(BLOCKED, (2, 24), [0, 1]) == blocked((2, 24), 1, 16)


def test_padded_copy_takes_the_blocks_but_not_the_border():
    bordered = BLOCKED.then(Pad(2, 1, 1), Pad(3, 1, 1))
    assert carry_over(bordered, (2, 24, 9, 7), [0, 1, 2, 3]) == blocked((2, 24, 9, 7), 1, 16)


def test_dimension_of_another_extent_is_blocked_alike():
    assert carry_over(BLOCKED, (2, 40, 7, 5), [0, 1, 2, 3]) == blocked((2, 40, 7, 5), 1, 16)
    assert carry_over(BLOCKED, (2, 1, 7, 5), [0, 1, 2, 3]) == Layout((2, 1, 7, 5))


def test_transposed_copy_lies_in_the_same_order():
    turned = carry_over(BLOCKED, (2, 7, 5, 24), [0, 2, 3, 1])
    assert turned.physical_shape == BLOCKED.physical_shape


def test_unfolded_data_is_not_carried_over():
    tiles = Layout((9, 4), (Unfold(0, 5, 4), Reorder((0, 2, 1))))
    assert carry_over(tiles, (9, 4), [0, 1]).physical_shape == (9, 4)
