"""Equivalent scaling and shifting of transformers: outliers move from activations into weights.

    y = layer_norm(x)                      y' = (y - z) / s        folded into gamma and beta
    y W + b                     ->         y' (s W) + (b + z W)
    y elsewhere (the residual)             y' s + z

z is the middle of every channel's range (Outlier Suppression+, arXiv 2304.09145), and
s = range^a / max|W|^(1-a), normalised by its geometric mean (SmoothQuant, arXiv 2211.10438).
In floats the model computes the same as before.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import onnx
from onnx import helper

from tilewright.compiler.quantize.bias_correction import constant_of
from tilewright.compiler.quantize.channel_statistics import ChannelStatistics
from tilewright.compiler.quantize.float_model import FloatModel

_SMALLEST = 1e-5
_PASSING = frozenset(("Reshape", "Identity"))


def norm_outputs(model: FloatModel) -> dict[str, int]:
    """Return what layer normalisations with constants make for products -> its channels."""
    return {
        node.output[0]: -1
        for node in model.proto.graph.node
        if _is_foldable(model, node) and _products(model, node.output[0])
    }


def smooth(
    proto: onnx.ModelProto, statistics: Mapping[str, ChannelStatistics], strength: float
) -> onnx.ModelProto:
    """Return the model with its layer normalisations scaled and shifted.

    Args:
        proto: the float model.
        statistics: of the tensors that `norm_outputs` names.
        strength: the exponent a, 0 to 1: how much of the range moves into the weights.
    """
    result = onnx.ModelProto()
    result.CopyFrom(proto)
    model = FloatModel(result)
    for node in list(result.graph.node):
        if node.output[0] in statistics and _is_foldable(model, node):
            _fold(model, node, statistics[node.output[0]], strength)
    return result


def _is_foldable(model: FloatModel, node: onnx.NodeProto) -> bool:
    if node.op_type != "LayerNormalization" or len(node.input) < 3:
        return False
    axes = [a.i for a in node.attribute if a.name == "axis"]
    constants = [model.array(name) for name in node.input[1:3]]
    return axes in ([], [-1]) and all(c is not None and c.ndim == 1 for c in constants)


def _products(model: FloatModel, name: str) -> list[onnx.NodeProto]:
    """Return the products that read a tensor, through reshapes that keep its last dimension."""
    found = []
    for user in model.users.get(name, []):
        if user.op_type in _PASSING and user.input[0] == name:
            found += _products(model, user.output[0])
        elif model.is_linear(user) and user.op_type != "Conv" and user.input[0] == name:
            found.append(user)
    weights = [model.array(node.input[1]) for node in found]
    depths = {w.shape[1 - model.output_axis(n)] for w, n in zip(weights, found, strict=True)
              if w is not None}  # fmt: skip
    return found if len(depths) == 1 else []


def _fold(
    model: FloatModel, norm: onnx.NodeProto, seen: ChannelStatistics, strength: float
) -> None:
    name = norm.output[0]
    products = [p for p in _products(model, name) if model.can_take_bias(p)]
    weights = {p.output[0]: model.array(p.input[1]) for p in products}
    if not products or any(
        w is None or w.shape[1 - model.output_axis(p)] != len(seen.mean)
        for p, w in zip(products, weights.values(), strict=True)
    ):
        return
    middle = (seen.low + seen.high) / 2
    reach = np.maximum((seen.high - seen.low) / 2, _SMALLEST)
    heights = [
        np.abs(w).max(axis=model.output_axis(p))
        for p, w in zip(products, weights.values(), strict=True)
        if w is not None
    ]
    height = np.maximum(np.max(heights, axis=0), _SMALLEST)
    scale = reach**strength / height ** (1 - strength)
    scale = scale / np.exp(np.log(scale).mean())
    gamma, beta = (model.array(constant) for constant in norm.input[1:3])
    assert gamma is not None
    assert beta is not None
    norm.input[1] = model.add_constant(constant_of(gamma / scale, f"{name}_smooth_gamma"))
    norm.input[2] = model.add_constant(constant_of((beta - middle) / scale, f"{name}_smooth_beta"))
    for product in products:
        weight = weights[product.output[0]]
        assert weight is not None
        in_rows = model.output_axis(product) == 1
        scaled = weight * (scale[:, np.newaxis] if in_rows else scale)
        shift = middle @ (weight if in_rows else weight.T)
        product.input[1] = model.add_constant(constant_of(scaled, f"{product.output[0]}_smooth"))
        model.add_to_bias(product, shift)
    _restore(model, norm, {p.output[0] for p in products}, scale, middle)


def _restore(
    model: FloatModel,
    norm: onnx.NodeProto,
    products: set[str],
    scale: np.ndarray,
    middle: np.ndarray,
) -> None:
    """Let every other user of the normalised tensor read what it was."""
    name = norm.output[0]
    smoothed = {name}
    others = []
    for node in list(model.proto.graph.node):
        for place, read in enumerate(node.input):
            if read not in smoothed or node.output[0] in products:
                continue
            only = node.op_type in _PASSING and all(
                user.output[0] in products for user in model.users.get(node.output[0], [])
            )
            if only:
                smoothed.add(node.output[0])
            else:
                others.append((node, place))
    if not others:
        return
    constants = [
        model.add_constant(constant_of(scale, f"{name}_smooth_scale")),
        model.add_constant(constant_of(middle, f"{name}_smooth_shift")),
    ]
    scaled, restored = f"{name}_smooth_scaled", f"{name}_smooth_restored"
    position = next(i for i, n in enumerate(model.proto.graph.node) if n.output[0] == name)
    for offset, (kind, inputs, output) in enumerate(
        (("Mul", [name, constants[0]], scaled), ("Add", [scaled, constants[1]], restored))
    ):
        node = helper.make_node(kind, inputs, [output], name=output)
        model.proto.graph.node.insert(position + 1 + offset, node)
    for node, place in others:
        node.input[place] = restored
