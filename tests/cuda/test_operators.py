"""Every kind of operator: the text of its kernels, run thread by thread, against ONNX Runtime."""

from pathlib import Path

import numpy as np
import onnxruntime
import pytest
from onnx import helper

import tilewright
from tests.compiler.quantize.models import Builder, run_onnxruntime
from tests.cuda.emulation import Emulator
from tests.cuda.programs import lower, model_of, run
from tilewright.compiler.cuda.layouts import cuda_choices

pytestmark = pytest.mark.filterwarnings("ignore")
_TOLERANCE = {"fp32": 2e-6, "tf32": 2e-3, "fp16": 2e-3, "bf16": 2e-2}


def check(model, feeds, precision="fp32", schedule="", backwards=(False,), **options):
    """Compare with ONNX Runtime, relative to the largest value; return the schedules."""
    lowered = lower(model, precision, **options)
    session = onnxruntime.InferenceSession(
        model.SerializeToString(), providers=["CPUExecutionProvider"]
    )
    expected = session.run(None, feeds)[0]
    schedules = [name for names in lowered.schedules.values() for name in names]
    assert any(name.startswith(schedule) for name in schedules), schedules
    emulator = Emulator(list(lowered.kernels.values()))
    for order in backwards:
        actual = run(lowered, feeds, order, emulator)["y"]
        assert actual.shape == expected.shape
        if expected.dtype.kind != "f":
            np.testing.assert_array_equal(actual, expected)
            continue
        scale = max(1e-6, float(np.abs(expected).max()))
        error = float(np.abs(actual.astype(np.float64) - expected).max()) / scale
        assert error <= _TOLERANCE[precision], (error, schedules)
    return schedules


def normal(*shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape, np.float32)


def convolution(x, w, bias=True, activation="Relu", operator="Conv", **attributes):
    weights = {"w": w}
    groups = attributes.get("group", 1)
    if bias:
        channels = w.shape[1] * groups if operator == "ConvTranspose" else w.shape[0]
        weights["b"] = normal(channels, seed=3)
    names = ["x", "w", *(["b"] if bias else [])]
    nodes = [helper.make_node(operator, names, ["c"], **attributes)]
    nodes.append(helper.make_node(activation, ["c"], ["y"]))
    return model_of(nodes, {"x": x}, weights), {"x": x}


@pytest.mark.parametrize("precision", ["fp32", "tf32", "fp16", "bf16"])
def test_a_convolution_is_an_implicit_product(precision):
    model, feeds = convolution(
        normal(1, 32, 9, 11), normal(24, 32, 3, 3, seed=1), pads=[1, 1, 1, 1], strides=[2, 1]
    )
    names = check(model, feeds, precision, f"gemm {precision}", (False, True))
    assert any("copy/copy" in name or precision in ("fp16", "bf16") for name in names)


@pytest.mark.parametrize(
    ("x", "w", "attributes", "schedule"),
    [
        ((2, 3, 12, 10), (16, 3, 5, 3), {"pads": [2, 1, 2, 1], "strides": [2, 2]}, "gemm fp32"),
        ((1, 16, 9, 9), (16, 16, 3, 3), {"dilations": [2, 2], "pads": [2, 2, 2, 2]}, "gemm fp32"),
        ((1, 32, 7, 9), (32, 8, 3, 3), {"group": 4, "pads": [1, 1, 1, 1]}, "gemm fp32"),
        ((1, 24, 9, 7), (24, 1, 3, 3), {"group": 24, "pads": [1, 1, 1, 1]}, "reduction"),
        ((2, 16, 33), (24, 16, 5), {"pads": [2, 2]}, "gemm fp32"),
        ((1, 8, 5, 6, 7), (16, 8, 3, 3, 3), {"pads": [1] * 6}, "gemm fp32"),
        ((1, 20, 8, 8), (17, 20, 1, 1), {}, "gemm fp32"),
    ],
    ids=["three_channels", "dilated", "grouped", "depthwise", "1d", "3d", "odd_channels"],
)
def test_convolutions_of_every_kind(x, w, attributes, schedule):
    model, feeds = convolution(normal(*x), normal(*w, seed=1), **attributes)
    check(model, feeds, schedule=schedule)


def _only(layout):
    """Return choices of layouts that leave convolutions one."""

    def choices_of(operator, host):
        choices = cuda_choices(operator, host)
        return tuple(c for c in choices if c.name == layout) or choices

    return choices_of


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
@pytest.mark.parametrize("layout", ["B -> B", "B -> C", "L -> B"])
def test_convolutions_in_blocks_of_channels(layout, precision):
    """Read and written in blocks; where the depth is, sixteen bytes are copied at once."""
    weights = {"w": normal(64, 32, 3, 3, seed=1), "b": normal(64, seed=2)}
    nodes = [
        helper.make_node("Conv", ["x", "w", "b"], ["c"], pads=[1, 1, 1, 1], strides=[2, 1]),
        helper.make_node("MaxPool", ["c"], ["p"], kernel_shape=[2, 2]),
        helper.make_node("Add", ["p", "p"], ["y"]),
    ]
    feeds = {"x": normal(1, 32, 8, 7)}
    names = check(model_of(nodes, feeds, weights), feeds, precision, choices_of=_only(layout))
    (product,) = (name for name in names if name.startswith("gemm"))
    assert ("copy/copy" in product) == (layout[0] == "B")


@pytest.mark.parametrize(("channels", "group"), [((32, 1), 32), ((64, 32), 2), ((64, 8), 8)])
def test_grouped_convolutions_in_blocks_of_channels(channels, group):
    model, feeds = convolution(
        normal(1, channels[0], 5, 6),
        normal(64, channels[1], 3, 3, seed=1),
        pads=[1, 1, 1, 1],
        group=group,
    )
    check(model, feeds, choices_of=_only("B -> B"))


def test_blocks_are_chosen_only_where_they_were_measured():
    model, _ = convolution(normal(1, 64, 9, 9), normal(64, 64, 3, 3, seed=1))
    plan = lower(model).operators.plan
    assert not any("B" in choice.name for choice in plan.choices)


def test_channels_that_do_not_fill_blocks_are_not_blocked():
    seen = []

    def choices_of(operator, host):
        seen.extend(choice.name for choice in cuda_choices(operator, host))
        return cuda_choices(operator, host)

    model, _ = convolution(normal(1, 40, 9, 9), normal(64, 40, 3, 3, seed=1))
    lower(model, choices_of=choices_of)
    assert "C -> B" in seen
    assert not any(name.startswith("B") for name in seen)


def test_a_transposed_convolution():
    model, feeds = convolution(
        normal(1, 16, 5, 6),
        normal(16, 12, 4, 4, seed=1),
        operator="ConvTranspose",
        strides=[2, 2],
        pads=[1, 1, 1, 1],
    )
    check(model, feeds, schedule="gemm fp32")


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
@pytest.mark.parametrize("shapes", [((24, 40), (40, 56)), ((2, 3, 17, 24), (2, 3, 24, 20))])
def test_products_of_two_inputs(precision, shapes):
    feeds = {"a": normal(*shapes[0]), "b": normal(*shapes[1], seed=1)}
    model = model_of([helper.make_node("MatMul", ["a", "b"], ["y"])], feeds, {})
    check(model, feeds, precision, f"gemm {precision}")


def test_a_product_with_one_row_has_no_empty_tile():
    feeds = {"x": normal(1, 200)}
    nodes = [helper.make_node("Gemm", ["x", "w", "b"], ["y"], transB=1)]
    weights = {"w": normal(50, 200, seed=1), "b": normal(50, seed=2)}
    check(model_of(nodes, feeds, weights), feeds, schedule="reduction")


def test_a_long_depth_is_split_over_blocks():
    feeds = {"x": normal(16, 2048)}
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["p"]),
        helper.make_node("Add", ["p", "b"], ["q"]),
        helper.make_node("Relu", ["q"], ["y"]),
    ]
    weights = {"w": normal(2048, 32, seed=1), "b": normal(32, seed=2)}
    names = check(model_of(nodes, feeds, weights), feeds)
    assert any("split" in name for name in names)


@pytest.mark.parametrize("columns", [7, 70, 1500])
def test_softmax_and_layer_norm(columns):
    x = normal(3, 5, columns)
    model = model_of([helper.make_node("Softmax", ["x"], ["y"], axis=-1)], {"x": x}, {})
    check(model, {"x": x}, schedule="rows", backwards=(False, True))
    weights = {"s": normal(columns, seed=1), "b": normal(columns, seed=2)}
    node = helper.make_node("LayerNormalization", ["x", "s", "b"], ["y"], axis=-1)
    check(model_of([node], {"x": x}, weights), {"x": x}, schedule="rows")


@pytest.mark.parametrize(
    ("operator", "attributes"),
    [
        ("MaxPool", {"kernel_shape": [3, 3], "strides": [2, 2], "pads": [1, 1, 1, 1]}),
        ("AveragePool", {"kernel_shape": [2, 2], "strides": [2, 2]}),
        ("GlobalAveragePool", {}),
        ("ReduceMax", {"axes": [1, 2]}),
        ("ReduceProd", {"axes": [3]}),
        ("ReduceSum", {"keepdims": 0}),
    ],
)
def test_reductions(operator, attributes):
    x = normal(2, 6, 20, 9)
    node = helper.make_node(operator, ["x"], ["y"], **attributes)
    opset = 12 if operator.startswith("Reduce") else 17
    check(model_of([node], {"x": x}, {}, opset=opset), {"x": x}, schedule="reduction")


def test_element_wise_operators_read_sixteen_bytes_at_once():
    x, z = normal(3, 5, 8), normal(5, 1, seed=1)
    nodes = [
        helper.make_node("Erf", ["x"], ["a"]),
        helper.make_node("Mul", ["a", "z"], ["b"]),
        helper.make_node("Sigmoid", ["b"], ["c"]),
        helper.make_node("Add", ["c", "x"], ["y"]),
    ]
    feeds = {"x": x, "z": z}
    check(model_of(nodes, feeds, {}), feeds, schedule="elementwise x4")


def test_movement_of_data():
    x = normal(2, 6, 5, 7)
    nodes = [
        helper.make_node("Transpose", ["x"], ["t"], perm=[0, 2, 3, 1]),
        helper.make_node("Concat", ["t", "t"], ["c"], axis=2),
        helper.make_node("Slice", ["c", "starts", "ends", "axes"], ["y"]),
    ]
    weights = {
        "starts": np.array([1, 3], np.int64),
        "ends": np.array([5, 11], np.int64),
        "axes": np.array([1, 2], np.int64),
    }
    check(model_of(nodes, {"x": x}, weights), {"x": x}, schedule="elementwise")


def test_integers_and_conditions():
    x = np.random.default_rng(0).integers(-50, 50, (4, 9)).astype(np.int64)
    nodes = [
        helper.make_node("Mod", ["x", "seven"], ["m"]),
        helper.make_node("Less", ["m", "three"], ["l"]),
        helper.make_node("Where", ["l", "x", "m"], ["y"]),
    ]
    weights = {"seven": np.array(7, np.int64), "three": np.array(3, np.int64)}
    check(model_of(nodes, {"x": x}, weights), {"x": x})


def test_gather_reads_where_the_indices_say():
    feeds = {"i": np.array([[3, 0, 2], [1, 1, 4]], np.int64)}
    node = helper.make_node("Gather", ["table", "i"], ["y"], axis=0)
    check(model_of([node], feeds, {"table": normal(5, 12)}), feeds, schedule="elementwise")


def test_a_quantized_convolution_is_exact_on_matrix_units():
    rng = np.random.default_rng(0)
    feeds = {"x": rng.integers(0, 255, (1, 32, 6, 6)).astype(np.uint8)}
    weights = {
        "w": rng.integers(-60, 60, (16, 32, 3, 3)).astype(np.int8),
        "zero": np.array(0, np.uint8),
    }
    node = helper.make_node("ConvInteger", ["x", "w", "zero"], ["y"], pads=[1, 1, 1, 1])
    model = model_of([node], feeds, weights)
    check(model, feeds, schedule="gemm int8")


@pytest.mark.parametrize("operator", ["Exp", "Not", "Round", "Abs"])
def test_an_operator_may_be_called_like_a_function_or_keyword_of_cuda(operator):
    x = normal(4, 6) > 0 if operator == "Not" else normal(4, 6)
    model = model_of([helper.make_node(operator, ["x"], ["y"])], {"x": x}, {})
    check(model, {"x": x}, schedule="elementwise")


def test_a_model_in_float16_keeps_it_in_memory():
    x, w = normal(20, 64).astype(np.float16), normal(64, 24, seed=1).astype(np.float16)
    model = model_of([helper.make_node("MatMul", ["x", "w"], ["y"])], {"x": x}, {"w": w})
    lowered = lower(model)
    ((schedule, *_),) = lowered.schedules.values()
    assert schedule.startswith("gemm fp16")
    assert "scalar" not in schedule
    actual = run(lowered, {"x": x})["y"]
    expected = x.astype(np.float64) @ w.astype(np.float64)
    assert actual.dtype == np.float16
    np.testing.assert_allclose(actual, expected, rtol=2e-3, atol=2e-2)


def test_a_quantized_network_is_exact_and_pads_with_the_zero_point():
    builder = Builder()
    x = builder.qdq("x", 0.02, 128)
    hidden = builder.node("Relu", builder.conv(x, 0.02, (32, 16, 3, 3), pads=[1, 1, 1, 1]))
    y = builder.conv(builder.qdq(hidden, 0.05, 0), 0.05, (16, 32, 1, 1))
    model = builder.model({"x": ((1, 16, 8, 8), "float32")}, [builder.qdq(y, 0.5, 100)])
    lowered = lower(model, "int8")
    products = [n[0] for n in lowered.schedules.values() if n[0].startswith("gemm")]
    assert all("gemm int8" in name and "copy/copy" in name for name in products)
    assert len(products) == 2
    feed = {"x": normal(1, 16, 8, 8)}
    (actual,) = run(lowered, feed).values()
    np.testing.assert_array_equal(actual, run_onnxruntime(model, feed)[0])


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_a_whole_network(precision):
    path = Path(tilewright.__file__).parent.parent / "examples" / "digits_cnn.onnx"
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    (item,) = session.get_inputs()
    feed = {item.name: np.random.default_rng(0).random((1, 1, 8, 8), np.float32)}
    (expected,) = session.run(None, feed)
    (actual,) = run(lower(path, precision), feed).values()
    scale = float(np.abs(expected).max())
    np.testing.assert_allclose(actual / scale, expected / scale, atol=3 * _TOLERANCE[precision])
