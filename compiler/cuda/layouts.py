"""Which layouts operators can work in on a GPU, as choices for the assignment of the whole graph.

Images have their channels innermost, all of them or blocks of 32: they are the depth of the next
convolution, contiguous in memory, which 16-byte copies want; so are weights, packed when the model
is compiled. Costs are memory traffic, weighed by how well it goes; only a measurement can say that
blocks are faster.
"""

from __future__ import annotations

from dataclasses import replace
from itertools import product

from tilewright.compiler.access import BlockAccess, Load, blocks, find_contraction, variables
from tilewright.compiler.layout import costs
from tilewright.compiler.layout.choices import operator_choices
from tilewright.compiler.layout.contraction_choices import is_convolution, source_param
from tilewright.compiler.layout.formats import follow, format_of, image_layout
from tilewright.compiler.layout.operator import Choice, Operator
from tilewright.compiler.layout.primitives import Layout, Pad, Reorder
from tilewright.compiler.targets import Target

# Reading data whose depth is strided, element by element, against 16-byte copies.
_STRIDED_DATA = 3.0
# The same for a whole product on plain tensors.
_STRIDED = 4.0
# Channels of a block: two or four sectors of memory.
_BLOCK = 32
# Until they are measured, blocks lose to channels last.
_BLOCKED = 1.05


def cuda_choices(operator: Operator, target: Target) -> tuple[Choice, ...]:
    """Return the layouts that the operator can work in; the first is always all-logical.

    Args:
        operator: what to lay out.
        target: of the host.
    """
    # Formats of images ask how many channels a vector register holds.
    target = replace(target, vector_bits=_BLOCK * 32)
    accesses = blocks(operator.func)
    anchor = find_contraction(accesses)
    if anchor is None:
        return tuple(c for c in operator_choices(operator, target) if _is_even(c))
    logical = tuple(operator.logical())
    moved = costs.moved_seconds(operator, logical)
    found = [Choice("L", logical, moved * _STRIDED)]
    params = [source_param(operator.func, accesses, load.buffer) for load in anchor.loads]
    for position, load in zip(params, anchor.loads, strict=True):
        data = next((p for p in params if p != position), None)
        if position not in operator.constants or position is None or data is None:
            continue
        if data in operator.constants:
            continue
        if is_convolution(operator, accesses, anchor):
            found += _convolution(operator, position, data, target)
        else:
            found += _matrix(operator, anchor, position, load)
        break
    return tuple(found)


def _is_even(choice: Choice) -> bool:
    """Tell whether images are dense: orders of dimensions, or blocks that channels fill."""
    return all(
        len(layout.primitives) <= 1 or (format_of(layout) == "B" and _is_full(layout))
        for layout in choice.layouts
    )


def _is_full(layout: Layout) -> bool:
    return not any(isinstance(primitive, Pad) for primitive in layout.primitives)


def _convolution(operator: Operator, weight: int, data: int, target: Target) -> list[Choice]:
    """Images with channels innermost, or planes that are read element by element."""
    shape = operator.shapes[weight]
    is_depthwise = shape[1] == 1 and shape[0] > 1
    order = (*range(1, len(shape)), 0) if is_depthwise else (0, *range(2, len(shape)), 1)
    packed = Layout(shape, (Reorder(order),))
    found = []
    for source, result in product("LCB", "LCB"):
        if source == result == "L":
            continue
        image = image_layout(operator.shapes[data], source, target)
        out = image_layout(operator.shapes[operator.output], result, target)
        if image is None or out is None or not (_is_full(image) and _is_full(out)):
            continue
        layouts = [
            follow(
                other,
                out,
                is_constant=position in operator.constants,
                is_image=position in operator.images,
            )
            for position, other in enumerate(operator.shapes)
        ]
        layouts[data], layouts[weight] = image, packed
        seconds = costs.moved_seconds(operator, layouts)
        seconds *= _STRIDED_DATA if source == "L" else 1.0
        seconds *= _BLOCKED if "B" in (source, result) else 1.0
        found.append(Choice(f"{source} -> {format_of(out)}", tuple(layouts), seconds))
    return found


def _matrix(operator: Operator, anchor: BlockAccess, weight: int, load: Load) -> list[Choice]:
    """Weights with the depth innermost: [.., K, N] -> [.., N, K]."""
    shape = operator.shapes[weight]
    if len(shape) < 2 or len(load.indices) != len(shape):
        return []
    reduced = set(anchor.reduction)
    if not variables(load.indices[-2]) & reduced or variables(load.indices[-1]) & reduced:
        return []
    order = (*range(len(shape) - 2), len(shape) - 1, len(shape) - 2)
    layouts = operator.logical()
    layouts[weight] = Layout(shape, (Reorder(order),))
    choice = Choice("packed", tuple(layouts), costs.moved_seconds(operator, layouts))
    return [choice]
