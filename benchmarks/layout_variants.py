"""Layouts that the search leaves out, and why: each against blocks of one vector, NCHWc.

    python -m benchmarks.layout_variants --build
    python -m benchmarks.layout_variants --time [--rounds 30]

A convolution of each kind with bias and ReLU, its data and its result in other layouts. Only the
operator's own kernel is timed, not the conversions around it; times are the time / that with NCHWc,
round by round on one thread, with 95% bootstrap intervals.

- rows: blocks inside of rows, N H C/8 W 8c, so that a pixel's channels are near each other.
- NHWC: channels last.
- pitch: NCHWc with one unused pixel behind each row and one row behind each image, against strides
  that are powers of two.
- border: NCHWc with the zero border of the convolution in memory, written by the producer; then no
  pad operator and no bounds check remains. The kernel writes such a border around its own result,
  as a producer has to.

Writes benchmarks/results/layout_variants.md and .json.
"""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path

import numpy as np

from benchmarks.layouts import operator_model
from benchmarks.machine import describe
from benchmarks.report import RESULTS, markdown_machine, markdown_table, write_json, write_text
from tilewright.compiler.layout.choices import operator_choices
from tilewright.compiler.layout.formats import format_of
from tilewright.compiler.layout.primitives import Layout, Pad, Primitive, Reorder
from tilewright.compiler.layout.propagation import LayoutPlan, apply_layouts, operators_of
from tilewright.compiler.package import package
from tilewright.compiler.pipeline import fuse, schedule_kernels
from tilewright.compiler.program import TensorSpec
from tilewright.compiler.targets import Target, parse_target
from tilewright.frontends.onnx import import_onnx
from tilewright.runtime.benchmark import compare, summarize
from tilewright.runtime.module import Module

REFERENCE = "NCHWc"
# Applied to the physical dimensions N C/8 H W 8c of both images.
VARIANTS: dict[str, tuple[Primitive, ...]] = {
    REFERENCE: (),
    "rows": (Reorder((0, 2, 1, 3, 4)),),
    "pitch": (Pad(2, 0, 1), Pad(3, 0, 1)),
    "border": (Pad(2, 1, 1), Pad(3, 1, 1)),
}
NAMES = (*VARIANTS, "NHWC")
# (name, data shape, weight shape, groups): stride 1.
OPERATORS = (
    ("C2D 1x1 144 to 24, 56 x 56", (1, 144, 56, 56), (24, 144, 1, 1), 1),
    ("C2D 1x1 224 to 128, 56 x 56", (1, 224, 56, 56), (128, 224, 1, 1), 1),
    ("C2D 3x3 64, 56 x 56", (1, 64, 56, 56), (64, 64, 3, 3), 1),
    ("C2D 3x3 256, 14 x 14", (1, 256, 14, 14), (256, 256, 3, 3), 1),
    ("C2D 3x3 64, 128 x 128", (1, 64, 128, 128), (64, 64, 3, 3), 1),
    ("DEP 3x3 144, 56 x 56", (1, 144, 56, 56), (144, 1, 3, 3), 144),
)


def build(folder: Path, target: Target) -> None:
    """Compile every operator in every layout."""
    folder.mkdir(parents=True, exist_ok=True)
    for number, (_, data, weight, groups) in enumerate(OPERATORS):
        imported = import_onnx(operator_model(data, weight, groups, 1))
        specs = [
            [TensorSpec(spec.name, spec.shape, spec.dtype) for spec in side]
            for side in (imported.inputs, imported.outputs)
        ]
        program = fuse(imported.module, *specs, target, winograd=False)
        (operator,) = operators_of(program, target)
        found = {choice.name: choice for choice in operator_choices(operator, target)}
        images = (0, operator.output)
        for name in NAMES:
            choice = found["C -> C" if name == "NHWC" else "B -> B"]
            layouts: list[Layout] = list(choice.layouts)
            for position in images:
                assert format_of(layouts[position]) != "L"
                layouts[position] = layouts[position].then(*VARIANTS.get(name, ()))
            plan = LayoutPlan((replace(choice, layouts=tuple(layouts)),), 0.0, False)
            physical, _ = apply_layouts(program, plan)
            physical = replace(physical, kernels=schedule_kernels(physical.kernels, target))
            package(physical, target, folder / f"{number}-{name}.so", {})


def measure(folder: Path, number: int, rounds: int) -> dict:
    """Return the row of one operator."""
    name, data, _, _ = OPERATORS[number]
    feed = {"x": np.random.default_rng(0).standard_normal(data).astype("float32")}
    modules = {name: Module(folder / f"{number}-{name}.so", threads=1) for name in NAMES}
    results = {name: next(iter(module.run(feed).values())) for name, module in modules.items()}
    samples: dict[str, list[float]] = {name: [] for name in NAMES}
    for shift in range(rounds):
        for at in range(len(NAMES)):
            variant = NAMES[(at + shift) % len(NAMES)]
            modules[variant].run(feed)
            (seconds,) = (
                call.seconds
                for call in modules[variant].profile(feed)
                if not call.label.startswith("convert ")
            )
            samples[variant].append(seconds)
    row: dict = {"name": name, "variants": {}}
    for variant in NAMES:
        ratio = compare(samples[variant], samples[REFERENCE])
        error = np.abs(results[variant] - results[REFERENCE]).max() / results[REFERENCE].std()
        row["variants"][variant] = {
            "median_s": summarize(samples[variant]).median_s,
            "ratio": ratio.median,
            "interval": [ratio.low, ratio.high],
            "error": float(error),
        }
    return row


def render(rows: list[dict]) -> str:
    """Return the Markdown page."""
    others = [name for name in NAMES if name != REFERENCE]
    table = []
    for row in rows:
        cells = [row["name"], f"{row['variants'][REFERENCE]['median_s'] * 1e6:.0f}"]
        for name in others:
            facts = row["variants"][name]
            low, high = facts["interval"]
            cells.append(f"{facts['ratio']:.2f} [{low:.2f} .. {high:.2f}]")
        table.append(cells)
    text = f"# Other layouts\n\n{__doc__.split(chr(10), 5)[5].strip()}\n\n"
    text += markdown_table(["", f"{REFERENCE}, us", *others], table) + "\n"
    return text + markdown_machine(describe())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--build", action="store_true", help="compile every variant")
    parser.add_argument("--time", action="store_true", help="time what was compiled")
    parser.add_argument("--folder", type=Path, default=Path("build/layout_variants"))
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--target", default="native")
    args = parser.parse_args()
    if args.build:
        build(args.folder, parse_target(args.target))
    if args.time:
        rows = [measure(args.folder, number, args.rounds) for number in range(len(OPERATORS))]
        path = RESULTS / "layout_variants.json"
        write_json(path, {"machine": describe(), "rows": rows})
        write_text(path.with_suffix(".md"), render(rows))


if __name__ == "__main__":
    main()
