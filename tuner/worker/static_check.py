"""Look at a candidate's machine code before it is timed: what is clearly bad need not run."""

from __future__ import annotations

from pathlib import Path

from tilewright.compiler.disassembly import Instruction, inner_loop, kernel_bodies
from tilewright.compiler.targets import Target

_STACK = "(%rsp"
_VECTOR = {256: "%ymm", 512: "%zmm"}
# Accesses of the stack in the inner loop for each multiply-add. A core loads twice while it
# multiplies and adds twice, so a few spills cost little (0.6 were measured at 90% of peak).
_MOST_SPILLS = 1.0


def rejection(path: Path, kernel: str, target: Target) -> str:
    """Return why a contraction's kernel is not worth timing, or "".

    Its inner loop must multiply and add vectors of the target's width, and keep its accumulators in
    registers. Nothing is rejected where the code cannot be read: no objdump, or another processor.
    """
    if target.architecture != "x86_64":
        return ""
    bodies = (kernel_bodies(path) or {}).get(kernel, [])
    loop = inner_loop(bodies)
    arithmetic = [i for i in loop if i.multiplies_and_adds]
    wide = _VECTOR[target.vector_bits]
    if not any(wide in instruction.operands for instruction in arithmetic):
        everything = [i for body in bodies for i in body if i.multiplies_and_adds]
        if not arithmetic or 2 * sum(wide in i.operands for i in everything) > len(everything):
            return ""  # the tile is written out: the loop found is another one
        return f"its inner loop multiplies no {target.vector_bits}-bit vectors"
    spills = sum(1 for instruction in loop if _spills(instruction))
    if spills > _MOST_SPILLS * len(arithmetic):
        return (
            f"spills registers: {spills} accesses of the stack for {len(arithmetic)} "
            "multiply-adds in its inner loop"
        )
    return ""


def _spills(instruction: Instruction) -> bool:
    operands = instruction.operands
    return _STACK in operands and ("mm" in operands) and instruction.name.startswith("v")
