"""Write an ONNX model whose matrix products have weights in 4 or 8 bits and activations in floats.

    MatMul(x, W) -> MatMulNBits(x, codes, scales, zeros)       com.microsoft
                 -> MatMul(x, DequantizeLinear(codes, scales, zeros, block_size))    opset 21

Both are ordinary models that ONNX Runtime runs as well. Nothing is calibrated; samples only say
which errors matter (see `group_codes`).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from tilewright.compiler.quantize.float_model import FloatModel
from tilewright.compiler.quantize.group_codes import GroupCodes, compensated, encode
from tilewright.compiler.quantize.qdq_writer import BLOCKED_OPSET, at_opset
from tilewright.compiler.quantize.weight_product import pack
from tilewright.errors import ModelError

OPERATORS = ("nbits", "dequantize")
"""What products become: MatMulNBits of com.microsoft, or blocked DequantizeLinear and MatMul."""

_MICROSOFT = "com.microsoft"
_TYPES = {
    (4, True): TensorProto.INT4,
    (4, False): TensorProto.UINT4,
    (8, True): TensorProto.INT8,
    (8, False): TensorProto.UINT8,
}


@dataclass(frozen=True)
class WeightFormat:
    """How weights are stored.

    Attributes:
        bits: width of a code, 4 or 8.
        group: weights along the reduction that share a scale.
        symmetric: no zero points.
        operators: one of `OPERATORS`.
    """

    bits: int = 4
    group: int = 32
    symmetric: bool = True
    operators: str = "nbits"

    def __post_init__(self) -> None:
        if self.bits not in (4, 8):
            raise ModelError(f"weights of {self.bits} bits cannot be written; accepted are 4 and 8")
        if self.group < 16 or self.group & (self.group - 1):
            raise ModelError(
                f"a group of {self.group} weights cannot be written; accepted are powers of two "
                "from 16 on, 32, 64 and 128 are usual"
            )
        if self.operators not in OPERATORS:
            raise ModelError(
                f"unknown operators {self.operators!r}; accepted are {', '.join(OPERATORS)}"
            )


Parts = Sequence[tuple[np.ndarray, WeightFormat]]
"""Input channels, and how the weights of these are stored."""


@dataclass(frozen=True)
class Layer:
    """One product whose weights were quantized.

    Attributes:
        name: of the node, or of its result.
        shape: rows and columns of the weights.
        snr_db: signal-to-noise ratio of its product on the samples; of the weights without any.
        float_bytes: of the weights before.
        bytes: of codes, scales and zero points.
    """

    name: str
    shape: tuple[int, int]
    snr_db: float
    float_bytes: int
    bytes: int


@dataclass
class Quantized:
    """A model with quantized weights.

    Attributes:
        proto: the model.
        layers: what was quantized, the worst first.
        kept: product that stays in floats -> why.
    """

    proto: onnx.ModelProto
    layers: list[Layer] = field(default_factory=list)
    kept: dict[str, str] = field(default_factory=dict)


def product_inputs(proto: onnx.ModelProto) -> dict[str, int]:
    """Return what products with weights multiply -> dimension of the channels."""
    model = FloatModel(proto)
    return {node.input[0]: -1 for node in proto.graph.node if _reason(model, node) == ""}


def products(proto: onnx.ModelProto) -> Iterator[tuple[str, str, np.ndarray]]:
    """Yield, for each product with weights, its name, what it multiplies, and [rows, columns]."""
    model = FloatModel(proto)
    for node in proto.graph.node:
        if _reason(model, node) == "":
            yield node.name or node.output[0], node.input[0], _matrix(model, node)


def _matrix(model: FloatModel, node: onnx.NodeProto) -> np.ndarray:
    """Return the weights of a product as [rows, columns].

    Raises:
        ModelError: they are not finite.
    """
    stored = model.array(node.input[1])
    assert stored is not None
    if not np.isfinite(stored).all():
        raise ModelError(f"the weights of {node.name or node.output[0]!r} are not finite")
    return stored if model.output_axis(node) == 1 else stored.T


def quantize_weights(
    proto: onnx.ModelProto,
    format_: WeightFormat,
    moments: Mapping[str, np.ndarray] | None = None,
    formats: Mapping[str, WeightFormat | None] | None = None,
    parts: Mapping[str, Parts] | None = None,
) -> Quantized:
    """Return a model whose matrix products have quantized weights.

    Args:
        proto: the float model.
        format_: how weights are stored.
        moments: tensor -> mean square of each of its channels, [channels], to weight errors with;
            or E[x x^T], [channels, channels], to make up for them too.
        formats: node (or its result) -> another format, or None for floats.
        parts: node (or its result) -> formats of its input channels, where these differ.

    Raises:
        ModelError: there is no product to quantize, weights are not finite, or the model cannot
            be brought to opset 21.
    """
    if format_.operators == "dequantize":
        proto = at_opset(proto, BLOCKED_OPSET)
    writer = _Writer(FloatModel(proto), format_, moments or {}, formats or {}, parts or {})
    result = writer.write()
    if not result.layers:
        reasons = "; ".join(f"{name}: {why}" for name, why in result.kept.items())
        raise ModelError(f"there is no matrix product to quantize. {reasons}".strip())
    result.layers.sort(key=lambda layer: layer.snr_db)
    return result


def _reason(model: FloatModel, node: onnx.NodeProto) -> str | None:
    """Return why a product stays in floats; nothing if it need not, None if it is no product."""
    if node.op_type not in ("MatMul", "Gemm") or node.domain not in ("", "ai.onnx"):
        return None
    weight = model.array(node.input[1])
    if weight is None:
        return "its second operand is computed"
    if weight.dtype != np.float32:
        return f"its weights are {weight.dtype}"
    if weight.ndim != 2:
        return f"its weights have {weight.ndim} dimensions"
    return "" if model.is_linear(node) else "it has factors, or a transposed operand"


class _Writer:
    """Makes the new nodes and their constants."""

    def __init__(
        self,
        model: FloatModel,
        format_: WeightFormat,
        moments: Mapping[str, np.ndarray],
        formats: Mapping[str, WeightFormat | None],
        parts: Mapping[str, Parts],
    ) -> None:
        self.model, self.format = model, format_
        self.moments, self.formats, self.parts = moments, formats, parts
        self.constants: dict[str, onnx.TensorProto] = {}

    def write(self) -> Quantized:
        """Return the model."""
        result = Quantized(onnx.ModelProto())
        nodes: list[onnx.NodeProto] = []
        for node in self.model.proto.graph.node:
            name = node.name or node.output[0]
            reason = _reason(self.model, node)
            format_ = self.formats.get(name, self.format)
            if reason is None:
                nodes.append(node)
            elif reason or format_ is None:
                result.kept[name] = reason or "asked for"
                nodes.append(node)
            elif name in self.parts:
                made, layer = self._parts(node, name, self.parts[name])
                nodes += made
                result.layers.append(layer)
            else:
                made, layer = self._product(node, name, format_)
                nodes += made
                result.layers.append(layer)
        self._finish(result.proto, nodes)
        return result

    def _finish(self, proto: onnx.ModelProto, nodes: list[onnx.NodeProto]) -> None:
        """Copy the model around the new nodes; weights that nothing reads any more are left out."""
        source = self.model.proto
        graph = source.graph
        used = _read(nodes) | self.model.outputs
        proto.CopyFrom(_without_graph(source))
        proto.graph.name = graph.name
        for place in ("input", "output", "value_info", "sparse_initializer"):
            getattr(proto.graph, place).extend(getattr(graph, place))
        proto.graph.node.extend(
            node for node in nodes if node.op_type != "Constant" or node.output[0] in used
        )
        kept = [item for item in graph.initializer if item.name in used]
        proto.graph.initializer.extend([*kept, *self.constants.values()])
        if any(node.domain == _MICROSOFT for node in nodes):
            known = {item.domain for item in proto.opset_import}
            if _MICROSOFT not in known:
                proto.opset_import.append(helper.make_opsetid(_MICROSOFT, 1))

    def _constant(self, name: str, array: np.ndarray) -> str:
        self.constants[name] = numpy_helper.from_array(np.ascontiguousarray(array), name)
        return name

    def _product(
        self, node: onnx.NodeProto, name: str, format_: WeightFormat
    ) -> tuple[list[onnx.NodeProto], Layer]:
        """Return the nodes in place of one product."""
        weight, moments = _matrix(self.model, node), self.moments.get(node.input[0])
        coded = _coded(weight, format_, moments)
        if format_.operators == "nbits":
            nodes, size = self._nbits(node, name, coded, format_)
        else:
            axis = self.model.output_axis(node)
            nodes, size = self._dequantized(node, name, coded, format_, axis)
        error = _snr(weight, coded.decoded(), moments)
        return nodes, Layer(name, weight.shape, error, weight.nbytes, size)

    def _parts(
        self, node: onnx.NodeProto, name: str, parts: Parts
    ) -> tuple[list[onnx.NodeProto], Layer]:
        """Return the nodes in place of a product whose input channels have several formats.

        Each part gathers its channels and multiplies them; the parts are added up.
        """
        if len(parts) == 1:
            return self._product(node, name, parts[0][1])
        weight, moments = _matrix(self.model, node), self.moments.get(node.input[0])
        decoded = np.empty_like(weight)
        nodes: list[onnx.NodeProto] = []
        size, total = 0, ""
        for rows, format_ in parts:
            if format_.operators != "nbits":
                raise ModelError("input channels with bits of their own need the operators nbits")
            own = f"{name}_w{format_.bits}"
            coded = _coded(weight[rows], format_, _of_rows(moments, rows))
            decoded[rows] = coded.decoded()
            channels = self._constant(f"{own}_channels", rows.astype(np.int64))
            gather = [node.input[0], channels]
            nodes.append(
                helper.make_node("Gather", gather, [f"{own}_data"], own + "_gather", axis=-1)
            )
            product = helper.make_node("MatMul", [f"{own}_data", ""], [f"{own}_product"])
            made, stored = self._nbits(product, own, coded, format_)
            nodes += made
            size += stored
            if not total:
                total = product.output[0]
                continue
            nodes.append(
                helper.make_node("Add", [total, product.output[0]], [f"{own}_sum"], f"{own}_add")
            )
            total = f"{own}_sum"
        has_bias = node.op_type == "Gemm" and len(node.input) > 2 and node.input[2]
        ends = ["Add", [total, node.input[2]]] if has_bias else ["Identity", [total]]
        nodes.append(helper.make_node(ends[0], ends[1], node.output, name=f"{name}_result"))
        error = _snr(weight, decoded, moments)
        return nodes, Layer(name, weight.shape, error, weight.nbytes, size)

    def _nbits(
        self, node: onnx.NodeProto, name: str, coded: GroupCodes, format_: WeightFormat
    ) -> tuple[list[onnx.NodeProto], int]:
        bits = format_.bits
        columns = len(coded.codes)
        given = [
            self._constant(f"{name}_codes", pack(coded.codes, bits)),
            self._constant(f"{name}_scales", coded.scales.reshape(-1)),
        ]
        if not format_.symmetric:
            zeros = pack(_even(coded.zeros, 8 // bits), bits)
            given.append(self._constant(f"{name}_zeros", zeros.reshape(-1)))
        size = sum(len(self.constants[item].raw_data) for item in given)
        has_bias = node.op_type == "Gemm" and len(node.input) > 2 and node.input[2]
        result = f"{name}_product" if has_bias else node.output[0]
        nodes = [
            helper.make_node(
                "MatMulNBits",
                [node.input[0], *given],
                [result],
                name=name,
                domain=_MICROSOFT,
                K=coded.rows,
                N=columns,
                bits=bits,
                block_size=coded.group,
            )
        ]
        if has_bias:
            adds = helper.make_node(
                "Add", [result, node.input[2]], node.output, name=f"{name}_bias"
            )
            nodes.append(adds)
        return nodes, size

    def _dequantized(
        self,
        node: onnx.NodeProto,
        name: str,
        coded: GroupCodes,
        format_: WeightFormat,
        columns_axis: int,
    ) -> tuple[list[onnx.NodeProto], int]:
        """Return the product as it is, behind weights that are dequantized."""

        def placed(array: np.ndarray) -> np.ndarray:  # from [columns, rows or groups]
            return array if columns_axis == 0 else array.T

        element = _TYPES[format_.bits, format_.symmetric]
        shift = 2 ** (format_.bits - 1) if format_.symmetric else 0
        codes = coded.codes.reshape(len(coded.codes), -1)[:, : coded.rows].astype(np.int16) - shift
        given = [f"{name}_codes", f"{name}_scales"]
        self.constants[given[0]] = _tensor(given[0], element, placed(codes))
        self._constant(given[1], placed(coded.scales))
        if not format_.symmetric:
            given.append(f"{name}_zeros")
            self.constants[given[2]] = _tensor(given[2], element, placed(coded.zeros))
        size = sum(len(self.constants[item].raw_data) for item in given)
        weight = f"{name}_dequantized"
        copy = onnx.NodeProto()
        copy.CopyFrom(node)
        copy.input[1] = weight
        dequantize = helper.make_node(
            "DequantizeLinear",
            given,
            [weight],
            name=weight,
            axis=1 - columns_axis,
            block_size=coded.group,
        )
        return [dequantize, copy], size


def _of_rows(moments: np.ndarray | None, rows: np.ndarray) -> np.ndarray | None:
    """Return the moments of some channels."""
    if moments is None:
        return None
    return moments[rows] if moments.ndim == 1 else moments[np.ix_(rows, rows)]


def _coded(weight: np.ndarray, format_: WeightFormat, moments: np.ndarray | None) -> GroupCodes:
    """Return the codes of a matrix [rows, columns], made up for each other's errors if it helps."""
    whole = moments is not None and moments.ndim == 2
    worth = np.diagonal(moments) if moments is not None and whole else moments
    coded = encode(weight, format_.bits, format_.group, format_.symmetric, worth)
    if moments is not None and whole:
        again = compensated(coded, weight, moments)
        if _snr(weight, again.decoded(), moments) > _snr(weight, coded.decoded(), moments):
            return again
    return coded


def _even(array: np.ndarray, multiple: int) -> np.ndarray:
    return np.pad(array, ((0, 0), (0, -array.shape[1] % multiple)))


def _tensor(name: str, element: int, values: np.ndarray) -> onnx.TensorProto:
    """Return a constant, integers of 4 bits packed in pairs."""
    dtype = helper.tensor_dtype_to_np_dtype(element)
    return numpy_helper.from_array(np.ascontiguousarray(values.astype(dtype)), name)


def _read(nodes: list[onnx.NodeProto]) -> set[str]:
    """Return every name that nodes read, those of their subgraphs among them."""
    names: set[str] = set()
    for node in nodes:
        names |= set(node.input)
        for attribute in node.attribute:
            for graph in [attribute.g, *attribute.graphs]:
                names |= _read(list(graph.node)) | {item.name for item in graph.output}
    return names


def _without_graph(proto: onnx.ModelProto) -> onnx.ModelProto:
    copy = onnx.ModelProto()
    for descriptor, value in proto.ListFields():
        if descriptor.name == "graph":
            continue
        if isinstance(value, str | int | bytes):
            setattr(copy, descriptor.name, value)
        else:
            getattr(copy, descriptor.name).extend(value)
    return copy


def _snr(weight: np.ndarray, decoded: np.ndarray, moments: np.ndarray | None) -> float:
    """Return the signal-to-noise ratio in dB: of the product on the samples, if there are any."""

    def power(matrix: np.ndarray) -> float:
        wide = matrix.astype(np.float64)
        if moments is None or moments.ndim == 1:
            rows = 1.0 if moments is None else moments[:, np.newaxis]
            return float((rows * wide * wide).sum())
        return float((wide * (moments @ wide)).sum())

    error, signal = power(weight - decoded), power(weight)
    return float("inf") if error <= 0 else 10 * float(np.log10(max(signal, 1e-30) / error))
