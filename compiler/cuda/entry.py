"""The generated C of a CUDA module: tables of launches and addresses for runtime/c/tw_cuda.c."""

from __future__ import annotations

from collections.abc import Mapping

from tilewright.compiler.cuda.kernel import Kernel
from tilewright.compiler.cuda.targets import CudaTarget
from tilewright.compiler.entry import (
    c_string,
    c_struct,
    program_table,
    string_table,
    tensor_table,
)
from tilewright.compiler.memory import Location, MemoryPlan
from tilewright.compiler.program import Program

IMAGE_SYMBOL = "tw_cuda_image"

_RUN_BY_DEVICE = {
    "cpu_features": "cpu_features",  # the host code needs none
    "arena_bytes": "0u",  # the device has one of its own
    "device": "&tw_cuda_device",
    "device_program": "&device_program",
}
_SPACES = {
    "input": "TW_INPUT",
    "output": "TW_OUTPUT",
    "weights": "TW_WEIGHTS",
    "arena": "TW_ARENA",
}


def generate_cuda_entry(
    program: Program, plan: MemoryPlan, kernels: Mapping[str, Kernel], target: CudaTarget
) -> str:
    """Return the C source that describes `program` to the runtime.

    It expects the macro `TW_CODE_ID`, and the fat binary under the name `IMAGE_SYMBOL`.
    """
    arguments: list[str] = []
    launches = []
    for call in program.calls:
        kernel = kernels[call.kernel]
        grid = ", ".join(f"{extent}u" for extent in kernel.grid)
        launches.append(
            f"    {{{c_string(kernel.name)}, {{{grid}}}, {kernel.threads}u, "
            f"{kernel.shared_bytes}u, {len(arguments)}u, {len(call.args)}u}},\n"
        )
        arguments += [_place(plan.locations[index]) for index in call.args]
    copies = [
        f"    {{{_place(plan.locations[tensor])}, {output}u}},\n" for tensor, output in plan.copies
    ]
    labels = tuple(call.label for call in program.calls)
    parts = [
        '#include "tw_cuda.h"\n',
        f"extern const unsigned char {IMAGE_SYMBOL}[];\n",
        string_table("cpu_features", (None,)),
        string_table("call_labels", labels or (None,)),
        tensor_table("inputs", program.input_specs),
        tensor_table("outputs", program.output_specs),
        _table("tw_place", "arguments", [f"    {place},\n" for place in arguments]),
        _table("tw_cuda_launch", "launches", launches),
        _table("tw_cuda_copy", "copies", copies),
        _device_program(plan, target, len(launches), len(copies)),
        program_table(program, plan, _RUN_BY_DEVICE),
    ]
    return "\n".join(parts)


def _table(kind: str, name: str, rows: list[str]) -> str:
    body = "".join(rows) or "    {0},\n"
    return f"static const {kind} {name}[] = {{\n{body}}};\n"


def _place(location: Location) -> str:
    return f"{{{_SPACES[location.space]}, {location.index}u, {location.offset}u}}"


def _device_program(plan: MemoryPlan, target: CudaTarget, launches: int, copies: int) -> str:
    major, minor = target.capability
    return c_struct(
        "static const tw_cuda_program device_program",
        {
            "image": IMAGE_SYMBOL,
            "arch": c_string(target.arch),
            "capability": f"{{{major}, {minor}}}",
            "arena_bytes": f"{plan.arena_bytes}u",
            "num_launches": f"{launches}u",
            "num_copies": f"{copies}u",
            "launches": "launches",
            "arguments": "arguments",
            "copies": "copies",
        },
    )
