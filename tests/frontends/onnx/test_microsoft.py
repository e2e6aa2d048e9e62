"""Operators of com.microsoft against ONNX Runtime."""

import numpy as np
import pytest
from onnx import helper

from tests.frontends.onnx.oracle import check, make_model

RNG = np.random.default_rng(3)


def floats(*shape):
    return RNG.uniform(-2, 2, shape).astype(np.float32)


def codes(dtype, *shape):
    limits = np.iinfo(dtype)
    return RNG.integers(limits.min, limits.max, shape).astype(dtype)


X = floats(2, 5, 8)
SCALE, ZERO = np.float32(0.05), np.uint8(120)

CASES = {
    "gelu": ("Gelu", {"x": X}, {}),
    "bias_gelu": ("BiasGelu", {"x": X, "w": floats(8)}, {}),
    "fast_gelu": ("FastGelu", {"x": X, "w": floats(8)}, {}),
    "quick_gelu": ("QuickGelu", {"x": X}, {"alpha": 1.5}),
    "fused_matmul": (
        "FusedMatMul", {"a": floats(2, 8, 3), "b": floats(2, 4, 8)},
        {"transA": 1, "transB": 1, "alpha": 0.5}),
    "fused_conv": (
        "FusedConv", {"x": floats(1, 3, 6, 5), "w": floats(4, 3, 3, 3), "wb": floats(4)},
        {"activation": "Relu", "pads": [1, 1, 1, 1]}),
    "skip_layer_norm": (
        "SkipLayerNormalization",
        {"x": X, "s": floats(2, 5, 8), "w": floats(8), "wb": floats(8), "wc": floats(8)},
        {"epsilon": 1e-5}),
    "skip_rms_norm": (
        "SkipSimplifiedLayerNormalization", {"x": X, "s": floats(2, 5, 8), "w": floats(8)},
        {"epsilon": 1e-5}),
    "attention": (
        "Attention", {"x": X, "w": floats(8, 24), "wb": floats(24)}, {"num_heads": 2}),
    "attention_causal": (
        "Attention", {"x": X, "w": floats(8, 24), "wb": floats(24)},
        {"num_heads": 2, "unidirectional": 1}),
    "qlinear_add": (
        "QLinearAdd",
        {"a": codes(np.uint8, 3, 4), "was": SCALE, "waz": ZERO, "b": codes(np.uint8, 4),
         "wbs": np.float32(0.02), "wbz": np.uint8(3), "wcs": np.float32(0.07), "wcz": ZERO}, {}),
    "qgemm": (
        "QGemm",
        {"a": codes(np.uint8, 3, 4), "was": SCALE, "waz": ZERO, "w": codes(np.int8, 4, 5),
         "wbs": np.float32(0.02), "wbz": np.int8(0), "wc": codes(np.int16, 5).astype(np.int32),
         "wys": np.float32(0.3), "wyz": ZERO}, {}),
    "matmul_4_bits": (
        "MatMulNBits", {"a": floats(3, 40), "w": codes(np.uint8, 5, 3, 8), "ws": floats(15)},
        {"K": 40, "N": 5, "bits": 4, "block_size": 16}),
    "matmul_4_bits_zero_points": (
        "MatMulNBits",
        {"a": floats(2, 3, 48), "w": codes(np.uint8, 5, 3, 8), "ws": floats(15),
         "wz": codes(np.uint8, 10)},
        {"K": 48, "N": 5, "bits": 4, "block_size": 16}),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_operator_agrees_with_onnx_runtime(case):
    operator, arrays, attributes = CASES[case]
    weights = {name: np.asarray(item) for name, item in arrays.items() if name.startswith("w")}
    feeds = {name: item for name, item in arrays.items() if name not in weights}
    node = helper.make_node(operator, list(arrays), ["y"], domain="com.microsoft", **attributes)
    model = make_model([node], feeds, ["y"], 17, weights, {"com.microsoft": 1})
    check(model, feeds, rtol=1e-4, atol=1e-4, runtime=True)
