"""The operators of the suite: read from JSON, and written as ONNX models that every peer gets.

The classes are those of ALT's paper (Xu et al., EuroSys 2023, arXiv 2210.12415): convolutions in
one, two and three dimensions (C1D, C2D, C3D), grouped (GRP), dilated (DIL), depthwise (DEP) and
transposed (T2D, T3D), and matrix product (GMM); each with its bias and its activation.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from tilewright.errors import MeasureError

KINDS = ("C2D", "GRP", "DIL", "DEP", "C3D", "C1D", "GMM", "T2D", "T3D")
SUITES = ("alt", "core", "quick")
"""All operators; the first two of each class; the first of each."""

_FILE = Path(__file__).parent / "suites" / "operators.json"
_FIRST = {"core": 2, "quick": 1}
_OPSET = 17
_IR_VERSION = 8


@dataclass(frozen=True, slots=True)
class Operator:
    """One operator of the suite at one batch.

    Attributes:
        id: name of the row, for instance "C2D-1".
        kind: one of `KINDS`.
        source: the network it is from.
        batch: images, sequences or texts at once.
        in_channels, out_channels: for GMM the inner dimension and the columns.
        size: spatial extents of the data, outermost first; empty for GMM.
        kernel, stride, padding, dilation: one number for each of `size`.
        groups: of the channels.
        rows: GMM only, rows of the product for each of the batch.
        activation: "none", "relu", "relu6", "tanh", "sigmoid", "silu" or "gelu".
    """

    id: str
    kind: str
    source: str
    in_channels: int
    out_channels: int
    activation: str
    batch: int = 1
    size: tuple[int, ...] = ()
    kernel: tuple[int, ...] = ()
    stride: tuple[int, ...] = ()
    padding: tuple[int, ...] = ()
    dilation: tuple[int, ...] = ()
    groups: int = 1
    rows: int = 0

    @property
    def name(self) -> str:
        """Return id and batch, for instance "C2D-1-b1"."""
        return f"{self.id}-b{self.batch}"

    @property
    def transposed(self) -> bool:
        """Say whether this is a transposed convolution."""
        return self.kind in ("T2D", "T3D")

    @property
    def data_shape(self) -> tuple[int, ...]:
        """Return the shape of the data, channels first."""
        if self.kind == "GMM":
            return (self.batch * self.rows, self.in_channels)
        return (self.batch, self.in_channels, *self.size)

    @property
    def weight_shape(self) -> tuple[int, ...]:
        """Return the shape of the weight in ONNX's order."""
        if self.kind == "GMM":
            return (self.in_channels, self.out_channels)
        if self.transposed:
            return (self.in_channels, self.out_channels, *self.kernel)
        return (self.out_channels, self.in_channels // self.groups, *self.kernel)

    @property
    def output_shape(self) -> tuple[int, ...]:
        """Return the shape of the output, channels first."""
        if self.kind == "GMM":
            return (self.batch * self.rows, self.out_channels)
        extents = []
        for extent, k, s, p, d in zip(
            self.size, self.kernel, self.stride, self.padding, self.dilation, strict=True
        ):
            if self.transposed:
                extents.append((extent - 1) * s - 2 * p + d * (k - 1) + 1)
            else:
                extents.append((extent + 2 * p - d * (k - 1) - 1) // s + 1)
        return (self.batch, self.out_channels, *extents)

    @property
    def flops(self) -> int:
        """Return two operations for each multiply-add that direct computation needs."""
        per_weight = self.data_shape if self.transposed else self.output_shape
        positions = self.batch * math.prod(per_weight[2:])
        if self.kind == "GMM":
            positions = self.batch * self.rows
        return 2 * positions * math.prod(self.weight_shape)

    def to_json(self) -> dict[str, Any]:
        """Return the operator as plain data; what has its default value is left out."""
        plain: dict[str, Any] = {
            key: getattr(self, key)
            for key in ("id", "kind", "source", "in_channels", "out_channels", "activation")
        }
        plain["batch"] = self.batch
        if self.kind == "GMM":
            return plain | {"rows": self.rows}
        for key in ("size", "kernel", "stride", "padding"):
            plain[key] = list(getattr(self, key))
        if any(d != 1 for d in self.dilation):
            plain["dilation"] = list(self.dilation)
        if self.groups != 1:
            plain["groups"] = self.groups
        return plain | ({"transposed": True} if self.transposed else {})


def load_suite(
    name: str = "alt", kinds: Sequence[str] = (), batches: Sequence[int] = (1,)
) -> list[Operator]:
    """Return the operators of a suite, of the given classes or ids (all by default).

    Raises:
        MeasureError: the suite, or a class or id, is unknown, or a batch is below 1.
    """
    if name not in SUITES:
        raise MeasureError(f"unknown suite '{name}'; known are {', '.join(SUITES)}")
    if not batches or min(batches) < 1:
        raise MeasureError(f"batches are {list(batches)}; each must be at least 1")
    rows = json.loads(_FILE.read_text())["operators"]
    known = {*KINDS, *(row["id"] for row in rows)}
    for kind in kinds:
        if kind not in known:
            raise MeasureError(
                f"unknown operator '{kind}'; known are the classes {', '.join(KINDS)}, and ids "
                f"such as {rows[0]['id']}"
            )
    chosen, seen = [], dict.fromkeys(KINDS, 0)
    for row in rows:
        seen[row["kind"]] += 1
        if row["id"] in kinds or (
            seen[row["kind"]] <= _FIRST.get(name, len(rows)) and (not kinds or row["kind"] in kinds)
        ):
            chosen.append(row)
    return [_read(row, batch) for batch in batches for row in chosen]


def _read(row: Mapping[str, Any], batch: int) -> Operator:
    fields: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in row.items()}
    fields.setdefault("dilation", (1,) * len(fields.get("size", ())))
    return Operator(**fields, batch=batch)


def weights(operator: Operator, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Return random float32 weight and bias that keep the output near unit variance."""
    rng = np.random.default_rng(seed)
    shape = operator.weight_shape
    inputs = operator.in_channels // operator.groups * math.prod(operator.kernel)
    if operator.transposed:
        inputs //= math.prod(operator.stride)
    weight = rng.standard_normal(shape, np.float32) / np.float32(math.sqrt(inputs))
    return weight, 0.1 * rng.standard_normal(operator.out_channels, np.float32)


def build_model(operator: Operator, seed: int = 0) -> onnx.ModelProto:
    """Return the operator as an ONNX model: input "data", output "output", random weights."""
    weight, bias = weights(operator, seed)
    initializers = [numpy_helper.from_array(weight, "weight")]
    if operator.kind == "GMM":
        initializers.append(numpy_helper.from_array(bias, "bias"))
        nodes = [
            helper.make_node("MatMul", ["data", "weight"], ["product"]),
            helper.make_node("Add", ["product", "bias"], ["biased"]),
        ]
    else:
        initializers.append(numpy_helper.from_array(bias, "bias"))
        nodes = [
            helper.make_node(
                "ConvTranspose" if operator.transposed else "Conv",
                ["data", "weight", "bias"],
                ["biased"],
                kernel_shape=operator.kernel,
                strides=operator.stride,
                pads=operator.padding * 2,
                dilations=operator.dilation,
                group=operator.groups,
            )
        ]
    extra, constants = _activation(operator.activation)
    nodes += extra
    nodes[-1].output[0] = "output"
    graph = helper.make_graph(
        nodes,
        operator.name,
        [helper.make_tensor_value_info("data", TensorProto.FLOAT, operator.data_shape)],
        [helper.make_tensor_value_info("output", TensorProto.FLOAT, operator.output_shape)],
        initializers + constants,
    )
    opsets = [helper.make_opsetid("", _OPSET)]
    return helper.make_model(
        graph, opset_imports=opsets, ir_version=_IR_VERSION, producer_name="tilewright"
    )


def _activation(name: str) -> tuple[list[onnx.NodeProto], list[onnx.TensorProto]]:
    """Return the nodes from "biased" to "output" as exporters write them, and their constants."""
    node = helper.make_node

    def scalar(key: str, value: float) -> onnx.TensorProto:
        return numpy_helper.from_array(np.array(value, np.float32), key)

    if name in ("relu", "tanh", "sigmoid"):
        return [node(name.capitalize(), ["biased"], ["output"])], []
    if name == "none":
        return [], []
    if name == "relu6":
        clip = node("Clip", ["biased", "low", "high"], ["output"])
        return [clip], [scalar("low", 0), scalar("high", 6)]
    if name == "silu":
        gate = node("Sigmoid", ["biased"], ["gate"])
        return [gate, node("Mul", ["biased", "gate"], ["output"])], []
    if name == "gelu":
        nodes = [
            node("Div", ["biased", "root"], ["scaled"]),
            node("Erf", ["scaled"], ["erf"]),
            node("Add", ["erf", "one"], ["shifted"]),
            node("Mul", ["biased", "shifted"], ["doubled"]),
            node("Mul", ["doubled", "half"], ["output"]),
        ]
        return nodes, [scalar("root", math.sqrt(2)), scalar("one", 1), scalar("half", 0.5)]
    raise MeasureError(f"unknown activation '{name}' in the operator suite")
