"""Models that are meant to take long: `python -m benchmarks.hostile`.

Thousands of nodes in a chain, beside each other and in one concatenation, control flow within
control flow, constants that are large, and many that are folded. Each is compiled in a process of
its own at four sizes; processor time and memory must grow no faster than the size. `--save` writes
benchmarks/results/hostile.json and .md; exit code 1 where a model grows faster.
`--models REGEX --sizes 1000,2500` runs some of it, `--resume` keeps what was measured before.
"""

from __future__ import annotations

import argparse
import importlib
import json
import math
import re
import resource
import sys
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

import tilewright
from benchmarks.forked import Lost, run_forked
from benchmarks.machine import commit, describe
from benchmarks.report import RESULTS, markdown_table, write_text
from tilewright.compiler.package import prepare_runtime
from tilewright.errors import TilewrightError

_OPSET, _IR = 20, 10
_WIDTH = 16
_TIMEOUT_S = 3600.0
# Growth of time over growth of size, as a power: 1 is linear, 2 quadratic. Python's allocator and
# caches account for some.
LARGEST_POWER = 1.25
SIZES = (1000, 2500, 5000, 10000)


def _info(name: str, shape: list[int], kind: int = TensorProto.FLOAT) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, kind, shape)


def _model(
    nodes: list[onnx.NodeProto], weights: list[onnx.TensorProto], outputs: list[Any]
) -> onnx.ModelProto:
    graph = helper.make_graph([], "hostile", [_info("x", [4, _WIDTH])], outputs, weights)
    for node in nodes:  # make_graph fails for what is nested deeply
        graph.node.add().CopyFrom(node)
    opsets = [helper.make_opsetid("", _OPSET)]
    model = onnx.ModelProto(ir_version=_IR, opset_import=opsets)
    model.graph.CopyFrom(graph)
    return model


def _weight(rng: np.random.Generator, name: str, *shape: int) -> onnx.TensorProto:
    array = rng.standard_normal(shape) / math.sqrt(shape[0])
    return numpy_helper.from_array(array.astype(np.float32), name)


def chain(size: int) -> onnx.ModelProto:
    """Products with weights of their own, biases and activations, one behind the other."""
    rng, nodes, weights, last = np.random.default_rng(0), [], [], "x"
    for index in range(size // 3):
        weights += [
            _weight(rng, f"w{index}", _WIDTH, _WIDTH),
            _weight(rng, f"b{index}", _WIDTH),
        ]
        nodes += [
            helper.make_node("MatMul", [last, f"w{index}"], [f"m{index}"]),
            helper.make_node("Add", [f"m{index}", f"b{index}"], [f"a{index}"]),
            helper.make_node(("Relu", "Tanh", "Sigmoid")[index % 3], [f"a{index}"], [f"r{index}"]),
        ]
        last = f"r{index}"
    return _model(nodes, weights, [_info(last, [4, _WIDTH])])


def elementwise(size: int) -> onnx.ModelProto:
    """Element-wise operators that could all be one kernel."""
    nodes, last = [], "x"
    for index in range(size):
        kind = ("Relu", "Tanh", "Sigmoid", "Neg")[index % 4]
        nodes.append(helper.make_node(kind, [last], [f"r{index}"]))
        last = f"r{index}"
    return _model(nodes, [], [_info(last, [4, _WIDTH])])


def branches(size: int) -> onnx.ModelProto:
    """Many readers of one tensor, all of them outputs of one concatenation."""
    nodes = []
    for index in range(size - 1):
        kind = ("Relu", "Tanh", "Sigmoid", "Neg")[index % 4]
        nodes.append(helper.make_node(kind, ["x"], [f"r{index}"]))
    names = [f"r{index}" for index in range(size - 1)]
    nodes.append(helper.make_node("Concat", names, ["y"], axis=0))
    return _model(nodes, [], [_info("y", [4 * (size - 1), _WIDTH])])


def residuals(size: int) -> onnx.ModelProto:
    """Sums of everything with what came two before: no tensor dies early."""
    nodes, before, last = [], "x", "x"
    for index in range(size):
        kind = ("Add", "Mul", "Sub", "Max")[index % 4]
        nodes.append(helper.make_node(kind, [last, before], [f"r{index}"]))
        before, last = last, f"r{index}"
    return _model(nodes, [], [_info(last, [4, _WIDTH])])


def nested(size: int) -> onnx.ModelProto:
    """If within If, 100 nodes to a level; what is deeper than can be is refused."""
    depth = max(1, size // 100)
    inside: list[onnx.NodeProto] = [helper.make_node("Relu", ["x"], ["deepest"])]
    result = "deepest"
    for level in range(depth):
        plain = [helper.make_node("Neg", ["x"], [f"else{level}"])]
        node = onnx.NodeProto(op_type="If", input=["flag"], output=[f"if{level}"])
        for nodes, name, out in ((inside, "then", result), (plain, "else", f"else{level}")):
            graph = node.attribute.add(name=f"{name}_branch", type=onnx.AttributeProto.GRAPH).g
            graph.name = name
            graph.output.append(_info(out, [4, _WIDTH]))
            for inner in nodes:
                graph.node.add().CopyFrom(inner)
        inside, result = [node], f"if{level}"
    head = [
        helper.make_node("ReduceSum", ["x"], ["total"], keepdims=0),
        helper.make_node("Greater", ["total", "zero"], ["flag"]),
    ]
    zero = numpy_helper.from_array(np.float32(0), "zero")
    return _model([*head, *inside], [zero], [_info(result, [4, _WIDTH])])


def folded(size: int) -> onnx.ModelProto:
    """A chain of constants that are computed from each other, every tenth added to the input."""
    rng, weights, nodes, last, total = np.random.default_rng(0), [], [], "w", "x"
    weights.append(_weight(rng, "w", 4, _WIDTH))
    for index in range(size * 10 // 11):
        kind = ("Sin", "Tanh", "Neg", "Abs")[index % 4]
        nodes.append(helper.make_node(kind, [last], [f"c{index}"]))
        last = f"c{index}"
        if index % 10 == 9:
            nodes.append(helper.make_node("Add", [total, last], [f"s{index}"]))
            total = f"s{index}"
    return _model(nodes, weights, [_info(total, [4, _WIDTH])])


def constants(size: int) -> onnx.ModelProto:
    """One product with weights of `size` / 20 MB, and a computed constant of the same size."""
    rows = max(1, size * 50_000 // (4 * _WIDTH))
    rng = np.random.default_rng(0)
    weights = [_weight(rng, "w", _WIDTH, rows), _weight(rng, "v", _WIDTH, rows)]
    nodes = [
        helper.make_node("Neg", ["v"], ["n"]),
        helper.make_node("MatMul", ["x", "w"], ["m"]),
        helper.make_node("MatMul", ["x", "n"], ["k"]),
        helper.make_node("ReduceSum", ["m"], ["s"], keepdims=1),
        helper.make_node("ReduceSum", ["k"], ["t"], keepdims=1),
        helper.make_node("Add", ["s", "t"], ["y"]),
    ]
    return _model(nodes, weights, [_info("y", [1, 1])])


MODELS: dict[str, Callable[[int], onnx.ModelProto]] = {
    function.__name__: function
    for function in (chain, elementwise, branches, residuals, nested, folded, constants)
}


def measure(name: str) -> dict[str, float | str]:
    """Compile one model in this process; return processor seconds, memory, or the refusal.

    Args:
        name: "model/size".
    """
    kind, size = name.split("/")
    model = MODELS[kind](int(size))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    start, children = time.process_time(), _children_s()
    stages: list[str] = []
    try:
        compiled = tilewright.compile(model, logs=(), progress=stages.append)
    except TilewrightError as error:
        return {"cpu_s": round(time.process_time() - start, 2), "refused": str(error)[:200]}
    cpu_s = time.process_time() - start + _children_s() - children
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return {
        "cpu_s": round(cpu_s, 2),
        "grown_mb": round((peak - before) / 1000, 1),
        "file_mb": round(compiled.path.stat().st_size / 1e6, 2),
        "stages": len(stages),
    }


def _children_s() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def power(small: tuple[int, float], large: tuple[int, float]) -> float:
    """Return p of cost ~ size ** p between two (size, cost)."""
    return math.log(large[1] / small[1]) / math.log(large[0] / small[0])


def powers(found: dict[str, Any]) -> dict[str, float]:
    """Return for each model how the time grows from its second to its last size."""
    result = {}
    for kind in MODELS:
        points = [
            (int(name.split("/")[1]), row["cpu_s"])
            for name, row in found.items()
            if name.split("/")[0] == kind and "grown_mb" in row
        ]
        if len(points) >= 2:
            result[kind] = round(power(points[-2], points[-1]), 2)
    return result


def summary(found: dict[str, Any]) -> str:
    """Return the table."""
    rows = []
    for name, row in found.items():
        kind, size = name.split("/")
        if "refused" in row:
            cells = [f"{row['cpu_s']:.1f}", "", "", "", f"refused: {row['refused'][:90]}"]
        else:
            sizes = [f"{row['grown_mb']:.0f}", f"{row['file_mb']:.1f}", str(row["stages"])]
            cells = [f"{row['cpu_s']:.1f}", *sizes, ""]
        rows.append([kind, size, *cells])
    grown = ", ".join(f"{kind} {p:.2f}" for kind, p in powers(found).items())
    return "\n".join(
        [
            "# Hostile models",
            "",
            "Written by `python -m benchmarks.hostile --save`. Processor time of a compile in a",
            "process of its own, by how much the peak of its memory grew, and in how many steps it",
            "reported progress. Size is the number of nodes (of `constants`: 20 to a MB, twice; of",
            "`nested`: 100 to a level).",
            "",
            markdown_table(["model", "size", "CPU s", "memory, MB", "file, MB", "steps", ""], rows),
            f"Growth of time between the last two sizes, as a power of the size: {grown}.",
            "",
        ]
    )


def save(found: dict[str, Any]) -> None:
    """Write the result files, models in their order and each by its size."""
    kinds = list(MODELS)

    def place(name: str) -> tuple[int, int]:
        kind, size = name.split("/")
        return kinds.index(kind), int(size)

    ordered = {name: found[name] for name in sorted(found, key=place)}
    content = {"machine": describe(), "found": ordered}
    write_text(RESULTS / "hostile.json", json.dumps(content, indent=1) + "\n")
    write_text(RESULTS / "hostile.md", summary(ordered))


def main() -> int:
    """Measure what the command line names; return the exit code."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--models", default="", help="regular expression")
    parser.add_argument("--sizes", default=",".join(map(str, SIZES)))
    parser.add_argument("--save", action="store_true", help="write the result files")
    parser.add_argument("--resume", action="store_true", help="keep what was measured before")
    args = parser.parse_args()
    sizes = [int(size) for size in args.sizes.split(",")]
    path = RESULTS / "hostile.json"
    found = json.loads(path.read_text())["found"] if args.resume and path.exists() else {}
    names = [f"{kind}/{size}" for kind in MODELS for size in sizes if re.search(args.models, kind)]

    def keep(name: str, row: Any) -> None:
        if isinstance(row, Lost):
            row = {"cpu_s": 0.0, "refused": f"{row.status}: {row.reason}"}
        found[name] = {**row, "commit": commit()}
        print(name, found[name], flush=True)
        if args.save:
            save(found)

    prepare_runtime()
    importlib.import_module("tilewright.frontends.onnx")  # once, before the processes part

    for name in names:
        if name not in found:
            run_forked([name], measure, timeout_seconds=_TIMEOUT_S, on_result=keep)
    slow = {kind: p for kind, p in powers(found).items() if p > LARGEST_POWER}
    print(powers(found))
    return 1 if slow else 0


if __name__ == "__main__":
    sys.exit(main())
