"""TopK on many threads: the place of every element first, then the element of every place.

The loops of processors find one element after the other. Here the place of an element is the
number of those that come before it, which all threads count at once; n elements take n^2
comparisons, which a GPU makes faster than one of its threads walks over k n of them.
"""

from __future__ import annotations

from collections.abc import Mapping
from math import prod
from typing import Any

from tvm import te, tirx

from tilewright.compiler.schedule.expressions import shape_of
from tilewright.frontends.onnx.ops.selection import TOP_K_ANNOTATION

# Of one thread that walks over elements, and of the whole chip.
_STEP_S = 20e-9
_COMPARISONS_PER_S = 2e12


def count_places(kernels: Mapping[str, tirx.PrimFunc]) -> dict[str, tirx.PrimFunc]:
    """Return kernels where selections by loops are replaced by counted ones, if that is faster."""
    return {name: _counted(func) or func for name, func in kernels.items()}


def _counted(func: tirx.PrimFunc) -> tirx.PrimFunc | None:
    """Return a selection as blocks of one tensor each; None for anything else, or a small one."""
    block = getattr(func.body, "block", None)
    if block is None or TOP_K_ANNOTATION not in block.annotations:
        return None
    k, axis, largest = (int(value) for value in block.annotations[TOP_K_ANNOTATION])
    data = func.params[0]
    shape, dtype = shape_of(data), str(data.dtype)
    length = shape[axis]
    if prod(shape) * length / _COMPARISONS_PER_S > k * length * _STEP_S:
        return None
    return _selection(shape, dtype, k, axis, bool(largest))


def _selection(
    shape: tuple[int, ...], dtype: str, k: int, axis: int, largest: bool
) -> tirx.PrimFunc:
    """Return (data, values, int64 indices): equal elements in their order."""
    length, selected = shape[axis], (*shape[:axis], k, *shape[axis + 1 :])
    data = te.placeholder(shape, dtype, "data")

    def at(indices: tuple[Any, ...], place: Any) -> tuple[Any, ...]:
        return (*indices[:axis], place, *indices[axis + 1 :])

    def is_before(one: Any, other: Any) -> Any:
        return one > other if largest else one < other

    def count(*indices: Any) -> Any:
        own, other = data(*indices), te.reduce_axis((0, length), "other")
        value = data(*at(indices, other))
        earlier = tirx.all(tirx.Not(is_before(own, value)), other < indices[axis])
        before = tirx.any(is_before(value, own), earlier)
        return te.sum(before.astype("int32"), axis=other)

    places = te.compute(shape, count, "places")

    def find(*indices: Any) -> Any:
        own = te.reduce_axis((0, length), "own")
        is_here = places(*at(indices, own)) == indices[axis].astype("int32")
        # What is not a number may leave a place without an element.
        none = tirx.const(0, "int64")
        return te.max(tirx.Select(is_here, own.astype("int64"), none), axis=own)

    found = te.compute(selected, find, "indices")
    values = te.compute(selected, lambda *i: data(*at(i, found(*i))), "values")
    return te.create_prim_func([data, values, found])
