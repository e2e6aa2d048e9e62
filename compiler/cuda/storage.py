"""Tensors between kernels in 16 bits: half the traffic, and what tensor cores take.

With the precision fp16 or bf16, intermediate tensors and large constants of float32 are stored in
16 bits; kernels still compute in float32, and what the caller passes and gets stays as it is.
"""

from __future__ import annotations

from collections.abc import Container, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from tvm import tirx
from tvm.ir import TensorLoad

from tilewright.compiler.cuda.parts import Part
from tilewright.compiler.program import Program, Tensor
from tilewright.compiler.schedule.analysis import Stage
from tilewright.compiler.schedule.expressions import Expr, rebuild, shape_of

STORED_AS = {"fp16": "float16", "bf16": "bfloat16"}
_LARGEST_HALF = 65504.0
# Smaller constants (biases, scales) cost nothing in float32.
_SMALL_ELEMENTS = 4096


def in_memory(func: tirx.PrimFunc, storage: Mapping[int, str]) -> tuple[list[Any], dict[Any, Any]]:
    """Return the parameters as they are stored, and those of another dtype by what they replace."""
    params = list(func.params)
    replaced: dict[Any, Any] = {}
    for position, dtype in storage.items():
        old = params[position]
        params[position] = replaced[old] = tirx.decl_buffer(shape_of(old), dtype, old.name)
    return params, replaced


def restore(
    parts: Sequence[Part], func: tirx.PrimFunc, storage: Mapping[int, str]
) -> tuple[tuple[Part, ...], list[Any]]:
    """Return parts that read and write some parameters in another dtype, and the parameters."""
    params, replaced = in_memory(func, storage)
    if not replaced:
        return tuple(parts), params

    def leaf(node: Expr) -> Expr | None:
        if not isinstance(node, TensorLoad) or node.source not in replaced:
            return None
        indices = [rebuild(index, leaf) for index in node.indices]
        load = tirx.BufferLoad(replaced[node.source], indices)
        return tirx.Cast(str(node.source.dtype), load)

    def stage(old: Stage) -> Stage:
        return replace(
            old, buffer=replaced.get(old.buffer, old.buffer), value=rebuild(old.value, leaf)
        )

    def part(old: Part) -> Part:
        reductions = tuple(
            replace(r, stage=stage(r.stage), term=rebuild(r.term, leaf)) for r in old.reductions
        )
        return replace(
            old,
            reductions=reductions,
            stores=tuple(stage(store) for store in old.stores),
            reads=tuple(replaced.get(b, b) for b in old.reads),
            writes=tuple(replaced.get(b, b) for b in old.writes),
        )

    return tuple(part(old) for old in parts), params


def store_in_16_bits(
    program: Program, dtype: str, whole: Container[str] = ()
) -> tuple[Tensor, ...]:
    """Return the program's tensors with float32 intermediates and large constants in `dtype`.

    Args:
        program: what to run.
        dtype: "float16" or "bfloat16".
        whole: kernels that go on with what they wrote before (scans, scatters): in 16 bits, errors
            of rounding would add up.
    """
    written = [index for call in program.calls if call.kernel in whole for index in call.writes]
    ends = (*program.inputs, *program.outputs, *written)
    fixed = {program.storage_of(index) for index in ends}
    tensors = []
    for index, tensor in enumerate(program.tensors):
        owner = program.storage_of(index)
        kind, size = program.tensors[owner].kind, program.tensors[owner].size_bytes // 4
        keeps = (
            tensor.dtype != "float32"
            or owner in fixed
            or kind == "input"
            or (kind == "constant" and size < _SMALL_ELEMENTS)
        )
        if keeps:
            tensors.append(tensor)
            continue
        data = None if tensor.data is None else _converted(tensor.data, dtype)
        tensors.append(replace(tensor, dtype=dtype, data=data))
    return tuple(tensors)


def _converted(data: np.ndarray, dtype: str) -> np.ndarray:
    if dtype == "float16":
        return np.clip(data, -_LARGEST_HALF, _LARGEST_HALF).astype(np.float16)
    import ml_dtypes

    return data.astype(ml_dtypes.bfloat16)
