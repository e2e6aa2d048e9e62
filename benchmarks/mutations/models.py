"""Ten small models to damage; together they reach most of the importer and of the compiler."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper

_IR_VERSION = 10
_OPSET = 21
_FLOAT, _INT64, _BOOL = TensorProto.FLOAT, TensorProto.INT64, TensorProto.BOOL
_Shape = Sequence[int | str | None]


def convolution() -> onnx.ModelProto:
    """Convolution, batch normalisation, pooling, a residual and a classifier."""
    rng = np.random.default_rng(1)
    weights = {
        "w1": _floats(rng, 8, 3, 3, 3), "b1": _floats(rng, 8), "w2": _floats(rng, 8, 1, 3, 3),
        "scale": _floats(rng, 8), "shift": _floats(rng, 8), "mean": _floats(rng, 8),
        "var": np.abs(_floats(rng, 8)), "fc": _floats(rng, 8, 5),
    }  # fmt: skip
    nodes = [
        _node("Conv", "x w1 b1", "c1", pads=[1, 1, 1, 1], strides=[2, 2]),
        _node("BatchNormalization", "c1 scale shift mean var", "n1", epsilon=1e-3),
        _node("Relu", "n1", "r1"),
        _node("Conv", "r1 w2", "c2", group=8, pads=[1, 1, 1, 1]),
        _node("Add", "c2 r1", "s1"),
        _node("MaxPool", "s1", "p1", kernel_shape=[3, 3], strides=[2, 2], ceil_mode=1),
        _node("GlobalAveragePool", "p1", "g"),
        _node("Flatten", "g", "f"),
        _node("Gemm", "f fc", "y", alpha=0.5),
    ]
    return _model(nodes, {"x": (_FLOAT, (1, 3, 12, 10))}, {"y": (_FLOAT, (1, 5))}, weights)


def attention() -> onnx.ModelProto:
    """One head of attention with its shape arithmetic, layer normalisation and embedding."""
    rng = np.random.default_rng(2)
    weights = {
        "table": _floats(rng, 11, 8), "wq": _floats(rng, 8, 8), "wk": _floats(rng, 8, 8),
        "wv": _floats(rng, 8, 8), "g": _floats(rng, 8), "b": _floats(rng, 8),
        "heads": np.array([2, 4], np.int64), "one": np.array(1, np.int64),
        "root": np.array(2, np.float32), "back": np.array([1, -1, 8], np.int64),
    }  # fmt: skip
    nodes = [
        _node("Gather", "table ids", "e"),
        _node("Shape", "e", "shape"),
        _node("Slice", "shape zero two", "lead"),
        _node("Concat", "lead heads", "split", axis=0),
        *(_node("MatMul", f"e w{name}", name) for name in "qkv"),
        *(_node("Reshape", f"{name} split", f"{name}4") for name in "qkv"),
        *(_node("Transpose", f"{name}4", f"{name}t", perm=[0, 2, 1, 3]) for name in "qv"),
        _node("Transpose", "k4", "kt", perm=[0, 2, 3, 1]),
        _node("MatMul", "qt kt", "scores"),
        _node("Div", "scores root", "scaled"),
        _node("Softmax", "scaled", "weights", axis=-1),
        _node("MatMul", "weights vt", "mixed"),
        _node("Transpose", "mixed", "mt", perm=[0, 2, 1, 3]),
        _node("Reshape", "mt back", "joined"),
        _node("LayerNormalization", "joined g b", "y", axis=-1),
        _node("Gelu", "y", "z"),
    ]
    weights |= {"zero": np.array([0], np.int64), "two": np.array([2], np.int64)}
    inputs = {"ids": (_INT64, (1, 6))}
    return _model(nodes, inputs, {"z": (_FLOAT, (1, 6, 8))}, weights)


def quantized() -> onnx.ModelProto:
    """A convolution between quantize and dequantize nodes, and operators on codes."""
    rng = np.random.default_rng(3)
    weights = {
        "s": np.float32(0.05), "z": np.uint8(120), "w": _codes(rng, np.int8, 4, 3, 3, 3),
        "ws": np.abs(_floats(rng, 4)), "wz": np.zeros(4, np.int8),
        "m": _codes(rng, np.int8, 6, 5), "ms": np.float32(0.02), "mz": np.int8(0),
        "i4": np.array([[1, -8, 7], [3, 0, -2]], np.int8),
        "is": np.float32(0.5),
    }  # fmt: skip
    nodes = [
        _node("QuantizeLinear", "x s z", "xq"),
        _node("DequantizeLinear", "xq s z", "xd"),
        _node("DequantizeLinear", "w ws wz", "wd", axis=0),
        _node("Conv", "xd wd", "c", pads=[1, 1, 1, 1]),
        _node("Relu", "c", "r"),
        _node("QuantizeLinear", "r s z", "rq"),
        _node("Reshape", "rq rows", "rows6"),
        _node("QLinearMatMul", "rows6 s z m ms mz s z", "pq"),
        _node("DequantizeLinear", "pq s z", "y"),
        _node("DynamicQuantizeLinear", "r", "dq ds dz"),
        _node("MatMulInteger", "rows6 m", "acc"),
        _node("Cast", "i4", "small", to=TensorProto.INT4),
        _node("DequantizeLinear", "small is", "wide"),
    ]
    weights["rows"] = np.array([-1, 6], np.int64)
    outputs = {
        "y": (_FLOAT, (24, 5)), "dq": (TensorProto.UINT8, (1, 4, 6, 6)),
        "acc": (TensorProto.INT32, (24, 5)), "wide": (_FLOAT, (2, 3)),
    }  # fmt: skip
    return _model(nodes, {"x": (_FLOAT, (1, 3, 6, 6))}, outputs, weights)


def recurrent() -> onnx.ModelProto:
    """A bidirectional LSTM, a GRU and an RNN in a row."""
    rng = np.random.default_rng(4)
    weights = {
        "w": _floats(rng, 2, 16, 3), "r": _floats(rng, 2, 16, 4), "b": _floats(rng, 2, 32),
        "gw": _floats(rng, 1, 9, 8), "gr": _floats(rng, 1, 9, 3),
        "rw": _floats(rng, 1, 2, 3), "rr": _floats(rng, 1, 2, 2), "axis": np.array([1], np.int64),
        "flat": np.array([5, 2, 8], np.int64),
    }  # fmt: skip
    nodes = [
        _node("LSTM", "x w r b", "l hidden", hidden_size=4, direction="bidirectional"),
        _node("Transpose", "l", "lt", perm=[0, 2, 1, 3]),
        _node("Reshape", "lt flat", "lf"),
        _node("GRU", "lf gw gr", "g", hidden_size=3, linear_before_reset=1),
        _node("Squeeze", "g axis", "gs"),
        _node("RNN", "gs rw rr", "y", hidden_size=2, activations=["Tanh"]),
    ]
    outputs = {"y": (_FLOAT, (5, 1, 2, 2)), "hidden": (_FLOAT, (2, 2, 4))}
    return _model(nodes, {"x": (_FLOAT, (5, 2, 3))}, outputs, weights)


def control_flow() -> onnx.ModelProto:
    """If, Loop and Scan, nested, with names captured from outside."""
    item = helper.make_tensor_value_info
    branch = [
        helper.make_graph([_node(kind, "x total", "r")], kind, [], [item("r", _FLOAT, (3, 4))])
        for kind in ("Add", "Sub")
    ]
    body = helper.make_graph(
        [
            _node("Mul", "state x", "m"),
            _node("ReduceSum", "m", "size", keepdims=0),
            _node("Less", "size limit", "go"),
            _node("If", "go", "next", then_branch=branch[0], else_branch=branch[1]),
            _node("Identity", "size", "row"),
        ],
        "body",
        [item("i", _INT64, ()), item("c", _BOOL, ()), item("state", _FLOAT, (3, 4))],
        [item("go", _BOOL, ()), item("next", _FLOAT, (3, 4)), item("row", _FLOAT, ())],
    )
    step = helper.make_graph(
        [_node("Add", "before now", "after"), _node("Tanh", "after", "out")],
        "step",
        [item("before", _FLOAT, (4,)), item("now", _FLOAT, (4,))],
        [item("after", _FLOAT, (4,)), item("out", _FLOAT, (4,))],
    )
    nodes = [
        _node("Loop", "trips yes x", "last rows", body=body),
        _node("Scan", "start last", "sum y", body=step, num_scan_inputs=1),
        _node("If", "flag", "z", then_branch=branch[1], else_branch=branch[0]),
    ]
    weights = {
        "trips": np.array(4, np.int64), "yes": np.array(True), "limit": np.array(9, np.float32),
        "start": np.zeros(4, np.float32), "total": np.array(2, np.float32),
    }  # fmt: skip
    outputs = {"y": (_FLOAT, (3, 4)), "z": (_FLOAT, (3, 4)), "rows": (_FLOAT, (None,))}
    return _model(nodes, {"x": (_FLOAT, (3, 4)), "flag": (_BOOL, ())}, outputs, weights)


def external_data() -> onnx.ModelProto:
    """A perceptron whose weights are meant for a file beside the model."""
    rng = np.random.default_rng(6)
    weights = {
        "w1": _floats(rng, 6, 16), "b1": _floats(rng, 16), "w2": _floats(rng, 16, 4),
        "half": _floats(rng, 4).astype(np.float16), "pick": np.array([0, 2, 1], np.int64),
    }  # fmt: skip
    nodes = [
        _node("Gemm", "x w1 b1", "h", transB=0),
        _node("LeakyRelu", "h", "a", alpha=0.1),
        _node("MatMul", "a w2", "m"),
        _node("Cast", "half", "wide", to=_FLOAT),
        _node("Mul", "m wide", "s"),
        _node("Gather", "s pick", "y", axis=0),
    ]
    return _model(nodes, {"x": (_FLOAT, (3, 6))}, {"y": (_FLOAT, (3, 4))}, weights)


def functions() -> onnx.ModelProto:
    """Model-local functions with attributes that call each other, and symbolic dimensions."""
    scale = helper.make_node("Constant", [], ["factor"])
    scale.attribute.add(name="value_float", type=onnx.AttributeProto.FLOAT).ref_attr_name = "by"
    opset = [helper.make_opsetid("", _OPSET), helper.make_opsetid("local", 1)]
    inner = helper.make_function(
        "local", "Scale", ["a"], ["b"], [scale, _node("Mul", "a factor", "b")], opset, ["by"]
    )
    outer = helper.make_function(
        "local",
        "Block",
        ["a", "w"],
        ["c"],
        [
            _node("MatMul", "a w", "m"),
            helper.make_node("Scale", ["m"], ["s"], domain="local", by=2.5),
            _node("Softmax", "s", "p", axis=1),
            _node("Clip", "p low", "c"),
        ],
        opset,
    )
    outer.node[3].input[1] = "w0"
    outer.input.append("w0")
    nodes = [
        helper.make_node("Block", ["x", "w", "low"], ["h"], domain="local"),
        helper.make_node("Block", ["h", "w", "low"], ["h2"], domain="local"),
        _node("HardSwish", "h2", "y"),
    ]
    weights = {"w": _floats(np.random.default_rng(7), 5, 5), "low": np.array(0.1, np.float32)}
    model = _model(nodes, {"x": (_FLOAT, (2, 5))}, {"y": (_FLOAT, (2, 5))}, weights)
    model.functions.extend([inner, outer])
    model.opset_import.append(helper.make_opsetid("local", 1))
    return model


def detection() -> onnx.ModelProto:
    """Sizes that depend on data: suppression, selection of rows, non-zero, top k."""
    weights = {
        "most": np.array([3], np.int64), "iou": np.array([0.5], np.float32),
        "least": np.array([0.1], np.float32), "k": np.array([4], np.int64),
        "rows": np.array([2], np.int64), "axes": np.array([1], np.int64),
        "zero": np.array(0, np.float32),
    }  # fmt: skip
    nodes = [
        _node("NonMaxSuppression", "boxes scores most iou least", "chosen"),
        _node("Squeeze", "boxes first", "flat"),
        _node("Gather", "chosen rows", "index", axis=1),
        _node("Squeeze", "index axes", "rows1"),
        _node("Gather", "flat rows1", "kept", axis=0),
        _node("TopK", "scores k", "best where", axis=-1),
        _node("Greater", "best zero", "mask"),
        _node("NonZero", "mask", "places"),
        _node("Transpose", "places", "placesT"),
        _node("GatherND", "best placesT", "picked"),
        _node("ReduceMax", "picked", "top", keepdims=0),
    ]
    weights["first"] = np.array([0], np.int64)
    inputs = {"boxes": (_FLOAT, (1, 8, 4)), "scores": (_FLOAT, (1, 2, 8))}
    outputs = {"kept": (_FLOAT, (None, 4)), "picked": (_FLOAT, (None,)), "top": (_FLOAT, ())}
    return _model(nodes, inputs, outputs, weights)


def shapes() -> onnx.ModelProto:
    """Operators that move elements, with shapes, axes and bounds as weights; integer division."""
    weights = {
        "pads": np.array([0, 0, 1, 2, 0, 0, 2, 1], np.int64), "fill": np.array(1, np.float32),
        "starts": np.array([1, -1], np.int64), "ends": np.array([5, -9], np.int64),
        "axes": np.array([2, 3], np.int64), "steps": np.array([2, -1], np.int64),
        "sizes": np.array([1, 2, 5, 7], np.int64), "parts": np.array([2, 3], np.int64),
        "big": np.array([3, 2, 2, 7], np.int64), "twice": np.array([1, 2, 1, 1], np.int64),
        "at": np.array([[1], [0]], np.int64), "seven": np.array(7, np.int64),
    }  # fmt: skip
    nodes = [
        _node("Pad", "x pads fill", "p"),
        _node("Slice", "p starts ends axes steps", "s"),
        _node("Resize", "s none none sizes", "r", mode="linear"),
        _node("Split", "r parts", "a b", axis=2),
        _node("Expand", "a big", "e"),
        _node("Tile", "e twice", "t"),
        _node("GatherND", "t at", "g"),
        _node("ScatterND", "b zeros update", "y"),
        _node("CumSum", "g axis0", "z"),
        _node("Mod", "n m", "q"),
        _node("Div", "seven n", "d"),
        _node("OneHot", "n seven range2", "hot"),
    ]
    nodes[2].input[1] = nodes[2].input[2] = ""
    weights |= {
        "zeros": np.array([[0, 1]], np.int64), "update": np.ones((1, 3, 7), np.float32),
        "axis0": np.array(0, np.int64), "range2": np.array([0, 1], np.float32),
    }  # fmt: skip
    inputs = {"x": (_FLOAT, (1, 2, 4, 5)), "n": (_INT64, (3,)), "m": (_INT64, (3,))}
    outputs = {
        "y": (_FLOAT, (1, 2, 3, 7)), "z": (_FLOAT, (2, 4, 2, 7)), "q": (_INT64, (3,)),
        "d": (_INT64, (3,)), "hot": (_FLOAT, (3, 7)),
    }  # fmt: skip
    return _model(nodes, inputs, outputs, weights)


def sequences() -> onnx.ModelProto:
    """Sequences, optional values, losses, einsum and types that have no arithmetic."""
    nodes = [
        _node("SplitToSequence", "x", "rows", axis=0, keepdims=0),
        _node("SequenceAt", "rows one", "row"),
        _node("SequenceInsert", "rows row", "more"),
        _node("ConcatFromSequence", "more", "joined", axis=0, new_axis=1),
        _node("Optional", "joined", "maybe"),
        _node("OptionalGetElement", "maybe", "sure"),
        _node("Einsum", "sure x", "e", equation="ij,kj->ik"),
        _node("SoftmaxCrossEntropyLoss", "e labels", "loss", reduction="mean"),
        _node("Cast", "e", "f8", to=TensorProto.FLOAT8E4M3FN),
        _node("Cast", "f8", "y", to=_FLOAT),
        _node("Trilu", "e", "t", upper=0),
        _node("ArgMax", "t", "best", axis=1),
    ]
    weights = {"one": np.array(1, np.int64), "labels": np.array([0, 2, 1, 3, 0], np.int64)}
    outputs = {"y": (_FLOAT, (5, 4)), "loss": (_FLOAT, ()), "best": (_INT64, (5, 1))}
    return _model(nodes, {"x": (_FLOAT, (4, 5))}, outputs, weights)


MODELS: dict[str, Callable[[], onnx.ModelProto]] = {
    maker.__name__: maker
    for maker in (
        *(convolution, attention, quantized, recurrent, control_flow, external_data, functions),
        *(detection, shapes, sequences),
    )
}


def _node(kind: str, inputs: str, outputs: str, **attributes: Any) -> onnx.NodeProto:
    return helper.make_node(
        kind, inputs.split(), outputs.split(), name=f"{kind}_{outputs.split()[0]}", **attributes
    )


def _floats(rng: np.random.Generator, *shape: int) -> np.ndarray:
    return rng.normal(size=shape).astype(np.float32)


def _codes(rng: np.random.Generator, dtype: type, *shape: int) -> np.ndarray:
    return rng.integers(-100, 100, shape).astype(dtype)


def _model(
    nodes: Sequence[onnx.NodeProto],
    inputs: Mapping[str, tuple[int, _Shape]],
    outputs: Mapping[str, tuple[int, _Shape]],
    weights: Mapping[str, np.ndarray | np.generic],
) -> onnx.ModelProto:
    def infos(items: Mapping[str, tuple[int, _Shape]]) -> list[onnx.ValueInfoProto]:
        return [helper.make_tensor_value_info(name, *item) for name, item in items.items()]

    tensors = [onnx.numpy_helper.from_array(np.asarray(a), n) for n, a in weights.items()]
    graph = helper.make_graph(list(nodes), "g", infos(inputs), infos(outputs), tensors)
    opsets = [helper.make_opsetid("", _OPSET)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=_IR_VERSION)
