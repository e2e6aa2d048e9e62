"""Convolutions and products as one thing: a matrix of weights times columns of what they read.

    y[o] = sum over k of matrix[o, k] * columns[k]

The columns of a convolution are its input channels times the taps of its window (im2col), those of
a product are its input channels. A grouped convolution has columns of its own for each group.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import prod

import numpy as np
import onnx

from tilewright.compiler.quantize.float_model import FloatModel


@dataclass(frozen=True, eq=False)
class LayerMatrix:
    """One layer.

    Attributes:
        name: of the layer, unique in its model.
        node: the operator.
        matrix: weights, float32 [outputs, columns].
        groups: of a convolution, else 1.
        shape: of the weights as the model stores them.
        axis: dimension of the stored weights that the output channels are.
    """

    name: str
    node: onnx.NodeProto
    matrix: np.ndarray
    groups: int
    shape: tuple[int, ...]
    axis: int

    @property
    def source(self) -> str:
        """Return the tensor that the layer reads."""
        return str(self.node.input[0])

    def stored(self, matrix: np.ndarray) -> np.ndarray:
        """Return a matrix [outputs, columns] in the shape of the stored weights."""
        whole = matrix if self.axis == 0 else matrix.T
        return np.ascontiguousarray(whole).reshape(self.shape)

    def columns(self, data: np.ndarray) -> np.ndarray:
        """Return what the matrix multiplies, float64 [groups, positions, columns].

        Args:
            data: the tensor `source`.
        """
        if self.node.op_type != "Conv":
            return data.astype(np.float64).reshape(1, -1, data.shape[-1])
        return _windows(self.node, data.astype(np.float64), self.shape, self.groups)


def linear_layers(model: FloatModel) -> dict[str, LayerMatrix]:
    """Return the convolutions and products with constant weights, by name, in order.

    A layer is called as its node, or, where nodes have no or the same name, as its result.
    """
    nodes = [node for node in model.proto.graph.node if model.is_linear(node)]
    given = [node.name for node in nodes]
    layers = {}
    for node in nodes:
        unique = node.name and given.count(node.name) == 1
        name = node.name if unique else node.output[0]
        weight = model.array(node.input[1])
        assert weight is not None
        axis = model.output_axis(node)
        matrix = weight.reshape(len(weight), -1) if axis == 0 else weight.T
        groups = _attributes(node).get("group", 1) if node.op_type == "Conv" else 1
        layers[name] = LayerMatrix(
            name, node, np.ascontiguousarray(matrix), groups, weight.shape, axis
        )
    return layers


def _attributes(node: onnx.NodeProto) -> dict:
    return {item.name: onnx.helper.get_attribute_value(item) for item in node.attribute}


def _windows(
    node: onnx.NodeProto, data: np.ndarray, shape: tuple[int, ...], groups: int
) -> np.ndarray:
    """Return the windows of a convolution: float64 [groups, positions, channels * taps]."""
    said = _attributes(node)
    window = shape[2:]
    rank = len(window)
    strides = said.get("strides", [1] * rank)
    dilations = said.get("dilations", [1] * rank)
    reach = [(size - 1) * step + 1 for size, step in zip(window, dilations, strict=True)]
    border = _borders(said, data.shape[2:], reach, strides)
    padded = np.pad(data, [(0, 0), (0, 0), *border])
    views = np.lib.stride_tricks.sliding_window_view(padded, reach, tuple(range(2, 2 + rank)))
    steps = (slice(None), slice(None), *(slice(None, None, s) for s in strides))
    views = views[(*steps, *(slice(None, None, d) for d in dilations))]
    # [batch, channels, *positions, *window] -> [channels, batch, *positions, *window]
    views = np.moveaxis(views, 1, 0)
    channels = views.shape[0]
    views = views.reshape(groups, channels // groups, -1, prod(window))
    return np.moveaxis(views, 1, 2).reshape(groups, views.shape[2], -1)


def _borders(
    said: dict, extents: tuple[int, ...], reach: list[int], strides: list[int]
) -> list[tuple[int, int]]:
    """Return the padding before and after each dimension; see `auto_pad` of ONNX's Conv."""
    automatic = said.get("auto_pad", b"NOTSET")
    rank = len(extents)
    if automatic in (b"NOTSET", b""):
        pads = said.get("pads", [0] * (2 * rank))
        return list(zip(pads[:rank], pads[rank:], strict=True))
    if automatic == b"VALID":
        return [(0, 0)] * rank
    borders = []
    for extent, size, step in zip(extents, reach, strides, strict=True):
        whole = max(0, (-(-extent // step) - 1) * step + size - extent)
        less = whole // 2
        before = less if automatic == b"SAME_UPPER" else whole - less
        borders.append((before, whole - before))
    return borders
