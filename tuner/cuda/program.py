"""One operator as a program of its own, with random constants: what is measured and checked."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from tvm.tirx import PrimFunc

from tilewright.compiler.cuda.lower import HOST, CudaLowered, launch, without_layouts
from tilewright.compiler.cuda.targets import CudaTarget
from tilewright.compiler.layout.operator import Operator
from tilewright.compiler.layout.primitives import Layout
from tilewright.compiler.layout.propagation import DECISIONS_ATTRIBUTE
from tilewright.compiler.layout.rewrite import rewrite
from tilewright.compiler.package import package
from tilewright.compiler.pipeline import fuse, schedule_kernels
from tilewright.compiler.program import Call, Program, Tensor, TensorSpec
from tilewright.compiler.schedule.expressions import shape_of
from tilewright.compiler.targets import parse_target
from tilewright.frontends.onnx import import_onnx
from tilewright.tuner.candidate import Candidate

KERNEL = "operator"


def random_array(shape: Sequence[int], dtype: str, rng: np.random.Generator) -> np.ndarray:
    """Return values for a tensor: floats near unit variance, integers from 0 to 7."""
    if dtype.startswith("float"):
        return rng.standard_normal(tuple(shape), np.float32).astype(dtype)
    return rng.integers(0, 8, tuple(shape)).astype(dtype)


def fused_program(
    model: str | os.PathLike[str] | Any, shapes: Mapping[str, Sequence[int]] | None = None
) -> Program:
    """Import a model and fuse it as for a GPU, in the layouts that it has.

    Raises:
        TilewrightError: the model cannot be imported or fused.
    """
    imported = import_onnx(model, shapes=shapes)
    inputs, outputs = (
        [TensorSpec(item.name, item.shape, item.dtype) for item in items]
        for items in (imported.inputs, imported.outputs)
    )
    return fuse(imported.module, inputs, outputs, parse_target(HOST), winograd=False)


def operator_program(operator: Operator, layouts: Sequence[Layout], seed: int = 0) -> Program:
    """Return a program with one call; inputs and outputs have their physical shapes."""
    changed = {p: layout for p, layout in enumerate(layouts) if layout.primitives}
    func = rewrite(operator.func, changed) if changed else operator.func
    rng = np.random.default_rng(seed)
    constants = {
        position: random_array(shape_of(param), str(param.dtype), rng)
        for position, param in enumerate(func.params)
        if position in operator.constants
    }
    return call_alone(func, operator.output, constants)


def call_alone(func: PrimFunc, output: int, constants: Mapping[int, np.ndarray]) -> Program:
    """Return a program that calls a function, as `KERNEL`, once.

    Args:
        func: its parameters become the tensors t0, t1, ..
        output: position of the first parameter that it writes; all after it are written, too.
        constants: data by position; what is neither constant nor written is an input.
    """
    tensors = []
    for position, param in enumerate(func.params):
        name, shape, dtype = f"t{position}", shape_of(param), str(param.dtype)
        if position >= output:
            tensors.append(Tensor(name, shape, dtype, "output"))
        elif position in constants:
            tensors.append(Tensor(name, shape, dtype, "constant", constants[position]))
        else:
            tensors.append(Tensor(name, shape, dtype, "input"))
    places = tuple(range(len(tensors)))
    inputs = tuple(place for place in places[:output] if place not in constants)

    def specs(indices: Sequence[int]) -> tuple[TensorSpec, ...]:
        return tuple(
            TensorSpec(tensors[i].name, tensors[i].shape, tensors[i].dtype) for i in indices
        )

    return Program(
        tuple(tensors),
        (Call(KERNEL, places, KERNEL, len(places) - output),),
        inputs,
        places[output:],
        {KERNEL: func},
        specs(inputs),
        specs(places[output:]),
    )


def lower_candidate(
    operator: Operator, candidate: Candidate, target: CudaTarget, precision: str
) -> CudaLowered:
    """Return a candidate as launches, for `package_for_cuda`.

    Raises:
        CompileError: there is no code for it.
    """
    program = operator_program(operator, candidate.layouts)
    func: PrimFunc = program.kernels[KERNEL]
    if candidate.schedule is not None:
        func = func.with_attr(DECISIONS_ATTRIBUTE, candidate.schedule)
    decided = replace(program, kernels={KERNEL: func})
    return launch(without_layouts(decided), target, precision)


def build_reference(operator: Operator, layouts: Sequence[Layout], path: Path) -> None:
    """Write a module for this processor that computes the same as a candidate in these layouts."""
    host = parse_target("native")
    program = operator_program(operator, layouts)
    kernels = schedule_kernels(program.kernels, host)
    package(replace(program, kernels=kernels), host, path)
