"""Products with integer weights in the form of a target's kernel, or decoded for a GPU."""

import numpy as np
import tvm
from tvm import relax

from tests.relax_models import module, run
from tilewright.compiler.passes.pack_weights import PackWeights
from tilewright.compiler.quantize.weight_product import (
    IntegerWeights,
    emit_product,
    pack,
    read_product,
)
from tilewright.compiler.relax_utils import bindings, op_name
from tilewright.compiler.targets import parse_target

_X = np.random.default_rng(0).standard_normal((3, 60)).astype(np.float32)


def weights() -> IntegerWeights:
    rng = np.random.default_rng(1)
    codes = rng.integers(0, 16, (21, 2, 32)).astype(np.uint8)
    scales = rng.uniform(0.5, 1, (21, 2)).astype(np.float32)
    return IntegerWeights(pack(codes, 4), scales, None, 4, 60)


def imported() -> tvm.IRModule:
    x = relax.Var("x", relax.TensorType([3, 60], "float32"))
    builder = relax.BlockBuilder()
    with builder.function("main", [x]):
        with builder.dataflow():
            product = builder.emit(emit_product(builder, x, weights()))
            result = builder.emit_output(relax.Tuple([product]))
        builder.emit_func_output(result)
    return builder.get()


def applied(mod: tvm.IRModule, target: str | None) -> tvm.IRModule:
    found = PackWeights(None if target is None else parse_target(target))
    return tvm.ir.transform.Sequential([found])(mod)


def test_what_the_importer_emits_is_read_back_and_computes_the_product() -> None:
    mod = imported()
    (found,) = (p for b in bindings(mod["main"]) if (p := read_product(mod, b.value)) is not None)
    np.testing.assert_array_equal(found.weights.packed, weights().packed)
    assert (found.weights.group, found.weights.columns, found.weights.rows) == (32, 21, 60)
    np.testing.assert_allclose(run(mod, _X), _X @ weights().decoded(), rtol=1e-4, atol=1e-4)


def test_processors_get_words_that_compute_the_same() -> None:
    mod = applied(imported(), "x86-64-v3")
    assert all(read_product(mod, binding.value) is None for binding in bindings(mod["main"]))
    np.testing.assert_allclose(run(mod, _X), _X @ weights().decoded(), rtol=1e-4, atol=1e-4)
    tvm.ir.assert_structural_equal(applied(mod, "x86-64-v3"), mod)


def test_gpus_get_decoded_weights() -> None:
    mod = applied(imported(), None)
    assert "relax.matmul" in {op_name(binding.value) for binding in bindings(mod["main"])}
    np.testing.assert_allclose(run(mod, _X), _X @ weights().decoded(), rtol=1e-4, atol=1e-4)


def test_a_module_without_such_products_stays_as_it_is() -> None:
    mod = module([(3, 60)], lambda emit, x: emit(relax.op.nn.relu(x)))
    tvm.ir.assert_structural_equal(applied(mod, "x86-64-v3"), mod)
