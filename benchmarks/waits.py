"""Does a profile say the truth about what operators wait for: `python -m benchmarks.waits`.

One operator over more and more data, untuned, on one thread. What waits for memory slows down
where its data leaves the caches; what takes the same time a row in the first cache level and in the
last does not. Writes benchmarks/results/waits_<vectors>.json and .md.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

import tilewright
from benchmarks.machine import commit, describe
from benchmarks.report import RESULTS, markdown_machine, markdown_table, write_json, write_text
from tilewright.baselines.machine import instruction_set
from tilewright.profiling import profile

_ROUNDS = 15
_COLUMNS, _CHANNELS, _PIXELS = 128, 32, 56
_OPSET, _IR = 20, 10


def _model(node: onnx.NodeProto, x: Any, y: list[int], *weights: np.ndarray) -> onnx.ModelProto:
    """Return a model of one node: its first input is given, the others are weights."""
    tensors = [
        numpy_helper.from_array(array, name)
        for array, name in zip(weights, (n for n in node.input if n != "x"), strict=True)
    ]
    output = helper.make_tensor_value_info("y", TensorProto.FLOAT, y)
    graph = helper.make_graph([node], "waits", [x], [output], tensors)
    opsets = [helper.make_opsetid("", _OPSET)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=_IR)


def _floats(*shape: int) -> Any:
    return helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)


def softmax(rows: int) -> onnx.ModelProto:
    """Rows of 128."""
    node = helper.make_node("Softmax", ["x"], ["y"], axis=-1)
    return _model(node, _floats(rows, _COLUMNS), [rows, _COLUMNS])


def layer_norm(rows: int) -> onnx.ModelProto:
    """Rows of 128, scaled and shifted."""
    node = helper.make_node("LayerNormalization", ["x", "s", "b"], ["y"], axis=-1)
    ones = np.ones(_COLUMNS, np.float32)
    return _model(node, _floats(rows, _COLUMNS), [rows, _COLUMNS], ones, ones)


def depthwise(rows: int) -> onnx.ModelProto:
    """3x3 windows over 32 channels of 56 x 56; rows are those of the images."""
    batch = max(1, rows // _PIXELS)
    shape = [batch, _CHANNELS, _PIXELS, _PIXELS]
    node = helper.make_node("Conv", ["x", "w"], ["y"], group=_CHANNELS, pads=[1] * 4)
    weight = np.ones((_CHANNELS, 1, 3, 3), np.float32)
    return _model(node, _floats(*shape), shape, weight)


def gather(rows: int) -> onnx.ModelProto:
    """Rows of 16, picked at random from a table of 16 times as many."""
    node = helper.make_node("Gather", ["table", "x"], ["y"])
    table = np.ones((16 * rows, 16), np.float32)
    x = helper.make_tensor_value_info("x", TensorProto.INT64, [rows])
    return _model(node, x, [rows, 16], table)


_SIZES: dict[str, tuple[Callable[[int], onnx.ModelProto], tuple[int, ...]]] = {
    "softmax": (softmax, (64, 256, 1024, 4096, 16384, 65536)),
    "layer_norm": (layer_norm, (64, 256, 1024, 4096, 16384, 65536)),
    "depthwise": (depthwise, (56, 4 * 56, 16 * 56, 128 * 56)),
    "gather": (gather, (1 << 10, 1 << 13, 1 << 16, 1 << 18)),
}


def measure(kind: str, rows: int) -> dict[str, Any]:
    """Profile one model; return its slowest operator (the others convert layouts)."""
    model = _SIZES[kind][0](rows)
    feed = None
    if kind == "gather":
        picked = np.random.default_rng(0).integers(0, 16 * rows, rows)
        feed = {"x": picked.astype(np.int64)}
    with tempfile.TemporaryDirectory() as folder:
        path = tilewright.compile(model, logs=()).save(Path(folder, "model.so"))
        found = profile(path, feed, rounds=_ROUNDS)
    named = [row for row in found.operators if not row.label.startswith("convert ")]
    row = max(named, key=lambda row: row.seconds)
    return {
        "operator": kind,
        "rows": rows,
        "bytes": round(row.seconds * (row.gbytes or 0.0) * 1e9),
        "row_ns": row.seconds / rows * 1e9,
        "peak_share": row.peak_share,
        "bandwidth_share": row.bandwidth_share,
        "waits_for": row.waits_for,
    }


def summary(rows: list[dict[str, Any]], machine: dict[str, Any]) -> str:
    """Return the table."""
    cells = [
        [
            row["operator"],
            str(row["rows"]),
            f"{row['bytes'] / 1e6:.2f}",
            f"{row['row_ns']:.1f}",
            f"{row['peak_share']:.0%}",
            f"{row['bandwidth_share']:.0%}",
            row["waits_for"],
        ]
        for row in rows
    ]
    header = ["operator", "rows", "MB", "ns a row", "of peak", "of bandwidth", "said to wait for"]
    text = " ".join((__doc__ or "").split("\n\n")[1].split())
    return "\n".join(
        [
            "# What operators wait for",
            "",
            *textwrap.wrap(text, 98),
            "",
            markdown_table(header, cells),
            markdown_machine(machine),
        ]
    )


def main() -> int:
    """Measure all rows and write the results."""
    argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0]).parse_args()
    rows = []
    for kind, (_, sizes) in _SIZES.items():
        for size in sizes:
            rows.append(measure(kind, size))
            print(rows[-1], flush=True)
    machine = describe()
    name = f"waits_{instruction_set()}"
    write_json(RESULTS / f"{name}.json", {"commit": commit(), "machine": machine, "rows": rows})
    write_text(RESULTS / f"{name}.md", summary(rows, machine))
    return 0


if __name__ == "__main__":
    sys.exit(main())
