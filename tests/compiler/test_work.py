"""Operations of a kernel: multiply-adds are two, polynomials twenty, transforms written out."""

import numpy as np
import pytest
from tvm import te, tirx
from tvm.relax import op

from tests.relax_models import constant, module
from tilewright.compiler.lower import legalize_and_fuse, read_program
from tilewright.compiler.passes.lower_winograd import LowerWinograd
from tilewright.compiler.program import TensorSpec
from tilewright.compiler.targets import parse_target
from tilewright.compiler.weight_only import WeightWords, product
from tilewright.compiler.winograd import WINOGRAD
from tilewright.compiler.work import (
    count_operations,
    describe_work,
    operations_by_label,
    scattered_labels,
)


def test_a_matrix_product_is_two_operations_a_step():
    a, b = te.placeholder((5, 7), name="a"), te.placeholder((7, 3), name="b")
    k = te.reduce_axis((0, 7), "k")
    c = te.compute((5, 3), lambda i, j: te.sum(a[i, k] * b[k, j], axis=k))
    assert count_operations(te.create_prim_func([a, b, c])) == 2 * 5 * 7 * 3


def test_unpacking_weights_is_no_operation_of_a_product():
    words = WeightWords(4, 64, 24, 32, True, 8)
    data = te.placeholder((3, 64), name="data")
    packed = te.placeholder(words.shape, dtype="int32", name="packed")
    func = te.create_prim_func([data, packed, product(data, packed, words)])
    assert count_operations(func) == 2 * 3 * 64 * 24


@pytest.mark.parametrize(
    ("value", "each"), [(lambda x: x, 0), (lambda x: x * x + x, 2), (lambda x: tirx.exp(x), 20)]
)
def test_element_wise_operations_are_counted(value, each):
    a = te.placeholder((4, 6), name="a")
    b = te.compute((4, 6), lambda i, j: value(a[i, j]))
    assert count_operations(te.create_prim_func([a, b])) == 24 * each


def test_winograd_takes_a_quarter_of_the_multiply_adds():
    shape, rng = (1, 32, 16, 16), np.random.default_rng(0)

    def body(emit, x):
        return emit(op.nn.conv2d(x, constant(rng, 32, 32, 3, 3), padding=[1, 1, 1, 1]))

    specs = [TensorSpec("x", shape, "float32")], [TensorSpec("y", shape, "float32")]
    force = LowerWinograd(parse_target("x86-64-v3"), choose=lambda *_shapes: WINOGRAD[4])
    mod = module([shape], body)
    direct = read_program(legalize_and_fuse(mod), *specs)
    lowered = read_program(legalize_and_fuse(force(mod)), *specs)
    counts = operations_by_label(lowered)
    multiplied = next(count for label, count in counts.items() if label.startswith("matmul"))
    assert sum(operations_by_label(direct).values()) == 4 * multiplied
    assert 0 < sum(counts.values()) - multiplied < multiplied
    work = describe_work(lowered, counts)
    assert [item["operations"] for item in work] == list(counts.values())
    assert all(item["bytes"] >= 4 * 32 * 256 for item in work)


def test_work_says_what_is_constant_and_what_is_picked_by_data():
    rng = np.random.default_rng(0)

    def body(emit, x, floats):
        rows = emit(op.astype(floats, "int64"))
        return emit(op.nn.softmax(emit(op.add(emit(op.take(constant(rng, 50, 6), rows, 0)), x))))

    mod = module([(4, 6), (4,)], body)
    inputs = [TensorSpec("x", (4, 6), "float32"), TensorSpec("floats", (4,), "float32")]
    program = read_program(legalize_and_fuse(mod), inputs, [TensorSpec("y", (4, 6), "float32")])
    scattered = scattered_labels(program)
    work = describe_work(program, operations_by_label(program), scattered)
    picked = [item for item in work if item.get("scattered")]
    assert len(picked) == len(scattered) == 1
    assert picked[0]["constant_bytes"] == 4 * 50 * 6
    assert picked[0]["bytes"] > picked[0]["constant_bytes"]
    assert sum(item["constant_bytes"] for item in work) == 4 * 50 * 6
