"""The size of a static program with the code of ResNet-18, for which weights do not matter."""

import subprocess

import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper

import tilewright
from tests.arm.board import HEADERS, RUNNER, board_for
from tilewright.compiler.toolchain import find_c_compiler

pytestmark = [pytest.mark.arm, pytest.mark.slow]

_LIMIT_BYTES = 2 << 20


def _resnet18():
    """Return the graph of ResNet-18 (arXiv 1512.03385, table 1), batch norm folded."""
    nodes, constants = [], []

    def conv(x, channels, outputs, kernel, stride, pad):
        name = f"c{len(nodes)}"
        shapes = {"w": (outputs, channels, kernel, kernel), "b": (outputs,)}
        for part, shape in shapes.items():
            array = np.full(shape, 0.01, "float32")
            constants.append(numpy_helper.from_array(array, name + part))
        inputs = [x, f"{name}w", f"{name}b"]
        nodes.append(helper.make_node("Conv", inputs, [name], strides=[stride] * 2, pads=[pad] * 4))
        return name

    def node(kind, *inputs, **attributes):
        nodes.append(helper.make_node(kind, inputs, [f"n{len(nodes)}"], **attributes))
        return nodes[-1].output[0]

    x = node("Relu", conv("x", 3, 64, 7, 2, 3))
    x = node("MaxPool", x, kernel_shape=[3, 3], strides=[2, 2], pads=[1, 1, 1, 1])
    channels = 64
    for outputs in (64, 64, 128, 128, 256, 256, 512, 512):
        stride = 1 if outputs == channels else 2
        y = node("Relu", conv(x, channels, outputs, 3, stride, 1))
        y = conv(y, outputs, outputs, 3, 1, 1)
        x = x if outputs == channels else conv(x, channels, outputs, 1, stride, 0)
        x, channels = node("Relu", node("Add", x, y)), outputs
    x = node("Flatten", node("GlobalAveragePool", x))
    constants.append(numpy_helper.from_array(np.full((512, 1000), 0.01, "float32"), "fc"))
    nodes.append(helper.make_node("MatMul", [x, "fc"], ["y"]))
    value = helper.make_tensor_value_info
    graph = helper.make_graph(
        nodes,
        "resnet18",
        [value("x", TensorProto.FLOAT, (1, 3, 224, 224))],
        [value("y", TensorProto.FLOAT, (1, 1000))],
        constants,
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def test_static_program_of_resnet18_is_under_2_mb_beside_the_weights(tmp_path):
    target = "aarch64:cortex-a72"
    board = board_for(target)
    module, program = tmp_path / "model.o", tmp_path / "program"
    tilewright.compile(_resnet18(), target, logs=(), format="static").save(module)
    subprocess.run(
        [
            *find_c_compiler(board.architecture),
            *("-static", "-O1", "-s", "-D_GNU_SOURCE", "-DTILEWRIGHT_STATIC", f"-I{HEADERS}"),
            *(RUNNER, module, "-o", program, "-pthread", "-lm"),
        ],
        check=True,
    )
    assert program.stat().st_size < _LIMIT_BYTES
