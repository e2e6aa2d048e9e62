"""Long names of fused operators fit a table and can still be told apart."""

import pytest

from tilewright._cli_output import width_of
from tilewright.labels import short_label


@pytest.mark.parametrize(
    ("label", "expected"),
    [
        ("softmax#11", "softmax#11"),
        ("fused_conv2d_add_relu#0", "conv2d_add_relu#0"),
        ("fused_conv1d_tir_abs_tir_exp", "conv1d_abs_exp"),
        ("convert p0#3", "convert p0#3"),
        (
            "fused_conv1d_add_tir_abs_tir_negative_tir_exp_add1_subtract_where_tir_tanh_multiply#12",
            "conv1d_add_abs_negative_..tanh_multiply#12",
        ),
    ],
)
def test_a_name_says_what_is_first_and_which_call_it_is(label, expected):
    assert short_label(label, 42) == expected
    assert len(short_label(label, 30)) <= 30
    assert short_label(label, 30).partition("#")[2] == label.partition("#")[2]


def test_a_table_knows_its_width():
    assert width_of(("ab", "c"), [("abcd", "e"), ("", "efg")]) == 4 + 3 + 2 * 3
