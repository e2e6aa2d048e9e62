"""Tensors that are stored inside another one (`StoreAt`): where their elements are found."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from tvm import tirx

from tilewright.compiler.layout.base import Index, Primitive, Shape
from tilewright.compiler.layout.kinds import Fuse, Split, StoreAt
from tilewright.compiler.layout.nest import Nests, shape_of
from tilewright.compiler.layout.primitives import Layout
from tilewright.errors import LayoutError


@dataclass(frozen=True, slots=True)
class _Slot(Primitive):
    """Add dimension `dim` of `extent`, at whose last position the tensor lies.

    Only the rewriter makes it, to say where a guest is; it is never part of a choice of layouts.
    """

    kind: ClassVar[str] = "slot"
    dim: int
    extent: int

    def output_shape(self, shape: Shape) -> Shape:
        return (*shape[: self.dim], self.extent, *shape[self.dim :])

    def map_index(self, index: Index, shape: Shape) -> Index:
        last = index[0] * 0 + (self.extent - 1)  # of the dtype of the other indices
        return (*index[: self.dim], last, *index[self.dim :])

    def unmap_index(self, index: Index, shape: Shape) -> tuple[Index, list[Any]]:
        return (*index[: self.dim], *index[self.dim + 1 :]), []


def guest_layouts(
    nests: Nests, given: Mapping[Any, Layout]
) -> dict[tirx.Buffer, tuple[tirx.Buffer, Layout]]:
    """Return guest parameter -> (host parameter, layout of the guest in the host's buffer).

    Args:
        nests: the function.
        given: layouts by buffer; a `StoreAt` names its guest as the function's parameter is named.

    Raises:
        LayoutError: the guest is written, has a layout of its own, or does not fit.
    """
    by_name = {param.name: param for param in nests.params}
    written = {buffer for stage in nests.stages for buffer in stage.written}
    found: dict[tirx.Buffer, tuple[tirx.Buffer, Layout]] = {}
    for host, layout in given.items():
        for position, (step, shape) in enumerate(layout.steps):
            if not isinstance(step, StoreAt):
                continue
            guest = by_name.get(step.guest)
            if guest is None or guest in found:
                raise LayoutError(
                    f"store_at names {step.guest!r}, which is not one other parameter of the "
                    f"function; its parameters are {list(by_name)}"
                )
            if guest in written or guest in given or host not in nests.params:
                raise LayoutError(
                    f"{step.guest!r} cannot be stored inside {host.name!r}: both have to be read "
                    "only parameters, and the guest has no layout of its own"
                )
            found[guest] = (host, _guest_layout(guest, step, shape, layout, position))
    return found


def _guest_layout(
    guest: tirx.Buffer, step: StoreAt, shape: Shape, layout: Layout, position: int
) -> Layout:
    own = shape_of(guest)
    expected = (*shape[: step.dim], *shape[step.dim + 1 :])
    if not own or not expected or [n for n in own if n != 1] != [n for n in expected if n != 1]:
        raise LayoutError(
            f"store_at: tensor {guest.name!r} has shape {list(own)}, expected {list(expected)}"
        )
    steps: list[Primitive] = []
    if own != expected:  # the same elements with other dimensions of extent 1
        steps = [Fuse(0, len(own)), Split(0, expected)]
    rest = layout.primitives[position + 1 :]
    return Layout(own, (*steps, _Slot(step.dim, shape[step.dim] + 1), *rest))
