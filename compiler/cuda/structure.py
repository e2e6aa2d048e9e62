"""What nvcc made of kernels: registers, memory and instructions, read from the machine code."""

from __future__ import annotations

import os
import re
import subprocess
import tempfile
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from tilewright.compiler.cuda.nvcc import find_tool
from tilewright.errors import TargetError

_FUNCTION = re.compile(r"^\s*Function (?P<name>\S+):$")
_USAGE = re.compile(r"REG:(?P<registers>\d+) STACK:(?P<stack>\d+) .*?LOCAL:(?P<local>\d+)")
_CODE = re.compile(r"^\s*Function : (?P<name>\S+)$")
_INSTRUCTION = re.compile(r"^\s*/\*[0-9a-f]{4,}\*/\s+(?:@!?U?P\w+\s+)?(?P<name>[A-Z][A-Z0-9_]*)")
_SPILLS = ("LDL", "STL")
# Instructions of one warp, and of four together.
_FLOATS, _BYTES = ("HMMA", "HGMMA"), ("IMMA", "IGMMA")
_MATRIX_UNITS = {"fp16": _FLOATS, "bf16": _FLOATS, "tf32": _FLOATS, "int8": _BYTES}


@dataclass(frozen=True)
class CodeUse:
    """One kernel's machine code.

    Attributes:
        registers: of a thread.
        stack_bytes, local_bytes: of a thread, in device memory: arrays that registers cannot hold.
        instructions: mnemonic without modifiers -> how many are in the code.
    """

    registers: int
    stack_bytes: int
    local_bytes: int
    instructions: Mapping[str, int]

    @property
    def spills(self) -> int:
        """Instructions that read or write local memory."""
        return sum(self.instructions.get(name, 0) for name in _SPILLS)

    def matrix_instructions(self, precision: str) -> int:
        """Return how many instructions run on tensor cores in a precision."""
        return sum(self.instructions.get(name, 0) for name in _MATRIX_UNITS[precision])


def read_code(image: bytes) -> dict[str, CodeUse]:
    """Return what a fat binary's kernels use, by name.

    Raises:
        TargetError: cuobjdump or nvdisasm is not installed, or cannot read the code.
    """
    with tempfile.TemporaryDirectory(prefix="tilewright-") as folder:
        path = Path(folder, "kernels.fatbin")
        path.write_bytes(image)
        usage, code = _cuobjdump("-res-usage", path), _cuobjdump("-sass", path)
    instructions = _count(code)
    found: dict[str, CodeUse] = {}
    name = ""
    for line in usage.splitlines():
        function, numbers = _FUNCTION.match(line), _USAGE.search(line)
        if function:
            name = function["name"]
        elif numbers and name in instructions:
            registers, stack, local = (int(numbers[k]) for k in ("registers", "stack", "local"))
            found[name] = CodeUse(registers, stack, local, instructions[name])
    return found


def _count(code: str) -> dict[str, Counter[str]]:
    counts: dict[str, Counter[str]] = {}
    current: Counter[str] = Counter()
    for line in code.splitlines():
        function = _CODE.match(line)
        if function:
            current = counts.setdefault(function["name"], Counter())
            continue
        instruction = _INSTRUCTION.match(line)
        if instruction:
            current[instruction["name"]] += 1
    return counts


def _cuobjdump(option: str, path: Path) -> str:
    tool = find_tool("cuobjdump")
    if tool is None or find_tool("nvdisasm") is None:
        raise TargetError(
            "no cuobjdump and nvdisasm found, which read the machine code of GPUs; "
            "run: pip install 'tilewright[cuda]'"
        )
    disassembler = find_tool("nvdisasm")
    assert disassembler is not None
    search = os.pathsep.join([str(disassembler.parent), os.environ.get("PATH", "")])
    done = subprocess.run(
        [str(tool), option, str(path)],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "PATH": search},
    )
    if done.returncode != 0:
        raise TargetError(
            f"cuobjdump {option} failed: {(done.stderr or done.stdout).strip()[:500]}"
        )
    return done.stdout
