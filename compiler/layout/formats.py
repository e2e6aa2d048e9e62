"""The formats of images and weights that operators choose among, said as layouts.

An image is a tensor [N, C, ...spatial] (one to three spatial dimensions). Beside the logical
format "L" there are "B", channels blocked by vector lanes (NCHW16c), and "C", channels last (NHWC).
Both put channels innermost, where a vector register takes them; "B" pads channels to whole
vectors, "C" leaves a tail.
"""

from __future__ import annotations

from math import prod

from tilewright.compiler.layout.primitives import Layout, Pad, Primitive, Reorder, Split, blocked
from tilewright.compiler.targets import Target

CHANNEL = 1
"""Dimension of the channels in an ONNX image tensor [N, C, ...spatial]."""

FORMATS = ("L", "B", "C")


def is_image_shape(shape: tuple[int, ...]) -> bool:
    """Say whether a tensor of this shape may be an image with more than one pixel."""
    return 3 <= len(shape) <= 5 and prod(shape[2:]) > 1


def image_layout(shape: tuple[int, ...], image_format: str, target: Target) -> Layout | None:
    """Return the layout of an image in a format, or None where the format cannot pay."""
    if image_format == "L":
        return Layout(shape)
    lanes = target.lanes("float32")
    # Four channels are what the dot instructions of bytes want, and what a pixel of them holds.
    least = lanes // 2 if image_format == "B" else min(lanes // 2, 4)
    if not is_image_shape(shape) or shape[CHANNEL] < least:
        return None
    if image_format == "B":
        return blocked(shape, CHANNEL, lanes)
    return Layout(shape, (Reorder((0, *range(2, len(shape)), CHANNEL)),))


def format_of(layout: Layout) -> str:
    """Return the format letter of an image's layout."""
    if not layout.primitives:
        return "L"
    return "C" if len(layout.physical_shape) == len(layout.shape) else "B"


def follow(
    shape: tuple[int, ...], out: Layout, *, is_constant: bool, is_image: bool = False
) -> Layout:
    """Return the layout of an operand that an element-wise operator combines with `out`.

    An operand of the output's shape follows it; one that varies along the channels only is blocked
    with them if it is a constant. What is one pixel per channel stays logical: it is contiguous.
    """
    if shape == out.shape:
        return out
    channel = CHANNEL - (len(out.shape) - len(shape))
    if not 0 <= channel < len(shape) or shape[channel] != out.shape[CHANNEL]:
        return Layout(shape)
    if format_of(out) == "B" and (is_constant or is_image):
        return blocked(shape, channel, out.physical_shape[-1])
    if format_of(out) == "C" and prod(shape[channel + 1 :]) > 1:
        return Layout(
            shape, (Reorder((*range(channel), *range(channel + 1, len(shape)), channel)),)
        )
    return Layout(shape)


def packed_weight(
    shape: tuple[int, ...],
    column: int,
    lanes: int,
    reduction: int | None = None,
    block: int = 1,
    batches: int = 0,
) -> Layout:
    """Return weights with `lanes` output columns innermost.

    [batches.., column / lanes, reduction / block, rest.., block, lanes]; extents that do not divide
    are padded.

    Args:
        shape: logical shape of the weights.
        column: dimension of the output columns (O of OIHW, N of KN).
        reduction: dimension that is split to match the data's channel blocks, if any.
        block: size of those blocks.
        batches: how many leading dimensions stay in front.
    """
    factors = {column: lanes} if reduction is None else {column: lanes, reduction: block}
    padding = [(dim, -shape[dim] % factor) for dim, factor in factors.items()]
    steps: list[Primitive] = [Pad(dim, 0, after) for dim, after in padding if after]
    # Split from the right, so that dimensions further left keep their numbers.
    for dim in sorted(factors, reverse=True):
        steps.append(Split(dim, (-(-shape[dim] // factors[dim]), factors[dim])))

    def place(dim: int) -> int:
        return dim + sum(1 for split in factors if split < dim)

    rest = [dim for dim in range(batches, len(shape)) if dim not in factors]
    outer = [column] if reduction is None else [column, reduction]
    perm = [place(dim) for dim in [*range(batches), *outer, *rest]]
    perm += [place(dim) + 1 for dim in reversed(outer)]
    return Layout(shape, (*steps, Reorder(tuple(perm))))
