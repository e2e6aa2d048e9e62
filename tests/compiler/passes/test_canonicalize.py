"""Views merge, splits become slices, slices sink below transposes; the numbers stay."""

import numpy as np
import tvm
from tvm.relax import op

from tests.relax_models import module, run
from tilewright.compiler.passes.canonicalize import CanonicalizeOps
from tilewright.compiler.relax_utils import bindings, op_name


def _names(mod):
    return [op_name(binding.value) for binding in bindings(mod["main"]) if op_name(binding.value)]


def _check(mod, *shapes):
    rng = np.random.default_rng(0)
    arrays = [rng.standard_normal(shape).astype("float32") for shape in shapes]
    canonical = CanonicalizeOps()(mod)
    np.testing.assert_array_equal(run(canonical, *arrays), run(mod, *arrays))
    tvm.ir.assert_structural_equal(CanonicalizeOps()(canonical), canonical)
    return _names(canonical)


def test_chain_of_views_becomes_one_reshape():
    def body(emit, x):
        y = emit(op.squeeze(x, [3]))
        y = emit(op.expand_dims(y, [0]))
        y = emit(op.reshape(y, (10, 21)))
        return emit(op.nn.relu(y))

    assert _check(module([(2, 5, 21, 1)], body), (2, 5, 21, 1)) == [
        "relax.reshape",
        "relax.nn.relu",
    ]


def test_reshape_to_the_same_shape_vanishes():
    def body(emit, x):
        return emit(op.nn.relu(emit(op.reshape(emit(op.reshape(x, (6, 5))), (5, 6)))))

    assert _check(module([(5, 6)], body), (5, 6)) == ["relax.nn.relu"]


def test_split_of_packed_projections_reads_only_its_part():
    """The q, k, v of a packed projection: each is one slice of the source, then transposed."""

    def body(emit, x):
        y = emit(op.permute_dims(emit(op.reshape(x, (7, 3, 2, 5))), [1, 2, 0, 3]))
        parts = emit(op.split(y, 3, axis=0))
        q, k, v = (emit(op.squeeze(emit(parts[i]), [0])) for i in range(3))
        return emit(op.add(emit(op.add(q, k)), v))

    names = _check(module([(7, 30)], body), (7, 30))
    assert names.count("relax.strided_slice") == 3
    slices = [i for i, name in enumerate(names) if name == "relax.strided_slice"]
    transposes = [i for i, name in enumerate(names) if name == "relax.permute_dims"]
    assert len(transposes) == 3
    assert all(s < t for s, t in zip(slices, transposes, strict=True))


def test_slice_of_a_square_transpose_takes_the_right_dimension():
    def body(emit, x):
        y = emit(op.permute_dims(x))
        return emit(op.strided_slice(y, [0], [1], [3]))

    _check(module([(4, 4)], body), (4, 4))


def test_a_reduction_over_no_axes_vanishes():
    mod = module([(3, 4)], lambda emit, x: emit(op.nn.relu(emit(op.mean(x, [], keepdims=True)))))
    canonical = CanonicalizeOps()(mod)
    assert _names(canonical) == ["relax.nn.relu"]
    whole = module([(3, 4)], lambda emit, x: emit(op.mean(x)))
    assert _check(whole, (3, 4)) == ["relax.mean"]
