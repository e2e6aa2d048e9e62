"""The instructions of compiled kernels, read with objdump: what they spend their time in.

A kernel's code is its own function and the bodies of its parallel loops, whose addresses it loads.
Its inner loop is taken to be the innermost loop with most vector arithmetic.
"""

from __future__ import annotations

import re
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

_PREFIX = "tw_kernel_"
_SYMBOL = re.compile(r"^([0-9a-f]+) <([^>]+)>:$")
_LINE = re.compile(r"^\s*([0-9a-f]+):\s+(\S+)\s*(.*)$")
_ADDRESS = re.compile(r"# ([0-9a-f]+) <|^([0-9a-f]+) <")
REGISTER = re.compile(r"%?([xyz]mm)\d")
_MULTIPLY_ADD = ("vfm", "vfnm", "vpdp", "fmla", "fmls", "sdot", "udot")


@dataclass(frozen=True, slots=True)
class Instruction:
    """One instruction as objdump prints it."""

    address: int
    name: str
    operands: str

    @property
    def target(self) -> int | None:
        """The address that it jumps to or loads."""
        found = _ADDRESS.search(self.operands)
        return None if found is None else int(found[1] or found[2], 16)

    @property
    def multiplies_and_adds(self) -> bool:
        """Whether it is a vector multiply-add or dot product."""
        return self.name.startswith(_MULTIPLY_ADD)

    @property
    def text(self) -> str:
        """Name with the width of the vectors: `vfmadd231ps zmm`."""
        registers = REGISTER.findall(self.operands)
        return f"{self.name} {registers[-1]}" if registers else self.name


def inner_loops(path: Path) -> dict[str, list[Instruction]] | None:
    """Return the inner loop of every kernel of a shared object, by the kernel's name.

    Returns:
        None where `kernel_bodies` is. A kernel without a loop has an empty list.
    """
    kernels = kernel_bodies(path)
    if kernels is None:
        return None
    return {name: inner_loop(bodies) for name, bodies in kernels.items()}


def kernel_bodies(path: Path) -> dict[str, list[list[Instruction]]] | None:
    """Return the code of every kernel of a shared object, and that of its parallel loops, by name.

    Returns:
        None where there is no objdump, or where it does not know the object's processor.
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
    return {
        name.removeprefix(_PREFIX): _bodies(code, places, start, ends)
        for start, name in symbols.items()
        if name.startswith(_PREFIX)
    }


def _parse(text: str) -> tuple[list[Instruction], dict[int, str]]:
    code, symbols = [], {}
    for line in text.splitlines():
        instruction = _LINE.match(line)
        if instruction is not None:
            code.append(Instruction(int(instruction[1], 16), instruction[2], instruction[3]))
            continue
        symbol = _SYMBOL.match(line)
        if symbol is not None:
            symbols[int(symbol[1], 16)] = symbol[2]
    return code, symbols


def _loaded_code(code: list[Instruction]) -> set[int]:
    """Return addresses inside the code that an instruction loads: the bodies of parallel loops."""
    known = {instruction.address for instruction in code}
    loaded = {i.target for i in code if i.name in ("lea", "leaq", "adr")}
    return {address for address in loaded if address in known}


def _bodies(
    code: list[Instruction], places: dict[int, int], start: int, ends: dict[int, int]
) -> list[list[Instruction]]:
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


def inner_loop(bodies: list[list[Instruction]]) -> list[Instruction]:
    """Return the innermost loop with most vector arithmetic, the shortest among equals."""
    best: list[Instruction] = []
    for body in bodies:
        for loop in _innermost(body):
            if _weight(loop) > _weight(best):
                best = loop
    return best


def _innermost(body: list[Instruction]) -> list[list[Instruction]]:
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


def _weight(loop: list[Instruction]) -> tuple[int, int]:
    fused = sum(1 for i in loop if i.multiplies_and_adds)
    return fused, sum(1 for i in loop if i.name.startswith("v"))
