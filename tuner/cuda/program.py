"""One operator as a program of its own, with random constants: what is measured and checked."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from tvm.tirx import PrimFunc

from tilewright.compiler.cuda.lower import CudaLowered, launch, without_layouts
from tilewright.compiler.cuda.targets import CudaTarget
from tilewright.compiler.layout.operator import Operator
from tilewright.compiler.layout.primitives import Layout
from tilewright.compiler.layout.propagation import DECISIONS_ATTRIBUTE
from tilewright.compiler.layout.rewrite import rewrite
from tilewright.compiler.package import package
from tilewright.compiler.pipeline import schedule_kernels
from tilewright.compiler.program import Call, Program, Tensor, TensorSpec
from tilewright.compiler.schedule.expressions import shape_of
from tilewright.compiler.targets import parse_target
from tilewright.tuner.candidate import Candidate

_KERNEL = "operator"


def random_array(shape: Sequence[int], dtype: str, rng: np.random.Generator) -> np.ndarray:
    """Return values for a tensor: floats near unit variance, integers from 0 to 7."""
    if dtype.startswith("float"):
        return rng.standard_normal(tuple(shape), np.float32).astype(dtype)
    return rng.integers(0, 8, tuple(shape)).astype(dtype)


def operator_program(operator: Operator, layouts: Sequence[Layout], seed: int = 0) -> Program:
    """Return a program with one call; inputs and outputs have their physical shapes."""
    changed = {p: layout for p, layout in enumerate(layouts) if layout.primitives}
    func = rewrite(operator.func, changed) if changed else operator.func
    rng = np.random.default_rng(seed)
    tensors = []
    inputs: list[int] = []
    for position, param in enumerate(func.params):
        shape, dtype, name = shape_of(param), str(param.dtype), f"t{position}"
        if position >= operator.output:
            tensors.append(Tensor(name, shape, dtype, "output"))
        elif position in operator.constants:
            data = random_array(shape, dtype, rng)
            tensors.append(Tensor(name, shape, dtype, "constant", data))
        else:
            inputs.append(position)
            tensors.append(Tensor(name, shape, dtype, "input"))
    outputs = tuple(range(operator.output, len(tensors)))
    arguments = tuple(range(len(tensors)))

    def specs(indices: Sequence[int]) -> tuple[TensorSpec, ...]:
        return tuple(
            TensorSpec(tensors[i].name, tensors[i].shape, tensors[i].dtype) for i in indices
        )

    return Program(
        tuple(tensors),
        (Call(_KERNEL, arguments, _KERNEL, operator.n_outputs),),
        tuple(inputs),
        outputs,
        {_KERNEL: func},
        specs(inputs),
        specs(outputs),
    )


def lower_candidate(
    operator: Operator, candidate: Candidate, target: CudaTarget, precision: str
) -> CudaLowered:
    """Return a candidate as launches, for `package_for_cuda`.

    Raises:
        CompileError: there is no code for it.
    """
    program = operator_program(operator, candidate.layouts)
    func: PrimFunc = program.kernels[_KERNEL]
    if candidate.schedule is not None:
        func = func.with_attr(DECISIONS_ATTRIBUTE, candidate.schedule)
    decided = replace(program, kernels={_KERNEL: func})
    return launch(without_layouts(decided), target, precision)


def build_reference(operator: Operator, layouts: Sequence[Layout], path: Path) -> None:
    """Write a module for this processor that computes the same as a candidate in these layouts."""
    host = parse_target("native")
    program = operator_program(operator, layouts)
    kernels = schedule_kernels(program.kernels, host)
    package(replace(program, kernels=kernels), host, path)
