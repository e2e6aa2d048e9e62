"""The instructions that kernels spend their time in, read from a module with objdump.

A kernel's code is its own function and the bodies of its parallel loops, whose addresses it loads.
Its inner loop is taken to be the innermost loop with most vector arithmetic.
"""

from __future__ import annotations

import re
import shutil
import subprocess
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

_PREFIX = "tw_kernel_"
_SHOWN = 4
_SYMBOL = re.compile(r"^([0-9a-f]+) <([^>]+)>:$")
_LINE = re.compile(r"^\s*([0-9a-f]+):\s+(\S+)\s*(.*)$")
_ADDRESS = re.compile(r"# ([0-9a-f]+) <|^([0-9a-f]+) <")
_REGISTER = re.compile(r"%?([xyz]mm)\d")
_MULTIPLY_ADD = ("vfm", "vfnm", "vpdp", "fmla", "fmls", "sdot", "udot")


@dataclass(frozen=True, slots=True)
class _Instruction:
    address: int
    name: str
    operands: str

    @property
    def target(self) -> int | None:
        """The address that it jumps to or loads."""
        found = _ADDRESS.search(self.operands)
        return None if found is None else int(found[1] or found[2], 16)

    @property
    def text(self) -> str:
        """Name with the width of the vectors: `vfmadd231ps zmm`."""
        registers = _REGISTER.findall(self.operands)
        return f"{self.name} {registers[-1]}" if registers else self.name


def inner_loops(path: Path) -> dict[str, str] | None:
    """Return, per kernel, the most frequent instructions of its inner loop.

    Returns:
        Text such as "24 vfmadd231ps zmm, 4 vmovups zmm"; None where there is no objdump, or where
        it does not know the module's processor.
    """
    tool = shutil.which("objdump") or shutil.which("llvm-objdump")
    if tool is None:
        return None
    command = [tool, "-d", "--no-show-raw-insn", str(path)]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    if result.returncode:
        return None
    code, symbols = _parse(result.stdout)
    starts = sorted({*symbols, *_loaded_code(code)})
    ends = dict(zip(starts, [*starts[1:], 1 << 62], strict=True))
    places = {instruction.address: i for i, instruction in enumerate(code)}
    found = {}
    for start, name in symbols.items():
        if name.startswith(_PREFIX):
            bodies = _bodies(code, places, start, ends)
            found[name.removeprefix(_PREFIX)] = _describe(_inner_loop(bodies))
    return found


def _parse(text: str) -> tuple[list[_Instruction], dict[int, str]]:
    code, symbols = [], {}
    for line in text.splitlines():
        instruction = _LINE.match(line)
        if instruction is not None:
            code.append(_Instruction(int(instruction[1], 16), instruction[2], instruction[3]))
            continue
        symbol = _SYMBOL.match(line)
        if symbol is not None:
            symbols[int(symbol[1], 16)] = symbol[2]
    return code, symbols


def _loaded_code(code: list[_Instruction]) -> set[int]:
    """Return addresses inside the code that an instruction loads: the bodies of parallel loops."""
    known = {instruction.address for instruction in code}
    loaded = {i.target for i in code if i.name in ("lea", "leaq", "adr")}
    return {address for address in loaded if address in known}


def _bodies(
    code: list[_Instruction], places: dict[int, int], start: int, ends: dict[int, int]
) -> list[list[_Instruction]]:
    """Return the code of a kernel, and that of its parallel loops."""
    bodies, pending, seen = [], [start], set()
    while pending:
        first = pending.pop()
        if first in seen:
            continue
        seen.add(first)
        body = []
        for instruction in code[places[first] :]:
            if instruction.address >= ends[first]:
                break
            body.append(instruction)
            target = instruction.target
            if instruction.name in ("lea", "leaq", "adr") and target in ends and target in places:
                pending.append(target)
        bodies.append(body)
    return bodies


def _inner_loop(bodies: list[list[_Instruction]]) -> list[_Instruction]:
    """Return the innermost loop with most vector arithmetic, the shortest among equals."""
    best: list[_Instruction] = []
    for body in bodies:
        for loop in _innermost(body):
            if _weight(loop) > _weight(best):
                best = loop
    return best


def _innermost(body: list[_Instruction]) -> list[list[_Instruction]]:
    """Return loops (from a jump's target back to the jump) that hold no other loop."""
    places = {instruction.address: i for i, instruction in enumerate(body)}
    spans = [
        (places[i.target], at)
        for at, i in enumerate(body)
        if i.name.startswith(("j", "b")) and i.target in places and places[i.target] <= at
    ]
    inner = [
        span
        for span in spans
        if not any(o != span and span[0] <= o[0] and o[1] <= span[1] for o in spans)
    ]
    return [body[first : last + 1] for first, last in inner]


def _weight(loop: list[_Instruction]) -> tuple[int, int]:
    fused = sum(1 for i in loop if i.name.startswith(_MULTIPLY_ADD))
    return fused, sum(1 for i in loop if i.name.startswith("v"))


def _describe(loop: list[_Instruction]) -> str:
    counts = Counter(i.text for i in loop if i.name.startswith("v") or _REGISTER.search(i.operands))
    return ", ".join(f"{count} {text}" for text, count in counts.most_common(_SHOWN))
