"""Converters against ONNX's reference evaluator, at the opsets where a meaning changed."""

import numpy as np
import pytest
from onnx import helper

from tests.frontends.onnx.oracle import check, compare, make_model, operators, run
from tilewright.errors import ModelError, UnsupportedModelError
from tilewright.frontends.onnx import import_onnx

RNG = np.random.default_rng(7)


def floats(*shape, low=-2.0, high=2.0):
    return RNG.uniform(low, high, shape).astype(np.float32)


def ints(*values):
    return np.array(values, np.int64)


X3 = floats(2, 3, 7)
X4 = floats(2, 4, 7, 5)
IMAGE = floats(1, 6, 9, 7)
KERNEL = floats(4, 6, 3, 2)


# (operator, inputs, attributes, opset); inputs named w* are weights, the others run-time inputs
CASES = {
    "conv": ("Conv", {"x": IMAGE, "w": KERNEL, "wb": floats(4)}, {"pads": [1, 0, 2, 1]}, 17),
    "conv_strided_dilated": (
        "Conv", {"x": IMAGE, "w": KERNEL}, {"strides": [2, 1], "dilations": [2, 3]}, 11),
    "conv_grouped": ("Conv", {"x": IMAGE, "w": floats(9, 2, 3, 3)}, {"group": 3}, 17),
    "conv_depthwise": (
        "Conv", {"x": IMAGE, "w": floats(6, 1, 3, 3)}, {"group": 6, "pads": [1, 1, 1, 1]}, 17),
    "conv_same_upper": (
        "Conv", {"x": IMAGE, "w": KERNEL}, {"auto_pad": "SAME_UPPER", "strides": [2, 2]}, 17),
    "conv_same_lower": (
        "Conv", {"x": IMAGE, "w": KERNEL}, {"auto_pad": "SAME_LOWER", "strides": [2, 2]}, 17),
    "conv_run_time_weight": ("Conv", {"x": IMAGE, "k": KERNEL, "b": floats(4)}, {}, 17),
    "conv1d": ("Conv", {"x": X3, "w": floats(5, 3, 3), "wb": floats(5)}, {"pads": [2, 0]}, 17),
    "conv3d": ("Conv", {"x": floats(1, 2, 4, 5, 3), "w": floats(3, 2, 2, 2, 2)}, {}, 17),
    "conv_transpose": (
        "ConvTranspose", {"x": IMAGE, "w": floats(6, 3, 3, 2), "wb": floats(3)},
        {"strides": [2, 2], "pads": [1, 0, 1, 1]}, 17),
    "conv_transpose_output_padding": (
        "ConvTranspose", {"x": IMAGE, "w": floats(6, 3, 3, 3)},
        {"strides": [3, 2], "output_padding": [2, 1]}, 17),
    "conv_transpose_dilated": (
        "ConvTranspose", {"x": IMAGE, "w": floats(6, 3, 2, 2)}, {"dilations": [2, 3]}, 17),
    "conv_transpose_1d": (
        "ConvTranspose", {"x": X3, "w": floats(3, 2, 4)}, {"strides": [2]}, 17),
    "gemm": (
        "Gemm", {"a": floats(4, 3), "w": floats(5, 4), "wc": floats(5)},
        {"transA": 1, "transB": 1, "alpha": 0.5, "beta": 2.0}, 13),
    "gemm_no_bias": ("Gemm", {"a": floats(3, 4), "w": floats(4, 5)}, {}, 11),
    "matmul_batched": ("MatMul", {"a": floats(2, 1, 3, 4), "b": floats(5, 4, 2)}, {}, 13),
    "matmul_vector": ("MatMul", {"a": floats(4), "b": floats(4, 3)}, {}, 13),
    "softmax_11_flattens": ("Softmax", {"x": X3}, {"axis": 1}, 11),
    "softmax_13": ("Softmax", {"x": X3}, {"axis": 1}, 13),
    "log_softmax": ("LogSoftmax", {"x": X3}, {}, 13),
    "clip_6_attributes": ("Clip", {"x": X3}, {"min": -0.5, "max": 1.0}, 6),
    "clip_11_one_bound": ("Clip", {"x": X3, "wlow": np.float32(-0.3)}, {}, 13),
    "gelu": ("Gelu", {"x": X3}, {}, 20),
    "gelu_tanh": ("Gelu", {"x": X3}, {"approximate": "tanh"}, 20),
    "hard_swish": ("HardSwish", {"x": X3}, {}, 14),
    "mish_keeps_small_numbers": ("Mish", {"x": floats(64, low=-14, high=-8)}, {}, 18),
    "prelu": ("PRelu", {"x": X3, "w": floats(3, 1)}, {}, 16),
    "erf": ("Erf", {"x": X3}, {}, 13),
    "pow_square": ("Pow", {"x": X3, "w": np.float32(2)}, {}, 15),
    "pow_of_integers": ("Pow", {"x": ints(1, 2, 3), "w": ints(3, 2, 1)}, {}, 15),
    "div_of_integers": ("Div", {"x": ints(-7, 7, 9), "y": ints(2, -2, 4)}, {}, 14),
    "mod_floor": ("Mod", {"x": ints(-7, 7, 9), "y": ints(2, -2, 4)}, {}, 13),
    "mod_truncate": ("Mod", {"x": ints(-7, 7, 9), "y": ints(2, -2, 4)}, {"fmod": 1}, 13),
    "round_half_even": ("Round", {"x": np.float32([0.5, 1.5, 2.5, -0.5, -1.5])}, {}, 11),
    "cast_to_bool": ("Cast", {"x": np.float32([0, -1, 0.5])}, {"to": 9}, 13),
    "layer_norm": (
        "LayerNormalization", {"x": X3, "w": floats(7), "wb": floats(7)}, {"epsilon": 1e-3}, 17),
    "layer_norm_two_axes": (
        "LayerNormalization", {"x": X3, "w": floats(3, 7)}, {"axis": 1}, 17),
    "batch_norm": (
        "BatchNormalization",
        {"x": X4, "w": floats(4), "wb": floats(4), "wm": floats(4), "wv": floats(4, low=0.1)},
        {"epsilon": 1e-3}, 15),
    "instance_norm": (
        "InstanceNormalization", {"x": X4, "w": floats(4), "wb": floats(4)}, {}, 6),
    "max_pool": (
        "MaxPool", {"x": IMAGE},
        {"kernel_shape": [3, 2], "strides": [2, 2], "pads": [1, 0, 1, 1]}, 12),
    "max_pool_ceil": (
        "MaxPool", {"x": IMAGE},
        {"kernel_shape": [3, 3], "strides": [2, 2], "ceil_mode": 1}, 12),
    "average_pool_counts_pad": (
        "AveragePool", {"x": IMAGE},
        {"kernel_shape": [3, 3], "pads": [1, 1, 1, 1], "count_include_pad": 1}, 17),
    "average_pool_ceil": (
        "AveragePool", {"x": IMAGE},
        {"kernel_shape": [2, 3], "strides": [2, 2], "ceil_mode": 1}, 19),
    "average_pool_dilated": (
        "AveragePool", {"x": IMAGE},
        {"kernel_shape": [2, 2], "dilations": [2, 2], "pads": [1, 1, 1, 1]}, 19),
    "average_pool_of_windows_without_any_tap": (
        "AveragePool", {"x": floats(1, 2, 3, 1)},
        {"kernel_shape": [1, 2], "dilations": [1, 2], "pads": [0, 1, 0, 1]}, 21,
    ),
    "global_average_pool": ("GlobalAveragePool", {"x": X4}, {}, 1),
    "reduce_mean_17": ("ReduceMean", {"x": X3}, {"axes": [0, -1], "keepdims": 0}, 17),
    "reduce_mean_18": ("ReduceMean", {"x": X3, "waxes": ints(1)}, {}, 18),
    "reduce_noop": ("ReduceSum", {"x": X3}, {"noop_with_empty_axes": 1}, 13),
    "reduce_log_sum_exp": ("ReduceLogSumExp", {"x": X3 + 90}, {}, 13),
    "reduce_max_of_masked_rows": (
        "ReduceMax", {"x": np.full((2, 3), -np.inf, np.float32)}, {"axes": [1]}, 13),
    "argmax_last": ("ArgMax", {"x": np.round(X3)}, {"axis": 1, "select_last_index": 1}, 13),
    "reshape_zero_and_minus": ("Reshape", {"x": X3, "ws": ints(0, -1)}, {}, 13),
    "squeeze_11": ("Squeeze", {"x": floats(1, 3, 1)}, {"axes": [-1]}, 11),
    "squeeze_13": ("Squeeze", {"x": floats(1, 3, 1)}, {}, 13),
    "slice_9": ("Slice", {"x": X3}, {"starts": [1, -3], "ends": [3, 100], "axes": [1, 2]}, 9),
    "slice_backwards": (
        "Slice",
        {"x": X3, "ws": ints(10), "we": ints(-100), "wa": ints(-1), "wp": ints(-2)}, {}, 13),
    "split_uneven": ("Split", {"x": X3}, {"axis": 2, "num_outputs": 3}, 18),
    "pad_reflect": (
        "Pad", {"x": X3, "wp": ints(0, 1, 2, 0, 1, 3)}, {"mode": "reflect"}, 13),
    "pad_crops": ("Pad", {"x": X3, "wp": ints(0, -1, 2, 0, 0, -3)}, {}, 13),
    "expand": ("Expand", {"x": floats(3, 1), "ws": ints(2, 1, 4)}, {}, 13),
    "depth_to_space_dcr": ("DepthToSpace", {"x": X4}, {"blocksize": 2}, 13),
    "depth_to_space_crd": ("DepthToSpace", {"x": X4}, {"blocksize": 2, "mode": "CRD"}, 13),
    "space_to_depth": ("SpaceToDepth", {"x": floats(1, 2, 4, 6)}, {"blocksize": 2}, 13),
    "trilu_lower": ("Trilu", {"x": floats(4, 5), "wk": np.array(-1)}, {"upper": 0}, 14),
    "gather_at_run_time": (
        "Gather", {"x": X3, "i": ints(-1, 0, 2)}, {"axis": 1}, 13),
    "gather_constant": ("Gather", {"x": X3, "wi": ints(5, -6)}, {"axis": 2}, 13),
    "gather_scalar": ("Gather", {"x": X3, "wi": np.array(-1)}, {"axis": 1}, 13),
    "gather_nd": ("GatherND", {"x": X3, "i": np.array([[0, -1], [1, 0]])}, {}, 13),
    "scatter_nd_constant": (
        "ScatterND", {"x": X3, "wi": np.array([[1, 2], [0, -3]]), "u": floats(2, 7)}, {}, 16),
    "scatter_nd_add": (
        "ScatterND", {"x": X3, "i": np.array([[1], [1]]), "u": floats(2, 3, 7)},
        {"reduction": "add"}, 16),
    "one_hot": (
        "OneHot", {"i": ints(0, -1, 3), "wd": np.array(4), "v": np.float32([2, 5])}, {}, 11),
    "cumsum_reverse": (
        "CumSum", {"x": X3, "wa": np.array(1)}, {"reverse": 1, "exclusive": 1}, 14),
    "resize_bilinear": (
        "Resize",
        {"x": X4, "wr": np.zeros(0, np.float32), "ws": np.float32([1, 1, 2, 2.5])},
        {"mode": "linear"}, 13),
    "resize_nearest_sizes": (
        "Resize",
        {"x": X4, "wr": None, "ws": None, "wz": ints(2, 4, 14, 3)},
        {"mode": "nearest", "coordinate_transformation_mode": "asymmetric",
         "nearest_mode": "floor"}, 18),
    "resize_cubic_align_corners": (
        "Resize",
        {"x": X4, "wr": None, "ws": np.float32([1, 1, 1.5, 2])},
        {"mode": "cubic", "coordinate_transformation_mode": "align_corners"}, 13),
    "einsum": ("Einsum", {"a": floats(2, 3, 4), "b": floats(2, 4, 5)},
               {"equation": "bij,bjk->bik"}, 12),
    "einsum_ellipsis": ("Einsum", {"a": floats(2, 3, 4), "b": floats(3, 5)},
                        {"equation": "...ij,ik->...jk"}, 12),
    "quantize_linear": (
        "QuantizeLinear", {"x": X3, "ws": np.float32(0.1), "wz": np.uint8(128)}, {}, 13),
    "dequantize_per_axis": (
        "DequantizeLinear",
        {"x": RNG.integers(-128, 127, (2, 3, 7)).astype(np.int8),
         "ws": floats(3, low=0.1), "wz": np.int8([1, -2, 3])}, {"axis": 1}, 13),
}  # fmt: skip


# The reference evaluator has the meaning of opset 13 only, no negative padding, and wants weights
# of a dequantization to be of one rank.
REFERENCE_LACKS = ("softmax_11_flattens", "pad_crops", "dequantize_per_axis")


@pytest.mark.parametrize("case", CASES)
def test_operator_agrees_with_the_reference(case):
    operator, arrays, attributes, opset = CASES[case]
    names = [name if array is not None else "" for name, array in arrays.items()]
    given = {name: np.asarray(array) for name, array in arrays.items() if array is not None}
    weights = {name: array for name, array in given.items() if name.startswith("w")}
    feeds = {name: array for name, array in given.items() if name not in weights}
    count = attributes.get("num_outputs", 1)
    outputs = [f"y{index}" for index in range(count)]
    node = helper.make_node(operator, names, outputs, name=case, **attributes)
    model = make_model([node], feeds, outputs, opset, weights)
    check(model, feeds, rtol=1e-4, atol=2e-5, runtime=case in REFERENCE_LACKS)


def test_comparison_bites():
    right = [np.float32([1, 2])]
    with pytest.raises(AssertionError):
        compare([np.float32([1, 2.001])], right, 1e-5, 1e-5)
    with pytest.raises(AssertionError):
        compare([np.float64([1, 2])], right, 1e-5, 1e-5)


def test_batch_norm_is_one_multiply_and_one_add():
    stats = {name: floats(4, low=0.1) for name in "sbmv"}
    node = helper.make_node("BatchNormalization", ["x", *"sbmv"], ["y"])
    imported = import_onnx(make_model([node], {"x": X4}, ["y"], 17, stats))
    assert operators(imported) == ["relax.multiply", "relax.add"]


@pytest.mark.parametrize("opset", [10, 13])
def test_dropout_and_identity_vanish(opset):
    nodes = [
        helper.make_node("Dropout", ["x"], ["a"]),
        helper.make_node("Identity", ["a"], ["b"]),
        helper.make_node("Relu", ["b"], ["y"]),
    ]
    assert operators(import_onnx(make_model(nodes, {"x": X3}, ["y"], opset))) == ["relax.nn.relu"]


def test_training_dropout_is_refused():
    node = helper.make_node("Dropout", ["x", "r", "t"], ["y"])
    weights = {"r": np.float32(0.5), "t": np.array(True)}
    with pytest.raises(UnsupportedModelError, match="training_mode is true"):
        import_onnx(make_model([node], {"x": X3}, ["y"], 13, weights))


def test_constant_index_out_of_range_raises():
    node = helper.make_node("Gather", ["x", "i"], ["y"], axis=1)
    with pytest.raises(ModelError, match="out of range for extent 3"):
        import_onnx(make_model([node], {"x": X3}, ["y"], 13, {"i": ints(3)}))


def test_run_time_index_never_reads_outside():
    node = helper.make_node("Gather", ["x", "i"], ["y"])
    feeds = {"x": X3, "i": ints(10**9, -(10**9))}
    (found,) = run(import_onnx(make_model([node], feeds, ["y"], 13)), feeds)
    assert found.shape == (2, 3, 7)


def branches():
    then = helper.make_graph(
        [helper.make_node("Relu", ["x"], ["t"])], "then", [],
        [helper.make_tensor_value_info("t", 1, [2, 3, 7])])  # fmt: skip
    other = helper.make_graph(
        [helper.make_node("Neg", ["x"], ["e"])], "else", [],
        [helper.make_tensor_value_info("e", 1, [2, 3, 7])])  # fmt: skip
    return helper.make_node("If", ["c"], ["y"], then_branch=then, else_branch=other)


@pytest.mark.parametrize("condition", [True, False])
def test_if_on_a_constant_is_decided_when_importing(condition):
    feeds = {"x": X3, "c": np.array(condition)}
    model = make_model([branches()], feeds, ["y"], 17)
    decided = check(model, feeds, constants=["c"])
    assert operators(decided) == ["relax.nn.relu" if condition else "relax.negative"]


def test_function_body_of_an_operator_without_converter_is_expanded():
    node = helper.make_node("SoftmaxCrossEntropyLoss", ["x", "t"], ["y"])
    feeds = {"x": floats(3, 5), "t": ints(0, 4, 2)}
    check(make_model([node], feeds, ["y"], 13), feeds)
