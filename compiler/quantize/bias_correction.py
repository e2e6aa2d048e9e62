"""Correct biases for what rounding the weights shifts (Nagel et al., arXiv 1906.04721, 4.2).

    E[Wq x] - E[W x] = (Wq - W) E[x]       is taken off the bias of every output channel

E[x] is the mean of every input channel over the calibration samples; at the border of an image the
taps that fall outside are counted as if they did not.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
import onnx
from onnx import numpy_helper

from tilewright.compiler.quantize.channel_statistics import ChannelStatistics
from tilewright.compiler.quantize.float_model import FloatModel

Quantize = Callable[[np.ndarray, int], tuple[np.ndarray, np.ndarray]]


def correct_biases(
    proto: onnx.ModelProto, statistics: Mapping[str, ChannelStatistics], quantize: Quantize
) -> onnx.ModelProto:
    """Return a float model whose biases make up for quantized weights.

    Args:
        proto: the float model.
        statistics: of the inputs of its convolutions and products.
        quantize: weights and dimension of the output channels -> integers and scales.
    """
    result = onnx.ModelProto()
    result.CopyFrom(proto)
    model = FloatModel(result)
    for node in list(result.graph.node):
        if model.is_linear(node) and node.input[0] in statistics:
            shift = _shift(model, node, statistics[node.input[0]].mean, quantize)
            model.add_to_bias(node, -shift)
    return result


def _shift(
    model: FloatModel, node: onnx.NodeProto, mean: np.ndarray, quantize: Quantize
) -> np.ndarray:
    """Return how far the mean of every output channel moves, float64 [outputs]."""
    weight = model.array(node.input[1])
    assert weight is not None
    axis = model.output_axis(node)
    integers, scale = quantize(weight, axis)
    column = [1] * weight.ndim
    column[axis] = -1
    error = integers.astype(np.float64) * scale.astype(np.float64).reshape(column) - weight
    if node.op_type != "Conv":
        return mean @ (error if axis == 1 else error.T)
    per_input = error.reshape(*error.shape[:2], -1).sum(axis=2)
    groups = len(mean) // per_input.shape[1]
    outputs = len(per_input) // groups
    means = mean.reshape(groups, -1).repeat(outputs, axis=0)
    return (per_input * means).sum(axis=1)


def constant_of(array: np.ndarray, name: str) -> onnx.TensorProto:
    """Return a float32 constant."""
    return numpy_helper.from_array(np.asarray(array, np.float32), name)
