"""Takes layouts apart, so that a layout can be carried over to a related tensor.

Most layouts treat each logical dimension by itself (pad it, split it) and then order the parts.
Such a layout is a chain of primitives per dimension and an order of the leaves. A tensor that
shares some of the dimensions (a bias, a mean over the pixels, a padded copy) takes their chains.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from math import prod

from tilewright.compiler.layout.base import Primitive, Shape
from tilewright.compiler.layout.kinds import Pad, Reorder, Split, extent_change
from tilewright.compiler.layout.primitives import Layout

Chain = tuple[Primitive, ...]


@dataclass(frozen=True, slots=True)
class PerDimension:
    """A layout as a chain per logical dimension and the order of the leaves.

    `order` lists, in physical order, the (dimension, leaf) that each physical dimension is.
    """

    shape: Shape
    chains: tuple[Chain, ...]
    order: tuple[tuple[int, int], ...]


@lru_cache(maxsize=4096)
def per_dimension(layout: Layout) -> PerDimension | None:
    """Return the layout in parts, or None where it mixes dimensions (fuses them)."""
    owners = list(range(len(layout.shape)))
    chains: list[list[Primitive]] = [[] for _ in owners]
    places: list[tuple[int, int]] | None = None
    for step in layout.simplify().primitives:
        if places is not None:
            return None  # something follows a reorder that could not be moved to the end
        if isinstance(step, Reorder):
            leaves = [(owner, owners[:i].count(owner)) for i, owner in enumerate(owners)]
            places = [leaves[p] for p in step.perm]
            continue
        dim, taken, given = extent_change(step)
        if len(set(owners[dim : dim + taken])) != 1:
            return None
        owner = owners[dim]
        chains[owner].append(replace(step, dim=dim - owners.index(owner)))  # type: ignore[call-arg]
        owners[dim : dim + taken] = [owner] * given
    if places is None:
        places = [(owner, owners[:i].count(owner)) for i, owner in enumerate(owners)]
    return PerDimension(layout.shape, tuple(map(tuple, chains)), tuple(places))


def carry_over(layout: Layout, shape: Shape, sources: Sequence[int | None]) -> Layout | None:
    """Return the layout of a tensor of `shape` whose dimension `i` is ``sources[i]`` of another.

    A dimension without a source stays whole, behind the dimension before it. Borders are not
    carried over, nor are primitives that repeat or drop data. None where `layout` fuses dimensions.
    """
    return _carried_over(layout, shape, tuple(sources))


@lru_cache(maxsize=4096)
def _carried_over(layout: Layout, shape: Shape, sources: tuple[int | None, ...]) -> Layout | None:
    parts = per_dimension(layout)
    if parts is None:
        return None
    chains: list[Chain] = []
    keyed: list[tuple[float, int, int]] = []
    previous = -1.0
    for dim, source in enumerate(sources):
        chain: Chain = ()
        if source is not None:
            chain = _fitted_chain(parts.chains[source], layout.shape[source], shape[dim])
        leaves = len(Layout((shape[dim],), chain).physical_shape)
        for leaf in range(leaves):
            key = previous + 0.5
            if source is not None:
                at = parts.order.index((source, leaf))
                key = float(at)
            if leaf == 0:
                previous = key
            keyed.append((key, dim, leaf))
        chains.append(chain)
    return assemble(shape, chains, [(dim, leaf) for _, dim, leaf in sorted(keyed)])


def assemble(shape: Shape, chains: Sequence[Chain], order: Sequence[tuple[int, int]]) -> Layout:
    """Return the layout with a chain per dimension and its leaves in `order`."""
    layout = Layout(shape)
    leaves: list[tuple[int, int]] = []
    for dim in reversed(range(len(shape))):
        moved = [replace(step, dim=step.dim + dim) for step in chains[dim]]  # type: ignore[attr-defined,call-arg]
        layout = layout.then(*moved)
        count = len(Layout((shape[dim],), chains[dim]).physical_shape)
        leaves = [(dim, leaf) for leaf in range(count)] + leaves
    return layout.then(Reorder(tuple(leaves.index(place) for place in order))).simplify()


def _fitted_chain(chain: Chain, extent: int, new_extent: int) -> Chain:
    """Return the chain for a dimension of another extent, or nothing where it cannot be fitted."""
    while chain and isinstance(chain[-1], Pad):
        chain = chain[:-1]
    if not all(step.keeps_every_element for step in chain):
        return ()
    if new_extent == extent:
        return chain
    match chain:
        case (Split(factors=factors),) | (Pad(before=0), Split(factors=factors)):
            inner = prod(factors[1:])
            if new_extent == 1:
                return ()
            blocks = -(-new_extent // inner)
            split = Split(0, (blocks, *factors[1:]))
            padding = blocks * inner - new_extent
            return (Pad(0, 0, padding), split) if padding else (split,)
    return ()


@lru_cache(maxsize=4096)
def split_border(layout: Layout) -> tuple[Layout, tuple[tuple[int, int], ...]]:
    """Return the layout without its border, and the border per physical dimension.

    The border is the padding of dimensions that are not split (or otherwise changed) afterwards: it
    surrounds the tensor in memory, so that a producer can write around it.
    """
    steps = list(layout.simplify().primitives)
    borders: dict[int, tuple[int, int]] = {}
    core: list[Primitive] = []
    while steps:
        step = steps.pop()
        if isinstance(step, Pad) and not _touched_later(step.dim, core):
            borders[_final_dim(step.dim, core)] = (step.before, step.after)
        else:
            core.insert(0, step)
    inner = Layout(layout.shape, tuple(core))
    return inner, tuple(borders.get(i, (0, 0)) for i in range(len(inner.physical_shape)))


def _touched_later(dim: int, steps: list[Primitive]) -> bool:
    return _final_dim(dim, steps) < 0


def _final_dim(dim: int, steps: list[Primitive]) -> int:
    """Return where dimension `dim` is after `steps`, or -1 where one of them changes it."""
    for step in steps:
        if isinstance(step, Reorder):
            dim = step.perm.index(dim)
            continue
        first, taken, given = extent_change(step)
        if first <= dim < first + taken:
            return -1
        if dim >= first + taken:
            dim += given - taken
    return dim
