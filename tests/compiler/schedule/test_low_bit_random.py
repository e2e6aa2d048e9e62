"""Every form of narrow integers on shapes and widths that nobody chose."""

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.compiler.schedule.test_low_bit import check_convolution, check_product
from tilewright.compiler.schedule.bit_packing import CODES, PLANES, TABLES
from tilewright.compiler.schedule.code_kernel import code_steps
from tilewright.compiler.schedule.low_bit import LowBit
from tilewright.compiler.schedule.quad_kernel import QUAD, quad_steps
from tilewright.compiler.schedule.table_kernel import has_tables
from tilewright.compiler.targets import parse_target

TARGET = parse_target("x86-64-v3")
BITS = st.integers(1, 8)
SETTINGS = settings(
    max_examples=12,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much],
)


def _has(group, p, q, products):
    """Say whether a form takes weights and data of these bits."""
    top = 1 << (p - 1)
    low_bit = LowBit(*((-1, 1, True) if p == 1 else (-top, top - 1, False)), (1 << q) - 1)
    if group == QUAD:
        return quad_steps(low_bit) > 0
    if group == CODES:
        return code_steps(low_bit) > 0
    return group == PLANES or has_tables(TARGET, low_bit, products)


@pytest.mark.parametrize("group", [QUAD, TABLES, CODES, PLANES])
@SETTINGS
@given(BITS, BITS, st.integers(1, 20), st.integers(2, 9), st.integers(8, 90), st.integers(0, 99))
def test_products_are_exact(group, p, q, rows, cells, columns, seed):
    while not _has(group, p, q, cells * group):
        p, q = max(1, p - 1), max(1, q - 1)
    check_product(TARGET, group, rows, cells * group, columns, p, q, seed)


@pytest.mark.slow
@pytest.mark.parametrize("group", [QUAD, TABLES, CODES, PLANES])
@settings(parent=SETTINGS, max_examples=30)
@given(
    *(BITS, BITS, st.integers(1, 3), st.integers(3, 9), st.integers(8, 40)),
    *(st.sampled_from([1, 2, 3]), st.sampled_from([1, 2]), st.integers(0, 2), st.integers(0, 99)),
)
def test_convolutions_are_exact(group, p, q, cells, size, outputs, side, stride, pad, seed):
    channels = cells * group
    products = channels * side * side
    while not _has(group, p, q, products):
        p, q = max(1, p - 1), max(1, q - 1)
    if products == group:  # one cell: no reduction is left for a tile
        side = 2
    zero = seed % (1 << q)
    data, weight = (1, channels, size, size + 1), (outputs, channels, side, side)
    check_convolution(TARGET, group, data, weight, p, q, stride, pad, zero, seed)
