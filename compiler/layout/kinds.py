"""The layout primitives of ALT, one small frozen class each, with their inverses."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from typing import Any, ClassVar

import numpy as np

from tilewright.compiler.layout.base import (
    Index,
    Primitive,
    Shape,
    check_dim,
    check_int,
    digits,
    in_box,
    joined,
    minimum,
    padded,
    register,
    sliced,
    splice,
)
from tilewright.errors import LayoutError


@register
@dataclass(frozen=True, slots=True)
class Split(Primitive):
    """Split dimension `dim` into ``len(factors)`` dimensions, outermost first."""

    kind: ClassVar[str] = "split"
    dim: int
    factors: tuple[int, ...]

    def __post_init__(self) -> None:
        check_int("the dimension of a split", self.dim, 0)
        object.__setattr__(self, "factors", tuple(self.factors))
        for factor in self.factors:
            check_int("a factor of a split", factor, 1)
        if not self.factors:
            raise LayoutError(f"the split of dimension {self.dim} has no factors")

    def output_shape(self, shape: Shape) -> Shape:
        check_dim("split", self.dim, shape)
        if prod(self.factors) != shape[self.dim]:
            raise LayoutError(
                f"split of dimension {self.dim}: the factors {list(self.factors)} multiply to "
                f"{prod(self.factors)}, but the extent is {shape[self.dim]}; pad it first"
            )
        return splice(shape, self.dim, 1, self.factors)

    def inverse(self, shape: Shape) -> Primitive:
        return Fuse(self.dim, len(self.factors))

    def map_index(self, index: Index, shape: Shape) -> Index:
        return splice(index, self.dim, 1, digits(index[self.dim], self.factors))

    def unmap_index(self, index: Index, shape: Shape) -> tuple[Index, list[Any]]:
        count = len(self.factors)
        value = joined(index[self.dim : self.dim + count], self.factors)
        return splice(index, self.dim, count, (value,)), []

    def transform(self, array: np.ndarray, fill: Any, guests: Mapping[str, Any]) -> np.ndarray:
        return array.reshape(self.output_shape(array.shape))

    def untransform(self, array: np.ndarray, shape: Shape) -> np.ndarray:
        return array.reshape(shape)


@register
@dataclass(frozen=True, slots=True)
class Fuse(Primitive):
    """Fuse `count` neighbouring dimensions from `dim` on into one, row-major."""

    kind: ClassVar[str] = "fuse"
    dim: int
    count: int

    def __post_init__(self) -> None:
        check_int("the dimension of a fuse", self.dim, 0)
        check_int("the count of a fuse", self.count, 1)

    def _extents(self, shape: Shape) -> Shape:
        return shape[self.dim : self.dim + self.count]

    def output_shape(self, shape: Shape) -> Shape:
        check_dim("fuse", self.dim, shape, self.count)
        return splice(shape, self.dim, self.count, (prod(self._extents(shape)),))

    def inverse(self, shape: Shape) -> Primitive:
        return Split(self.dim, self._extents(shape))

    def map_index(self, index: Index, shape: Shape) -> Index:
        value = joined(index[self.dim : self.dim + self.count], self._extents(shape))
        return splice(index, self.dim, self.count, (value,))

    def unmap_index(self, index: Index, shape: Shape) -> tuple[Index, list[Any]]:
        return splice(index, self.dim, 1, digits(index[self.dim], self._extents(shape))), []

    def transform(self, array: np.ndarray, fill: Any, guests: Mapping[str, Any]) -> np.ndarray:
        return array.reshape(self.output_shape(array.shape))

    def untransform(self, array: np.ndarray, shape: Shape) -> np.ndarray:
        return array.reshape(shape)


@register
@dataclass(frozen=True, slots=True)
class Reorder(Primitive):
    """Change the order of the dimensions: new dimension `i` is old dimension ``perm[i]``."""

    kind: ClassVar[str] = "reorder"
    perm: tuple[int, ...]

    def __post_init__(self) -> None:
        object.__setattr__(self, "perm", tuple(self.perm))
        if sorted(self.perm) != list(range(len(self.perm))):
            raise LayoutError(f"reorder {list(self.perm)} is not a permutation of 0..n-1")

    def output_shape(self, shape: Shape) -> Shape:
        if len(shape) != len(self.perm):
            raise LayoutError(f"reorder {list(self.perm)} does not fit the shape {list(shape)}")
        return tuple(shape[p] for p in self.perm)

    def inverse(self, shape: Shape) -> Primitive:
        return Reorder(tuple(self.perm.index(i) for i in range(len(self.perm))))

    def map_index(self, index: Index, shape: Shape) -> Index:
        return tuple(index[p] for p in self.perm)

    def unmap_index(self, index: Index, shape: Shape) -> tuple[Index, list[Any]]:
        return tuple(index[self.perm.index(i)] for i in range(len(self.perm))), []

    def transform(self, array: np.ndarray, fill: Any, guests: Mapping[str, Any]) -> np.ndarray:
        return array.transpose(self.perm)

    def untransform(self, array: np.ndarray, shape: Shape) -> np.ndarray:
        return array.transpose([self.perm.index(i) for i in range(len(self.perm))])


@register
@dataclass(frozen=True, slots=True)
class Pad(Primitive):
    """Add `before` and `after` neutral elements (zeros) at the ends of dimension `dim`."""

    kind: ClassVar[str] = "pad"
    dim: int
    before: int
    after: int

    def __post_init__(self) -> None:
        check_int("the dimension of a pad", self.dim, 0)
        check_int("the padding before", self.before, 0)
        check_int("the padding after", self.after, 0)

    def output_shape(self, shape: Shape) -> Shape:
        check_dim("pad", self.dim, shape)
        return splice(shape, self.dim, 1, (self.before + shape[self.dim] + self.after,))

    def inverse(self, shape: Shape) -> Primitive:
        return Crop(self.dim, self.before, self.after)

    def map_index(self, index: Index, shape: Shape) -> Index:
        moved = index[self.dim] + self.before if self.before else index[self.dim]
        return splice(index, self.dim, 1, (moved,))

    def unmap_index(self, index: Index, shape: Shape) -> tuple[Index, list[Any]]:
        i, extent = index[self.dim], shape[self.dim]
        conditions = in_box(i, self.before, extent, self.before + extent + self.after)
        moved = i - self.before if self.before else i
        return splice(index, self.dim, 1, (moved,)), conditions

    def transform(self, array: np.ndarray, fill: Any, guests: Mapping[str, Any]) -> np.ndarray:
        return padded(array, self.dim, self.before, self.after, fill)

    def untransform(self, array: np.ndarray, shape: Shape) -> np.ndarray:
        return sliced(array, self.dim, self.before, shape[self.dim])


@register
@dataclass(frozen=True, slots=True)
class Crop(Primitive):
    """Drop `before` and `after` elements at the ends of dimension `dim`; the inverse of Pad."""

    kind: ClassVar[str] = "crop"
    keeps_every_element: ClassVar[bool] = False
    dim: int
    before: int
    after: int

    def __post_init__(self) -> None:
        check_int("the dimension of a crop", self.dim, 0)
        check_int("the crop before", self.before, 0)
        check_int("the crop after", self.after, 0)

    def output_shape(self, shape: Shape) -> Shape:
        check_dim("crop", self.dim, shape)
        extent = shape[self.dim] - self.before - self.after
        if extent < 1:
            raise LayoutError(
                f"crop of {self.before} and {self.after} elements leaves nothing of "
                f"dimension {self.dim} of the shape {list(shape)}"
            )
        return splice(shape, self.dim, 1, (extent,))

    def inverse(self, shape: Shape) -> Primitive:
        return Pad(self.dim, self.before, self.after)

    def map_index(self, index: Index, shape: Shape) -> Index:
        moved = index[self.dim] - self.before if self.before else index[self.dim]
        return splice(index, self.dim, 1, (moved,))

    def unmap_index(self, index: Index, shape: Shape) -> tuple[Index, list[Any]]:
        moved = index[self.dim] + self.before if self.before else index[self.dim]
        return splice(index, self.dim, 1, (moved,)), []

    def transform(self, array: np.ndarray, fill: Any, guests: Mapping[str, Any]) -> np.ndarray:
        return sliced(array, self.dim, self.before, self.output_shape(array.shape)[self.dim])

    def untransform(self, array: np.ndarray, shape: Shape) -> np.ndarray:
        return padded(array, self.dim, self.before, self.after, 0)


@register
@dataclass(frozen=True, slots=True)
class Unfold(Primitive):
    """Lay out overlapping tiles of dimension `dim` apart: dimension -> (tiles, size).

    Tile `t` holds the elements from ``t * stride`` on. The tiles must cover the dimension exactly:
    ``extent == (tiles - 1) * stride + size`` (pad it first where they do not). Elements in the
    overlap are stored several times; an index maps to the last tile that starts at or before it.
    """

    kind: ClassVar[str] = "unfold"
    keeps_every_element: ClassVar[bool] = False
    dim: int
    size: int
    stride: int

    def __post_init__(self) -> None:
        check_int("the dimension of an unfold", self.dim, 0)
        check_int("the stride of an unfold", self.stride, 1)
        check_int("the tile size of an unfold", self.size, self.stride)

    def tiles(self, extent: int) -> int:
        """Return the number of tiles that cover `extent` elements."""
        return (extent - self.size) // self.stride + 1

    def output_shape(self, shape: Shape) -> Shape:
        check_dim("unfold", self.dim, shape)
        extent = shape[self.dim]
        if extent < self.size or (extent - self.size) % self.stride:
            raise LayoutError(
                f"unfold of dimension {self.dim}: tiles of {self.size} with stride {self.stride} "
                f"do not cover the extent {extent} exactly; pad it first"
            )
        return splice(shape, self.dim, 1, (self.tiles(extent), self.size))

    def inverse(self, shape: Shape) -> Primitive:
        return Fold(self.dim, self.stride)

    def map_index(self, index: Index, shape: Shape) -> Index:
        i, last = index[self.dim], self.tiles(shape[self.dim]) - 1
        tile = minimum(i // self.stride, last) if self.size > self.stride else i // self.stride
        return splice(index, self.dim, 1, (tile, i - tile * self.stride))

    def unmap_index(self, index: Index, shape: Shape) -> tuple[Index, list[Any]]:
        value = index[self.dim] * self.stride + index[self.dim + 1]
        return splice(index, self.dim, 2, (value,)), []

    def transform(self, array: np.ndarray, fill: Any, guests: Mapping[str, Any]) -> np.ndarray:
        tiles = self.output_shape(array.shape)[self.dim]
        windows = np.lib.stride_tricks.sliding_window_view(array, self.size, axis=self.dim)
        picked = windows[(slice(None),) * self.dim + (slice(0, None, self.stride),)]
        assert picked.shape[self.dim] == tiles
        return np.moveaxis(picked, -1, self.dim + 1)

    def untransform(self, array: np.ndarray, shape: Shape) -> np.ndarray:
        return Fold(self.dim, self.stride).transform(array, 0, {})


@register
@dataclass(frozen=True, slots=True)
class Fold(Primitive):
    """Merge the dimensions (tiles, size) at `dim` that Unfold made; the inverse of Unfold."""

    kind: ClassVar[str] = "fold"
    keeps_every_element: ClassVar[bool] = False
    dim: int
    stride: int

    def __post_init__(self) -> None:
        check_int("the dimension of a fold", self.dim, 0)
        check_int("the stride of a fold", self.stride, 1)

    def output_shape(self, shape: Shape) -> Shape:
        check_dim("fold", self.dim, shape, 2)
        tiles, size = shape[self.dim : self.dim + 2]
        if size < self.stride:
            raise LayoutError(f"fold: tiles of {size} do not overlap at stride {self.stride}")
        return splice(shape, self.dim, 2, ((tiles - 1) * self.stride + size,))

    def inverse(self, shape: Shape) -> Primitive:
        return Unfold(self.dim, shape[self.dim + 1], self.stride)

    def map_index(self, index: Index, shape: Shape) -> Index:
        return self.inverse(shape).unmap_index(index, self.output_shape(shape))[0]

    def unmap_index(self, index: Index, shape: Shape) -> tuple[Index, list[Any]]:
        return self.inverse(shape).map_index(index, self.output_shape(shape)), []

    def transform(self, array: np.ndarray, fill: Any, guests: Mapping[str, Any]) -> np.ndarray:
        tiles, size = array.shape[self.dim : self.dim + 2]
        out = np.empty(self.output_shape(array.shape), array.dtype)
        for tile in range(tiles):
            sliced(out, self.dim, tile * self.stride, size)[...] = array.take(tile, self.dim)
        return out

    def untransform(self, array: np.ndarray, shape: Shape) -> np.ndarray:
        return self.inverse(shape).transform(array, 0, {})


@register
@dataclass(frozen=True, slots=True)
class StoreAt(Primitive):
    """Append one slot to dimension `dim` that holds a second tensor, the guest.

    The guest (a bias, the scales) has the shape of the host without `dim`. What the slot holds
    before the guest is stored counts as padding.
    """

    kind: ClassVar[str] = "store_at"
    keeps_every_element: ClassVar[bool] = False
    dim: int
    guest: str

    def __post_init__(self) -> None:
        check_int("the dimension of a store_at", self.dim, 0)
        if not isinstance(self.guest, str) or not self.guest:
            raise LayoutError(f"store_at needs the name of the tensor to store, got {self.guest!r}")

    def output_shape(self, shape: Shape) -> Shape:
        check_dim("store_at", self.dim, shape)
        return splice(shape, self.dim, 1, (shape[self.dim] + 1,))

    def inverse(self, shape: Shape) -> Primitive:
        return TakeOut(self.dim, self.guest)

    def map_index(self, index: Index, shape: Shape) -> Index:
        return index

    def unmap_index(self, index: Index, shape: Shape) -> tuple[Index, list[Any]]:
        return index, [index[self.dim] < shape[self.dim]]

    def transform(self, array: np.ndarray, fill: Any, guests: Mapping[str, Any]) -> np.ndarray:
        out = padded(array, self.dim, 0, 1, fill)
        if self.guest in guests:
            guest = np.asarray(guests[self.guest])
            expected = splice(array.shape, self.dim, 1, ())
            if guest.shape != expected:
                raise LayoutError(
                    f"store_at: tensor {self.guest!r} has shape {list(guest.shape)}, "
                    f"expected {list(expected)}"
                )
            out[(slice(None),) * self.dim + (-1,)] = guest
        return out

    def untransform(self, array: np.ndarray, shape: Shape) -> np.ndarray:
        return sliced(array, self.dim, 0, shape[self.dim])


@register
@dataclass(frozen=True, slots=True)
class TakeOut(Primitive):
    """Drop the last slot of dimension `dim`, which holds `guest`; the inverse of StoreAt."""

    kind: ClassVar[str] = "take_out"
    keeps_every_element: ClassVar[bool] = False
    dim: int
    guest: str

    def __post_init__(self) -> None:
        StoreAt(self.dim, self.guest)

    def output_shape(self, shape: Shape) -> Shape:
        return Crop(self.dim, 0, 1).output_shape(shape)

    def inverse(self, shape: Shape) -> Primitive:
        return StoreAt(self.dim, self.guest)

    def map_index(self, index: Index, shape: Shape) -> Index:
        return index

    def unmap_index(self, index: Index, shape: Shape) -> tuple[Index, list[Any]]:
        return index, []

    def transform(self, array: np.ndarray, fill: Any, guests: Mapping[str, Any]) -> np.ndarray:
        return Crop(self.dim, 0, 1).transform(array, fill, guests)

    def untransform(self, array: np.ndarray, shape: Shape) -> np.ndarray:
        return padded(array, self.dim, 0, 1, 0)


def extent_change(step: Primitive) -> tuple[int, int, int]:
    """Return the first dimension of a step, and how many dimensions it takes and gives."""
    match step:
        case Split(dim=dim, factors=factors):
            return dim, 1, len(factors)
        case Fuse(dim=dim, count=count):
            return dim, count, 1
        case Unfold(dim=dim):
            return dim, 1, 2
        case Fold(dim=dim):
            return dim, 2, 1
        case Pad(dim=dim) | Crop(dim=dim) | StoreAt(dim=dim) | TakeOut(dim=dim):
            return dim, 1, 1
    raise AssertionError(f"{step} has no single dimension")
