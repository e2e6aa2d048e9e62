"""What every layout primitive can do, their registry, and helpers for writing one.

Every primitive maps tensors of one shape to tensors of another one. It says the new shape, maps
an index forth (`map_index`) and back (`unmap_index`), moves the elements of a numpy array
(`transform`, `untransform`), and knows its inverse. Index arithmetic uses only the operators
``+ - * // %`` and comparisons, so that Python ints, numpy arrays and TIR expressions all work.

`untransform` gives back what `transform` was given, wherever the primitive keeps it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from dataclasses import fields as dataclass_fields
from math import prod
from typing import Any, ClassVar

import numpy as np

from tilewright.errors import LayoutError

Shape = tuple[int, ...]
Index = tuple[Any, ...]

KINDS: dict[str, type[Primitive]] = {}


def register(cls: type[Primitive]) -> type[Primitive]:
    """Add a kind to the registry; a kind that is there already is an error."""
    if cls.kind in KINDS:
        raise LayoutError(f"layout primitive kind {cls.kind!r} is registered twice")
    KINDS[cls.kind] = cls
    return cls


@dataclass(frozen=True, slots=True)
class Primitive:
    """One step of a layout; the base class of every kind."""

    kind: ClassVar[str] = ""
    keeps_every_element: ClassVar[bool] = True
    """Each element has exactly one place, so that a producer can write through the primitive."""

    def output_shape(self, shape: Shape) -> Shape:
        """Return the shape after the primitive; raise LayoutError where it does not fit."""
        raise NotImplementedError

    def inverse(self, shape: Shape) -> Primitive:
        """Return the primitive that undoes this one, which is applied to `shape`."""
        raise NotImplementedError

    def map_index(self, index: Index, shape: Shape) -> Index:
        """Return where the element at `index` of a tensor of `shape` goes."""
        raise NotImplementedError

    def unmap_index(self, index: Index, shape: Shape) -> tuple[Index, list[Any]]:
        """Return which element lies at `index` of the result, and the conditions that one does."""
        raise NotImplementedError

    def transform(self, array: np.ndarray, fill: Any, guests: Mapping[str, Any]) -> np.ndarray:
        """Move the elements of `array`; new places hold `fill`."""
        raise NotImplementedError

    def untransform(self, array: np.ndarray, shape: Shape) -> np.ndarray:
        """Undo `transform` of an array of `shape`."""
        raise NotImplementedError

    def to_json(self) -> dict[str, Any]:
        """Return a JSON object with the kind as a tag."""
        fields = {k: list(v) if isinstance(v, tuple) else v for k, v in asdict(self).items()}
        return {"kind": self.kind, **fields}


def primitive_from_json(data: Any) -> Primitive:
    """Return the primitive that `Primitive.to_json` wrote; unknown kinds and fields raise."""
    if not isinstance(data, Mapping) or data.get("kind") not in KINDS:
        raise LayoutError(f"unknown layout primitive {data!r}; known kinds: {', '.join(KINDS)}")
    cls = KINDS[data["kind"]]
    fields = {k: tuple(v) if isinstance(v, list) else v for k, v in data.items() if k != "kind"}
    known = {field.name for field in dataclass_fields(cls)}
    if set(fields) != known:
        raise LayoutError(
            f"layout primitive {cls.kind!r} has fields {sorted(fields)}, expected {sorted(known)}"
        )
    return cls(**fields)


def check_int(what: str, value: Any, least: int) -> None:
    """Raise LayoutError where `value` is not an integer of at least `least`."""
    if not isinstance(value, int) or isinstance(value, bool) or value < least:
        raise LayoutError(f"{what} is {value!r}, expected an integer of at least {least}")


def check_dim(name: str, dim: int, shape: Shape, count: int = 1) -> None:
    """Raise LayoutError where `shape` has no dimensions `dim` to ``dim + count - 1``."""
    if dim + count > len(shape):
        last = f"..{dim + count - 1}" if count > 1 else ""
        raise LayoutError(f"{name} of dimension {dim}{last} does not fit the shape {list(shape)}")


def splice(items: Sequence[Any], dim: int, count: int, new: Sequence[Any]) -> tuple[Any, ...]:
    """Replace `count` items from `dim` by `new`."""
    return (*items[:dim], *new, *items[dim + count :])


def joined(index: Sequence[Any], extents: Sequence[int]) -> Any:
    """Return the row-major position of `index` in a box of `extents`."""
    value = index[0]
    for i, extent in zip(index[1:], extents[1:], strict=True):
        value = value * extent + i
    return value


def digits(value: Any, extents: Sequence[int]) -> list[Any]:
    """Undo `joined`; the outermost digit is not reduced, since it is in range already."""
    found: list[Any] = []
    for k, extent in enumerate(extents):
        inner = prod(extents[k + 1 :])
        digit = value // inner if inner != 1 else value
        found.append(digit % extent if k else digit)
    return found


def in_box(index: Any, before: int, extent: int, total: int) -> list[Any]:
    """Return the conditions for ``before <= index < before + extent`` of an index below `total`."""
    conditions = []
    if before:
        conditions.append(index >= before)
    if before + extent < total:
        conditions.append(index < before + extent)
    return conditions


def padded(array: np.ndarray, dim: int, before: int, after: int, fill: Any) -> np.ndarray:
    """Return `array` with `fill` around dimension `dim`."""
    if not before and not after:
        return array
    extent = array.shape[dim]
    out = np.full(splice(array.shape, dim, 1, (before + extent + after,)), fill, array.dtype)
    out[(slice(None),) * dim + (slice(before, before + extent),)] = array
    return out


def sliced(array: np.ndarray, dim: int, start: int, extent: int) -> np.ndarray:
    """Return a view of `extent` elements of dimension `dim`, from `start` on."""
    return array[(slice(None),) * dim + (slice(start, start + extent),)]


def minimum(a: Any, b: int) -> Any:
    """Return the lesser of `a` (int, array or TIR expression) and `b`."""
    if isinstance(a, int | np.integer):
        return min(int(a), b)
    if isinstance(a, np.ndarray):
        return np.minimum(a, b)
    from tvm import tirx  # only index expressions need TVM

    return tirx.min(a, b)
