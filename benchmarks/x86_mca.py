"""How close int8 inner loops come to the bound of x86 processors, by llvm-mca.

    python -m benchmarks.x86_mca [--output benchmarks/results/x86_mca.md]

For processors that are not at hand: these are not times. llvm-mca counts the cycles of a loop in
LLVM's model of a processor, with every load a hit in the first cache level. The bound is what the
same model gives for the multiply-adds of the loop alone, all independent: vpdpbusd, or without VNNI
vpmaddwd and an add. LLVM's model of Zen 4 lets a broadcast from memory take a vector pipe; on Zen 5
the same loops were measured at the peak of vpdpbusd.
"""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from benchmarks.arm_mca import OPERATORS, Row
from benchmarks.report import markdown_table
from tilewright.compiler.codegen import assembly
from tilewright.compiler.pipeline import lower
from tilewright.compiler.targets import Target, parse_target
from tilewright.frontends.onnx import import_onnx
from tilewright.tuner.device.mca import Loop, cycles, innermost_bodies, mca_version

PROCESSORS = ("cascadelake", "icelake-server", "sapphirerapids", "znver4", "skylake-avx512")
_DOT, _PAIRS = "vpdpbusd", "vpmaddwd"
_MULTIPLY_ADD = re.compile(rf"\t({_DOT}|{_PAIRS})\s.*%([xyz]mm\d+)$")
_BRANCH = re.compile(r"\tj\w+\s+(\.\w+)$")


class ByteLoop(Loop):
    """An innermost loop of x86-64 machine code; spills are those of vectors."""

    @property
    def kinds(self) -> tuple[str, ...]:
        """The name of each multiply-add."""
        return tuple(m.group(1) for line in self.lines if (m := _MULTIPLY_ADD.match(line)))


def loops(text: str) -> Iterator[ByteLoop]:
    """Yield the innermost loops of an assembly text that multiply bytes."""
    for body in innermost_bodies(text, _BRANCH):
        # Comments follow the code of some lines.
        code = tuple(other.split("#")[0].rstrip() for other in body if re.match(r"\t[a-z]", other))
        found = [m for other in code if (m := _MULTIPLY_ADD.match(other))]
        if found:
            spills = sum("(%rsp" in other and "mm" in other for other in code)
            yield ByteLoop(code, len(found), len({m.group(2) for m in found}), spills)


def bound(loop: Loop, target: Target) -> float:
    """Return the modelled cycles of the multiply-adds of a loop alone, all independent."""
    letter = "z" if target.vector_bits == 512 else "y"
    kind, registers = loop.kinds[0], range(12)
    alone = [f"\t{kind}\t%{letter}mm14, %{letter}mm15, %{letter}mm{i}" for i in registers]
    if kind == _PAIRS:
        alone += [f"\tvpaddd\t%{letter}mm13, %{letter}mm{i}, %{letter}mm{i}" for i in registers]
    return cycles(alone, target.mcpu, "x86_64") / len(registers) * loop.multiply_adds


def measure(operator: str, processor: str) -> Row:
    """Build one operator for one processor and model the loop of its largest register tile."""
    target = parse_target(processor)
    model = import_onnx(OPERATORS[operator])
    lowered = lower(model.module, model.inputs, model.outputs, target, winograd=False)
    found = list(loops(assembly(lowered.program.kernels, target)))
    loop = max(found, key=lambda each: (each.multiply_adds, each.accumulators))
    return Row(
        operator, processor, loop, cycles(loop.lines, target.mcpu, "x86_64"), bound(loop, target)
    )


def render(rows: Sequence[Row]) -> str:
    """Return the Markdown page."""
    header = ["operator", "processor", "multiply-adds", "instructions", "spills", "cycles"]
    cells = [
        [
            row.operator,
            row.processor,
            f"{row.loop.multiply_adds} {row.loop.kinds[0]}",
            str(len(row.loop.lines)),
            str(row.loop.spills),
            f"{row.cycles:.1f}",
            f"{row.share:.0%}",
        ]
        for row in rows
    ]
    table = markdown_table([*header, "of the bound"], cells)
    return (
        f"# Int8 inner loops on x86, by a model ({mca_version()})\n\n"
        f"{__doc__.split(chr(10), 4)[4]}\n{table}"
    )


def main() -> int:
    """Print the table; 1 where a loop spills."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--processors", default=",".join(PROCESSORS))
    parser.add_argument("--output", type=Path, help="also write it to a file")
    options = parser.parse_args()
    rows = [
        measure(operator, processor)
        for operator in OPERATORS
        if operator.endswith("int8")
        for processor in options.processors.split(",")
    ]
    text = render(rows)
    print(text, end="")
    if options.output is not None:
        options.output.write_text(text)
    return int(any(row.loop.spills for row in rows))


if __name__ == "__main__":
    sys.exit(main())
