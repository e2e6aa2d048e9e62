"""The instructions that kernels spend their time in, as text for people."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

from tilewright.compiler import disassembly
from tilewright.compiler.disassembly import REGISTER, Instruction

_SHOWN = 4


def inner_loops(path: Path) -> dict[str, str] | None:
    """Return, per kernel, the most frequent instructions of its inner loop.

    Returns:
        Text such as "24 vfmadd231ps zmm, 4 vmovups zmm"; None where `disassembly` has none.
    """
    found = disassembly.inner_loops(path)
    return None if found is None else {name: _describe(loop) for name, loop in found.items()}


def _describe(loop: list[Instruction]) -> str:
    counts = Counter(i.text for i in loop if i.name.startswith("v") or REGISTER.search(i.operands))
    return ", ".join(f"{count} {text}" for text, count in counts.most_common(_SHOWN))
