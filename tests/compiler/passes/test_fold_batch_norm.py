"""Scales and shifts fold into constant weights, and only where that is right."""

import numpy as np
import pytest
import tvm
from tvm.relax import op

from tests.relax_models import constant, module, run
from tilewright.compiler.passes.fold_batch_norm import FoldBatchNorm
from tilewright.compiler.relax_utils import bindings, op_name


def _names(mod):
    return [op_name(binding.value) for binding in bindings(mod["main"]) if op_name(binding.value)]


def _conv_bn(emit, x, rng, bias=False):
    y = emit(op.nn.conv2d(x, constant(rng, 5, 3, 3, 3), padding=[1, 1, 1, 1]))
    if bias:
        y = emit(op.add(y, constant(rng, 5, 1, 1)))
    y = emit(op.multiply(y, constant(rng, 5, 1, 1)))
    return emit(op.add(y, constant(rng, 5, 1, 1)))


@pytest.mark.parametrize("bias", [False, True])
def test_scale_and_shift_after_convolution_fold(bias):
    rng = np.random.default_rng(0)
    mod = module([(2, 3, 7, 5)], lambda emit, x: _conv_bn(emit, x, rng, bias))
    folded = FoldBatchNorm()(mod)
    assert _names(folded) == ["relax.nn.conv2d", "relax.add"]
    x = rng.standard_normal((2, 3, 7, 5)).astype("float32")
    np.testing.assert_allclose(run(folded, x), run(mod, x), rtol=1e-5, atol=1e-5)


def test_scale_before_matmul_columns_folds_and_a_row_scale_does_not():
    rng = np.random.default_rng(0)
    weight, column, row = constant(rng, 6, 4), constant(rng, 4), constant(rng, 3, 1)

    def by(scale):
        return lambda emit, x: emit(op.multiply(emit(op.matmul(x, weight)), scale))

    assert _names(FoldBatchNorm()(module([(3, 6)], by(column)))) == ["relax.matmul"]
    kept = module([(3, 6)], by(row))
    tvm.ir.assert_structural_equal(FoldBatchNorm()(kept), kept)


def test_convolution_with_two_users_is_left_alone():
    rng = np.random.default_rng(0)

    def body(emit, x):
        y = emit(op.nn.conv2d(x, constant(rng, 5, 3, 1, 1)))
        z = emit(op.multiply(y, constant(rng, 5, 1, 1)))
        return emit(op.add(y, z))

    mod = module([(1, 3, 4, 4)], body)
    tvm.ir.assert_structural_equal(FoldBatchNorm()(mod), mod)


def test_scale_along_the_width_is_left_alone():
    """A square case: the width equals the channel count, so shapes alone would not tell."""
    rng = np.random.default_rng(0)

    def body(emit, x):
        y = emit(op.nn.conv2d(x, constant(rng, 4, 3, 1, 1)))
        return emit(op.multiply(y, constant(rng, 4)))

    mod = module([(1, 3, 4, 4)], body)
    tvm.ir.assert_structural_equal(FoldBatchNorm()(mod), mod)


def test_running_twice_changes_nothing_more():
    rng = np.random.default_rng(0)
    once = FoldBatchNorm()(module([(2, 3, 7, 5)], lambda emit, x: _conv_bn(emit, x, rng, True)))
    tvm.ir.assert_structural_equal(FoldBatchNorm()(once), once)
