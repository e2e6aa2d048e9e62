"""Small networks and single operators on ARM, under qemu, against numpy and plain TVM."""

import dataclasses

import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator

import tilewright
from tests.arm.board import CORTEX_A7, PI4, PI5, Board, board_for
from tests.compiler.test_pipeline import NETWORKS, SHAPE, _close, _specs
from tests.programs import mlp_program
from tests.relax_models import module, run
from tilewright.compiler.package import package
from tilewright.compiler.pipeline import lower
from tilewright.compiler.targets import parse_target

pytestmark = pytest.mark.arm

TARGETS = ["aarch64:cortex-a72", "aarch64:cortex-a76", "armv7:cortex-a7"]


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("name", NETWORKS)
def test_network_computes_what_plain_tvm_computes_here(name, target, tmp_path):
    if target == "aarch64:cortex-a76" and name != "residual":
        pytest.skip("differs from cortex-a72 in integer arithmetic only")
    board = board_for(target)
    mod = module([SHAPE], NETWORKS[name])
    x = np.random.default_rng(0).standard_normal(SHAPE).astype("float32")
    expected = run(mod, x)
    description = parse_target(target)
    lowered = lower(mod, *_specs(mod, expected), description)
    package(lowered.program, description, tmp_path / "model.so", {})
    _close(board.run(tmp_path / "model.so", [x])[0], expected)


def _model(nodes, shape, output_shape, constants=()):
    graph = helper.make_graph(
        nodes,
        "operator",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, output_shape)],
        [numpy_helper.from_array(array, name) for name, array in constants],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8)


def _chain(*operators, shape):
    """Build a chain of element-wise operators, each of one input."""
    names = ["x", *(f"t{i}" for i in range(len(operators) - 1)), "y"]
    nodes = [
        helper.make_node(operator, [names[i]], [names[i + 1]])
        for i, operator in enumerate(operators)
    ]
    return _model(nodes, shape, shape)


def _weights(*shape, seed=1):
    return np.random.default_rng(seed).standard_normal(shape).astype("float32")


def _convolution(inputs, outputs, size, kernel, group=1, stride=1):
    pads = [kernel // 2] * 4
    extents = [(extent + 2 * (kernel // 2) - kernel) // stride + 1 for extent in size]
    node = helper.make_node(
        "Conv", ["x", "w", "b"], ["y"], pads=pads, group=group, strides=[stride] * 2
    )
    constants = [
        ("w", _weights(outputs, inputs // group, kernel, kernel)),
        ("b", _weights(outputs)),
    ]
    return _model([node], (1, inputs, *size), (1, outputs, *extents), constants)


OPERATORS = {
    "conv 3x3": _convolution(7, 13, (9, 11), 3),
    "conv 5x5 stride 2": _convolution(8, 20, (15, 9), 5, stride=2),
    "conv 1x1": _convolution(19, 33, (7, 5), 1),
    "depthwise": _convolution(21, 21, (9, 13), 3, group=21),
    "matmul": _model(
        [helper.make_node("MatMul", ["x", "w"], ["y"])],
        (1, 11, 37),
        (1, 11, 45),
        [("w", _weights(37, 45))],
    ),
    "vector times matrix": _model(
        [helper.make_node("MatMul", ["x", "w"], ["y"])], (1, 65), (1, 31), [("w", _weights(65, 31))]
    ),
    "softmax": _model([helper.make_node("Softmax", ["x"], ["y"], axis=-1)], (3, 5, 77), (3, 5, 77)),
    "layer norm": _model(
        [helper.make_node("LayerNormalization", ["x", "w", "b"], ["y"], axis=-1)],
        (2, 9, 51),
        (2, 9, 51),
        [("w", _weights(51)), ("b", _weights(51, seed=2))],
    ),
    "mean": _model(
        [helper.make_node("GlobalAveragePool", ["x"], ["y"])], (2, 13, 7, 9), (2, 13, 1, 1)
    ),
    "largest": _model(
        [helper.make_node("GlobalMaxPool", ["x"], ["y"])], (1, 13, 7, 9), (1, 13, 1, 1)
    ),
    "exp, tanh, sigmoid, erf": _chain("Tanh", "Exp", "Sigmoid", "Erf", shape=(3, 7, 29)),
    "floor, round, ceil": _chain("Floor", shape=(3, 7, 29)),
    "sqrt of abs": _chain("Abs", "Sqrt", shape=(5, 13)),
    "transpose": _model(
        [helper.make_node("Transpose", ["x"], ["y"], perm=[0, 2, 1])], (2, 19, 21), (2, 21, 19)
    ),
}


@pytest.mark.parametrize("target", ["aarch64", "armv7:cortex-a7"])
@pytest.mark.parametrize("name", OPERATORS)
def test_operator_on_an_odd_shape_matches_the_reference(name, target, tmp_path):
    board = board_for(target)
    model = OPERATORS[name]
    shape = [extent.dim_value for extent in model.graph.input[0].type.tensor_type.shape.dim]
    x = np.random.default_rng(3).standard_normal(shape).astype("float32")
    (expected,) = ReferenceEvaluator(model).run(None, {"x": x})
    tilewright.compile(model, target, logs=()).save(tmp_path / "model.so")
    (actual,) = board.run(tmp_path / "model.so", [x])
    np.testing.assert_allclose(actual, expected, rtol=2e-5, atol=2e-5)


@pytest.mark.parametrize(
    ("target", "board", "lacks"),
    [
        ("aarch64:cortex-a76", PI4, "dotprod"),
        ("aarch64:neoverse-v1", PI5, "i8mm"),
        ("armv7:cortex-a7", Board("armv7", "cortex-a9"), "vfp4"),
    ],
)
def test_a_board_without_a_feature_refuses_politely(target, board, lacks, tmp_path):
    board_for(target)
    program, _ = mlp_program()
    package(program, parse_target(target), tmp_path / "mlp.so")
    done = board.try_run(tmp_path / "mlp.so", [np.zeros((6, 32), "float32")], tmp_path)
    assert done.returncode == 1
    assert "this CPU lacks what the module was compiled for:" in done.stderr
    assert lacks in done.stderr


@pytest.mark.parametrize("board", [PI4, CORTEX_A7], ids=["aarch64", "armv7"])
def test_several_threads_give_the_same(board, tmp_path):
    target = "aarch64" if board is PI4 else "armv7:cortex-a7"
    board_for(target)
    program, _ = mlp_program()
    package(dataclasses.replace(program), parse_target(target), tmp_path / "mlp.so")
    x = np.random.default_rng(0).standard_normal((6, 32)).astype("float32")
    first = board.run(tmp_path / "mlp.so", [x])[0]
    for _ in range(3):
        np.testing.assert_array_equal(board.run(tmp_path / "mlp.so", [x])[0], first)
