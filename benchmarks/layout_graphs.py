"""What choosing layouts costs and leaves: every model's graph, solved, and its conversions.

    python -m benchmarks.layout_graphs [--models resnet18,...]

For each model, compiled as `tilewright compile` does without logs: how many operators and layout
choices its graph has, the processor time to price the choices and to find the best assignment,
whether that is proven, and the conversions that are left to execute beside its inputs and outputs.
Writes benchmarks/results/layout_graphs.md and .json.
"""

from __future__ import annotations

import argparse
import time

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
from tilewright.compiler.layout.strategies import LayoutProblem, assign_globally
from tilewright.compiler.pipeline import fuse
from tilewright.compiler.program import TensorSpec
from tilewright.compiler.targets import Target, parse_target
from tilewright.frontends.onnx import import_onnx


def measure(name: str, target: Target) -> dict:
    """Return the row of one model."""
    imported = import_onnx(zoo.load(name))
    specs = [
        [TensorSpec(spec.name, spec.shape, spec.dtype) for spec in side]
        for side in (imported.inputs, imported.outputs)
    ]
    program = fuse(imported.module, *specs, target)
    row: dict = {"name": name, "inputs": len(program.inputs), "outputs": len(program.outputs)}

    def timed(problem: LayoutProblem) -> tuple[list[int], bool]:
        start = time.process_time()
        result = assign_globally(problem)
        row["solve_s"] = time.process_time() - start
        row["operators"] = len(problem.tables)
        row["choices"] = sum(map(len, problem.tables))
        row["edges"] = len(problem.edges)
        return result

    start = time.process_time()
    plan = choose_layouts(program, target, strategy=timed)
    row["pricing_s"] = time.process_time() - start - row["solve_s"]
    row["proven"] = plan.proven
    row["estimated_s"] = plan.seconds
    row["conversions"] = [
        {
            "tensor": conversion.tensor,
            "from": str(conversion.before),
            "to": str(conversion.after),
            "seconds": conversion.seconds,
        }
        for conversion in apply_layouts(program, plan)[1]
    ]
    return row


def render(rows: list[dict]) -> str:
    """Return the Markdown page."""
    header = ["", "operators", "choices", "edges", "pricing, s", "solving, s", "proven"]
    header += ["inputs + outputs", "conversions executed"]
    table = [
        [
            row["name"],
            str(row["operators"]),
            str(row["choices"]),
            str(row["edges"]),
            f"{row['pricing_s']:.2f}",
            f"{row['solve_s']:.2f}",
            "yes" if row["proven"] else "no",
            f"{row['inputs']} + {row['outputs']}",
            str(len(row["conversions"])),
        ]
        for row in rows
    ]
    text = f"# Graphs of layouts\n\n{__doc__.split(chr(10), 4)[4].strip()}\n\n"
    text += markdown_table(header, table) + "\n"
    for row in rows:
        for conversion in row["conversions"]:
            share = conversion["seconds"] / row["estimated_s"]
            text += (
                f"- {row['name']}: `{conversion['tensor']}` from `{conversion['from']}` to "
                f"`{conversion['to']}`, {share:.1%} of the estimated time\n"
            )
    return text + "\n" + markdown_machine(describe())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--models", default=",".join(zoo.NAMES))
    parser.add_argument("--target", default="native")
    args = parser.parse_args()
    target = parse_target(args.target)
    path = RESULTS / "layout_graphs.json"
    for name in args.models.split(","):
        row = measure(name, target)
        rows = merge_rows(path, [row], ["name"])
        write_json(path, {"machine": describe(), "rows": rows})
        write_text(path.with_suffix(".md"), render(rows))
        solved = f"{row['solve_s']:.2f} s{'' if row['proven'] else ', not proven'}"
        print(name, solved, len(row["conversions"]), "conversions", flush=True)


if __name__ == "__main__":
    main()
