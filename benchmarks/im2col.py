"""Convolutions unfolded into matrix products: `python -m benchmarks.im2col [ROW ..]`.

Each convolution of the operator suite, with bias and ReLU, by three modules that take turns on one
thread:

- direct: the compiler's own kernel;
- unfolded: the windows of an image that lies channels last are laid out apart (slices, one
  concatenation), then one matrix product with packed weights;
- product: that matrix product alone, on a matrix that somebody else has unfolded for nothing.

Times are of the operators' kernels, without the conversions of layouts around them. Where even the
product alone takes as long as the direct kernel, no way of unfolding can win.

Writes benchmarks/results/im2col_<vectors>.json and .md.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from dataclasses import replace
from itertools import product
from math import prod
from pathlib import Path
from statistics import median

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from benchmarks.machine import describe
from benchmarks.report import (
    RESULTS,
    markdown_machine,
    markdown_table,
    merge_rows,
    write_json,
    write_text,
)
from tilewright.baselines.machine import instruction_set
from tilewright.baselines.suite import Operator, build_model, load_suite
from tilewright.compiler.package import package
from tilewright.compiler.pipeline import lower
from tilewright.compiler.program import TensorSpec
from tilewright.compiler.targets import parse_target
from tilewright.frontends.onnx import import_onnx
from tilewright.runtime.module import Module
from tilewright.tuner.operators import operator_model

ROWS = ("C2D-1", "C2D-2", "C2D-3", "C2D-4", "C2D-5", "DIL-1", "C1D-1", "C1D-4", "C3D-3")
NAMES = ("direct", "unfolded", "product")
_ROUNDS = 15
_CONVERSION = "convert "


def direct(operator: Operator) -> onnx.ModelProto:
    """Return the convolution with bias and ReLU."""
    return build_model(replace(operator, activation="relu"))


def unfolded(operator: Operator) -> onnx.ModelProto:
    """Return the same as slices, a concatenation and a product, its image channels last."""
    rng = np.random.default_rng(0)
    rank, extents = len(operator.size), operator.output_shape[2:]
    depth = operator.in_channels * prod(operator.kernel)
    pads = [0, *operator.padding, 0]
    constants = {
        "pads": np.array([*pads, *pads], np.int64),
        "axes": np.arange(1, rank + 1),
        "steps": np.array(operator.stride, np.int64),
        "rows": np.array([operator.batch * prod(extents), depth], np.int64),
        "weight": rng.standard_normal((depth, operator.out_channels)),
        "bias": rng.standard_normal(operator.out_channels),
    }
    nodes = [helper.make_node("Pad", ["x", "pads"], ["padded"])]
    parts = []
    for number, place in enumerate(product(*map(range, operator.kernel))):
        first = np.array(
            [at * step for at, step in zip(place, operator.dilation, strict=True)], np.int64
        )
        end = first + (np.array(extents) - 1) * np.array(operator.stride) + 1
        constants |= {f"first{number}": first, f"end{number}": end}
        names = ["padded", f"first{number}", f"end{number}", "axes", "steps"]
        nodes.append(helper.make_node("Slice", names, [f"part{number}"]))
        parts.append(f"part{number}")
    nodes += [
        helper.make_node("Concat", parts, ["windows"], axis=rank + 1),
        helper.make_node("Reshape", ["windows", "rows"], ["matrix"]),
        helper.make_node("MatMul", ["matrix", "weight"], ["product"]),
        helper.make_node("Add", ["product", "bias"], ["sum"]),
        helper.make_node("Relu", ["sum"], ["y"]),
    ]
    return _model(nodes, [operator.batch, *operator.size, operator.in_channels], constants)


def _model(
    nodes: list[onnx.NodeProto], shape: list[int], constants: dict[str, np.ndarray]
) -> onnx.ModelProto:
    weights = [
        numpy_helper.from_array(
            array.astype(np.float32) if array.dtype == np.float64 else array.astype(np.int64), name
        )
        for name, array in constants.items()
    ]
    graph = helper.make_graph(
        nodes,
        "convolution",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        weights,
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    return onnx.shape_inference.infer_shapes(model, strict_mode=True)


def build(model: onnx.ModelProto, path: Path) -> None:
    """Compile a model without logs and without Winograd's algorithm."""
    target = replace(parse_target("native"), cores=1)
    imported = import_onnx(model)
    inputs, outputs = (
        [TensorSpec(spec.name, spec.shape, spec.dtype) for spec in specs]
        for specs in (imported.inputs, imported.outputs)
    )
    lowered = lower(imported.module, inputs, outputs, target, winograd=False)
    package(lowered.program, target, path)


def compare(operator: Operator) -> dict:
    """Return the seconds of the three for one row."""
    matrix = (
        operator.batch * prod(operator.output_shape[2:]),
        operator.in_channels * prod(operator.kernel),
    )
    models = {
        "direct": direct(operator),
        "unfolded": unfolded(operator),
        "product": operator_model("matmul", matrix, (matrix[1], operator.out_channels)),
    }
    seconds: dict[str, list[float]] = {name: [] for name in NAMES}
    rng = np.random.default_rng(1)
    with tempfile.TemporaryDirectory(prefix="tilewright-") as folder:
        modules, feeds = {}, {}
        for name, model in models.items():
            path = Path(folder, f"{name}.so")
            build(model, path)
            modules[name] = Module(path, 1)
            spec = modules[name].inputs[0]
            feeds[name] = {spec.name: rng.standard_normal(spec.shape).astype(np.float32)}
        for _ in range(_ROUNDS):
            for name, module in modules.items():
                calls = module.profile(feeds[name], rounds=1)
                kernels = [c.seconds for c in calls if not c.label.startswith(_CONVERSION)]
                seconds[name].append(sum(kernels))
    return {
        "row": operator.id,
        "flops": operator.flops,
        **{name: median(times) for name, times in seconds.items()},
    }


def markdown(rows: list[dict]) -> str:
    """Return the table."""
    lines = [
        [
            *(
                row["row"],
                f"{row['direct'] * 1e6:.0f}",
                f"{row['flops'] / row['direct'] / 1e9:.0f}",
            ),
            f"{row['unfolded'] / row['direct']:.2f}",
            f"{row['product'] / row['direct']:.2f}",
        ]
        for row in rows
    ]
    header = ["row", "direct us", "GFLOP/s", "unfolded / direct", "product alone / direct"]
    return markdown_table(header, lines)


def main() -> None:
    """Build, time, write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("rows", nargs="*", default=ROWS)
    arguments = parser.parse_args()
    stem = RESULTS / f"im2col_{instruction_set()}"
    for operator in load_suite(kinds=tuple(arguments.rows)):
        row = compare(operator)
        print(row, file=sys.stderr, flush=True)
        rows = merge_rows(stem.with_suffix(".json"), [row], ("row",))
        write_json(stem.with_suffix(".json"), {"machine": describe(), "rows": rows})
        text = "# Convolutions unfolded into matrix products\n\n`python -m benchmarks.im2col`; see "
        text += "its docstring. One thread.\n\n" + markdown_machine(describe())
        write_text(stem.with_suffix(".md"), text + "\n" + markdown(rows))


if __name__ == "__main__":
    main()
