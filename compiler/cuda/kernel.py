"""A kernel for the GPU as text, with everything that starting it needs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from tilewright.compiler.cuda.ctext import STORED
from tilewright.compiler.cuda.parts import Part
from tilewright.compiler.schedule.analysis import Axis

_MAX_GRID = 65535


@dataclass(frozen=True)
class Kernel:
    """One launch of a generated kernel.

    Attributes:
        name: of the function in the cubin.
        source: CUDA C of the function, without the prelude.
        grid: blocks in x, y and z.
        threads: of a block, all in x.
        shared_bytes: dynamic shared memory of a block.
        schedule: what it is, for people: "gemm fp32 128x128x16", "rows 256".
    """

    name: str
    source: str
    grid: tuple[int, int, int]
    threads: int
    shared_bytes: int
    schedule: str


def head(name: str, threads: int, reads: Sequence[Any], writes: Sequence[Any]) -> str:
    """Return the head of a kernel: pointers in0, in1, .. to what it reads, out0, .. to the rest."""
    pointers = [
        f"const {STORED[str(buffer.dtype)]} *__restrict__ in{index}"
        for index, buffer in enumerate(reads)
    ]
    pointers += [
        f"{STORED[str(buffer.dtype)]} *__restrict__ out{index}"
        for index, buffer in enumerate(writes)
    ]
    return f"TW_GLOBAL({threads}) {name}({', '.join(pointers)})"


def signature(name: str, threads: int, part: Part) -> str:
    """Return the head of a part's kernel; `buffer_names` has the names of its pointers."""
    return head(name, threads, part.reads, part.writes)


def buffer_names(part: Part) -> dict[Any, str]:
    """Return a C name for every buffer of a part."""
    named = {buffer: f"in{index}" for index, buffer in enumerate(part.reads)}
    return named | {buffer: f"out{index}" for index, buffer in enumerate(part.writes)}


def decompose(index: str, axes: Sequence[Axis], prefix: str) -> tuple[list[str], dict[Any, str]]:
    """Return C statements that cut a flat index into axes (row-major), and the axes' names."""
    lines, names, inner = [], {}, 1
    for position in range(len(axes) - 1, -1, -1):
        axis = axes[position]
        text = index if inner == 1 else f"{index} / {inner}"
        if position > 0:
            text = f"({text}) % {axis.extent}"
        if axis.extent == 1:
            text = "0"
        lines.append(f"const int {prefix}{position} = {text};")
        names[axis.var] = f"{prefix}{position}"
        inner *= axis.extent
    return lines[::-1], names


def block(lines: Sequence[str]) -> str:
    """Return lines as text, indented by their braces."""
    depth, text = 0, []
    for line in lines:
        closing = line.startswith("}")
        text.append("  " * max(0, depth - closing) + line)
        depth += line.count("{") - line.count("}")
    return "\n".join(text) + "\n"
