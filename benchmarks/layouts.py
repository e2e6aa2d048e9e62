"""What the choice of layouts is worth: one fixed format, greedy propagation, the whole graph.

    python -m benchmarks.layouts --build [--models resnet18,...] [--operators]
    python -m benchmarks.layouts --time [--models resnet18,...] [--operators] [--rounds 20]

All variants choose among the same tables of layouts (`compiler/layout/strategies.py`): the same
micro-kernels, packed weights, algorithms and untuned schedules; only the strategy differs. NCHWc is
the fixed blocked format with blocks of one vector, the processor's natural one: NCHW8c with AVX2,
NCHW16c with AVX-512. Rows named "Winograd" let all variants use it where it is estimated faster, as
a compile does; the others compute every convolution directly. Rows named "tuned" take decisions and
costs of layouts from the shipped tuning logs, where these have them; the others are untuned, so
that all variants had the same effort; there a conversion is executed where by these costs the
operators around it gain more than it takes (`tilewright inspect --layouts` says both). Variants
take turns in one process on one thread; ratios are of ours to the variant, round by round, with 95%
bootstrap intervals. "same": the strategy chose what ours did. In brackets after a time: conversions
executed. "of peak": multiply-adds of the best fixed format against the processor's peak in the same
minutes; what is missing to 100% is the most that any layout could win over it.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from benchmarks import zoo
from benchmarks.machine import Probes, describe
from benchmarks.report import (
    RESULTS,
    markdown_machine,
    markdown_table,
    merge_rows,
    write_json,
    write_text,
)
from tilewright.compiler.layout.propagation import LayoutPlan
from tilewright.compiler.layout.strategies import STRATEGIES
from tilewright.compiler.package import package
from tilewright.compiler.pipeline import lower
from tilewright.compiler.program import TensorSpec
from tilewright.compiler.targets import Target, parse_target
from tilewright.compiler.work import describe_work
from tilewright.frontends.onnx import import_onnx
from tilewright.runtime.benchmark import compare, interleave, summarize
from tilewright.runtime.module import Module
from tilewright.tuning import find_tuned

OURS = "global"
MODELS = ("resnet18", "resnet50", "mobilenetv2", "densenet121", "unet", "bert_base")
FIXED = ("NCHW", "NHWC", "NCHWc")
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


@dataclass(frozen=True)
class Job:
    """What to build or time.

    Attributes:
        folder: where the modules are.
        winograd: convolutions use Winograd's algorithm where it is estimated faster.
        tuned: decisions and costs come from the shipped tuning logs.
        rounds: samples of each variant.
        strategies: of `STRATEGIES`, ours first.
    """

    folder: Path
    winograd: bool
    tuned: bool
    rounds: int
    strategies: tuple[str, ...] = tuple(STRATEGIES)

    def row(self, name: str) -> str:
        """Return the name of a row, which is also that of its folder."""
        return name + ", Winograd" * self.winograd + ", tuned" * self.tuned


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


def build(name: str, model: Path | onnx.ModelProto, target: Target, job: Job) -> None:
    """Compile a model with every strategy into a folder, with what was decided beside it."""
    folder = job.folder / job.row(name)
    folder.mkdir(parents=True, exist_ok=True)
    imported = import_onnx(model)
    inputs, outputs = [
        [TensorSpec(spec.name, spec.shape, spec.dtype) for spec in side]
        for side in (imported.inputs, imported.outputs)
    ]
    tuned = find_tuned(target) if job.tuned else None
    decided: dict[str, dict] = {}
    plans: dict[str, LayoutPlan] = {}
    for strategy in job.strategies:
        lowered = lower(
            imported.module,
            inputs,
            outputs,
            target,
            tuned=tuned,
            winograd=job.winograd,
            strategy=STRATEGIES[strategy],
        )
        facts = {
            "proven": lowered.plan.proven,
            "conversions": len(lowered.conversions),
            "estimated_s": lowered.plan.seconds,
            "operations": sum(lowered.operations.values()),
        }
        decided[strategy] = facts
        equal = [name for name, plan in plans.items() if plan.choices == lowered.plan.choices]
        if equal:
            facts["same_as"] = equal[0]
            continue
        plans[strategy] = lowered.plan
        work = describe_work(lowered.program, lowered.operations)
        package(lowered.program, target, folder / f"{strategy}.so", {"work": work})
    write_json(folder / "decided.json", decided)


def measure(name: str, feed: Mapping[str, np.ndarray], job: Job, note: str = "") -> dict:
    """Return one row: every strategy's decisions and time, ours first."""
    folder = job.folder / job.row(name)
    decided = json.loads((folder / "decided.json").read_text())
    probes = Probes()
    calls: dict[str, Callable[[], object]] = {}
    reference = None
    for strategy, facts in decided.items():
        if "same_as" in facts:
            continue
        module = Module(folder / f"{strategy}.so", threads=1)
        result = next(iter(module.run(feed).values()))
        reference = result if reference is None else reference
        facts["error"] = float(np.abs(result - reference).max() / reference.std())
        run = partial(module.run, feed)
        calls |= {f"warm {strategy}": run, strategy: run}
    peaks: list[float] = []
    calls["peak"] = lambda: peaks.append(probes.peak_gflops())
    samples = interleave(calls, rounds=job.rounds, clock=time.thread_time)
    for strategy, facts in decided.items():
        timed = samples[facts.get("same_as", strategy)]
        ratio = compare(samples[OURS], timed)
        facts["median_s"] = summarize(timed).median_s
        facts["ratio"], facts["interval"] = ratio.median, [ratio.low, ratio.high]
    # The fastest probe: what disturbs one makes it slower, never faster.
    row = {"name": job.row(name), "peak_gflops": max(peaks), "strategies": decided}
    return {**row, "note": note} if note else row


def render(rows: list[dict]) -> str:
    """Return the Markdown page."""
    header = ["", *(f"{name}, ms" for name in STRATEGIES)]
    header += [f"ours / {name}" for name in STRATEGIES if name != OURS]
    header.append("best fixed, of peak")
    table = []
    for row in rows:
        strategies = row["strategies"]
        cells = [row["name"] + (f" ({row['note']})" if row.get("note") else "")]
        for name in STRATEGIES:
            converted = strategies[name]["conversions"]
            cells.append(
                f"{strategies[name]['median_s'] * 1e3:.3g}" + (f" ({converted})" * bool(converted))
            )
        for name in STRATEGIES:
            if name != OURS:
                same = strategies[name].get("same_as") == OURS
                low, high = strategies[name]["interval"]
                text = f"{strategies[name]['ratio']:.2f} [{low:.2f} .. {high:.2f}]"
                cells.append("same" if same else text)
        cells.append(f"{share_of_peak(row):.0%}")
        table.append(cells)
    text = f"# Layout strategies\n\n{__doc__.split(chr(10), 4)[4].strip()}\n\n"
    text += markdown_table(header, table)
    text += f"\nBest fixed layout over ours, geometric mean: {best_fixed(rows)}\n"
    text += f"\nThe same, tuned: {best_fixed(rows, ', tuned')}\n\n"
    return text + markdown_machine(describe())


def share_of_peak(row: dict) -> float:
    """Return what the best fixed format reaches of the multiply-add peak, padding not counted."""
    best = min((row["strategies"][name] for name in FIXED), key=lambda facts: facts["median_s"])
    # What is computed on planes, where nothing is padded.
    useful = row["strategies"]["NCHW"]["operations"]
    return useful / best["median_s"] / (row["peak_gflops"] * 1e9)


def best_fixed(rows: list[dict], suffix: str = "") -> str:
    """Return the gain over the best fixed format for each of four networks, as text."""
    wanted = [name + suffix for name in ("mobilenetv2", "densenet121", "unet", "bert_base")]
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
    parser.add_argument("--build", action="store_true", help="compile every variant")
    parser.add_argument("--time", action="store_true", help="time what was compiled")
    parser.add_argument("--folder", type=Path, default=Path("build/layouts"))
    parser.add_argument("--models", default=",".join(MODELS))
    parser.add_argument("--operators", action="store_true", help="the single operators too")
    parser.add_argument("--winograd", action="store_true", help="with Winograd's algorithm")
    parser.add_argument("--tuned", action="store_true", help="by the shipped tuning logs")
    parser.add_argument("--strategies", default=",".join(STRATEGIES))
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--target", default="native")
    parser.add_argument("--note", default="", help="said beside the rows: how they were disturbed")
    parser.add_argument("--out", type=Path, default=RESULTS / "layouts.json")
    args = parser.parse_args()
    job = Job(
        args.folder, args.winograd, args.tuned, args.rounds, tuple(args.strategies.split(","))
    )
    jobs = [(name, zoo.load(name), zoo.inputs(name, 0)) for name in args.models.split(",") if name]
    if args.operators:
        rng = np.random.default_rng(0)
        for name, data, weight, groups, stride in OPERATORS:
            feed = {"x": rng.standard_normal(data).astype("float32")}
            jobs.append((name, operator_model(data, weight, groups, stride), feed))
    if args.build:
        target = parse_target(args.target)
        for name, model, _ in jobs:
            build(name, model, target, job)
    for name, _, feed in jobs if args.time else []:
        row = measure(name, feed, job, args.note)
        rows = merge_rows(args.out, [row], ["name"])
        write_json(args.out, {"machine": describe(), "rows": rows})
        write_text(args.out.with_suffix(".md"), render(rows))
        ours = row["strategies"]
        print(row["name"], {k: f"{v['ratio']:.2f}" for k, v in ours.items()}, flush=True)


if __name__ == "__main__":
    main()
