"""Products with packed weights against numpy."""

import re

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tvm import te, tirx

from tests.compiler.schedule.te_workloads import machine_code, run
from tilewright.compiler.schedule import default_decisions, schedule
from tilewright.compiler.schedule.contraction import ContractionDecisions
from tilewright.compiler.targets import parse_target
from tilewright.compiler.weight_only import WeightWords, pack_words, product
from tilewright.errors import InvalidScheduleError
from tilewright.tuner.device.mca import innermost_bodies

_NATIVE = parse_target("x86-64-v3")


def words_of(bits, rows, columns, group, symmetric, lanes=8) -> WeightWords:
    return WeightWords(bits, rows, columns, group, symmetric, min(lanes, columns))


def function(words: WeightWords, lead: tuple[int, ...], epilogue: bool = False) -> tirx.PrimFunc:
    data = te.placeholder((*lead, words.rows), name="data")
    packed = te.placeholder(words.shape, dtype="int32", name="packed")
    out = product(data, packed, words)
    if not epilogue:
        return te.create_prim_func([data, packed, out])
    bias = te.placeholder((words.columns,), name="bias")
    residual = te.placeholder((*lead, words.columns), name="residual")
    result = te.compute(
        out.shape,
        lambda *at: te.max(out(*at) + bias(at[-1]), tirx.const(0, "float32")) + residual(*at),
        name="result",
    )
    return te.create_prim_func([data, packed, bias, residual, result])


def weights(words: WeightWords, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Return packed weights, and what they stand for in float64 [rows, columns]."""
    rng = np.random.default_rng(seed)
    shape = (words.columns, words.groups)
    codes = rng.integers(0, 2**words.bits, (*shape, words.group)).astype(np.uint8)
    scales = rng.uniform(-1, 1, shape).astype(np.float32)
    zeros = None
    if not words.symmetric:
        zeros = rng.integers(0, 2**words.bits, shape).astype(np.float32)
    points = np.float64(words.middle) if zeros is None else zeros[..., None].astype(np.float64)
    whole = (codes - points) * scales[..., None].astype(np.float64)
    whole = whole.reshape(words.columns, -1)[:, : words.rows].T
    return pack_words(words, codes, scales, zeros), whole


def check(words: WeightWords, lead: tuple[int, ...], decisions=None, target=_NATIVE) -> None:
    packed, whole = weights(words)
    data = np.random.default_rng(1).standard_normal((*lead, words.rows)).astype(np.float32)
    scheduled = schedule(function(words, lead), target, decisions)
    out = np.full((*lead, words.columns), np.nan, np.float32)
    found = run(scheduled, [data, packed, out], target)
    # What float32 can lose: each product, and the sum of the codes before the zero point is off.
    largest = np.abs(data).astype(np.float64) @ (np.abs(whole) + np.abs(whole).max())
    assert (np.abs(found - data.astype(np.float64) @ whole) <= 2e-6 * largest + 1e-6).all()


@settings(max_examples=8, deadline=None)
@given(
    st.sampled_from([2, 4, 8]),
    st.sampled_from([1, 2, 4]),
    st.integers(1, 150),
    st.integers(1, 70),
    st.sampled_from([(1,), (3,), (2, 5), (11,)]),
    st.booleans(),
)
def test_any_shape_agrees_with_numpy(bits, words_in_group, rows, columns, lead, symmetric) -> None:
    check(words_of(bits, rows, columns, 32 // bits * words_in_group, symmetric), lead)


@pytest.mark.parametrize(
    "decisions",
    [
        ContractionDecisions((1, 1), 3, 1, 1, (0, 1), chains=2),
        ContractionDecisions((1, 1), 1, 1, 1, (0, 1), unroll=2, chains=8),
        ContractionDecisions((1, 3), 2, 1, 2, (0, 1)),
    ],
)
def test_decisions_change_the_loops_but_not_the_result(decisions) -> None:
    check(words_of(4, 90, 45, 32, False), (7,), decisions)


def test_epilogue_is_stored_by_the_tile() -> None:
    words = words_of(4, 96, 37, 32, True)
    packed, whole = weights(words)
    rng = np.random.default_rng(2)
    data, bias, residual = (
        rng.standard_normal(shape).astype(np.float32) for shape in ((3, 96), (37,), (3, 37))
    )
    scheduled = schedule(function(words, (3,), epilogue=True), _NATIVE)
    out = np.full((3, 37), np.nan, np.float32)
    found = run(scheduled, [data, packed, bias, residual, out], _NATIVE)
    wanted = np.maximum(data @ whole + bias, 0) + residual
    np.testing.assert_allclose(found, wanted, rtol=1e-4, atol=1e-4)


def test_default_decisions_survive_json() -> None:
    decisions = default_decisions(function(words_of(4, 128, 64, 32, True), (1,)), _NATIVE)
    assert ContractionDecisions.from_json(decisions.to_json()) == decisions


def test_groups_are_not_cut_into_panels() -> None:
    func = function(words_of(4, 128, 64, 32, True), (4,))
    with pytest.raises(InvalidScheduleError, match="without panels"):
        schedule(func, _NATIVE, ContractionDecisions((1, 2), 2, 1, 1, (0, 1), panel=2))


_BRANCHES = re.compile(r"^\t(?:j\w+|b\.\w+)\t(\.\w+)")
_CONVERTS = re.compile("vcvtdq2ps|[su]cvtf")


@pytest.mark.parametrize("rows", [1, 12])
@pytest.mark.parametrize(
    "name", ["x86-64-v3", "x86-64-v4", "aarch64:cortex-a76", "aarch64:neoverse-v1"]
)
def test_inner_loop_converts_without_shifts_and_keeps_sums_in_registers(name, rows) -> None:
    target = parse_target(name)
    lanes = target.lanes("float32")
    func = function(words_of(4, 256, 40 * lanes, 32, True, lanes), (rows,))
    text = machine_code(schedule(func, target), target)
    text = re.sub(r"^\.Ltmp\d+:\n", "", text, flags=re.MULTILINE)
    bodies = ["\n".join(body) for body in innermost_bodies(text, _BRANCHES)]
    body = max(bodies, key=lambda found: len(_CONVERTS.findall(found)))
    assert len(_CONVERTS.findall(body)) >= 16
    assert not re.search(r"vps[rl]l|ushr|\bshl\b", body), body
    assert not re.search(r"vmovups\t%[yz]mm\d+, .*\(%rsp\)|str\tq\d+, \[sp", body), body


def test_padded_rows_do_not_read_beyond_the_data() -> None:
    """Codes beyond the last row are not 0 here: what they multiply must be."""
    words = words_of(4, 33, 8, 32, False)
    packed, whole = weights(words)
    data = np.full((1, 33), np.float32(1e30))
    out = np.full((1, 8), np.nan, np.float32)
    found = run(schedule(function(words, (1,)), _NATIVE), [data, packed, out], _NATIVE)
    np.testing.assert_allclose(found, data.astype(np.float64) @ whole, rtol=1e-4, atol=1e26)
