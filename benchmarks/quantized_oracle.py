"""What a quantized model should compute, by numpy in double precision and full range.

Operators on bytes (QLinearConv and so on) are written out as DequantizeLinear, the operator on
floats, and QuantizeLinear. ONNX's reference evaluator then runs the graph on float64: sums of
products are exact to 53 bits, nothing saturates before the last rounding, and what a QuantizeLinear
is about to round is kept, so that a tie can be told from a mistake.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
from onnx import helper, numpy_helper
from onnx.reference import ReferenceEvaluator
from onnx.reference.op_run import OpRun
from scipy import special

# Operators on bytes -> (operator on floats, number of dequantized operands); each operand is three
# inputs (data, scale, zero point), the result's scale and zero point follow.
FLOAT_FORMS = {
    "QLinearConv": ("Conv", 2),
    "QLinearMatMul": ("MatMul", 2),
    "QGemm": ("Gemm", 2),
    "QLinearAdd": ("Add", 2),
    "QLinearMul": ("Mul", 2),
    "QLinearSigmoid": ("Sigmoid", 1),
    "QLinearLeakyRelu": ("LeakyRelu", 1),
    "QLinearGlobalAveragePool": ("GlobalAveragePool", 1),
    "QLinearAveragePool": ("AveragePool", 1),
    "QLinearSoftmax": ("Softmax", 1),
}
# Attributes of the operators on bytes that the operators on floats lack, at their defaults.
_NOT_IN_FLOATS = ("channels_last", "opset")


@dataclass(frozen=True)
class Evaluated:
    """What `evaluate` found.

    Attributes:
        outputs: of the model, in its order.
        before_rounding: name of a tensor of bytes -> float64, in its units, zero point added.
    """

    outputs: list[np.ndarray]
    before_rounding: dict[str, np.ndarray]


def evaluate(
    proto: onnx.ModelProto,
    feed: Mapping[str, np.ndarray],
    given: Mapping[str, np.ndarray] | None = None,
) -> Evaluated:
    """Run a quantized model in double precision.

    Args:
        proto: the model, in QDQ or QOperator form.
        feed: its inputs.
        given: bytes that stand for what a QuantizeLinear computes, so that every operator is fed
            another engine's tensors.
    """
    before: dict[str, np.ndarray] = {}
    given = given or {}

    class QuantizeLinear(OpRun):
        op_domain = ""

        def _run(self, x: Any, scale: Any, zero: Any = None, axis: int = 1, **_: Any) -> Any:
            zero = np.uint8(0) if zero is None else zero
            name = self.onnx_node.output[0]
            steps = x.astype(np.float64) / _along(scale, x, axis) + _along(zero, x, axis)
            before[name] = steps
            return (given.get(name, rounded(steps, zero.dtype)),)

    operators = [QuantizeLinear, DequantizeLinear, Conv, MaxPool, Sigmoid, Erf]
    wide = {k: v.astype(np.float64) if v.dtype == np.float32 else v for k, v in feed.items()}
    outputs = ReferenceEvaluator(in_floats(proto), new_ops=operators).run(None, wide)
    return Evaluated(outputs, before)


def rounded(steps: np.ndarray, dtype: np.dtype) -> np.ndarray:
    """Round half to even and saturate."""
    limits = np.iinfo(dtype)
    return np.clip(np.rint(steps), limits.min, limits.max).astype(dtype)


def in_floats(proto: onnx.ModelProto) -> onnx.ModelProto:
    """Return a copy of a model with operators on bytes written out around operators on floats.

    All floats are of 64 bits.
    """
    copy = onnx.ModelProto()
    copy.CopyFrom(proto)
    known = {item.name: numpy_helper.to_array(item) for item in proto.graph.initializer}
    del copy.graph.node[:], copy.graph.value_info[:], copy.graph.initializer[:]
    for name, array in known.items():
        wide = array.astype(np.float64) if array.dtype == np.float32 else array
        copy.graph.initializer.append(numpy_helper.from_array(wide, name))
    for node in proto.graph.node:
        if node.op_type not in FLOAT_FORMS:
            copy.graph.node.append(_in_doubles(node))
            continue
        nodes, constants = _written_out(node, known)
        copy.graph.node.extend(nodes)
        copy.graph.initializer.extend(constants)
    return copy


def _in_doubles(node: onnx.NodeProto) -> onnx.NodeProto:
    """Return a node whose float32 constants and conversions to float32 are of 64 bits."""
    copy = onnx.NodeProto()
    copy.CopyFrom(node)
    for attribute in copy.attribute:
        if node.op_type == "Cast" and attribute.i == onnx.TensorProto.FLOAT:
            attribute.i = onnx.TensorProto.DOUBLE
        if attribute.t.data_type == onnx.TensorProto.FLOAT:
            wide = numpy_helper.to_array(attribute.t).astype(np.float64)
            attribute.t.CopyFrom(numpy_helper.from_array(wide))
    return copy


def _written_out(
    node: onnx.NodeProto, known: Mapping[str, np.ndarray]
) -> tuple[list[onnx.NodeProto], list[onnx.TensorProto]]:
    kind, count = FLOAT_FORMS[node.op_type]
    rest = list(node.input[3 * count :])
    bias = ""
    if kind == "Gemm":
        bias = rest.pop(0)
    elif kind == "Conv" and len(rest) > 2:
        bias = rest[2]
    prefix = f"{node.output[0]}__"
    transposed = any(a.name == "transB" and a.i for a in node.attribute)
    channels = 0 if kind == "Conv" or transposed else 1
    nodes, operands, constants = [], [], []
    for place in range(count):
        inputs = [name for name in node.input[3 * place : 3 * place + 3] if name]
        operands.append(f"{prefix}{place}")
        nodes.append(
            helper.make_node("DequantizeLinear", inputs, [operands[-1]], axis=channels * place)
        )
    if bias:
        scale = known[node.input[1]].astype(np.float64) * known[node.input[4]]
        values = known[bias].astype(np.float64) * scale.reshape(-1)
        constants.append(numpy_helper.from_array(values, f"{prefix}bias"))
        operands.append(f"{prefix}bias")
    attributes = {
        a.name: helper.get_attribute_value(a)
        for a in node.attribute
        if a.name not in _NOT_IN_FLOATS
    }
    nodes.append(helper.make_node(kind, operands, [f"{prefix}real"], **attributes))
    nodes.append(
        helper.make_node("QuantizeLinear", [f"{prefix}real", *rest[:2]], list(node.output))
    )
    return nodes, constants


def _along(values: np.ndarray, like: np.ndarray, axis: int) -> np.ndarray:
    """Return one number, or one for each position of an axis, as float64 that broadcasts."""
    values = np.asarray(values).astype(np.float64)
    if values.size == 1:
        return values.reshape(())
    shape = [1] * like.ndim
    shape[axis] = -1
    return values.reshape(shape)


class DequantizeLinear(OpRun):
    """https://onnx.ai/onnx/operators/onnx__DequantizeLinear.html, to float64."""

    op_domain = ""

    def _run(self, x: Any, scale: Any, zero: Any = None, axis: int = 1, **_: Any) -> Any:
        centred = x.astype(np.float64)
        if zero is not None:
            centred = centred - _along(zero, x, axis)
        return (centred * _along(scale, x, axis),)


class Conv(OpRun):
    """https://onnx.ai/onnx/operators/onnx__Conv.html with two spatial axes, as matrix products."""

    op_domain = ""

    def _run(
        self,
        x: Any,
        w: Any,
        bias: Any = None,
        auto_pad: Any = None,
        dilations: Any = None,
        group: Any = None,
        kernel_shape: Any = None,
        pads: Any = None,
        strides: Any = None,
    ) -> Any:
        assert auto_pad in (None, "NOTSET")
        assert set(dilations or (1,)) == {1}
        assert x.ndim == 4
        windows = _windows(x, w.shape[2:], pads or (0,) * 4, strides or (1, 1), 0.0)
        groups = group or 1
        parts = []
        for data, weight in zip(
            np.split(windows, groups, axis=1), np.split(w, groups), strict=True
        ):
            if weight.shape[:2] == (1, 1):
                parts.append(np.einsum("nchwij,ij->nchw", data, weight[0, 0]))
                continue
            product = np.tensordot(data, weight, ((1, 4, 5), (1, 2, 3)))
            parts.append(product.transpose(0, 3, 1, 2))
        result = np.concatenate(parts, axis=1)
        return (result if bias is None else result + bias.reshape(1, -1, 1, 1),)


class MaxPool(OpRun):
    """https://onnx.ai/onnx/operators/onnx__MaxPool.html with two spatial axes."""

    op_domain = ""

    def _run(
        self, x: Any, kernel_shape: Any = None, pads: Any = None, strides: Any = None, **rest: Any
    ) -> Any:
        assert not rest.get("ceil_mode")
        assert x.ndim == 4
        least = np.iinfo(x.dtype).min if x.dtype.kind in "iu" else -np.inf
        windows = _windows(x, kernel_shape, pads or (0,) * 4, strides or (1, 1), least)
        return (windows.max(axis=(4, 5)),)


def _windows(x: np.ndarray, kernel: Any, pads: Any, strides: Any, fill: Any) -> np.ndarray:
    """Return a view [n, c, rows, columns, *kernel] of padded data [n, c, h, w]."""
    widths = ((0, 0), (0, 0), (pads[0], pads[2]), (pads[1], pads[3]))
    padded = np.pad(x, widths, constant_values=fill)
    windows = np.lib.stride_tricks.sliding_window_view(padded, tuple(kernel), axis=(2, 3))
    return windows[:, :, :: strides[0], :: strides[1]]


class Sigmoid(OpRun):
    """https://onnx.ai/onnx/operators/onnx__Sigmoid.html"""

    op_domain = ""

    def _run(self, x: Any) -> Any:
        return (special.expit(x),)


class Erf(OpRun):
    """https://onnx.ai/onnx/operators/onnx__Erf.html"""

    op_domain = ""

    def _run(self, x: Any) -> Any:
        return (special.erf(x),)
