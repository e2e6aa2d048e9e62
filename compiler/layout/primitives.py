"""Layouts: sequences of primitives, bound to the logical shape of one tensor.

A layout says where each element of a logical tensor lies in memory. It is what is searched,
stored in logs, and given to `rewrite`. Padding always holds zeros: whoever writes a tensor writes
them, so whoever reads it may rely on them.

    >>> str(blocked((1, 64, 56, 56), dim=1, factor=16))
    'd0 d1 d2 d3 -> d0 d1/16 d2 d3 16d1'
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from math import prod
from typing import Any

import numpy as np

from tilewright.compiler.layout.base import Index, Primitive, Shape, primitive_from_json
from tilewright.compiler.layout.kinds import (
    Crop,
    Fold,
    Fuse,
    Pad,
    Reorder,
    Split,
    StoreAt,
    TakeOut,
    Unfold,
)
from tilewright.compiler.layout.simplify import simplified
from tilewright.errors import LayoutError

__all__ = [
    "Crop",
    "Fold",
    "Fuse",
    "Layout",
    "Pad",
    "Primitive",
    "Reorder",
    "Shape",
    "Split",
    "StoreAt",
    "TakeOut",
    "Unfold",
    "blocked",
    "pack_constant",
    "primitive_from_json",
]


@dataclass(frozen=True)
class Layout:
    """Primitives applied, first to last, to a tensor of the logical `shape`.

    Raises LayoutError where a primitive does not fit the shape that reaches it.
    """

    shape: Shape
    primitives: tuple[Primitive, ...] = ()
    _shapes: tuple[Shape, ...] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "shape", tuple(int(extent) for extent in self.shape))
        object.__setattr__(self, "primitives", tuple(self.primitives))
        if any(extent < 0 for extent in self.shape):
            raise LayoutError(f"layout of the shape {list(self.shape)}: negative extent")
        shapes = [self.shape]
        for primitive in self.primitives:
            shapes.append(primitive.output_shape(shapes[-1]))
        object.__setattr__(self, "_shapes", tuple(shapes))

    @property
    def physical_shape(self) -> Shape:
        """The shape of the tensor in memory, row-major."""
        return self._shapes[-1]

    def size_bytes(self, dtype: str) -> int:
        """Return the bytes that a tensor of `dtype` (a numpy name) takes in this layout."""
        return prod(self.physical_shape) * np.dtype(dtype).itemsize

    @property
    def steps(self) -> list[tuple[Primitive, Shape]]:
        """The primitives, each with the shape that reaches it."""
        return list(zip(self.primitives, self._shapes[:-1], strict=True))

    @property
    def is_identity(self) -> bool:
        """The physical tensor is the logical one."""
        return not self.simplify().primitives

    @property
    def is_invertible(self) -> bool:
        """Each element has exactly one place: a producer can write through the layout."""
        return all(primitive.keeps_every_element for primitive in self.primitives)

    def then(self, *primitives: Primitive) -> Layout:
        """Return the layout with `primitives` applied to its physical shape."""
        return Layout(self.shape, (*self.primitives, *primitives))

    def compose(self, other: Layout) -> Layout:
        """Return the layout that applies `other` to this one's physical tensor."""
        if other.shape != self.physical_shape:
            raise LayoutError(
                f"cannot apply a layout of the shape {list(other.shape)} to a tensor of the "
                f"physical shape {list(self.physical_shape)}"
            )
        return self.then(*other.primitives)

    def inverse(self) -> Layout:
        """Return the layout that brings the physical tensor back to the logical one."""
        undone = [primitive.inverse(shape) for primitive, shape in self.steps]
        return Layout(self.physical_shape, tuple(reversed(undone)))

    def simplify(self) -> Layout:
        """Return the layout in normal form: the same map in fewer primitives."""
        return _simplified(self)

    def map_index(self, index: Sequence[Any]) -> Index:
        """Return the physical place of the logical element `index` (ints or TIR expressions)."""
        mapped = tuple(index)
        for primitive, shape in self.steps:
            mapped = primitive.map_index(mapped, shape)
        return mapped

    def unmap_index(self, index: Sequence[Any]) -> tuple[Index, Any | None]:
        """Return the logical element at a physical place, and the condition that there is one.

        The condition is a bool, or a TIR expression; it is None where the place is never padding.
        """
        unmapped, conditions = self.unmap_with_conditions(index)
        return unmapped, _all(conditions)

    def unmap_with_conditions(self, index: Sequence[Any]) -> tuple[Index, list[Any]]:
        """Return `unmap_index`'s element, with its condition as a list of conjuncts."""
        unmapped, conditions = tuple(index), []
        for primitive, shape in reversed(self.steps):
            unmapped, more = primitive.unmap_index(unmapped, shape)
            conditions.extend(more)
        return unmapped, conditions

    def transform(
        self, array: np.ndarray, fill: Any = 0, guests: Mapping[str, Any] | None = None
    ) -> np.ndarray:
        """Return the physical array, C-contiguous, of a logical one.

        Args:
            array: the logical array, of the layout's shape.
            fill: what padding holds.
            guests: tensors for the `StoreAt` primitives, by name.
        """
        if tuple(array.shape) != self.shape:
            raise LayoutError(
                f"array of shape {list(array.shape)} given to a layout of {list(self.shape)}"
            )
        for primitive in self.primitives:
            array = primitive.transform(array, fill, guests or {})
        return np.ascontiguousarray(array).reshape(self.physical_shape)

    def untransform(self, array: np.ndarray) -> np.ndarray:
        """Return the logical array, C-contiguous, of a physical one."""
        if tuple(array.shape) != self.physical_shape:
            raise LayoutError(
                f"array of shape {list(array.shape)} given, but the physical shape is "
                f"{list(self.physical_shape)}"
            )
        for primitive, shape in reversed(self.steps):
            array = primitive.untransform(array, shape)
        return np.ascontiguousarray(array).reshape(self.shape)

    def to_json(self) -> dict[str, Any]:
        """Return a JSON object; `from_json` reads it."""
        steps = [primitive.to_json() for primitive in self.primitives]
        return {"kind": "layout", "shape": list(self.shape), "primitives": steps}

    @classmethod
    def from_json(cls, data: Any) -> Layout:
        """Return the layout that `to_json` wrote; an unknown kind or field raises LayoutError."""
        if not isinstance(data, Mapping) or data.get("kind") != "layout":
            raise LayoutError(f"not a layout: {data!r}")
        if set(data) != {"kind", "shape", "primitives"}:
            raise LayoutError(f"layout has fields {sorted(data)}, expected kind, primitives, shape")
        steps = tuple(primitive_from_json(step) for step in data["primitives"])
        return cls(tuple(data["shape"]), steps)

    def __str__(self) -> str:
        return self.describe()

    def describe(self, axes: Iterable[str] | None = None) -> str:
        """Return the layout for people, as in ``N C H W -> N C/16 H W 16c``.

        Args:
            axes: a name per logical dimension ("NCHW" will do); d0, d1, ... without.
        """
        names = list(axes) if axes is not None else [f"d{i}" for i in range(len(self.shape))]
        labels = [_Label(name, name.lower()) for name in names]
        for primitive in self.primitives:
            labels = _describe_step(primitive, labels)
        return f"{' '.join(names)} -> {' '.join(label.text for label in labels)}"


@lru_cache(maxsize=4096)
def _simplified(layout: Layout) -> Layout:
    return Layout(layout.shape, simplified(layout.shape, layout.primitives))


@dataclass(frozen=True)
class _Label:
    """The text of a physical dimension, and the short name for what is split off from it."""

    text: str
    short: str


def _describe_step(step: Primitive, labels: list[_Label]) -> list[_Label]:
    match step:
        case Reorder(perm=perm):
            return [labels[p] for p in perm]
        case Split(dim=dim, factors=factors):
            old = labels[dim]
            parts = [_Label(f"{factor}{old.short}", old.short) for factor in factors]
            inner = prod(factors[1:])
            if inner > 1:
                parts[0] = _Label(f"{old.text}/{inner}", old.short)
            return [*labels[:dim], *parts, *labels[dim + 1 :]]
        case Fuse(dim=dim, count=count):
            fused = labels[dim : dim + count]
            text = "*".join(label.text for label in fused)
            label = _Label(f"({text})", "".join(label.short for label in fused))
            return [*labels[:dim], label, *labels[dim + count :]]
        case Unfold(dim=dim, size=size, stride=stride):
            old = labels[dim]
            tiles = [
                _Label(f"{old.text}~{stride}", old.short),
                _Label(f"{size}{old.short}", old.short),
            ]
            return [*labels[:dim], *tiles, *labels[dim + 1 :]]
        case Fold(dim=dim, stride=stride):
            outer, inner_label = labels[dim : dim + 2]
            folded = _Label(f"fold({outer.text},{inner_label.text},{stride})", outer.short)
            return [*labels[:dim], folded, *labels[dim + 2 :]]
        case Pad(dim=dim, before=before, after=after):
            text = (
                f"({before}+{labels[dim].text}+{after})"
                if before
                else f"({labels[dim].text}+{after})"
            )
        case Crop(dim=dim, before=before, after=after):
            text = f"{labels[dim].text}[{before}:{-after or ''}]"
        case StoreAt(dim=dim, guest=guest):
            text = f"({labels[dim].text}+{guest})"
        case TakeOut(dim=dim, guest=guest):
            text = f"({labels[dim].text}-{guest})"
        case _:
            raise AssertionError(f"no description of {step}")
    return [*labels[:dim], _Label(text, labels[dim].short), *labels[dim + 1 :]]


def _all(conditions: list[Any]) -> Any | None:
    """Return the conjunction of bools, arrays or TIR conditions; None of none."""
    if not conditions:
        return None
    if all(isinstance(condition, bool) for condition in conditions):
        return all(conditions)
    if all(isinstance(condition, np.ndarray | np.bool_ | bool) for condition in conditions):
        return np.logical_and.reduce(conditions)
    from tvm import tirx  # only index expressions need TVM

    return tirx.all(*conditions)


def blocked(shape: Sequence[int], dim: int, factor: int) -> Layout:
    """Return the layout with blocks of `factor` elements of `dim` innermost.

    NCHW16c is ``blocked((n, c, h, w), 1, 16)``. An extent that `factor` does not divide is padded.
    """
    shape = tuple(shape)
    if not 0 <= dim < len(shape):
        raise LayoutError(f"dimension {dim} to block does not fit the shape {list(shape)}")
    rank, extent = len(shape), shape[dim]
    blocks = -(-extent // factor)
    steps: list[Primitive] = []
    if blocks * factor != extent:
        steps.append(Pad(dim, 0, blocks * factor - extent))
    steps.append(Split(dim, (blocks, factor)))
    if dim != rank - 1:
        order = [i for i in range(rank + 1) if i != dim + 1]
        steps.append(Reorder((*order, dim + 1)))
    return Layout(shape, tuple(steps))


def pack_constant(layout: Layout, array: np.ndarray) -> np.ndarray:
    """Return the constant `array` in `layout`, its padding filled with zeros."""
    return layout.transform(array, fill=0)
