"""C text for combining values: within a thread, a warp, and a block."""

from __future__ import annotations

from tilewright.compiler.cuda.ctext import computed_type
from tilewright.compiler.cuda.parts import Reduction
from tilewright.compiler.cuda.targets import WARP

_FORMS = {
    "add": "({} + {})",
    "mul": "({} * {})",
    "max": "tw_max<{2}>({0}, {1})",
    "min": "tw_min<{2}>({0}, {1})",
    "and": "({} && {})",
    "or": "({} || {})",
}


def combined(reduction: Reduction, left: str, right: str) -> str:
    """Return the combination of two values of a reduction."""
    # Of one type: an infinity is a float also where doubles are compared.
    return _FORMS[reduction.combine].format(left, right, accumulator_type(reduction))


def accumulator_type(reduction: Reduction) -> str:
    """Return the C type in which a reduction accumulates."""
    kind = computed_type(reduction.dtype)
    return "int" if kind == "bool" else kind


def identity(reduction: Reduction) -> str:
    """Return the value that changes nothing when combined."""
    if reduction.combine in ("add", "or"):
        return "0"
    if reduction.combine in ("mul", "and"):
        return "1"
    is_max = reduction.combine == "max"
    dtype = reduction.dtype
    if dtype.startswith(("float", "bfloat")):
        return "-tw_infinity()" if is_max else "tw_infinity()"
    kind = computed_type(dtype)
    return f"tw_lowest<{kind}>()" if is_max else f"tw_highest<{kind}>()"


def across_lanes(reduction: Reduction, value: str, lanes: int) -> list[str]:
    """Return statements that combine `value` over groups of `lanes` neighbours of a warp.

    Afterwards every lane has the result. `lanes` is a power of two, 32 at most.
    """
    lines, step = [], lanes // 2
    while step:
        other = f"TW_SHUFFLE_XOR({value}, {step})"
        lines.append(f"{value} = {combined(reduction, value, other)};")
        step //= 2
    return lines


def across_block(reduction: Reduction, value: str, threads: int) -> list[str]:
    """Return statements that combine `value` over all threads; every thread gets the result.

    Shared memory holds one value per warp; a barrier before and after keeps it for one use.
    """
    lines = across_lanes(reduction, value, WARP)
    warps = threads // WARP
    if warps == 1:
        return lines
    kind = accumulator_type(reduction)
    lines += [
        "{",
        f"{kind} *partial = reinterpret_cast<{kind} *>(tw_shared);",
        "TW_BARRIER();",
        f"if (threadIdx.x % {WARP} == 0) partial[threadIdx.x / {WARP}] = {value};",
        "TW_BARRIER();",
        f"{value} = partial[0];",
        "#pragma unroll",
        f"for (int w = 1; w < {warps}; ++w) {value} = {combined(reduction, value, 'partial[w]')};",
        "}",
    ]
    return lines
