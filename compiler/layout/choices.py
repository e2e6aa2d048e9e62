"""Which layouts an operator can work in, and what each would cost.

An operator's class decides: a convolution reads and writes images with channels innermost and gets
its weights packed to match; a matrix product gets packed weights; pooling, element-wise operators
and concatenations work in the format of what they read. Costs are estimates in seconds
(`layout.costs`); measured times replace them where there are any.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product

from tvm import tirx

from tilewright.compiler.access import BlockAccess, blocks, find_contraction, shape_of
from tilewright.compiler.layout import costs
from tilewright.compiler.layout.contraction_choices import (
    contraction_choices,
    is_convolution,
)
from tilewright.compiler.layout.formats import CHANNEL, FORMATS, follow, format_of, image_layout
from tilewright.compiler.layout.nest import Stage, read_nests
from tilewright.compiler.layout.opaque import is_rearrangement
from tilewright.compiler.layout.operator import Choice, Operator
from tilewright.compiler.layout.primitives import Layout
from tilewright.compiler.layout.strides import read_walk
from tilewright.compiler.phase_convolution import PHASE_BLOCK
from tilewright.compiler.targets import Target
from tilewright.compiler.weight_only import PRODUCT_BLOCK
from tilewright.compiler.winograd import INPUT_BLOCK, OUTPUT_BLOCK

__all__ = ["Choice", "Operator", "operator_choices", "works_on_images"]

# Of images that are not in floats.
_BYTE_FORMATS = ("L", "C")


def operator_choices(operator: Operator, target: Target) -> tuple[Choice, ...]:
    """Return the layouts that the operator can work in; the first is always all-logical."""
    accesses = blocks(operator.func)
    if _is_transform(accesses):
        return tuple(_transform_choices(operator, target))
    anchor = find_contraction(accesses)
    if any(access.name.startswith((PRODUCT_BLOCK, PHASE_BLOCK)) for access in accesses):
        # Weights are packed already; matrices and planes lie as they are.
        found = _plain_choices(operator, accesses, target)
    elif anchor is not None:
        found = contraction_choices(operator, accesses, anchor, target)
    elif any(access.reduction for access in accesses):
        found = _reduction_choices(operator, accesses, target)
    else:
        found = _injective_choices(operator, target)
    unique: dict[tuple[Layout, ...], Choice] = {}
    for choice in _writable(operator, found):
        unique.setdefault(choice.layouts, choice)
    return tuple(unique.values())


def _writable(operator: Operator, choices: Sequence[Choice]) -> list[Choice]:
    """Drop layouts with padding where loops are not in normal form: nothing would write it."""
    if all(isinstance(stage, Stage) for stage in read_nests(operator.func).stages):
        return list(choices)
    first = len(operator.shapes) - operator.n_outputs
    return [c for c in choices if all(is_rearrangement(layout) for layout in c.layouts[first:])]


def works_on_images(operator: Operator) -> bool:
    """Say whether the operator is a convolution, so that what it reads and writes are images."""
    accesses = blocks(operator.func)
    anchor = find_contraction(accesses)
    return _is_transform(accesses) or (
        anchor is not None and is_convolution(operator, accesses, anchor)
    )


def _is_transform(accesses: Sequence[BlockAccess]) -> bool:
    return any(access.name.startswith((INPUT_BLOCK, OUTPUT_BLOCK)) for access in accesses)


def _transform_choices(operator: Operator, target: Target) -> list[Choice]:
    """Winograd's transforms read or write images vector by vector, in any format.

    Bytes come channels last: their vectors are longer than a block of channels.
    """
    found = []
    images = [operator.func.params[position].dtype for position in operator.images]
    floats = all(str(dtype).startswith("float") for dtype in images)
    for image_format in FORMATS if floats else _BYTE_FORMATS:
        layouts = _in_format(operator, operator.images, image_format, target)
        for position in operator.constants:
            shape = operator.shapes[position]
            layouts[position] = follow(shape, layouts[operator.output], is_constant=True)
        seconds = costs.moved_seconds(operator, layouts)
        seconds *= costs.STRIDED_PENALTY if image_format == "L" else 1.0
        found.append(Choice(image_format, tuple(layouts), seconds))
    return found


def _reduction_choices(
    operator: Operator, accesses: Sequence[BlockAccess], target: Target
) -> list[Choice]:
    """Pooling and sums over the spatial dimensions keep the channels, so vectors stay whole."""
    points = max(access.points for access in accesses)
    logical = operator.logical()
    seconds = costs.seconds(operator, logical, target, points, costs.PLANAR_WINDOW_SHARE)
    found = [Choice("L", tuple(logical), seconds)]
    out_shape = operator.shapes[operator.output]
    if not operator.images or not all(_keeps_channels(access, out_shape) for access in accesses):
        return found
    for image_format in FORMATS[1:]:
        layouts = _in_format(operator, operator.images, image_format, target)
        seconds = costs.seconds(operator, layouts, target, points, _window_share(image_format))
        found.append(Choice(f"{image_format} -> {image_format}", tuple(layouts), seconds))
    return found


def _plain_choices(
    operator: Operator, accesses: Sequence[BlockAccess], target: Target
) -> list[Choice]:
    points = max(access.points for access in accesses)
    logical = operator.logical()
    seconds = costs.seconds(operator, logical, target, points, costs.CONTRACTION_SHARE)
    return [Choice("packed", tuple(logical), seconds)]


def _window_share(image_format: str) -> float:
    return costs.WINDOW_SHARE if image_format == "B" else costs.WINDOW_LAST_SHARE


def _keeps_channels(access: BlockAccess, out_shape: tuple[int, ...]) -> bool:
    """Say whether the block reads channel c of everything to make channel c of its output."""
    if len(access.index) <= CHANNEL:
        return False
    var = access.index[CHANNEL]
    if not isinstance(var, tirx.Var):
        return False
    return all(
        len(load.indices) != len(out_shape)
        or (isinstance(load.indices[CHANNEL], tirx.Var) and load.indices[CHANNEL].same_as(var))
        or shape_of(load.buffer)[CHANNEL] == 1
        for load in access.loads
    )


def _in_format(
    operator: Operator, positions: Sequence[int] | frozenset[int], image_format: str, target: Target
) -> list[Layout]:
    layouts = operator.logical()
    for position in positions:
        layout = image_layout(operator.shapes[position], image_format, target)
        if layout is not None:
            layouts[position] = layout
    return layouts


def _injective_choices(operator: Operator, target: Target) -> list[Choice]:
    """Any format in and any format out; what is read with a stride costs its time.

    Inputs of the output's shape (the residual of an addition) may also have the output's format
    while the others (what is transposed on the way) have another one.
    """
    inputs = [p for p in sorted(operator.images) if p < operator.output]
    outputs = [p for p in operator.images if p >= operator.output]
    alike = [p for p in inputs if operator.shapes[p] == operator.shapes[operator.output]]
    sides = [[], alike] if outputs and 0 < len(alike) < len(inputs) else [[]]
    # Only where something has a format do strides depend on the choice.
    walk = read_walk(operator.func) if operator.images else None
    found = []
    for followers, source, result in product(
        sides, FORMATS if inputs else FORMATS[:1], FORMATS if outputs else FORMATS[:1]
    ):
        layouts = _in_format(operator, [p for p in inputs if p not in followers], source, target)
        for position in [*followers, *outputs]:
            layout = image_layout(operator.shapes[position], result, target)
            layouts[position] = layout or layouts[position]
        out = layouts[operator.output]
        for position in operator.constants:
            layouts[position] = follow(operator.shapes[position], out, is_constant=True)
        seconds = costs.moved_seconds(operator, layouts)
        if walk is not None:
            seconds *= costs.stride_penalty(walk, layouts, target)
        found.append(Choice(f"{source} -> {format_of(out)}", tuple(layouts), seconds))
    return found
