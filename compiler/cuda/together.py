"""Small launches that do not need each other's results, as one launch.

The phases of a transposed convolution, the projections of queries, keys and values, and the two
paths of a residual block leave most of a GPU idle one after the other. Their blocks are numbered
through, and each block does what it would in its own launch ("horizontal fusion").
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from math import prod
from typing import Any

from tvm import tirx

from tilewright.compiler.cuda.kernel import Kernel, block
from tilewright.compiler.cuda.targets import WARP, CudaTarget
from tilewright.compiler.program import Call, Program

_HEAD = re.compile(r"TW_GLOBAL\(\d+\) (?P<name>\w+)\((?P<parameters>[^)]*)\) \{")
# Later calls that are looked at; moving a call far makes what it writes live longer.
_WINDOW = 24
_MOST_ARGUMENTS = 20


def run_together(
    program: Program, kernels: Mapping[str, Kernel], target: CudaTarget
) -> tuple[Program, dict[str, Kernel]]:
    """Return the program with fewer launches, and the kernels that it then has."""
    groups = _groups(program, kernels, target.sms * target.warps * WARP)
    calls: list[Call] = []
    joined: dict[tuple[Any, ...], str] = {}
    made: dict[str, Kernel] = {}
    signatures = dict(program.kernels)
    for group in groups:
        if len(group) == 1:
            calls.append(group[0])
            made[group[0].kernel] = kernels[group[0].kernel]
            continue
        arguments, places, written = _arguments(group)
        key = (tuple(call.kernel for call in group), places)
        name = joined.setdefault(key, f"{group[0].kernel}_together{len(joined)}")
        if name not in made:
            parts = [kernels[call.kernel] for call in group]
            made[name] = _join(parts, places, len(arguments), name)
            signatures[name] = _signature(program, group, places, len(arguments))
        label = " + ".join(call.label for call in group)
        calls.append(Call(name, arguments, label, written))
    used = {call.kernel: signatures[call.kernel] for call in calls}
    return replace(program, calls=tuple(calls), kernels=used), made


def _groups(program: Program, kernels: Mapping[str, Kernel], full: int) -> list[list[Call]]:
    """Return the calls in an order that keeps what each needs before it, those of a launch as one.

    Launches of `full` threads keep the chip busy alone. A call joins an earlier one if nothing that
    stays between them writes what it reads, or touches what it writes.
    """
    taken: set[int] = set()
    groups = []
    for first, call in enumerate(program.calls):
        if first in taken:
            continue
        group, threads = [call], _threads(kernels[call.kernel])
        read, written = _touched(program, call)
        for number in range(first + 1, min(first + _WINDOW, len(program.calls))):
            if threads >= full:
                break
            other = program.calls[number]
            if number in taken:
                continue
            other_reads, other_writes = _touched(program, other)
            is_free = not (other_reads & written or other_writes & (read | written))
            fits = len(_arguments([*group, other])[0]) <= _MOST_ARGUMENTS
            if is_free and fits and _are_alike(kernels[call.kernel], kernels[other.kernel]):
                group.append(other)
                taken.add(number)
                threads += _threads(kernels[other.kernel])
            read |= other_reads
            written |= other_writes
        groups.append(group)
    return groups


def _threads(kernel: Kernel) -> int:
    return prod(kernel.grid) * kernel.threads


def _touched(program: Program, call: Call) -> tuple[set[int], set[int]]:
    """Return the storages that a call reads and writes."""
    reads = {program.storage_of(index) for index in call.reads}
    return reads, {program.storage_of(index) for index in call.writes}


def _are_alike(one: Kernel, other: Kernel) -> bool:
    """Tell whether blocks of two kernels have the same threads and do the same kind of work."""
    kinds = {kernel.schedule.replace(",", " ").split()[0] for kernel in (one, other)}
    return one.threads == other.threads and len(kinds) == 1


def _arguments(
    group: Sequence[Call],
) -> tuple[tuple[int, ...], tuple[tuple[int, ...], ...], int]:
    """Return the tensors of a launch, what is read first; where each call has its own; outputs."""
    writes = list(dict.fromkeys(index for call in group for index in call.writes))
    reads = dict.fromkeys(index for call in group for index in call.reads if index not in writes)
    whole = (*reads, *writes)
    places = tuple(tuple(whole.index(index) for index in call.args) for call in group)
    return whole, places, len(writes)


def _join(
    parts: Sequence[Kernel], places: Sequence[tuple[int, ...]], count: int, name: str
) -> Kernel:
    """Return a kernel whose blocks are those of several, each as a function of its own."""
    types: list[str] = [""] * count
    lines, functions = [], {}
    for part, own in zip(parts, places, strict=True):
        functions[part.name] = _as_function(part)
        head = _HEAD.search(part.source)
        assert head is not None
        for parameter, place in zip(head["parameters"].split(", "), own, strict=True):
            types[place] = parameter.rpartition("__restrict__ ")[0] + "__restrict__"
        x, y, _ = part.grid
        at = f"{{block % {x}, block / {x} % {y}, block / {x * y}}}"
        given = ", ".join(f"p{place}" for place in own)
        lines += [
            f"if (block < {prod(part.grid)}) {{",
            f"{part.name}_part(tw_place{at}, {given});",
            "return;",
            "}",
            f"block -= {prod(part.grid)};",
        ]
    parameters = ", ".join(f"{kind} p{place}" for place, kind in enumerate(types))
    head_line = f"TW_GLOBAL({parts[0].threads}) {name}({parameters}) {{"
    text = "".join(functions.values())
    text += block([head_line, "int block = blockIdx.x;", *lines[:-1], "}"])
    grid = (sum(prod(part.grid) for part in parts), 1, 1)
    shared = max(part.shared_bytes for part in parts)
    schedules = list(dict.fromkeys(part.schedule for part in parts))
    label = f"{' | '.join(schedules)}, {len(parts)} together"
    return Kernel(name, text, grid, parts[0].threads, shared, label)


def _as_function(kernel: Kernel) -> str:
    """Return a kernel as a function of the place of its block; once in a file."""
    head = _HEAD.search(kernel.source)
    assert head is not None
    function = f"TW_PART {kernel.name}_part(const tw_place tw_at, {head['parameters']}) {{"
    text = kernel.source[: head.start()] + function + kernel.source[head.end() :]
    guard = f"TW_PART_{kernel.name}"
    return f"#ifndef {guard}\n#define {guard}\n{text.replace('blockIdx.', 'tw_at.')}#endif\n"


def _signature(
    program: Program, group: Sequence[Call], places: Sequence[tuple[int, ...]], count: int
) -> tirx.PrimFunc:
    """Return a function without a body that has the parameters of a launch."""
    params: list[Any] = [None] * count
    for call, own in zip(group, places, strict=True):
        for place, param in zip(own, program.kernels[call.kernel].params, strict=True):
            shape = [int(extent) for extent in param.shape]
            params[place] = tirx.decl_buffer(shape, str(param.dtype), f"p{place}")
    return tirx.PrimFunc(params, tirx.Evaluate(tirx.IntImm("int32", 0)))
