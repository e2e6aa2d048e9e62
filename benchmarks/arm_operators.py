"""Whether the operators of the suite give the right numbers on ARM, under qemu.

    python -m benchmarks.arm_operators [--only NAME ...] [--target NAME ...]

Every operator in float32 and quantized (QDQ: bytes without sign, weights per channel), and one odd
shape of each class, compiled untuned and run by the C example under qemu-user's model of the
processor. float32 is compared with ONNX Runtime. int8 is compared with sums of integers that ONNX
Runtime's float kernels compute exactly, scaled and rounded in double precision by numpy. Rows are
kept in benchmarks/results/arm_operators.json and renewed one by one.
"""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper
from scipy import special

from benchmarks.machine import commit
from benchmarks.qemu import compute
from benchmarks.quantized_operators import TIE, difference
from benchmarks.report import RESULTS, markdown_table, merge_rows, write_json, write_text
from tilewright.baselines.suite import Operator, build_model, load_suite, weights

TARGETS = ("aarch64:cortex-a72", "aarch64:cortex-a76")
DTYPES = ("float32", "int8")
# Largest error over the standard deviation of the output.
FLOAT_LIMIT = 1e-3
# Whole numbers below it are exact in float32, and so are their sums.
_EXACT = 1 << 24
_HEAD = """\
# Operators on ARM

Written by `python -m benchmarks.arm_operators`; under qemu-user, untuned. float32: the largest
error against ONNX Runtime over the standard deviation of the output, at most {limit:g}. int8:
bytes against exact sums rounded in double precision: how many are not those, the greatest
difference, and how far the exact value of any of them lies from a tie of rounding, in units of the
last place (right: at most 1, on a tie to {tie:g}).

"""
_ACTIVATIONS = {
    "none": lambda x: x,
    "relu": lambda x: np.maximum(x, 0),
    "relu6": lambda x: np.clip(x, 0, 6),
    "tanh": np.tanh,
    "sigmoid": special.expit,
    "silu": lambda x: x * special.expit(x),
    "gelu": lambda x: x * 0.5 * (1 + special.erf(x / math.sqrt(2))),
}


def _odd(kind: str, channels: tuple[int, int], **fields: object) -> Operator:
    rank = len(fields.get("size", ()))  # type: ignore[arg-type]
    plain = {"padding": (1,) * rank, "stride": (1,) * rank, "dilation": (1,) * rank}
    return Operator(f"odd {kind}", kind, "", *channels, **{"activation": "relu", **plain, **fields})


ODD = (
    _odd("C2D", (7, 13), size=(9, 11), kernel=(3, 3)),
    _odd("GRP", (15, 21), size=(9, 7), kernel=(3, 3), groups=3),
    _odd("DIL", (11, 18), size=(13, 9), kernel=(3, 3), dilation=(2, 2), padding=(2, 2)),
    _odd("DEP", (21, 21), size=(9, 13), kernel=(3, 3), stride=(2, 2), groups=21),
    _odd("C3D", (5, 9), size=(3, 5, 7), kernel=(3, 3, 3)),
    _odd("C1D", (11, 17), size=(53,), kernel=(5,), stride=(2,), activation="gelu"),
    _odd("GMM", (37, 45), rows=11, activation="silu"),
    _odd("T2D", (9, 14), size=(5, 7), kernel=(3, 3), stride=(2, 2), activation="tanh"),
    _odd("T3D", (5, 6), size=(3, 3, 5), kernel=(3, 3, 3), stride=(2, 2, 2), activation="none"),
)


@dataclass(frozen=True)
class Quantized:
    """An operator on bytes, and what it should compute.

    Attributes:
        model: QDQ form, input "data" and output "output" of uint8.
        data: bytes.
        exact: float64, the output in its units before rounding, zero point added.
    """

    model: onnx.ModelProto
    data: np.ndarray
    exact: np.ndarray


def inputs(operator: Operator) -> np.ndarray:
    """Return random data of an operator."""
    return np.random.default_rng(1).standard_normal(operator.data_shape, np.float32)


def run_reference(model: onnx.ModelProto, data: np.ndarray) -> np.ndarray:
    """Run ONNX Runtime."""
    import onnxruntime

    session = onnxruntime.InferenceSession(
        model.SerializeToString(), providers=["CPUExecutionProvider"]
    )
    return session.run(None, {"data": data})[0]


def quantized(operator: Operator) -> Quantized:
    """Quantize an operator; its output's range is that of the output itself."""
    data, (weight, bias) = inputs(operator), weights(operator)
    data_scale, data_zero = _range_of(data)
    axis = 1 if operator.kind == "GMM" or operator.transposed else 0
    others = tuple(i for i in range(weight.ndim) if i != axis)
    weight_scale = (np.abs(weight).max(axis=others) / 127).astype(np.float32)
    along = [1] * weight.ndim
    along[axis] = -1
    whole = np.clip(np.rint(weight / weight_scale.reshape(along)), -127, 127).astype(np.int8)
    unit = data_scale.astype(np.float64) * weight_scale
    whole_bias = np.rint(bias / unit).astype(np.int32)
    points = np.clip(np.rint(data / data_scale) + data_zero, 0, 255).astype(np.uint8)

    centred = (points.astype(np.int32) - data_zero).astype(np.float32)
    sums = run_reference(_on_sums(operator, whole, whole_bias), centred).astype(np.float64)
    assert np.abs(sums).max() < _EXACT
    assert (sums == np.rint(sums)).all()
    channels = [1] * sums.ndim
    channels[-1 if operator.kind == "GMM" else 1] = -1
    real = _ACTIVATIONS[operator.activation](sums * unit.reshape(channels))
    scale, zero = _range_of(real)
    parameters = {
        **{
            "xs": data_scale,
            "xz": data_zero,
            "ws": weight_scale,
            "wz": np.zeros_like(unit, "int8"),
        },
        **{"w": whole, "b": whole_bias, "bs": unit.astype(np.float32)},
        **{"bz": np.zeros_like(whole_bias), "ys": scale, "yz": zero},
    }
    model = _in_bytes(build_model(operator), parameters, axis)
    return Quantized(model, points, real / np.float64(scale) + np.float64(zero))


def _range_of(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return scale and zero point of bytes that span the values and 0."""
    low, high = min(float(values.min()), 0.0), max(float(values.max()), 0.0)
    scale = np.float32((high - low) / 255)
    return np.asarray(scale), np.asarray(np.uint8(np.rint(-low / scale)))


def _on_sums(operator: Operator, weight: np.ndarray, bias: np.ndarray) -> onnx.ModelProto:
    """Return the operator without its activation, on whole numbers."""
    model = build_model(replace(operator, activation="none"))
    given = {"weight": weight, "bias": bias}
    for item in model.graph.initializer:
        item.CopyFrom(numpy_helper.from_array(given[item.name].astype(np.float32), item.name))
    return model


def _in_bytes(
    model: onnx.ModelProto, parameters: dict[str, np.ndarray], axis: int
) -> onnx.ModelProto:
    """Put DequantizeLinear before an operator's operands and QuantizeLinear behind its result."""
    graph = model.graph
    node = helper.make_node
    renamed = {"data": "data_real", "weight": "weight_real", "bias": "bias_real"}
    for old in graph.node:
        old.input[:] = [renamed.get(name, name) for name in old.input]
        old.output[:] = ["real" if name == "output" else name for name in old.output]
    before = [
        node("DequantizeLinear", ["data", "xs", "xz"], ["data_real"]),
        node("DequantizeLinear", ["w", "ws", "wz"], ["weight_real"], axis=axis),
        node("DequantizeLinear", ["b", "bs", "bz"], ["bias_real"], axis=0),
    ]
    nodes = [*before, *graph.node, node("QuantizeLinear", ["real", "ys", "yz"], ["output"])]
    kept = [item for item in graph.initializer if item.name not in ("weight", "bias")]
    constants = [numpy_helper.from_array(array, name) for name, array in parameters.items()]
    for value in (*graph.input, *graph.output):
        value.type.tensor_type.elem_type = TensorProto.UINT8
    quantized_graph = helper.make_graph(
        nodes, graph.name, list(graph.input), list(graph.output), [*kept, *constants]
    )
    return helper.make_model(
        quantized_graph, opset_imports=list(model.opset_import), ir_version=model.ir_version
    )


def measure(operator: Operator, dtype: str, target: str) -> dict[str, object]:
    """Compile, run and compare one operator; return the row."""
    row = {"operator": operator.name, "dtype": dtype, "target": target, "commit": commit()}
    if dtype == "float32":
        model, data = build_model(operator), inputs(operator)
        expected = run_reference(model, data)
        found = compute(model, {"data": data}, target)["output"]
        error = float(np.abs(found - expected).max() / expected.std())
        return row | {"status": "right" if error <= FLOAT_LIMIT else "WRONG", "error": error}
    case = quantized(operator)
    found = compute(case.model, {"data": case.data}, target)["output"]
    seen = difference(operator.name, operator.kind, found, found, case.exact)
    right = seen.off_greatest <= 1 and seen.from_tie < TIE
    return row | {
        "status": "right" if right else "WRONG",
        "elements": seen.elements,
        "off": seen.off,
        "greatest": seen.off_greatest,
        "from_tie": seen.from_tie,
    }


def cases() -> Iterator[tuple[Operator, str, str]]:
    """Yield every operator, dtype and target, small ones first."""
    operators = [*ODD, *sorted(load_suite(), key=lambda operator: operator.flops)]
    for operator in operators:
        for dtype in DTYPES:
            for target in TARGETS:
                yield operator, dtype, target


def render(rows: list[dict]) -> str:
    """Return the page: a row for each operator, a column for each dtype and target."""
    columns = [(dtype, target) for dtype in DTYPES for target in TARGETS]
    found = {(row["operator"], row["dtype"], row["target"]): row for row in rows}
    names = [operator.name for operator in (*ODD, *load_suite())]
    table = []
    for name in names:
        cells = [_cell(found.get((name, *column))) for column in columns]
        table.append([name, *cells])
    right = sum(row["status"] == "right" for row in rows)
    head = ["operator", *(f"{dtype}, {target.partition(':')[2]}" for dtype, target in columns)]
    counted = (
        f"{right} of {len(rows)} rows are right; {len(names) * len(columns)} are asked for.\n\n"
    )
    return _HEAD.format(limit=FLOAT_LIMIT, tie=TIE) + counted + markdown_table(head, table)


def _cell(row: dict | None) -> str:
    if row is None:
        return "not run"
    wrong = "" if row["status"] == "right" else "WRONG "
    if "error" in row:
        return f"{wrong}{row['error']:.1e}"
    if not row["off"]:
        return f"{wrong}same bytes"
    return f"{wrong}{row['off']} of {row['elements']}, {row['greatest']}, {row['from_tie']:.5f}"


def main() -> int:
    """Measure, write the results; 1 where a number is wrong."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--only", nargs="+", help="start of the names of operators")
    parser.add_argument("--target", nargs="+", help="targets")
    parser.add_argument("--dtype", nargs="+", help="float32, int8")
    options = parser.parse_args()
    path, wrong = RESULTS / "arm_operators.json", 0
    for operator, dtype, target in cases():
        if options.only and not operator.name.startswith(tuple(options.only)):
            continue
        if target not in (options.target or TARGETS) or dtype not in (options.dtype or DTYPES):
            continue
        row = measure(operator, dtype, target)
        wrong += row["status"] != "right"
        print(operator.name, dtype, target, _cell(row), flush=True)
        rows = merge_rows(path, [row], ("operator", "dtype", "target"))
        write_json(path, {"rows": rows})
        write_text(RESULTS / "arm_operators.md", render(rows))
    return int(wrong > 0)


if __name__ == "__main__":
    sys.exit(main())
