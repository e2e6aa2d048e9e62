"""Feed every integer operator of a quantized model ONNX Runtime's own tensors, and compare.

The graph is cut at every tensor of 8 bits that an operator computes: who reads it reads a new graph
input instead, and it becomes an output. One compiled module then computes every operator from what
ONNX Runtime computed before it, so that differences cannot add up. The oracle is fed the same.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import onnx
from onnx import TensorProto, helper

from benchmarks.quantized_oracle import FLOAT_FORMS, evaluate, rounded

Arrays = Mapping[str, np.ndarray]
Run = Callable[[onnx.ModelProto, Arrays], Arrays]
"""Computes the outputs of a model; the feed may hold more than it reads."""

_BYTES = (TensorProto.UINT8, TensorProto.INT8)
_FED = "__fed"
# Distance of a value from a tie, in units of the result, that single precision cannot tell apart.
TIE = 2e-3


@dataclass(frozen=True)
class Difference:
    """One tensor of a cut model.

    Attributes:
        tensor: its name.
        operator: what computes it (for QuantizeLinear: what it quantizes).
        elements: how many.
        differing: how many are not ONNX Runtime's, where it computes what the oracle says.
        greatest: greatest difference among them, in units of the last place.
        ort_wrong: how many ONNX Runtime computes otherwise than the oracle, ties of rounding left
            out: without VNNI its sums of two products saturate 16 bits.
        off: how many of ours are not the oracle's.
        off_greatest: greatest difference among them.
        from_tie: greatest distance of their exact values from a tie of rounding, in units of the
            last place: what single precision loses.
    """

    tensor: str
    operator: str
    elements: int
    differing: int
    greatest: int
    ort_wrong: int
    off: int
    off_greatest: int
    from_tie: float


def run_plain(proto: onnx.ModelProto, feed: Arrays) -> dict[str, np.ndarray]:
    """Run ONNX Runtime without graph optimisations; return the outputs by name."""
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
        if node.op_type == "QuantizeLinear" or node.op_type in (*FLOAT_FORMS, "QLinearConcat")
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


def run_here(proto: onnx.ModelProto, feed: Arrays) -> Arrays:
    """Compile a model for this machine, untuned, and run it."""
    import tilewright

    module = tilewright.compile(proto, logs=())
    inputs = {spec.name for spec in module.module.inputs}
    return module.run({name: value for name, value in feed.items() if name in inputs})


def compare(proto: onnx.ModelProto, feed: Arrays, run: Run = run_here) -> list[Difference]:
    """Compute the cut model and compare every tensor of bytes in it."""
    values = byte_tensors(proto, feed)
    fed = {name + _FED: value for name, value in values.items()}
    seen = run(cut(proto, values), {**feed, **fed})
    exact = evaluate(proto, feed, values).before_rounding
    makers = {name: node for node in proto.graph.node for name in node.output}
    return [
        difference(name, _operator(makers, name), seen[name], value, exact.get(name))
        for name, value in values.items()
    ]


def difference(
    tensor: str, operator: str, ours: np.ndarray, theirs: np.ndarray, exact: np.ndarray | None
) -> Difference:
    """Compare bytes with ONNX Runtime's, and with values that were not rounded yet.

    Args:
        tensor: its name.
        operator: what computes it.
        ours: bytes.
        theirs: bytes of ONNX Runtime.
        exact: float64, zero point added; None where nothing is rounded, so that bytes are equal.
    """
    apart = np.abs(ours.astype(int) - theirs.astype(int))
    if exact is None:
        count, greatest = int((apart > 0).sum()), int(apart.max(initial=0))
        distance = 0.5 if count else 0.0
        return Difference(
            tensor, operator, ours.size, count, greatest, 0, count, greatest, distance
        )
    right = rounded(exact, ours.dtype).astype(int)
    tie_distance = np.abs(exact - np.floor(exact) - 0.5)
    ort_wrong = np.abs(theirs - right) > (tie_distance < TIE)
    off = np.abs(ours - right)
    judged = np.where(ort_wrong, 0, apart)
    return Difference(
        *(tensor, operator, ours.size, int((judged > 0).sum()), int(judged.max(initial=0))),
        *(int(ort_wrong.sum()), int((off > 0).sum()), int(off.max(initial=0))),
        float(tie_distance[off > 0].max(initial=0)),
    )


def _operator(makers: Mapping[str, onnx.NodeProto], name: str) -> str:
    node = makers[name]
    if node.op_type == "QuantizeLinear" and node.input[0] in makers:
        return makers[node.input[0]].op_type
    return node.op_type
