"""Single operators as ONNX models, for `tilewright tune-op` and benchmarks."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from tilewright.errors import ModelError

KINDS = ("conv1d", "conv2d", "conv3d", "conv_transpose2d", "matmul")


def operator_model(
    kind: str,
    data: Sequence[int],
    weight: Sequence[int],
    stride: int = 1,
    pad: int = 0,
    dilation: int = 1,
    groups: int = 1,
    seed: int = 0,
) -> onnx.ModelProto:
    """Return a model of one operator with bias and ReLU, its weights random constants.

    Args:
        kind: one of KINDS.
        data: shape of the input, [N, C, ...spatial] or [.., M, K].
        weight: shape of the weights, [O, C / groups, ...kernel] or [.., K, N].
        stride, pad, dilation, groups: of convolutions, alike in all dimensions.
        seed: of the weights.

    Raises:
        ModelError: the shapes do not fit each other or the kind.
    """
    if kind not in KINDS:
        raise ModelError(f"unknown kind of operator '{kind}', known: {', '.join(KINDS)}")
    rng = np.random.default_rng(seed)
    columns = weight[-1] if kind == "matmul" else weight[0]
    attributes: dict[str, object] = {}
    operator = "MatMul"
    bias_shape: tuple[int, ...] = (columns,)
    if kind != "matmul":
        spatial = len(data) - 2
        if spatial != int(kind[-2]) or len(weight) != len(data):
            raise ModelError(
                f"{kind} takes data and weight of {2 + int(kind[-2])} dimensions, found "
                f"{list(data)} and {list(weight)}"
            )
        operator = "Conv"
        attributes = {
            "strides": [stride] * spatial,
            "pads": [pad] * (2 * spatial),
            "dilations": [dilation] * spatial,
            "group": groups,
        }
        if kind == "conv_transpose2d":
            operator = "ConvTranspose"
            columns = weight[1] * groups
        bias_shape = (1, columns, *[1] * spatial)
    constants = [
        numpy_helper.from_array(rng.standard_normal(shape).astype(np.float32), name)
        for name, shape in (("weight", tuple(weight)), ("bias", bias_shape))
    ]
    graph = helper.make_graph(
        [
            helper.make_node(operator, ["data", "weight"], ["product"], **attributes),
            helper.make_node("Add", ["product", "bias"], ["sum"]),
            helper.make_node("Relu", ["sum"], ["result"]),
        ],
        kind,
        [helper.make_tensor_value_info("data", TensorProto.FLOAT, list(data))],
        [helper.make_tensor_value_info("result", TensorProto.FLOAT, None)],
        constants,
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    try:
        return onnx.shape_inference.infer_shapes(model, strict_mode=True)
    except onnx.shape_inference.InferenceError as error:
        raise ModelError(f"shapes of {kind} do not fit: {str(error).splitlines()[-1]}") from error
