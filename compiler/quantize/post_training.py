"""Post-training quantization: an ONNX model and samples in, an ordinary QDQ model out.

Activations are unsigned bytes with one scale per tensor, weights signed bytes with one scale per
output channel, biases 32-bit integers. What only moves values keeps the scale of what it moves.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence

import numpy as np
import onnx

from tilewright.compiler.quantize.byte_tensors import MOVING, reads_bytes
from tilewright.compiler.quantize.float_model import FloatModel
from tilewright.compiler.quantize.qdq_writer import QdqWriter, dequantized, whole_bias
from tilewright.compiler.quantize.ranges import Observer, choose_range, parameters
from tilewright.errors import ModelError

Arrays = Mapping[str, np.ndarray]
Run = Callable[[Arrays], Arrays]

_WEIGHT_LIMIT = 127
# Attention masks hold the least float: what they are added to has no scale, and stays in floats.
_MASK = 1e9
_PASSES = ("see_range", "see_values")


def with_outputs(proto: onnx.ModelProto, names: Iterable[str]) -> onnx.ModelProto:
    """Return a copy of a model whose outputs are the named tensors, graph inputs left out."""
    copy = onnx.ModelProto()
    copy.CopyFrom(proto)
    inferred = onnx.shape_inference.infer_shapes(proto).graph
    infos = {i.name: i for i in [*inferred.value_info, *inferred.output]}
    del copy.graph.output[:]
    copy.graph.output.extend(infos[name] for name in names if name in infos)
    return copy


def calibrate(
    names: Sequence[str],
    samples: Sequence[Arrays],
    run: Run,
    method: str,
    percentile: float = 99.99,
) -> dict[str, tuple[np.float32, int]]:
    """Return scale and zero point of every tensor that can have them: not of masks.

    Args:
        names: of the tensors.
        samples: inputs of the model.
        run: computes the tensors of one sample; graph inputs come from the sample.
        method: one of `ranges.METHODS`.
        percentile: values that the method "percentile" keeps.

    Raises:
        ModelError: a tensor is not finite, or there are no samples.
    """
    observers = observe(names, samples, run, ("see_range",) if method == "minmax" else _PASSES)
    kept = {n: o for n, o in observers.items() if max(-o.low, o.high) < _MASK}
    return {n: parameters(*choose_range(o, method, percentile)) for n, o in kept.items()}


def observe(
    names: Sequence[str],
    samples: Sequence[Arrays],
    run: Run,
    passes: Sequence[str] = _PASSES,
) -> dict[str, Observer]:
    """Return the distributions of tensors over the samples.

    Args:
        names: of the tensors.
        samples: inputs of the model.
        run: computes the tensors of one sample; graph inputs come from the sample.
        passes: what of the observers to call on the values, all samples for each.

    Raises:
        ModelError: a tensor is not finite, or there are no samples.
    """
    if not samples:
        raise ModelError("there are no calibration samples; give at least one")
    observers = {name: Observer() for name in names}
    for see in passes:
        for sample in samples:
            computed = {**sample, **run(sample)}
            for name, observer in observers.items():
                getattr(observer, see)(computed[name])
        for name, observer in observers.items():
            if not np.isfinite([observer.low, observer.high]).all():
                raise ModelError(f"tensor {name!r} has values that are not finite on the samples")
    return observers


def insert_qdq(
    proto: onnx.ModelProto, scales: Mapping[str, tuple[np.float32, int]]
) -> onnx.ModelProto:
    """Return the QDQ model.

    Args:
        proto: the float model.
        scales: scale and zero point of every tensor to store as bytes.
    """
    model = FloatModel(proto)
    scales = _shared_scales(proto, scales)
    writer = _Writer(model, scales)
    nodes: list[onnx.NodeProto] = []
    for name in scales:
        if name not in model.maker:
            nodes += writer.activation(name, *scales[name])
    for node in proto.graph.node:
        copy = onnx.NodeProto()
        copy.CopyFrom(node)
        if model.is_linear(node) and node.input[0] in scales:
            nodes += writer.layer(copy)
        if reads_bytes(model, node, scales):
            for place, name in enumerate(copy.input):
                if name in scales:
                    copy.input[place] = dequantized(name)
        nodes.append(copy)
        for name in node.output:
            if name in scales:
                nodes += writer.activation(name, *scales[name])
    result = onnx.ModelProto()
    result.CopyFrom(proto)
    del result.graph.node[:]
    result.graph.node.extend(nodes)
    used = {name for node in nodes for name in node.input} | model.outputs
    kept = [item for item in proto.graph.initializer if item.name in used]
    del result.graph.initializer[:]
    result.graph.initializer.extend([*kept, *writer.constants.values()])
    del result.graph.value_info[:]
    return result


def _shared_scales(
    proto: onnx.ModelProto, scales: Mapping[str, tuple[np.float32, int]]
) -> dict[str, tuple[np.float32, int]]:
    """Give what only moves values the scale of what it moves."""
    shared = dict(scales)
    for node in proto.graph.node:
        moved = node.op_type in MOVING and node.input[0] in shared
        if moved and node.output[0] in shared:
            shared[node.output[0]] = shared[node.input[0]]
    return shared


class _Writer(QdqWriter):
    """Makes the Q/DQ nodes and their constants."""

    def __init__(self, model: FloatModel, scales: Mapping[str, tuple[np.float32, int]]) -> None:
        super().__init__()
        self.model, self.scales = model, scales

    def layer(self, node: onnx.NodeProto) -> list[onnx.NodeProto]:
        """Quantize a node's weights and bias in place, and return what dequantizes them."""
        axis = self.model.output_axis(node)
        weight = self.model.array(node.input[1])
        assert weight is not None
        integers, scale = quantize_weights(weight, axis)
        stem = node.name or node.output[0]
        nodes = [self.weights(f"{stem}_weight", integers, scale, axis)]
        node.input[1] = nodes[0].output[0]
        bias = self.model.array(node.input[2]) if len(node.input) > 2 and node.input[2] else None
        if bias is not None and bias.shape == scale.shape:
            products = scale * self.scales[node.input[0]][0]
            nodes.append(self.bias(f"{stem}_bias", whole_bias(bias, products), products))
            node.input[2] = nodes[1].output[0]
        return nodes


def quantize_weights(weight: np.ndarray, axis: int) -> tuple[np.ndarray, np.ndarray]:
    """Return int8 weights, symmetric around zero, and the scale of each channel of `axis`."""
    others = tuple(dim for dim in range(weight.ndim) if dim != axis)
    greatest = np.abs(weight).max(axis=others, keepdims=True)
    scale = np.maximum(greatest / _WEIGHT_LIMIT, 1e-12).astype(np.float32)
    integers = np.clip(np.rint(weight / scale), -_WEIGHT_LIMIT, _WEIGHT_LIMIT).astype(np.int8)
    return integers, scale.reshape(-1)


def noise(seen: np.ndarray, wanted: np.ndarray) -> float:
    """Return the signal-to-noise ratio in dB of a tensor beside what it should be."""
    wanted = wanted.astype(np.float64)
    error = float(((seen.astype(np.float64) - wanted) ** 2).sum())
    signal = float((wanted**2).sum())
    return float("inf") if error == 0 else 10 * float(np.log10(max(signal, 1e-30) / error))
