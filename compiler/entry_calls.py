"""C expressions that call kernels and regions over the addresses of a memory plan."""

from __future__ import annotations

from tilewright.compiler.codegen import KERNEL_PREFIX
from tilewright.compiler.memory import Location, MemoryPlan
from tilewright.compiler.program import Program

REGION_PREFIX = "tw_region_"

_SPACES = {"input": "inputs", "output": "outputs"}


def calls(program: Program, plan: MemoryPlan) -> list[str]:
    """Return an expression per call, which is nonzero where the call fails."""
    texts = []
    for index, call in enumerate(program.calls):
        arguments = [address(plan.locations[tensor_id]) for tensor_id in call.args]
        if call.kernel in program.regions:
            pointers = ", ".join(f"(void *)({text})" for text in arguments)
            workspace = f"arena + {plan.workspaces[index]}u"
            listed = f"((void *const[]){{{pointers}}})"
            texts.append(f"{REGION_PREFIX}{call.kernel}(frame, {workspace}, {listed})")
        else:
            texts.append(f"{KERNEL_PREFIX}{call.kernel}({', '.join(arguments)})")
    return texts


def copies(program: Program, plan: MemoryPlan) -> list[str]:
    """Return the statements that copy results to the caller which are not written in place."""
    return [
        f"  memcpy(outputs[{output}], {address(plan.locations[tensor_id])}, "
        f"{program.tensors[tensor_id].size_bytes}u);"
        for tensor_id, output in plan.copies
    ]


def address(location: Location) -> str:
    """Return the pointer to a place."""
    if location.space in _SPACES:
        return f"{_SPACES[location.space]}[{location.index}]"
    return f"{location.space} + {location.offset}u"
