"""Find floating-point operations in the TensorIR of a compiled program."""

from __future__ import annotations

import numpy as np
import tvm_ffi
from tvm import DataType, tirx

import tilewright
from tilewright.compiler.program import Program


def floating_point_operations(func: tirx.PrimFunc) -> list[str]:
    """Return the kinds of all nodes of a kernel that compute or hold floats."""
    found: list[str] = []

    def visit(node: object) -> None:
        dtype = getattr(getattr(node, "ty", None), "dtype", None) or getattr(node, "dtype", None)
        if dtype is not None and "float" in str(DataType(str(dtype))):
            found.append(type(node).__name__)

    tvm_ffi.structural_walk(func.body, visit)
    return found


def kernels_with_floats(program: Program) -> list[str]:
    """Return the calls between the first bytes and the last that compute in floats.

    A call is in between if it reads something computed from bytes, and bytes are computed from what
    it writes; or if it reads such bytes and writes bytes itself.
    """
    after: set[int] = set()
    for call in program.calls:
        if any(_is_bytes(program, t) or t in after for t in call.reads if _computed(program, t)):
            after |= set(call.writes)
    before: set[int] = set()
    for call in reversed(program.calls):
        if any(_is_bytes(program, t) or t in before for t in call.writes):
            before |= set(call.reads) | set(call.writes)
    between = [
        call
        for call in program.calls
        if all(t in after for t in call.writes) and any(t in before for t in call.writes)
    ]
    assert between, "nothing to scan"
    return [
        f"{call.label}: {sorted(set(found))}"
        for call in between
        if (found := floating_point_operations(program.kernels[call.kernel]))
    ]


def _computed(program: Program, tensor: int) -> bool:
    return program.tensors[tensor].kind != "constant"


def _is_bytes(program: Program, tensor: int) -> bool:
    return program.tensors[tensor].dtype in ("uint8", "int8")


def lowered_program(model: object, integer_only: bool) -> Program:
    """Return the scheduled program of a model for AVX2, without logs."""
    from tilewright.api import lower_model
    from tilewright.compiler.targets import parse_target

    target = parse_target("x86-64-v3")
    return lower_model(model, target, integer_only=integer_only)[0].program


def run_integer_only(model: object, feed: dict[str, np.ndarray]) -> list[np.ndarray]:
    """Compile a model in integers only, and run it."""
    module = tilewright.compile(model, logs=(), integer_only=True)
    return list(module.run(feed).values())
