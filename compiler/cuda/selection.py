"""What goes over elements one after the other, on many threads: TopK, sorting, running sums.

The loops of processors find one element after the other. Here the place of an element is the
number of those that come before it, which all threads count at once; n elements take n^2
comparisons, which a GPU makes faster than one of its threads walks over k n of them.
"""

from __future__ import annotations

from collections.abc import Mapping
from math import log2, prod
from typing import Any

from tvm import te, tirx
from tvm.script.ir_builder import IRBuilder
from tvm.script.ir_builder import tirx as T

from tilewright.compiler.schedule.expressions import shape_of
from tilewright.frontends.onnx.ops.scan import SCAN_ANNOTATION
from tilewright.frontends.onnx.ops.selection import TOP_K_ANNOTATION
from tilewright.frontends.onnx.ops.suppression import ORDER_ANNOTATION

# Of one thread that walks over elements, and of the whole chip.
_STEP_S = 20e-9
_COMPARISONS_PER_S = 2e12


def count_places(kernels: Mapping[str, tirx.PrimFunc]) -> dict[str, tirx.PrimFunc]:
    """Return kernels where such loops are replaced by what counts, if that is faster."""
    return {name: _counted(func) or func for name, func in kernels.items()}


def annotations_of(func: tirx.PrimFunc) -> Mapping[str, Any]:
    """Return what the operator's converter has written on the block of a function."""
    return getattr(getattr(func.body, "block", None), "annotations", {})


def _counted(func: tirx.PrimFunc) -> tirx.PrimFunc | None:
    """Return such a function as blocks of one tensor each; None for anything else, or a small one.

    Quadratic work on the whole chip must take less time than the steps of one thread.
    """
    annotations = annotations_of(func)
    data = func.params[0]
    shape, dtype = shape_of(data), str(data.dtype)
    if TOP_K_ANNOTATION in annotations:
        k, axis, largest = (int(value) for value in annotations[TOP_K_ANNOTATION])
        if prod(shape) * shape[axis] / _COMPARISONS_PER_S > k * shape[axis] * _STEP_S:
            return None
        return _selection(shape, dtype, k, axis, bool(largest))
    if ORDER_ANNOTATION in annotations:
        count = shape[-1]
        if 2 * prod(shape) * count / _COMPARISONS_PER_S > count * log2(count + 1) * _STEP_S:
            return None
        return _order(func)
    if SCAN_ANNOTATION in annotations:
        axis, is_sum, *how = (int(value) for value in annotations[SCAN_ANNOTATION])
        if prod(shape) * shape[axis] / _COMPARISONS_PER_S > shape[axis] * _STEP_S:
            return None
        return (_running_sum if is_sum else _running_product)(shape, dtype, axis, *how)
    return None


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


def _order(func: tirx.PrimFunc) -> tirx.PrimFunc:
    """Return the order of boxes by score, with the parameters of `func`."""
    scores, least, *outputs = func.params
    shape, dtype = shape_of(scores), str(scores.dtype)
    count = shape[-1]
    score = te.placeholder(shape, dtype, "scores")
    lowest = te.placeholder((1,), str(least.dtype), "least")

    def count_before(batch: Any, kind: Any, own: Any) -> Any:
        other = te.reduce_axis((0, count), "other")
        value, mine = score(batch, kind, other), score(batch, kind, own)
        is_before = tirx.any(value > mine, tirx.all(value >= mine, other < own))
        return te.sum(is_before.astype("int32"), axis=other)

    places = te.compute(shape, count_before, "places")

    def find(batch: Any, kind: Any, place: Any) -> Any:
        own = te.reduce_axis((0, count), "own")
        is_here = places(batch, kind, own) == place.astype("int32")
        is_wanted = tirx.all(is_here, score(batch, kind, own) > lowest(0))
        none = tirx.const(-1, "int64")
        return te.max(tirx.Select(is_wanted, own.var.astype("int64"), none), axis=own)

    order = te.compute(shape, find, "order")
    func = te.create_prim_func([score, lowest, order])
    # What else the loops of processors write, nothing reads.
    return tirx.PrimFunc([*func.params, *outputs[1:]], func.body, attrs=func.attrs)


def _running_sum(
    shape: tuple[int, ...], dtype: str, axis: int, exclusive: int, reverse: int
) -> tirx.PrimFunc:
    """Return (data, sums), each sum for itself."""
    data = te.placeholder(shape, dtype, "data")

    def add(*indices: Any) -> Any:
        term, own = te.reduce_axis((0, shape[axis]), "term"), indices[axis]
        first, last = (own, term) if reverse else (term, own)
        is_before = first < last if exclusive else first <= last
        value = data(*indices[:axis], term, *indices[axis + 1 :])
        return te.sum(tirx.Select(is_before, value, tirx.const(0, dtype)), axis=term)

    sums = te.compute(shape, add, "sums")
    return te.create_prim_func([data, sums])


def _running_product(
    shape: tuple[int, ...], dtype: str, axis: int, exclusive: int, reverse: int
) -> tirx.PrimFunc:
    """Return (data, products), each product by a thread of its own."""
    data = te.placeholder(shape, dtype, "data")
    length, step = shape[axis], prod(shape[axis + 1 :])

    def loops(source: Any, result: Any) -> tirx.Stmt:
        with IRBuilder() as builder:
            source, result = map(T.buffer_proxy, (source, result))
            with T.parallel(0, prod(shape)) as own:
                place = own // step % length
                number = (length - place if reverse else place + 1) - exclusive
                result[own] = tirx.const(1, dtype)
                first = own if reverse else own - place * step
                first = first + exclusive * step if reverse else first
                with T.serial(0, number) as term:
                    result[own] = result[own] * source[first + term * step]
            return builder.get()

    products = te.extern(
        [shape], [data], lambda ins, outs: loops(ins[0], outs[0]), dtype=[dtype], name="products"
    )
    return te.create_prim_func([data, products])
