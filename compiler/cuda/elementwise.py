"""Kernels without a reduction: every thread computes some neighbouring elements."""

from __future__ import annotations

from math import prod
from typing import Any

from tvm import sym
from tvm.ir import TensorLoad

from tilewright.compiler.cuda.ctext import STORED, Printer, loaded, stored
from tilewright.compiler.cuda.kernel import Kernel, block, buffer_names, decompose, signature
from tilewright.compiler.cuda.parts import Part
from tilewright.compiler.program import item_bytes
from tilewright.compiler.schedule.analysis import Axis, Stage
from tilewright.compiler.schedule.expressions import (
    Expr,
    children,
    flat_index,
    linear_form,
    shape_of,
)

THREADS = 256
_VECTOR_BYTES = 16


def elementwise_kernel(part: Part, name: str) -> Kernel:
    """Return the kernel of a part that stores one tensor."""
    (store,) = part.stores
    buffers = buffer_names(part)
    total = prod(axis.extent for axis in store.spatial)
    lanes = _lanes(store)
    lines = [f"{signature(name, THREADS, part)} {{"]
    lines.append(f"const int vector = blockIdx.x * {THREADS} + threadIdx.x;")
    lines.append(f"if (vector >= {total // lanes}) return;")
    lines.append(f"const int flat = vector * {lanes};")
    head, names = decompose("flat", store.spatial, "i")
    lines += head
    wide = {} if lanes == 1 else _wide_loads(store, lanes, buffers)
    printer = Printer(store.spatial, names, buffers)
    for number, load in enumerate(wide.values()):
        lines.append(_declare(f"v{number}", str(load.source.dtype), lanes))
        lines.append(f"tw_read<{lanes}>(v{number}, &{printer.place(load)});")
    target = store.buffer
    ctype = STORED[str(target.dtype)]
    if lanes == 1:
        value = stored(printer.text(store.value), str(target.dtype))
        lines.append(f"{buffers[target]}[{printer.index(target, store.indices)}] = {value};")
    else:
        place = f"{buffers[target]}[{printer.index(target, store.indices)}]"
        inner = dict(names)
        inner[store.spatial[-1].var] = f"({names[store.spatial[-1].var]} + lane)"
        registers = {key: f"v{number}" for number, key in enumerate(wide)}

        def override(load: TensorLoad) -> str | None:
            register = registers.get(_key(load, buffers))
            return None if register is None else loaded(f"{register}[lane]", _dtype(load))

        each = Printer(store.spatial, inner, buffers, override)
        lines.append(_declare("result", str(target.dtype), lanes))
        lines.append("#pragma unroll")
        lines.append(f"for (int lane = 0; lane < {lanes}; ++lane) {{")
        lines.append(f"result[lane] = {stored(each.text(store.value), str(target.dtype))};")
        lines.append("}")
        lines.append(f"tw_write<{lanes}, {ctype}>(&{place}, result);")
    lines.append("}")
    grid = (-(-(total // lanes) // THREADS), 1, 1)
    return Kernel(name, block(lines), grid, THREADS, 0, f"elementwise x{lanes}")


def _declare(name: str, dtype: str, lanes: int) -> str:
    return f"__align__({_VECTOR_BYTES}) {STORED[dtype]} {name}[{lanes}];"


def _lanes(store: Stage) -> int:
    """Return how many elements a thread computes: 16 bytes of the result where they divide."""
    if not store.spatial:
        return 1
    lanes = max(1, _VECTOR_BYTES // item_bytes(str(store.buffer.dtype)))
    inner, flat = store.spatial[-1].extent, flat_index(store.buffer, store.indices)
    while lanes > 1 and (inner % lanes or not _contiguous(flat, store.spatial, lanes)):
        lanes //= 2
    return lanes


def _contiguous(flat: Expr, axes: tuple[Axis, ...], lanes: int) -> bool:
    """Tell whether `lanes` steps of the last axis are neighbours, aligned to their size."""
    form = linear_form(flat, [axis.var for axis in axes], sym.Analyzer())
    if form is None or form.of(axes[-1].var) != 1 or form.constant % lanes:
        return False
    return all(form.of(axis.var) % lanes == 0 for axis in axes[:-1] if axis.extent > 1)


def _key(load: TensorLoad, buffers: dict[Any, str]) -> str:
    return f"{buffers[load.source]}{list(load.indices)}"


def _dtype(load: TensorLoad) -> str:
    return str(load.source.dtype)


def _wide_loads(store: Stage, lanes: int, buffers: dict[Any, str]) -> dict[str, TensorLoad]:
    """Return the unconditional loads that read `lanes` neighbours at once."""
    found: dict[str, TensorLoad] = {}

    def visit(expr: Expr) -> None:
        if isinstance(expr, TensorLoad):
            flat = flat_index(expr.source, expr.indices)
            fits = lanes * item_bytes(_dtype(expr)) <= _VECTOR_BYTES
            if fits and shape_of(expr.source) and _contiguous(flat, store.spatial, lanes):
                found[_key(expr, buffers)] = expr
            return
        if type(expr).__name__ == "Select" or "if_then_else" in str(getattr(expr, "op", "")):
            return
        for part in children(expr):
            visit(part)

    visit(store.value)
    return found
