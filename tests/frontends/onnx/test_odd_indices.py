"""Indices that point outside: known ones are refused, those in the data never leave a tensor."""

import numpy as np
import onnxruntime
import pytest
from onnx import TensorProto, helper

import tilewright
from tests.frontends.onnx.oracle import make_model
from tilewright.errors import CompileError, ModelError

RNG = np.random.default_rng(7)
WILD = np.array([0, 1, -1, 10**9, -(10**9), 2**62, -(2**63), 5], np.int64)


def floats(*shape):
    return RNG.normal(size=shape).astype(np.float32)


X = floats(2, 3, 5, 4)
ROIS = np.float32([[0, 0, 3, 4], [np.nan, 0, np.inf, 4], [-1e9, -1e9, 1e9, 1e9], [3, 3, 1, 1]])

# operator, opset, inputs (the first is data), attributes
WILD_CASES = {
    "gather": ("Gather", 20, {"x": X, "i": WILD}, {"axis": 2}),
    "gather_elements": (
        "GatherElements", 20, {"x": floats(8), "i": WILD}, {}),
    "gather_nd": ("GatherND", 20, {"x": X, "i": WILD.reshape(4, 2)}, {}),
    "scatter_elements": (
        "ScatterElements", 20, {"x": floats(8), "i": WILD, "u": floats(8)}, {}),
    "scatter_nd": (
        "ScatterND", 20, {"x": X, "i": WILD.reshape(4, 2), "u": floats(4, 5, 4)}, {}),
    "max_unpool": (
        "MaxUnpool", 20, {"x": floats(1, 2, 2, 2), "i": WILD.reshape(1, 2, 2, 2)},
        {"kernel_shape": [2, 2], "strides": [2, 2]}),
    "reverse_sequence": (
        "ReverseSequence", 20, {"x": floats(3, 8), "i": WILD}, {"time_axis": 0, "batch_axis": 1}),
    "roi_align": (
        "RoiAlign", 20, {"x": X, "r": ROIS, "i": WILD[3:7]},
        {"output_height": 2, "output_width": 3, "sampling_ratio": 2}),
    "max_roi_pool": (
        "MaxRoiPool", 20,
        {"x": X, "r": np.concatenate([WILD[3:7, None].astype(np.float32), ROIS], 1)},
        {"pooled_shape": [2, 2]}),
    "one_hot": (
        "OneHot", 20, {"i": WILD, "d": np.array(6, np.int64), "v": np.float32([0, 1])}, {}),
    "grid_sample": (
        "GridSample", 20,
        {"x": X, "g": np.resize(np.float32([np.nan, np.inf, -1e30, 0.5, 1e30]), (2, 3, 3, 2))},
        {"padding_mode": "reflection"}),
    "loss": (
        "NegativeLogLikelihoodLoss", 20, {"x": floats(8, 4), "i": WILD}, {"reduction": "sum"}),
    "top_k": ("TopK", 20, {"x": np.full((3, 4), np.nan, np.float32), "k": np.array([3])}, {}),
    "tensor_scatter": (
        "TensorScatter", 24, {"x": floats(2, 4, 3), "u": floats(2, 2, 3), "i": WILD[4:6]}, {}),
}  # fmt: skip


@pytest.mark.parametrize("case", WILD_CASES)
def test_wild_numbers_in_the_data_stay_inside(case):
    operator, opset, arrays, attributes = WILD_CASES[case]
    outputs = ["y", "z"] if operator == "TopK" else ["y"]
    weights = {name: array for name, array in arrays.items() if name in ("d", "k", "v")}
    feeds = {name: array for name, array in arrays.items() if name not in weights}
    node = helper.make_node(operator, list(arrays), outputs, **attributes)
    compiled = tilewright.compile(make_model([node], feeds, outputs, opset, weights), logs=())
    compiled.run(feeds)  # what comes out is undefined, but it does come out


CONSTANT_CASES = {
    "gather": ("Gather", [floats(4), np.array([4])], {}),
    "gather_elements": ("GatherElements", [floats(4), np.array([-5])], {}),
    "scatter_elements": ("ScatterElements", [floats(4), np.array([9]), floats(1)], {}),
    "scatter_nd": ("ScatterND", [floats(4), np.array([[9]]), floats(1)], {}),
    "scatter_nd_add": ("ScatterND", [floats(4), np.array([[9]]), floats(1)], {"reduction": "add"}),
    "loss": ("NegativeLogLikelihoodLoss", [floats(2, 4), np.array([1, 1 << 31])], {}),
}


@pytest.mark.parametrize("case", CONSTANT_CASES)
def test_index_known_when_compiling_must_be_in_range(case):
    operator, (data, indices, *rest), attributes = CONSTANT_CASES[case]
    weights = {"i": indices, **{f"u{k}": array for k, array in enumerate(rest)}}
    node = helper.make_node(operator, ["x", *weights], ["y"], **attributes)
    with pytest.raises(ModelError, match=r"does not fit its inputs: .* out of range"):
        tilewright.compile(make_model([node], {"x": data}, ["y"], 18, weights), logs=())


@pytest.mark.parametrize("scale", [1.0, 0.5])
def test_max_roi_pool_against_onnx_runtime(scale):
    rois = np.float32(
        [[0, 0, 0, 3, 4], [1, 1, 2, 3, 3], [1, 0.6, 1.4, 6, 9], [0, 2, 2, 2, 2], [0, -3, -2, 1, 1]]
    )
    feeds = {"x": X - 3, "rois": rois}
    node = helper.make_node(
        "MaxRoiPool", ["x", "rois"], ["y"], pooled_shape=[2, 3], spatial_scale=scale
    )
    model = make_model([node], feeds, ["y"], 17)
    found = tilewright.compile(model, logs=()).run(feeds)["y"]
    model.graph.output[0].type.tensor_type.elem_type = TensorProto.FLOAT
    model.graph.output[0].type.tensor_type.ClearField("shape")
    session = onnxruntime.InferenceSession(model.SerializeToString())
    np.testing.assert_array_equal(found, session.run(None, feeds)[0])


def test_a_fault_of_the_compiler_is_named_as_one(monkeypatch):
    def broken(*_args, **_kwargs):
        raise ValueError("first line\nCheck failed: something inside")

    monkeypatch.setattr("tilewright.compiler.pipeline.choose_layouts", broken)
    model = make_model([helper.make_node("Relu", ["x"], ["y"])], {"x": X}, ["y"], 18)
    with pytest.raises(CompileError, match=r"a fault of tilewright .* in stage 'layouts': Check"):
        tilewright.compile(model, logs=())
