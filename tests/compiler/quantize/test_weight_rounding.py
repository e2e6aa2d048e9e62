"""Scales, rounding column by column, and what makes up for rounded inputs."""

import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator

from tilewright.compiler.quantize import input_moments as moments_of
from tilewright.compiler.quantize import weight_rounding as rounding
from tilewright.compiler.quantize.float_model import FloatModel
from tilewright.compiler.quantize.input_moments import MomentSums
from tilewright.compiler.quantize.layer_matrix import linear_layers


def _layer(kind, weight, shape, **attributes):
    node = helper.make_node(kind, ["x", "w"], ["y"], name="layer", **attributes)
    graph = helper.make_graph(
        [node],
        "one",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(weight.astype("float32"), "w")],
    )
    opsets = [helper.make_opsetid("", 17)]
    proto = helper.make_model(graph, opset_imports=opsets, ir_version=8)
    return proto, linear_layers(FloatModel(proto))["layer"]


@pytest.mark.parametrize(
    ("kind", "weights", "shape", "attributes"),
    [
        ("MatMul", (6, 4), (2, 5, 6), {}),
        ("Gemm", (6, 4), (5, 6), {}),
        ("Gemm", (4, 6), (5, 6), {"transB": 1}),
        ("Conv", (4, 3, 3, 2), (2, 3, 7, 9), {"pads": [1, 0, 2, 1], "strides": [2, 1]}),
        ("Conv", (6, 2, 3), (2, 4, 11), {"group": 2, "dilations": [2]}),
        ("Conv", (4, 2, 3, 2), (1, 2, 6, 5), {"auto_pad": "SAME_UPPER", "strides": [2, 2]}),
        ("Conv", (4, 2, 2, 2), (1, 2, 5, 5), {"auto_pad": "SAME_LOWER"}),
        ("Conv", (2, 1, 2, 2, 2), (1, 2, 4, 3, 5), {"group": 2}),
    ],
)
def test_matrix_times_columns_is_the_layer(kind, weights, shape, attributes):
    rng = np.random.default_rng(0)
    proto, layer = _layer(kind, rng.standard_normal(weights), shape, **attributes)
    x = rng.standard_normal(shape).astype("float32")
    (wanted,) = ReferenceEvaluator(proto).run(None, {"x": x})
    columns = layer.columns(x)
    parts = layer.matrix.reshape(layer.groups, -1, layer.matrix.shape[1])
    found = np.einsum("gpk,gok->pgo", columns, parts).reshape(-1, len(layer.matrix))
    wanted = np.moveaxis(wanted, 1 if kind == "Conv" else -1, -1).reshape(found.shape)
    np.testing.assert_allclose(found, wanted, rtol=1e-5, atol=1e-5)
    stored = layer.stored(layer.matrix)
    assert (stored == numpy_helper.to_array(proto.graph.initializer[0])).all()


@pytest.mark.parametrize("bits", [1, 2, 3, 4, 8])
@pytest.mark.parametrize("group", [0, 16])
def test_searched_ranges_have_less_error_than_full_ones(bits, group):
    rng = np.random.default_rng(bits)
    matrix = rng.standard_normal((5, 40)).astype("float32") ** 3
    found = rounding.nearest(
        matrix, rounding.clipped_scales(matrix, bits, None, group), bits, group
    )
    assert found.scale.shape == (5, 3 if group else 1)
    low, high = rounding.levels(bits)
    assert found.integers.min() >= low
    assert found.integers.max() <= high
    size = group or 40
    parts = [slice(start, start + size) for start in range(0, 40, size)]
    full = np.stack([np.abs(matrix[:, part]).max(axis=1) for part in parts], 1) / max(high, 1)
    plain = rounding.nearest(matrix, full.astype("float32"), bits, group)
    assert ((found.matrix - matrix) ** 2).sum() <= ((plain.matrix - matrix) ** 2).sum()


def test_channels_of_zeros_stay_zeros():
    matrix = np.zeros((3, 8), np.float32)
    for bits in (2, 4, 8):
        found = rounding.nearest(matrix, rounding.clipped_scales(matrix, bits), bits)
        assert (found.matrix == 0).all()


def _moments(layer, plain, read):
    sums = MomentSums(layer)
    for x, q in zip(plain, read, strict=True):
        sums.add(x, q)
    return sums.result()


@pytest.mark.parametrize(("weights", "groups"), [((6, 24), 1), ((8, 3, 3, 3), 2)])
def test_columns_that_make_up_for_each_other_beat_the_nearest_levels(weights, groups):
    rng = np.random.default_rng(7)
    if len(weights) == 2:
        mixing = rng.standard_normal((24, 24))
        proto_layer = _layer("Gemm", rng.standard_normal(weights), (50, 24), transB=1)[1]
        data = [(rng.standard_normal((50, 24)) @ mixing).astype("float32") for _ in range(4)]
    else:
        proto_layer = _layer("Conv", rng.standard_normal(weights), (1, 6, 9, 9), group=groups)[1]
        data = [rng.standard_normal((1, 6, 9, 9)).cumsum(2).astype("float32") for _ in range(4)]
    moments = _moments(proto_layer, data, data)
    assert moments.second.shape[0] == groups
    scale = rounding.clipped_scales(proto_layer.matrix, 3)
    plain = rounding.nearest(proto_layer.matrix, scale, 3)
    hessian = rounding.damped(moments.second, 0.01)
    better = rounding.compensated(proto_layer.matrix, scale, 3, hessian)

    def error(found):
        return moments_of.output_error(proto_layer.matrix, found.matrix, moments)[0]

    assert error(better) < 0.6 * error(plain)


def test_weights_and_bias_make_up_for_rounded_inputs():
    rng = np.random.default_rng(9)
    layer = _layer("MatMul", rng.standard_normal((12, 5)), (60, 12))[1]
    plain = [rng.standard_normal((60, 12)).astype("float32") for _ in range(3)]
    read = [0.8 * x + 0.3 for x in plain]
    moments = _moments(layer, plain, read)
    best = moments_of.best_weights(layer.matrix, moments.centred(), 1e-6)
    np.testing.assert_allclose(best, layer.matrix / 0.8, rtol=1e-3, atol=1e-4)
    shift = moments_of.mean_shift(layer.matrix, best, moments)
    for x, q in zip(plain, read, strict=True):
        np.testing.assert_allclose(q @ best.T + shift, x @ layer.matrix.T, atol=1e-3)
    around = moments.centred()
    least = moments_of.added_error(layer.matrix, best, around)
    assert least < moments_of.added_error(layer.matrix, layer.matrix, around)
