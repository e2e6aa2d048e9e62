"""Maps load indices through layouts, and finds how layouts want reduction axes to be split."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from math import prod
from typing import Any

from tvm import tirx
from tvm.sym import Analyzer

from tilewright.compiler.layout.kinds import Crop, Fuse, Pad, Reorder, Split, StoreAt, Unfold
from tilewright.compiler.layout.primitives import Layout


@dataclass(frozen=True, slots=True)
class _Term:
    """``coefficient * ((var // divisor) % extent)``; an unknown value has no var."""

    coefficient: int
    var: Any | None
    divisor: int
    extent: int


@dataclass(frozen=True, slots=True)
class _Linear:
    """A sum of terms and a constant."""

    terms: tuple[_Term, ...]
    constant: int


_UNKNOWN = _Linear((_Term(1, None, 1, 1 << 62),), 0)


def linear_terms(expr: Any) -> tuple[list[tuple[Any, int]], int]:
    """Return an integer expression as ``sum(coefficient * expr) + constant``."""
    terms: list[tuple[Any, int]] = []
    constant = _collect(expr, 1, terms)
    return terms, constant


def _collect(expr: Any, scale: int, terms: list[tuple[Any, int]]) -> int:
    if isinstance(expr, tirx.IntImm):
        return scale * int(expr)
    if isinstance(expr, tirx.Add):
        return _collect(expr.a, scale, terms) + _collect(expr.b, scale, terms)
    if isinstance(expr, tirx.Sub):
        return _collect(expr.a, scale, terms) + _collect(expr.b, -scale, terms)
    if isinstance(expr, tirx.Mul):
        if isinstance(expr.b, tirx.IntImm):
            return _collect(expr.a, scale * int(expr.b), terms)
        if isinstance(expr.a, tirx.IntImm):
            return _collect(expr.b, scale * int(expr.a), terms)
    terms.append((expr, scale))
    return 0


def reduction_boundaries(
    indices: Sequence[Any],
    layout: Layout,
    extents: Mapping[Any, int],
    reduction: Mapping[Any, int],
) -> list[tuple[Any, int]]:
    """Return the (reduction var, stride) at which a layout cuts the axes that index it.

    ``W[o, r]`` with dimension 1 split by 16 cuts `r` at 16: the loop over `r` becomes one over
    blocks and one over 16 elements, and the index is free of divisions.
    """
    dims = [_linear(index, extents) for index in indices]
    found: list[tuple[Any, int]] = []
    for step, shape in layout.steps:
        match step:
            case Reorder(perm=perm):
                dims = [dims[p] for p in perm]
            case Split(dim=dim, factors=factors):
                digits, rest = [], dims[dim]
                for k in range(len(factors) - 1):
                    quotient, rest = _divide(rest, prod(factors[k + 1 :]), reduction, found)
                    digits.append(quotient)
                dims[dim : dim + 1] = [*digits, rest]
            case Fuse(dim=dim, count=count):
                fused = dims[dim]
                for offset in range(1, count):
                    fused = _add(_scale(fused, shape[dim + offset]), dims[dim + offset])
                dims[dim : dim + count] = [fused]
            case Pad(dim=dim, before=before):
                dims[dim] = _Linear(dims[dim].terms, dims[dim].constant + before)
            case Crop(dim=dim, before=before):
                dims[dim] = _Linear(dims[dim].terms, dims[dim].constant - before)
            case Unfold(dim=dim):
                dims[dim : dim + 1] = [_UNKNOWN, _UNKNOWN]
            case StoreAt():
                pass
            case _:
                return found
    return found


def _linear(expr: Any, extents: Mapping[Any, int]) -> _Linear:
    terms, constant = linear_terms(expr)
    known = [
        _Term(scale, atom, 1, extents[atom])
        if isinstance(atom, tirx.Var) and atom in extents
        else _Term(scale, None, 1, 1 << 62)
        for atom, scale in terms
    ]
    return _Linear(tuple(term for term in known if term.extent > 1), constant)


def _scale(value: _Linear, factor: int) -> _Linear:
    terms = (_Term(t.coefficient * factor, t.var, t.divisor, t.extent) for t in value.terms)
    return _Linear(tuple(terms), value.constant * factor)


def _add(a: _Linear, b: _Linear) -> _Linear:
    return _Linear((*a.terms, *b.terms), a.constant + b.constant)


def _divide(
    value: _Linear, by: int, reduction: Mapping[Any, int], found: list[tuple[Any, int]]
) -> tuple[_Linear, _Linear]:
    """Return quotient and remainder, and add to `found` where a reduction var is to be cut."""
    if by == 1:
        return value, _Linear((), 0)
    whole = [t for t in value.terms if t.coefficient % by == 0]
    rest = [t for t in value.terms if t.coefficient % by]
    constant = value.constant % by
    quotient = _scale_down(whole, value.constant // by, by)
    if all(t.coefficient > 0 for t in rest):
        largest = constant + sum(t.coefficient * (t.extent - 1) for t in rest)
        if largest < by:
            return quotient, _Linear(tuple(rest), constant)
    if len(rest) != 1 or constant or rest[0].var not in reduction:
        return _UNKNOWN, _UNKNOWN
    term = rest[0]
    if term.coefficient < 0 or by % term.coefficient:
        return _UNKNOWN, _UNKNOWN
    cut = by // term.coefficient
    found.append((term.var, term.divisor * cut))
    upper = _Term(1, term.var, term.divisor * cut, -(-term.extent // cut))
    lower = _Term(term.coefficient, term.var, term.divisor, cut)
    return _add(quotient, _Linear((upper,), 0)), _Linear((lower,), 0)


def _scale_down(terms: list[_Term], constant: int, by: int) -> _Linear:
    scaled = (_Term(t.coefficient // by, t.var, t.divisor, t.extent) for t in terms)
    return _Linear(tuple(scaled), constant)


def digit_extents(extent: int, cuts: Sequence[int]) -> tuple[int, ...]:
    """Return the extents of the loops that an axis becomes when it is cut at the strides `cuts`.

    Outermost first; their product is at least `extent`. A cut that no other divides is dropped.
    """
    chain: list[int] = []
    for cut in sorted(set(cuts)):
        if 1 < cut < extent and (not chain or cut % chain[-1] == 0):
            chain.append(cut)
    if not chain:
        return (extent,)
    inner = [chain[0], *(b // a for a, b in pairwise(chain))]
    return (-(-extent // chain[-1]), *reversed(inner))


def map_load(layout: Layout, indices: Sequence[Any], analyzer: Analyzer) -> list[Any]:
    """Return the simplified physical indices of a load.

    Unlike `Layout.map_index`, an unfolded dimension is read in the tile that the loops are in,
    where that can be proven to hold the element, and not in the last possible one.
    """
    mapped = list(indices)
    for step, shape in layout.steps:
        if isinstance(step, Unfold):
            place = _tile_of(step, shape[step.dim], mapped[step.dim], analyzer)
            if place is not None:
                mapped[step.dim : step.dim + 1] = place
                continue
        mapped = list(step.map_index(tuple(mapped), shape))
    return [analyzer.simplify(index) for index in mapped]


def _tile_of(step: Unfold, extent: int, index: Any, analyzer: Analyzer) -> list[Any] | None:
    """Return (tile, offset) where the terms that are multiples of the stride choose the tile."""
    terms, constant = linear_terms(analyzer.simplify(index))
    zero = index - index
    tile, offset = zero, zero + constant
    for atom, scale in terms:
        if scale % step.stride == 0:
            tile = tile + atom * (scale // step.stride)
        else:
            offset = offset + atom * scale
    if is_within(offset, step.size, analyzer) and is_within(tile, step.tiles(extent), analyzer):
        return [tile, offset]
    return None


def is_within(index: Any, extent: int, analyzer: Analyzer) -> bool:
    """Whether ``0 <= index < extent`` is proven."""
    bound = analyzer.const_int_bound(analyzer.simplify(index))
    return bool(bound.min_value >= 0 and bound.max_value < extent)
