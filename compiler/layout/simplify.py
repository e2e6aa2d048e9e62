"""Brings a sequence of layout primitives to a short normal form, by composing their maps.

Neighbouring steps merge or cancel (a split and the fuse that undoes it, two reorders, a pad and its
crop), steps that do nothing vanish, reorders move to the end, and steps on different dimensions are
sorted. Shapes alone never justify a step: two transposes of a square tensor cancel only where their
permutations do.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from tilewright.compiler.layout.base import Primitive, Shape
from tilewright.compiler.layout.kinds import (
    Crop,
    Fuse,
    Pad,
    Reorder,
    Split,
    StoreAt,
    TakeOut,
    Unfold,
    extent_change,
)

Steps = tuple[Primitive, ...]


def simplified(shape: Shape, primitives: Sequence[Primitive]) -> Steps:
    """Return a shorter or equal sequence with the same map from a tensor of `shape`."""
    steps = list(primitives)
    position = 0
    shapes = _shapes(shape, steps)
    while position < len(steps):
        if _does_nothing(steps[position], shapes[position]):
            new: Steps | None = ()
            width = 1
        elif position + 1 < len(steps):
            new = _rewrite_pair(steps[position], steps[position + 1], shapes[position])
            width = 2
        else:
            new = None
        if new is None:
            position += 1
            continue
        steps[position : position + width] = new
        shapes = _shapes(shape, steps)
        position = max(position - 1, 0)
    return tuple(steps)


def _shapes(shape: Shape, steps: Sequence[Primitive]) -> list[Shape]:
    shapes = [shape]
    for step in steps:
        shapes.append(step.output_shape(shapes[-1]))
    return shapes


def _does_nothing(step: Primitive, shape: Shape) -> bool:
    match step:
        case Split(factors=factors):
            return len(factors) == 1
        case Fuse(count=count):
            return count == 1
        case Reorder(perm=perm):
            return perm == tuple(range(len(perm)))
        case Pad(before=before, after=after) | Crop(before=before, after=after):
            return before == 0 and after == 0
    return False


def _rewrite_pair(first: Primitive, second: Primitive, shape: Shape) -> Steps | None:
    """Return what replaces the pair (None: leave it); `shape` is the one before `first`."""
    merged = _merge(first, second, shape)
    if merged is not None:
        return merged
    if isinstance(first, Reorder):
        return _reorder_last(first, second)
    return _sort(first, second)


def _merge(first: Primitive, second: Primitive, shape: Shape) -> Steps | None:
    if second == first.inverse(shape) and first.keeps_every_element | isinstance(first, Unfold):
        return ()
    match first, second:
        case Reorder(perm=p), Reorder(perm=q):
            return (Reorder(tuple(p[i] for i in q)),)
        case Pad(dim=d, before=b, after=a), Pad(dim=e, before=c, after=f) if d == e:
            return (Pad(d, b + c, a + f),)
        case Crop(dim=d, before=b, after=a), Crop(dim=e, before=c, after=f) if d == e:
            return (Crop(d, b + c, a + f),)
        case Pad(dim=d, before=b, after=a), Crop(dim=e, before=c, after=f) if d == e:
            common = (min(b, c), min(a, f))
            if any(common):
                return (Pad(d, b - common[0], a - common[1]), Crop(d, c - common[0], f - common[1]))
        case StoreAt(dim=d, guest=g), TakeOut(dim=e, guest=h) if d == e and g == h:
            return ()
        case Split(dim=d, factors=fs), Split(dim=e, factors=gs) if d <= e < d + len(fs):
            at = e - d
            return (Split(d, (*fs[:at], *gs, *fs[at + 1 :])),)
        case Split(dim=d, factors=fs), Fuse(dim=e, count=n) if d <= e and e + n <= d + len(fs):
            at, product = e - d, 1
            for factor in fs[at : at + n]:
                product *= factor
            return (Split(d, (*fs[:at], product, *fs[at + n :])),)
        case Fuse(dim=d, count=n), Fuse(dim=e, count=m) if e <= d < e + m:
            return (Fuse(e, n + m - 1),)
        case Fuse(dim=d, count=n), Split(dim=e, factors=fs) if d == e:
            return _split_of_fused(d, shape[d : d + n], fs)
    return None


def _split_of_fused(dim: int, extents: Shape, factors: Shape) -> Steps | None:
    """Split what was fused: a leading or trailing extent that the factors restore stays apart."""
    if extents[-1] == factors[-1] and min(len(extents), len(factors)) > 1:
        return (Fuse(dim, len(extents) - 1), Split(dim, factors[:-1]))
    if extents[0] == factors[0] and min(len(extents), len(factors)) > 1:
        return (Fuse(dim + 1, len(extents) - 1), Split(dim + 1, factors[1:]))
    return None


def _reorder_last(first: Reorder, second: Primitive) -> Steps | None:
    """Return `second` on the dimensions before the reorder, then the reorder that follows it."""
    if isinstance(second, Reorder):
        return None
    dim, taken, given = extent_change(second)
    sources = first.perm[dim : dim + taken]
    if sources != tuple(range(sources[0], sources[0] + taken)):
        return None  # the dimensions are neighbours only after the reorder
    start = sources[0]
    new_dims = tuple(range(start, start + given))
    moved = [p + given - taken if p > start else p for p in first.perm]
    perm = (*moved[:dim], *new_dims, *moved[dim + taken :])
    return (_at(second, start), Reorder(perm))


def _sort(first: Primitive, second: Primitive) -> Steps | None:
    """Swap two steps on different dimensions where `second` works on an earlier one."""
    if isinstance(second, Reorder):
        return None
    first_dim = extent_change(first)[0]
    dim, taken, given = extent_change(second)
    if dim + taken > first_dim:
        return None
    return (second, _at(first, first_dim + given - taken))


def _at(step: Primitive, dim: int) -> Primitive:
    return replace(step, dim=dim)  # type: ignore[call-arg]
