"""Feed every integer operator of a quantized model ONNX Runtime's own tensors, and compare.

The graph is cut at every tensor of 8 bits that an operator computes: who reads it reads a new graph
input instead, and it becomes an output. One compiled module then computes every operator from what
ONNX Runtime computed before it, so that differences cannot add up.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

Arrays = Mapping[str, np.ndarray]

_BYTES = (TensorProto.UINT8, TensorProto.INT8)
_FED = "__fed"
# Operators on bytes -> (float operator, number of dequantized operands); each operand is three
# inputs (data, scale, zero point), the result's scale and zero point follow.
_FLOAT_FORMS = {
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
# Distance of a value from a tie, in units of the result, that single precision cannot tell apart.
TIE = 2e-3


@dataclass(frozen=True)
class Difference:
    """One tensor of a cut model.

    Attributes:
        tensor: its name.
        operator: what computes it (for QuantizeLinear: what it quantizes).
        elements: how many.
        differing: how many are not ONNX Runtime's.
        saturated: how many of those its own integer kernel computes otherwise than the operator on
            floats says, and we do not: without VNNI its sums of two products saturate 16 bits.
        ties: how many of the others lie on a tie of rounding, to single precision.
        greatest: greatest difference in units of the last place, saturated ones left out.
    """

    tensor: str
    operator: str
    elements: int
    differing: int
    saturated: int
    ties: int
    greatest: int


def run_plain(proto: onnx.ModelProto, feed: Arrays) -> dict[str, np.ndarray]:
    """Run ONNX Runtime without graph optimisations."""
    import onnxruntime

    copy = onnx.ModelProto()
    copy.CopyFrom(proto)
    for output in copy.graph.output:
        output.ClearField("type")
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.intra_op_num_threads = 1
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(
        copy.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    names = [output.name for output in session.get_outputs()]
    known = {item.name for item in session.get_inputs()}
    values = session.run(names, {name: feed[name] for name in known})
    return dict(zip(names, values, strict=True))


def with_outputs(proto: onnx.ModelProto, names: list[str]) -> onnx.ModelProto:
    """Return a copy of a model with the named tensors as additional outputs."""
    copy = onnx.ModelProto()
    copy.CopyFrom(proto)
    have = {output.name for output in copy.graph.output}
    copy.graph.output.extend(
        helper.make_tensor_value_info(name, TensorProto.UNDEFINED, None)
        for name in names
        if name not in have
    )
    return copy


def byte_tensors(proto: onnx.ModelProto, feed: Arrays) -> dict[str, np.ndarray]:
    """Return the tensors of 8 bits that operators compute, with ONNX Runtime's values."""
    made = [name for node in proto.graph.node for name in node.output if name]
    inferred = onnx.shape_inference.infer_shapes(proto).graph
    known = {item.name: item.type.tensor_type.elem_type for item in inferred.value_info}
    by_operator = {
        node.output[0]
        for node in proto.graph.node
        if node.op_type == "QuantizeLinear" or node.op_type in (*_FLOAT_FORMS, "QLinearConcat")
    }
    names = [name for name in made if known.get(name) in _BYTES or name in by_operator]
    return {
        name: value
        for name, value in run_plain(with_outputs(proto, names), feed).items()
        if name in names and value.dtype in (np.uint8, np.int8)
    }


def cut(proto: onnx.ModelProto, values: Arrays) -> onnx.ModelProto:
    """Return the model cut at the tensors `values`."""
    result = with_outputs(proto, list(values))
    for output in result.graph.output:
        if output.name in values:
            value = values[output.name]
            kind = helper.np_dtype_to_tensor_dtype(value.dtype)
            output.CopyFrom(helper.make_tensor_value_info(output.name, kind, value.shape))
    read = set()
    for node in result.graph.node:
        for place, name in enumerate(node.input):
            if name in values:
                node.input[place] = name + _FED
                read.add(name)
    for name in values:
        if name in read:
            kind = helper.np_dtype_to_tensor_dtype(values[name].dtype)
            result.graph.input.append(
                helper.make_tensor_value_info(name + _FED, kind, values[name].shape)
            )
    del result.graph.value_info[:]
    return result


def compare(proto: onnx.ModelProto, feed: Arrays) -> list[Difference]:
    """Compile the cut model and compare every tensor of bytes that it computes."""
    import tilewright

    values = byte_tensors(proto, feed)
    cut_model = cut(proto, values)
    fed = {name + _FED: value for name, value in values.items()}
    module = tilewright.compile(cut_model, logs=())
    inputs = {spec.name for spec in module.module.inputs}
    seen = module.run({n: v for n, v in {**feed, **fed}.items() if n in inputs})
    makers = {name: node for node in proto.graph.node for name in node.output}
    wrong = [name for name, value in values.items() if not np.array_equal(seen[name], value)]
    before = _before_rounding(proto, {name: makers[name] for name in wrong}, feed)
    found = []
    for name, value in values.items():
        difference = np.abs(seen[name].astype(int) - value.astype(int))
        differs = difference > 0
        saturated, tied = np.zeros_like(differs), np.zeros_like(differs)
        if name in before:
            steps = before[name]
            tied = differs & (np.abs(steps - np.floor(steps) - 0.5) < TIE)
            low, high = np.iinfo(value.dtype).min, np.iinfo(value.dtype).max
            right = np.clip(np.rint(steps), low, high)
            ours = np.abs(seen[name] - right) <= tied
            # Of two that differ by more than rounding can, the one beside the floats is right.
            saturated = differs & ours & (np.abs(value - right) > tied)
        left = differs & ~saturated
        found.append(
            Difference(
                *(name, _operator(makers, name), value.size, int(differs.sum())),
                *(int(saturated.sum()), int((left & tied).sum())),
                int(difference[left].max(initial=0)),
            )
        )
    return found


def _operator(makers: Mapping[str, onnx.NodeProto], name: str) -> str:
    node = makers[name]
    if node.op_type == "QuantizeLinear" and node.input[0] in makers:
        return makers[node.input[0]].op_type
    return node.op_type


def _before_rounding(
    proto: onnx.ModelProto, nodes: Mapping[str, onnx.NodeProto], feed: Arrays
) -> dict[str, np.ndarray]:
    """Return what tensors hold before they are rounded, in their units, zero point added."""
    constants = {item.name: numpy_helper.to_array(item) for item in proto.graph.initializer}
    quantizes = [n for n in nodes.values() if n.op_type == "QuantizeLinear"]
    needed = [n.input[0] for n in quantizes] + [
        name for n in nodes.values() if n not in quantizes for name in n.input if name
    ]
    needed = [name for name in dict.fromkeys(needed) if name not in (*constants, *feed)]
    given = dict(feed) | run_plain(with_outputs(proto, needed), feed)
    found = {}
    for name, node in nodes.items():
        if node.op_type == "QuantizeLinear":
            value, scale = given[node.input[0]], constants[node.input[1]]
            zero = constants[node.input[2]] if len(node.input) > 2 else 0
        elif node.op_type in _FLOAT_FORMS:
            value, scale, zero = _in_floats(node, {**constants, **given})
        else:
            continue
        found[name] = value.astype(np.float64) / np.float64(scale) + np.float64(zero)
    return found


def _in_floats(
    node: onnx.NodeProto, known: dict[str, np.ndarray]
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return what an operator on bytes computes before it rounds, and its scale and zero point."""
    kind, count = _FLOAT_FORMS[node.op_type]
    rest = list(node.input[3 * count :])
    bias = rest.pop(0) if node.op_type == "QGemm" else rest[2] if len(rest) > 2 else ""
    nodes, operands = [], []
    for place in range(count):
        names = list(node.input[3 * place : 3 * place + 3])
        axis = 1 if kind in ("MatMul", "Gemm") else 0
        transposed = any(a.name == "transB" and a.i for a in node.attribute)
        axis = 0 if transposed else axis
        inputs = [name for name in names if name]
        operands.append(f"operand{place}")
        nodes.append(helper.make_node("DequantizeLinear", inputs, [operands[-1]], axis=axis))
    if bias:
        scale = known[node.input[1]] * known[node.input[4]]
        known["bias_scale"] = np.broadcast_to(scale, known[bias].shape).astype(np.float32).copy()
        operands.append("bias_real")
        nodes.append(
            helper.make_node("DequantizeLinear", [bias, "bias_scale"], ["bias_real"], axis=0)
        )
    skipped = ("channels_last",)
    attributes = {
        a.name: helper.get_attribute_value(a) for a in node.attribute if a.name not in skipped
    }
    nodes.append(helper.make_node(kind, operands, ["result"], **attributes))
    read = {name for n in nodes for name in n.input if name in known}
    graph = helper.make_graph(
        nodes, "one", [], [helper.make_tensor_value_info("result", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(np.asarray(known[name]), name) for name in sorted(read)],
    )  # fmt: skip
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    zero = known[rest[1]] if len(rest) > 1 and rest[1] else np.int8(0)
    return run_plain(model, {})["result"], known[rest[0]], zero
