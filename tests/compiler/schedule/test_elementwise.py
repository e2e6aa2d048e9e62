"""Element-wise schedules compute what numpy computes, in vectors, on both vector widths."""

import re

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tvm import relax, te, tirx

from tests.kernels import compile_kernel, run_kernel
from tilewright.compiler.lower import legalize_and_fuse
from tilewright.compiler.schedule.elementwise import (
    ElementwiseDecisions,
    default_elementwise_decisions,
    schedule_elementwise,
)
from tilewright.compiler.targets import parse_target
from tilewright.errors import InvalidScheduleError

op = relax.op
TARGETS = ["native", "x86-64-v3"]


def kernel_of(build, *shapes, dtype="float32"):
    """Return the single fused PrimFunc of a Relax expression over variables of these shapes."""
    variables = [
        relax.Var(f"x{i}", relax.TensorType(shape, dtype)) for i, shape in enumerate(shapes)
    ]
    builder = relax.BlockBuilder()
    with builder.function("main", variables):
        with builder.dataflow():
            out = builder.emit_output(builder.normalize(build(*variables)))
        builder.emit_func_output(out)
    module = legalize_and_fuse(builder.get())
    (func,) = [f for f in module.functions.values() if isinstance(f, tirx.PrimFunc)]
    return func


def random(*shape, dtype="float32"):
    """Return numbers that differ in every element."""
    rng = np.random.default_rng(sum(shape) + len(shape))
    return (rng.standard_normal(shape) * 3).astype(dtype)


def scheduled(func, target):
    """Schedule with the default decisions."""
    return schedule_elementwise(func, parse_target(target))


def sigmoid(x):
    """Reference in float64."""
    return 1 / (1 + np.exp(-x.astype(np.float64)))


CASES = {
    "silu": (op.nn.silu, [(3, 7, 5)], lambda x: x * sigmoid(x)),
    "bias": (op.add, [(2, 5, 33), (5, 1)], lambda x, b: x + b),
    "broadcast_row": (op.multiply, [(4, 1, 19), (3, 1)], lambda x, b: x * b),
    "scalar": (op.subtract, [(), ()], lambda x, y: x - y),
    "permute_inner": (
        lambda x: op.permute_dims(x, [0, 2, 1]),
        [(3, 37, 50)],
        lambda x: x.transpose(0, 2, 1),
    ),
    "permute_square": (lambda x: op.permute_dims(x, [1, 0]), [(48, 48)], lambda x: x.T),
    "permute_small": (
        lambda x: op.permute_dims(x, [2, 0, 1]),
        [(3, 7, 5)],
        lambda x: x.transpose(2, 0, 1),
    ),
    "permute_heads": (
        lambda x: op.reshape(op.permute_dims(x, [0, 2, 1, 3]), (1, 10, 192)),
        [(1, 12, 10, 16)],
        lambda x: x.transpose(0, 2, 1, 3).reshape(1, 10, 192),
    ),
    "permute_sum": (
        lambda x, y: op.add(op.permute_dims(x, [1, 0]), y),
        [(35, 50), (50, 35)],
        lambda x, y: x.T + y,
    ),
    "concat": (
        lambda x, y: op.concat([x, y], 1),
        [(3, 7, 5), (3, 4, 5)],
        lambda x, y: np.concatenate([x, y], 1),
    ),
    "concat_inner_relu": (
        lambda x, y: op.nn.relu(op.concat([x, y], 2)),
        [(3, 2, 50), (3, 2, 23)],
        lambda x, y: np.maximum(np.concatenate([x, y], 2), 0),
    ),
    "slice": (
        lambda x: op.strided_slice(x, [1, 2], [1, 3], [8, 40], [2, 1]),
        [(3, 9, 50)],
        lambda x: x[:, 1:8:2, 3:40],
    ),
    "pad": (
        lambda x: op.nn.pad(x, [0, 0, 1, 1, 2, 3]),
        [(3, 9, 50)],
        lambda x: np.pad(x, [(0, 0), (1, 1), (2, 3)]),
    ),
    "where": (
        lambda x, y: op.where(op.greater(x, y), x, y),
        [(3, 9, 21), (3, 9, 21)],
        np.maximum,
    ),
    "large": (op.add, [(120, 97, 5), (120, 97, 5)], np.add),
    "large_permute": (
        lambda x: op.permute_dims(x, [0, 2, 3, 1]),
        [(2, 33, 31, 29)],
        lambda x: x.transpose(0, 2, 3, 1),
    ),
}


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("name", CASES)
def test_schedule_computes_what_numpy_does(name, target):
    build, shapes, reference = CASES[name]
    inputs = [random(*shape) for shape in shapes]
    (found,) = run_kernel(scheduled(kernel_of(build, *shapes), target), inputs, target)
    np.testing.assert_allclose(found, reference(*inputs), rtol=2e-6, atol=1e-6)


@pytest.mark.parametrize("dtype", ["float16", "float64", "int8", "uint8", "int64", "bool"])
def test_transpose_and_copy_of_every_width(dtype):
    x = (random(37, 50) * 20).astype(dtype)
    func = kernel_of(lambda v: op.permute_dims(v, [1, 0]), (37, 50), dtype=dtype)
    (found,) = run_kernel(scheduled(func, "native"), [x])
    np.testing.assert_array_equal(found, x.T)


def test_gather_reads_the_rows_that_the_indices_name():
    func = kernel_of_take()
    x, rows = random(30, 70), np.array([3, 0, 29, 3])
    (found,) = run_kernel(scheduled(func, "native"), [x, rows])
    np.testing.assert_array_equal(found, x[rows])


def kernel_of_take():
    """Return take(x, rows), which mixes dtypes."""
    x = te.placeholder((30, 70), "float32", name="x")
    rows = te.placeholder((4,), "int64", name="rows")
    out = te.compute((4, 70), lambda i, j: x[rows[i], j], name="out")
    return te.create_prim_func([x, rows, out])


def test_several_outputs_are_all_written():
    func = kernel_of(lambda x: op.split(x, 3, 1), (3, 9, 20))
    x = random(3, 9, 20)
    found = run_kernel(scheduled(func, "native"), [x])
    for part, expected in zip(found, np.split(x, 3, 1), strict=True):
        np.testing.assert_array_equal(part, expected)


def to_blocked(channels, height, width, block):
    """NCHW -> NCHWc with the missing channels zero, as the layout rewriter writes it."""
    x = te.placeholder((2, channels, height, width), "float32", name="x")

    def element(n, c, h, w, i):
        channel = c * block + i
        inside = x[n, tirx.min(channel, channels - 1), h, w]
        return tirx.Select(channel < channels, inside, tirx.const(0.0, "float32"))

    shape = (2, -(-channels // block), height, width, block)
    return te.create_prim_func([x, te.compute(shape, element, name="blocked")])


def from_blocked(channels, height, width, block):
    """NCHWc -> NCHW."""
    shape = (2, -(-channels // block), height, width, block)
    x = te.placeholder(shape, "float32", name="x")
    out = te.compute(
        (2, channels, height, width),
        lambda n, c, h, w: x[n, c // block, h, w, c % block],
        name="plain",
    )
    return te.create_prim_func([x, out])


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize(("channels", "size"), [(32, (5, 7)), (44, (3, 9)), (3, (4, 5))])
def test_layout_conversion_and_back(channels, size, target):
    x = random(2, channels, *size)
    (blocked,) = run_kernel(scheduled(to_blocked(channels, *size, 16), target), [x], target)
    padded = np.zeros((2, -(-channels // 16) * 16, *size), np.float32)
    padded[:, :channels] = x
    np.testing.assert_array_equal(
        blocked, padded.reshape(2, -1, 16, *size).transpose(0, 1, 3, 4, 2)
    )
    (plain,) = run_kernel(scheduled(from_blocked(channels, *size, 16), target), [blocked], target)
    np.testing.assert_array_equal(plain, x)


@settings(max_examples=15, deadline=None)
@given(
    st.lists(st.integers(1, 20), min_size=2, max_size=4).flatmap(
        lambda shape: st.tuples(st.just(tuple(shape)), st.permutations(range(len(shape))))
    )
)
def test_any_permutation_of_any_shape(case):
    shape, order = case
    func = kernel_of(lambda x: op.add(op.permute_dims(x, list(order)), relax.const(1.0)), shape)
    x = random(*shape)
    (found,) = run_kernel(scheduled(func, "native"), [x])
    np.testing.assert_array_equal(found, x.transpose(order) + np.float32(1))


def test_nan_and_infinity_pass_through_arithmetic_and_selection():
    x = np.array([[np.nan, np.inf, -np.inf, -0.0] * 5], np.float32)
    func = kernel_of(lambda v: op.add(v, relax.const(1.0)), (1, 20))
    (found,) = run_kernel(scheduled(func, "native"), [x])
    np.testing.assert_array_equal(found, x + 1)


@pytest.mark.parametrize("name", ["silu", "concat_inner_relu", "permute_inner", "large"])
def test_inner_loops_are_vectors(name):
    build, shapes, _ = CASES[name]
    _, assembly = compile_kernel(scheduled(kernel_of(build, *shapes), "x86-64-v4"), "x86-64-v4")
    assert re.search(r"vmovu?[ap]s\s.*%[yz]mm", assembly)


def test_transpose_moves_no_single_elements():
    build, shapes, _ = CASES["permute_square"]
    _, assembly = compile_kernel(scheduled(kernel_of(build, *shapes), "x86-64-v4"), "x86-64-v4")
    assert "vunpcklps" in assembly
    assert "vinsertps" not in assembly
    assert "Workspace" not in assembly


def test_large_work_is_parallel_and_small_work_is_not():
    small = scheduled(kernel_of(op.add, (64,), (64,)), "native")
    large = scheduled(kernel_of(op.add, (1 << 16,), (1 << 16,)), "native")
    assert "T.parallel" not in str(small)
    assert "T.parallel" in str(large)


def test_function_without_blocks_is_returned_as_it_is():
    func = scheduled(kernel_of(op.add, (64,), (64,)), "native")
    assert scheduled(func, "native").same_as(func)


def test_decisions_round_trip_and_are_checked():
    decisions = default_elementwise_decisions(
        kernel_of(op.add, (64,), (64,)), parse_target("x86-64-v3")
    )
    assert decisions.lanes == 8
    assert ElementwiseDecisions.from_json(decisions.to_json()) == decisions
    with pytest.raises(InvalidScheduleError, match="power of two, found 3"):
        ElementwiseDecisions(3)
    with pytest.raises(InvalidScheduleError, match="not elementwise decisions"):
        ElementwiseDecisions.from_json('{"kind":"reduction","lanes":16}')
