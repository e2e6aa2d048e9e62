"""Control flow that is decided at run time: its bodies are lowered like models of their own."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal

import tvm
from tvm.tirx import PrimFunc

from tilewright.compiler.program import REGION_ATTRIBUTE, Program, Region, TensorSpec

if TYPE_CHECKING:
    from tilewright.compiler.pipeline import Lowered


@dataclass(frozen=True, slots=True, eq=False)
class BodySource:
    """A branch, or what a loop repeats, as it is imported: like the arguments of `lower`."""

    module: tvm.IRModule
    inputs: Sequence[TensorSpec]
    outputs: Sequence[TensorSpec]


@dataclass(frozen=True, slots=True, eq=False)
class RegionSource:
    """A region whose bodies are not lowered yet; fields as in `program.Region`."""

    kind: Literal["if", "loop"]
    bodies: Sequence[BodySource]
    carried: int = 0
    takes: tuple[tuple[int, ...], ...] = ()


def region_of(func: PrimFunc) -> int | None:
    """Return the number of the region that a kernel stands for, or None."""
    if func.attrs is None or REGION_ATTRIBUTE not in func.attrs:
        return None
    return int(func.attrs[REGION_ATTRIBUTE])


def lower_region(source: RegionSource, number: int, lower: Callable[..., Lowered]) -> Region:
    """Lower the bodies; `number` tells their kernels from all others of the module."""
    bodies = [
        _renamed(lower(body.module, body.inputs, body.outputs).program, f"r{number}_{index}_")
        for index, body in enumerate(source.bodies)
    ]
    return Region(source.kind, tuple(bodies), source.carried, source.takes)


def _renamed(program: Program, prefix: str) -> Program:
    return replace(
        program,
        kernels={prefix + name: func for name, func in program.kernels.items()},
        calls=tuple(replace(call, kernel=prefix + call.kernel) for call in program.calls),
        regions={prefix + name: region for name, region in program.regions.items()},
    )
