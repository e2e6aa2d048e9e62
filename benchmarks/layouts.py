"""What the choice of layouts is worth: one fixed format, greedy propagation, the whole graph.

    python -m benchmarks.layouts [--models resnet18,...] [--operators] [--rounds 20]

All variants choose among the same tables of layouts (`compiler/layout/strategies.py`): the same
micro-kernels, packed weights, direct convolution and untuned schedules; only the strategy differs.
Variants take turns in one process on one thread; ratios are of ours to the variant, round by
round, with 95% bootstrap intervals. Writes benchmarks/results/layouts.md and .json.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from benchmarks import zoo
from benchmarks.machine import describe
from benchmarks.report import (
    RESULTS,
    markdown_machine,
    markdown_table,
    merge_rows,
    write_json,
    write_text,
)
from tilewright.compiler.layout.propagation import apply_layouts, choose_layouts
from tilewright.compiler.layout.strategies import STRATEGIES
from tilewright.compiler.package import package
from tilewright.compiler.pipeline import fuse, schedule_kernels
from tilewright.compiler.program import Program, TensorSpec
from tilewright.compiler.targets import Target, parse_target
from tilewright.frontends.onnx import import_onnx
from tilewright.runtime.benchmark import compare, interleave, summarize
from tilewright.runtime.module import Module

OURS = "global"
MODELS = ("resnet18", "resnet50", "mobilenetv2", "densenet121", "unet", "bert_base")
FIXED = ("NCHW", "NHWC", "NCHW16c")
# (name, data shape, weight shape, groups, stride): one operator with bias and ReLU.
OPERATORS = (
    ("C2D 3x3", (1, 64, 56, 56), (64, 64, 3, 3), 1, 1),
    ("C2D 3x3 s2", (1, 128, 56, 56), (128, 128, 3, 3), 1, 2),
    ("C2D 1x1", (1, 256, 14, 14), (1024, 256, 1, 1), 1, 1),
    ("C2D 1x1 odd", (1, 40, 28, 28), (240, 40, 1, 1), 1, 1),
    ("DEP 3x3", (1, 144, 56, 56), (144, 1, 3, 3), 144, 1),
    ("DEP 5x5 s2", (1, 240, 28, 28), (240, 1, 5, 5), 240, 2),
    ("GRP 3x3", (1, 128, 28, 28), (128, 32, 3, 3), 4, 1),
    ("C3D 3x3x3", (1, 64, 8, 28, 28), (64, 64, 3, 3, 3), 1, 1),
    ("GMM", (128, 768), (768, 3072), 1, 1),
)


def operator_model(
    data: tuple[int, ...], weight: tuple[int, ...], groups: int, stride: int
) -> onnx.ModelProto:
    """Return an ONNX model of one convolution or matrix product with bias and ReLU."""
    rng = np.random.default_rng(0)
    is_matrix = len(data) == 2
    outputs = weight[1] if is_matrix else weight[0]
    values = (rng.standard_normal(weight) / np.sqrt(np.prod(weight[1:]))).astype("float32")
    initializers = [
        numpy_helper.from_array(values, "w"),
        numpy_helper.from_array(rng.standard_normal(outputs).astype("float32"), "b"),
    ]
    if is_matrix:
        anchor = helper.make_node("Gemm", ["x", "w", "b"], ["y"])
    else:
        pads = [extent // 2 for extent in weight[2:]] * 2
        strides = [stride] * (len(weight) - 2)
        anchor = helper.make_node(
            "Conv", ["x", "w", "b"], ["y"], pads=pads, strides=strides, group=groups
        )
    shape = (
        (data[0], outputs)
        if is_matrix
        else (
            data[0],
            outputs,
            *((extent - 1) // stride + 1 for extent in data[2:]),
        )
    )
    graph = helper.make_graph(
        [anchor, helper.make_node("Relu", ["y"], ["z"])],
        "operator",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, data)],
        [helper.make_tensor_value_info("z", TensorProto.FLOAT, shape)],
        initializers,
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=10)


def build(program: Program, target: Target, strategy: str, folder: Path) -> tuple[Module, dict]:
    """Build a program with one strategy; return the module and what was decided."""
    start = time.perf_counter()
    plan = choose_layouts(program, target, strategy=STRATEGIES[strategy])
    solve_s = time.perf_counter() - start
    physical, conversions = apply_layouts(program, plan)
    physical = replace(physical, kernels=schedule_kernels(physical.kernels, target))
    path = folder / f"{strategy}.so"
    package(physical, target, path, {})
    decided = {
        "solve_s": solve_s,
        "proven": plan.proven,
        "conversions": len(conversions),
        "estimated_s": plan.seconds,
    }
    return Module(path, threads=1), decided


def measure(
    name: str,
    model: Path | onnx.ModelProto,
    feed: Mapping[str, np.ndarray],
    target: Target,
    rounds: int,
) -> dict:
    """Return one row: every strategy's decisions and time, ours first."""
    imported = import_onnx(model)
    specs = [
        [TensorSpec(spec.name, spec.shape, spec.dtype) for spec in side]
        for side in (imported.inputs, imported.outputs)
    ]
    program = fuse(imported.module, *specs, target, winograd=False)
    row: dict = {"name": name, "strategies": {}}
    calls: dict[str, Callable[[], object]] = {}
    reference = None
    with tempfile.TemporaryDirectory() as folder:
        for strategy in STRATEGIES:
            module, decided = build(program, target, strategy, Path(folder))
            row["strategies"][strategy] = decided
            result = next(iter(module.run(feed).values()))
            reference = result if reference is None else reference
            decided["error"] = float(np.abs(result - reference).max() / reference.std())
            run = partial(module.run, feed)
            calls |= {f"warm {strategy}": run, strategy: run}
        samples = interleave(calls, rounds=rounds, clock=time.thread_time)
    for strategy, decided in row["strategies"].items():
        ratio = compare(samples[OURS], samples[strategy])
        decided["median_s"] = summarize(samples[strategy]).median_s
        decided["ratio"], decided["interval"] = ratio.median, [ratio.low, ratio.high]
    return row


def render(rows: list[dict]) -> str:
    """Return the Markdown page."""
    header = ["", "conversions", "solved, s", *(f"{name}, ms" for name in STRATEGIES)]
    header += [f"ours / {name}" for name in STRATEGIES if name != OURS]
    table = []
    for row in rows:
        ours = row["strategies"][OURS]
        cells = [row["name"], str(ours["conversions"])]
        cells.append(f"{ours['solve_s']:.2f}{'' if ours['proven'] else ' (not proven)'}")
        cells += [f"{row['strategies'][name]['median_s'] * 1e3:.3g}" for name in STRATEGIES]
        for name in STRATEGIES:
            if name != OURS:
                other = row["strategies"][name]
                low, high = other["interval"]
                cells.append(f"{other['ratio']:.2f} [{low:.2f} .. {high:.2f}]")
        table.append(cells)
    text = f"# Layout strategies\n\n{__doc__.split(chr(10), 3)[3].strip()}\n\n"
    text += markdown_table(header, table)
    text += f"\nBest single fixed layout over ours, geometric mean: {best_fixed(rows)}\n\n"
    return text + markdown_machine(describe())


def best_fixed(rows: list[dict]) -> str:
    """Return the gain over the best fixed format per model of the issue's four, as text."""
    wanted = ("mobilenetv2", "densenet121", "unet", "bert_base")
    gains = {
        row["name"]: 1 / max(row["strategies"][name]["ratio"] for name in FIXED)
        for row in rows
        if row["name"] in wanted
    }
    if set(gains) != set(wanted):
        return f"not measured for all of {', '.join(wanted)}"
    each = ", ".join(f"{name} {gain:.2f}" for name, gain in gains.items())
    return f"{np.exp(np.mean(np.log(list(gains.values())))):.2f} ({each})"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--models", default=",".join(MODELS))
    parser.add_argument("--operators", action="store_true", help="the single operators too")
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--target", default="native")
    args = parser.parse_args()
    target = parse_target(args.target)
    jobs = [(name, zoo.load(name), zoo.inputs(name, 0)) for name in args.models.split(",") if name]
    if args.operators:
        rng = np.random.default_rng(0)
        for name, data, weight, groups, stride in OPERATORS:
            feed = {"x": rng.standard_normal(data).astype("float32")}
            jobs.append((name, operator_model(data, weight, groups, stride), feed))
    path = RESULTS / "layouts.json"
    for name, model, feed in jobs:
        row = measure(name, model, feed, target, args.rounds)
        rows = merge_rows(path, [row], ["name"])
        write_json(path, {"machine": describe(), "rows": rows})
        write_text(RESULTS / "layouts.md", render(rows))
        ours = row["strategies"]
        print(name, {k: f"{v['ratio']:.2f}" for k, v in ours.items()}, flush=True)


if __name__ == "__main__":
    main()
