"""Products with constant weights in blocks: the integers stay packed, or it is said why not."""

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

import tilewright
from tests.frontends.onnx.oracle import check, make_model
from tilewright.compiler.quantize.explain import explain_quantized
from tilewright.frontends.onnx import import_onnx

_TYPES = {
    "int4": TensorProto.INT4,
    "uint4": TensorProto.UINT4,
    "int8": TensorProto.INT8,
    "uint8": TensorProto.UINT8,
}


def floats(*shape: int) -> np.ndarray:
    return np.random.default_rng(sum(shape)).standard_normal(shape).astype(np.float32)


def integers(dtype: str, *shape: int) -> onnx.TensorProto:
    element = _TYPES[dtype]
    info = np.random.default_rng(1)
    low, high = (-8, 8) if dtype == "int4" else (0, 16) if dtype == "uint4" else (0, 100)
    numpy_type = helper.tensor_dtype_to_np_dtype(element)
    return info.integers(low, high, shape).astype(numpy_type)


def blocked(dtype: str, rows: int, columns: int, block: int, zeros: bool, transposed: bool):
    """Return the nodes and constants that make a matrix [rows, columns] named 'weight'."""
    blocks = -(-rows // block)
    shape, scales = (rows, columns), (blocks, columns)
    if transposed:
        shape, scales = shape[::-1], scales[::-1]
    constants = {"codes": integers(dtype, *shape), "scales": floats(*scales) * 0.1}
    if zeros:
        constants["zeros"] = integers(dtype, *scales)
    dequantize = helper.make_node(
        "DequantizeLinear",
        list(constants),
        ["dequantized" if transposed else "weight"],
        axis=1 if transposed else 0,
        block_size=block,
    )
    nodes = [dequantize]
    if transposed:
        nodes.append(helper.make_node("Transpose", ["dequantized"], ["weight"], perm=[1, 0]))
    return nodes, constants


def model_of(nodes, constants, x: np.ndarray, columns: int) -> onnx.ModelProto:
    graph = helper.make_graph(
        nodes,
        "blocked",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, list(x.shape))],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [*x.shape[:-1], columns])],
        [numpy_helper.from_array(array, name) for name, array in constants.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)


def explained(model: onnx.ModelProto) -> list:
    return list(explain_quantized(import_onnx(model).module))


@pytest.mark.parametrize("transposed", [False, True], ids=["plain", "transposed"])
@pytest.mark.parametrize("zeros", [False, True], ids=["symmetric", "zeros"])
@pytest.mark.parametrize("dtype", _TYPES)
def test_blocked_weights_stay_packed_and_agree(dtype, zeros, transposed) -> None:
    nodes, constants = blocked(dtype, 70, 19, 32, zeros, transposed)
    x = floats(3, 70)
    model = model_of([*nodes, helper.make_node("MatMul", ["x", "weight"], ["y"])], constants, x, 19)
    assert [(item.form, item.operator) for item in explained(model)] == [
        (f"W{dtype[-1]}A32", "matmul")
    ]
    found = tilewright.compile(model, logs=()).run({"x": x})["y"]
    wanted = onnx.reference.ReferenceEvaluator(model).run(None, {"x": x})[0]
    np.testing.assert_allclose(found, wanted, rtol=1e-4, atol=1e-5 * np.abs(wanted).max())


def test_gemm_with_a_transposed_blocked_operand_and_bias() -> None:
    nodes, constants = blocked("int4", 64, 9, 16, False, transposed=True)
    nodes = [nodes[0], helper.make_node("Gemm", ["x", "dequantized", "b"], ["y"], transB=1)]
    constants["b"] = floats(9)
    x = floats(5, 64)
    model = model_of(nodes, constants, x, 9)
    assert [item.form for item in explained(model)] == ["W4A32"]
    found = tilewright.compile(model, logs=()).run({"x": x})["y"]
    wanted = onnx.reference.ReferenceEvaluator(model).run(None, {"x": x})[0]
    np.testing.assert_allclose(found, wanted, rtol=1e-4, atol=1e-5)


def test_blocks_along_the_columns_are_decoded_and_named() -> None:
    nodes, constants = blocked("int4", 12, 32, 16, False, transposed=True)
    nodes = [nodes[0], helper.make_node("MatMul", ["x", "dequantized"], ["y"])]
    x = floats(2, 32)
    model = model_of(nodes, constants, x, 12)
    (item,) = explained(model)
    assert item.name == "dequantized"
    assert "along the columns" in item.reason
    found = tilewright.compile(model, logs=()).run({"x": x})["y"]
    wanted = onnx.reference.ReferenceEvaluator(model).run(None, {"x": x})[0]
    np.testing.assert_allclose(found, wanted, rtol=1e-4, atol=1e-5)


def test_weights_that_nothing_multiplies_are_named() -> None:
    nodes, constants = blocked("uint8", 16, 4, 16, False, transposed=False)
    nodes.append(helper.make_node("Add", ["x", "weight"], ["y"]))
    (item,) = explained(model_of(nodes, constants, floats(16, 4), 4))
    assert (item.name, item.operator) == ("weight", "weights")
    assert "no matrix product reads it" in item.reason


def test_blocks_that_do_not_fill_words_are_decoded_and_named() -> None:
    nodes, constants = blocked("int4", 20, 4, 10, False, transposed=False)
    nodes.append(helper.make_node("MatMul", ["x", "weight"], ["y"]))
    (item,) = explained(model_of(nodes, constants, floats(2, 20), 4))
    assert "do not fill words of 32 bits" in item.reason


def test_nbits_of_half_floats_are_decoded_and_named() -> None:
    codes = np.random.default_rng(0).integers(0, 256, (6, 2, 8)).astype(np.uint8)
    weights = {"wc": codes, "ws": np.abs(floats(12)).astype(np.float16)}
    x = floats(3, 32).astype(np.float16)
    node = helper.make_node(
        "MatMulNBits", ["x", *weights], ["y"], domain="com.microsoft", K=32, N=6, block_size=16
    )
    model = make_model([node], {"x": x}, ["y"], 17, weights, {"com.microsoft": 1})
    (item,) = explained(model)
    assert "float16" in item.reason


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("rows", [1, 5])
def test_nbits_with_bias_and_activation_agrees_with_onnx_runtime(rows, bits) -> None:
    codes = np.random.default_rng(0).integers(0, 256, (37, 3, 4 * bits)).astype(np.uint8)
    weights = {"wc": codes, "ws": np.abs(floats(111)), "wb": floats(37)}
    feeds = {"a": floats(rows, 90)}
    nodes = [
        helper.make_node(
            *("MatMulNBits", ["a", "wc", "ws"], ["h"]),
            domain="com.microsoft",
            **{"K": 90, "N": 37, "bits": bits, "block_size": 32},
        ),
        helper.make_node("Add", ["h", "wb"], ["s"]),
        helper.make_node("Relu", ["s"], ["y"]),
    ]
    model = make_model(nodes, feeds, ["y"], 17, weights, {"com.microsoft": 1})
    check(model, feeds, rtol=1e-4, atol=1e-3, runtime=True)


@pytest.mark.parametrize("shape", [(70,), (2, 1, 3, 70)])
def test_data_of_any_rank_is_multiplied(shape) -> None:
    nodes, constants = blocked("int4", 70, 19, 32, True, transposed=False)
    x = floats(*shape)
    model = model_of([*nodes, helper.make_node("MatMul", ["x", "weight"], ["y"])], constants, x, 19)
    assert [item.form for item in explained(model)] == ["W4A32"]
    found = tilewright.compile(model, logs=()).run({"x": x})["y"]
    wanted = onnx.reference.ReferenceEvaluator(model).run(None, {"x": x})[0]
    np.testing.assert_allclose(found, wanted, rtol=1e-4, atol=1e-5 * np.abs(wanted).max())
