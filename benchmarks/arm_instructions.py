"""Instructions that operators execute on ARM for each multiply-add, counted by qemu.

    python -m benchmarks.arm_instructions [--output benchmarks/results/arm_instructions.md]

There is no board here, so these are counts, not times. A plugin of qemu-user
(`benchmarks/probes/qemu_count.c`) counts what a program executes that runs a module; the difference
between three runs and one is two runs, with padding, packing, loops and everything else.
"""

from __future__ import annotations

import argparse
import functools
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path

import onnx

from benchmarks.arm_mca import OPERATORS
from benchmarks.machine import commit
from benchmarks.qemu import BOARDS, HEADERS
from benchmarks.report import markdown_table, write_text
from tilewright.compiler.package import package
from tilewright.compiler.pipeline import lower
from tilewright.compiler.targets import parse_target
from tilewright.compiler.toolchain import find_c_compiler
from tilewright.frontends.onnx import import_onnx

TARGETS = {
    "float32": ("aarch64:cortex-a72", "armv7:cortex-a7"),
    "int8": (
        *("aarch64:cortex-a72", "aarch64:cortex-a76", "aarch64:neoverse-v1"),
        "armv7:cortex-a7",
    ),
}
_PROBES = Path(__file__).parent / "probes"
_HEAD = """\
# Instructions on ARM

Written by `python -m benchmarks.arm_instructions` at {commit}; counted by a plugin of qemu-user,
not times. Direct algorithms (no Winograd), untuned, one thread. Multiply-adds are those of the
operator; the instructions for them are fmla and vfma (4 each), vmlal (4), smull (8), sdot (16) and
usmmla (32).

"""


@dataclass(frozen=True)
class Row:
    """Counts of one run of an operator on a target.

    Attributes:
        multiply_adds: of the operator.
        counts: kind of instruction -> how many.
    """

    operator: str
    target: str
    multiply_adds: int
    counts: dict[str, int]

    @property
    def per_multiply_add(self) -> float:
        """Instructions for each multiply-add of the operator."""
        return sum(self.counts.values()) / self.multiply_adds

    @property
    def share(self) -> float:
        """Part of the instructions that multiply and add."""
        return self.counts["multiply_add"] / sum(self.counts.values())


@functools.cache
def plugin() -> Path:
    """Compile the plugin for this machine, once per process."""
    path = Path(tempfile.mkdtemp(prefix="tilewright-plugin-"), "qemu_count.so")
    flags = ("-shared", "-fPIC", "-O2")
    subprocess.run([*find_c_compiler(), *flags, _PROBES / "qemu_count.c", "-o", path], check=True)
    return path


@functools.cache
def _program(architecture: str) -> Path:
    path = Path(tempfile.mkdtemp(prefix="tilewright-runner-"), "run_times")
    flags = ("-O1", "-D_GNU_SOURCE", f"-I{HEADERS}", "-ldl", "-pthread")
    source = _PROBES / "run_times.c"
    subprocess.run([*find_c_compiler(architecture), source, *flags, "-o", path], check=True)
    return path


def count(module: Path, target: str) -> dict[str, int]:
    """Return what one run of a module executes: kind of instruction -> how many."""
    once, thrice = (_count(module, target, times) for times in (1, 3))
    return {kind: (thrice[kind] - once[kind]) // 2 for kind in once}


def _count(module: Path, target: str, times: int) -> dict[str, int]:
    board = BOARDS[target]
    with tempfile.TemporaryDirectory(prefix="tilewright-count-") as name:
        folder = Path(name)
        options = ("-d", "plugin", "-D", folder / "counts", "-plugin", plugin())
        program = (_program(board.architecture), module.absolute(), times)
        done = board.execute([*options, *program], folder)
        if done.returncode:
            raise RuntimeError(f"status {done.returncode}: {done.stderr[-2000:]}")
        lines = (folder / "counts").read_text().splitlines()
    return {kind: int(number) for kind, number in (line.split() for line in lines)}


def measure(operator: str, target: str) -> Row:
    """Build one operator for a target and count what a run of it executes."""
    description = parse_target(target)
    model = OPERATORS[operator]
    imported = import_onnx(model)
    lowered = lower(imported.module, imported.inputs, imported.outputs, description, winograd=False)
    with tempfile.TemporaryDirectory(prefix="tilewright-count-") as folder:
        path = Path(folder, "model.so")
        package(lowered.program, description, path, {})
        return Row(operator, target, _multiply_adds(model), count(path, target))


def _multiply_adds(model: onnx.ModelProto) -> int:
    graph = model.graph
    weight = next(item for item in graph.initializer if item.name == "w")
    out = [dim.dim_value for dim in graph.output[0].type.tensor_type.shape.dim]
    return prod(weight.dims) * (prod(out[2:]) if len(out) == 4 else prod(out[:-1]))


def table(rows: Sequence[Row]) -> str:
    """Return rows as a Markdown table."""
    head = ["operator", "target", "instructions", "for a multiply-add", "multiply and add"]
    cells = [
        [
            *(row.operator, row.target, f"{sum(row.counts.values()):,}"),
            *(f"{row.per_multiply_add:.4f}", f"{row.share:.0%}"),
            *(f"{row.counts[kind] / sum(row.counts.values()):.0%}" for kind in ("load", "store")),
        ]
        for row in rows
    ]
    return markdown_table([*head, "load", "store"], cells)


def main() -> int:
    """Count, print and write the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--output", type=Path, help="also write it to a file")
    options = parser.parse_args()
    rows = [
        measure(name, target)
        for name in OPERATORS
        for target in TARGETS["int8" if name.endswith("int8") else "float32"]
    ]
    text = _HEAD.format(commit=commit()) + table(rows)
    print(text, end="")
    if options.output is not None:
        write_text(options.output, text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
