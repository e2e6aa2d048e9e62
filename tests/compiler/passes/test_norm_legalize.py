"""Normalisations lower to one kernel each, and keep their digits where the mean is large."""

import numpy as np
import pytest
from tvm import relax, tirx

from tests import relax_models
from tests.kernels import compile_kernel
from tilewright.compiler.lower import legalize_and_fuse
from tilewright.compiler.schedule.reduction import schedule_reduction
from tilewright.compiler.targets import parse_target

op = relax.op


def _instance(emit, x, gamma, beta):
    return emit(op.nn.instance_norm(x, gamma, beta, 1, list(range(2, len(x.ty.shape)))))


def _group(emit, x, gamma, beta):
    axes = list(range(2, len(x.ty.shape)))
    return emit(op.nn.group_norm(x, gamma, beta, 3, 1, axes))


def _expected(x, gamma, beta, groups):
    wide = x.astype(np.float64).reshape(x.shape[0], groups, -1)
    centred = wide - wide.mean(-1, keepdims=True)
    normal = centred / np.sqrt((centred**2).mean(-1, keepdims=True) + 1e-5)
    channels = (-1, *(1,) * (x.ndim - 2))
    return normal.reshape(x.shape) * gamma.reshape(channels) + beta.reshape(channels)


@pytest.mark.parametrize("shape", [(2, 6, 5, 7), (1, 6, 33), (2, 6, 3, 2, 5)])
@pytest.mark.parametrize(("body", "groups"), [(_instance, 6), (_group, 3)])
def test_normalisation_computes_what_its_definition_says(body, groups, shape):
    rng = np.random.default_rng(1)
    x = (rng.standard_normal(shape) + 300).astype(np.float32)
    gamma, beta = rng.standard_normal((2, 6)).astype(np.float32)
    module = legalize_and_fuse(relax_models.module([shape, (6,), (6,)], body))
    found = relax_models.run(module, x, gamma, beta)
    np.testing.assert_allclose(found, _expected(x, gamma, beta, groups), atol=2e-3)


@pytest.mark.parametrize("body", [_instance, _group])
def test_normalisation_is_one_vectorised_kernel(body):
    module = legalize_and_fuse(relax_models.module([(2, 6, 5, 7), (6,), (6,)], body))
    functions = [f for f in module.functions.values() if isinstance(f, tirx.PrimFunc)]
    (norm,) = [f for f in functions if len(f.params) == 4]
    assert all("tilewright.view" in f.attrs for f in functions if f is not norm)
    _, assembly = compile_kernel(schedule_reduction(norm, parse_target("x86-64-v4")), "x86-64-v4")
    assert "vfmadd" in assembly
    assert "zmm" in assembly
