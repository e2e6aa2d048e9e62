"""Cycles of inner loops in LLVM's models of processors, by llvm-mca.

These are not times: llvm-mca counts the cycles of a loop with every load a hit in the first cache
level, as https://llvm.org/docs/CommandGuide/llvm-mca.html describes.
"""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from tilewright.errors import TargetError

_MULTIPLY_ADD = re.compile(
    r"\s(fmla|sdot|udot|usdot|sudot|smmla|usmmla|smlal2?|umlal2?|sadalp)\s+(v\d+)"
)
_BRANCH = re.compile(r"\s+(?:b|b\.\w+|cbn?z\s+\w+,|tbn?z\s+\w+, #\d+,)\s+(\.\w+)$")
_LABEL = re.compile(r"(\.\w+):")
_ITERATIONS = 200
# Old releases lack the models of newer processors, so the newest is taken.
_VERSIONS = range(30, 13, -1)
_SHOWN_ERROR_CHARS = 300


@dataclass(frozen=True)
class Loop:
    """An innermost loop of aarch64 machine code.

    Attributes:
        lines: its instructions.
        multiply_adds: how many of them are vector multiply-adds or dot products.
        accumulators: how many registers these sum into.
        spills: how many read or write the stack.
    """

    lines: tuple[str, ...]
    multiply_adds: int
    accumulators: int
    spills: int

    @property
    def kinds(self) -> tuple[str, ...]:
        """The name of each multiply-add."""
        return tuple(m.group(1) for line in self.lines if (m := _MULTIPLY_ADD.search(line)))


def hottest_loop(text: str) -> Loop:
    """Return the innermost loop of the largest register tile of an assembly text.

    Raises:
        ValueError: the code has no loop.
    """
    loops = sorted(innermost_loops(text), key=lambda loop: (loop.accumulators, loop.multiply_adds))
    if not loops:
        raise ValueError("the code has no loop")
    return loops[-1]


def innermost_loops(text: str) -> Iterator[Loop]:
    """Yield the loops of an assembly text for ARM that hold no other loop."""
    for body in innermost_bodies(text, _BRANCH):
        code = tuple(other for other in body if other.startswith("\t") and "\t." not in other[:2])
        found = [m for other in code if (m := _MULTIPLY_ADD.search(other))]
        yield Loop(
            code,
            len(found),
            len({m.group(2) for m in found}),
            sum("[sp" in other for other in code),
        )


def innermost_bodies(text: str, branches: re.Pattern[str]) -> Iterator[list[str]]:
    """Yield the lines of each loop of an assembly text that holds no other loop.

    Args:
        text: of one or several functions.
        branches: what a line that branches matches; its first group is the label.
    """
    lines = text.splitlines()
    labels = {m.group(1): i for i, line in enumerate(lines) if (m := _LABEL.match(line))}
    for end, line in enumerate(lines):
        branch = branches.match(line)
        start = labels.get(branch.group(1), end) if branch else end
        body = lines[start + 1 : end + 1]
        if start < end and not any(_LABEL.match(other) for other in body):
            yield body


def find_mca() -> str:
    """Return the command of the newest llvm-mca.

    Raises:
        TargetError: there is none.
    """
    for name in (*(f"llvm-mca-{version}" for version in _VERSIONS), "llvm-mca"):
        if shutil.which(name):
            return name
    raise TargetError("llvm-mca not found; install Debian's package llvm-19 or newer")


def mca_version() -> str:
    """Return the name and version of llvm-mca.

    Raises:
        TargetError: there is none.
    """
    done = subprocess.run([find_mca(), "--version"], capture_output=True, text=True, check=True)
    found = re.search(r"LLVM version (\d+)", done.stdout)
    return f"llvm-mca {found.group(1)}" if found else "llvm-mca"


def cycles(lines: Sequence[str], processor: str, triple: str = "aarch64") -> float:
    """Return the modelled cycles of one round of a loop.

    Args:
        lines: its instructions, as the assembler of the triple reads them.
        processor: its name in LLVM.
        triple: architecture of the instructions.

    Raises:
        TargetError: there is no llvm-mca, or it has no model of the processor.
    """
    command = [find_mca(), f"-mtriple={triple}", f"-mcpu={processor}", f"-iterations={_ITERATIONS}"]
    done = subprocess.run(
        command, input="\n".join(lines) + "\n", capture_output=True, text=True, check=False
    )
    found = re.search(r"Total Cycles:\s+(\d+)", done.stdout)
    if found is None:
        text = done.stderr.strip()[:_SHOWN_ERROR_CHARS]
        raise TargetError(f"llvm-mca cannot model {processor}: {text}")
    return int(found.group(1)) / _ITERATIONS


def bound(loop: Loop, processor: str) -> float:
    """Return the modelled cycles of the multiply-adds of a loop alone, all independent."""
    total = 0.0
    for kind in set(loop.kinds):
        sources = {
            "fmla": "v30.4s, v31.4s",
            "smlal": "v30.4h, v31.4h",
            "umlal": "v30.4h, v31.4h",
            "smlal2": "v30.8h, v31.8h",
            "umlal2": "v30.8h, v31.8h",
            "sudot": "v30.16b, v31.4b[0]",
            "sadalp": "v30.8h",
        }.get(kind, "v30.16b, v31.16b")
        alone = [f"\t{kind}\tv{i}.4s, {sources}" for i in range(24)]
        total += cycles(alone, processor) / len(alone) * loop.kinds.count(kind)
    return total
