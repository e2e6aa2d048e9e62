"""Bytes of data widened to 16 bits, once for a whole kernel.

Without VNNI, x86 multiplies pairs of 16 bits. Data widened where it is used would cost two
instructions for each row and step; widened before, a broadcast of a pair reads it from memory.
Matrix products reach 82 to 88% of what vpmaddwd and vpaddd do in registers on Zen 3
(`python -m benchmarks.quantized_kernels`).
"""

from __future__ import annotations

from dataclasses import replace
from math import prod
from typing import Any

from tvm import tirx

from tilewright.compiler.schedule.analysis import Access, Axis, Stage
from tilewright.compiler.schedule.expressions import shape_of
from tilewright.compiler.schedule.tile_loops import KernelBuilder

_WIDE = "int16"
# Bytes that a task widens at least, where the shape allows it.
_CHUNK = 2048


def widen(builder: KernelBuilder, access: Access) -> Access:
    """Return the access to a copy of the data in 16 bits, which the builder's prologue fills.

    Where a stage computes the data (a border is added), it writes 16 bits instead of bytes.
    """
    source = access.buffer
    known = builder.producers.get(source)
    stage = _copy(builder, source) if known is None else _rewritten(known)
    builder.producers[stage.buffer] = stage
    builder.stages.append(stage)
    return replace(access, buffer=stage.buffer)


def _rewritten(stage: Stage) -> Stage:
    wide = tirx.decl_buffer(shape_of(stage.buffer), _WIDE, f"{stage.name}_wide", layout=None)
    return replace(stage, buffer=wide)


def _copy(builder: KernelBuilder, source: Any) -> Stage:
    shape = shape_of(source)
    split = next((d for d in reversed(range(len(shape))) if prod(shape[d:]) >= _CHUNK), 0)
    rows, width = prod(shape[:split]), prod(shape[split:])
    wide = tirx.decl_buffer((rows, width), _WIDE, f"{source.name}_wide", layout=None)
    row, column = (tirx.Var(name, builder.index_dtype) for name in ("wide_row", "wide_column"))
    value = tirx.BufferLoad(builder.flat(source), [row * width + column])
    axes = Axis(row, rows), Axis(column, width)
    return Stage("widened", axes, (), wide, (row, column), value, None)
