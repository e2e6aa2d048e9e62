"""Layout choices of integer contractions: channels last, weights in groups of the dot instruction.

data    [N, spatial.., C]                        the bytes of one group are neighbours
weight  [O / lanes, I / group, taps.., lanes, group]   one vector of weights for each group
"""

from __future__ import annotations

from tilewright.compiler.access import BlockAccess, Load
from tilewright.compiler.layout.formats import CHANNEL
from tilewright.compiler.layout.primitives import Layout, Pad, Primitive, Reorder, Split
from tilewright.compiler.schedule.integer import DATA_DTYPE, SUM_DTYPE, WEIGHT_DTYPE, WIDE_DTYPE


def is_integer(anchor: BlockAccess, data: Load, weight: Load) -> bool:
    """Say whether a contraction sums products of unsigned and signed bytes, or of 16 bits."""
    dtypes = (str(data.buffer.dtype), str(weight.buffer.dtype))
    known = (DATA_DTYPE, WEIGHT_DTYPE), (WIDE_DTYPE, WIDE_DTYPE)
    return str(anchor.output.dtype) == SUM_DTYPE and dtypes in known


def channels_last(shape: tuple[int, ...]) -> Layout:
    """Return an image's layout with channels innermost, however few there are."""
    return Layout(shape, (Reorder((0, *range(2, len(shape)), CHANNEL)),))


def grouped_weight(
    shape: tuple[int, ...], column: int, reduction: int, lanes: int, group: int, batches: int = 0
) -> Layout:
    """Return weights as [batches.., column / lanes, reduction / group, rest.., lanes, group].

    Args:
        shape: logical shape of the weights.
        column: dimension of the output columns (O of OIHW, N of KN).
        reduction: dimension that is summed in groups.
        lanes: output columns in one vector.
        group: products that one instruction sums.
        batches: how many leading dimensions stay in front.
    """
    factors = {column: lanes, reduction: group}
    steps: list[Primitive] = [
        Pad(dim, 0, -shape[dim] % factor) for dim, factor in factors.items() if shape[dim] % factor
    ]
    for dim in sorted(factors, reverse=True):
        steps.append(Split(dim, (-(-shape[dim] // factors[dim]), factors[dim])))

    def place(dim: int) -> int:
        return dim + sum(1 for split in factors if split < dim)

    front = [place(dim) for dim in range(batches)]
    rest = [place(dim) for dim in range(batches, len(shape)) if dim not in factors]
    outer = [place(column), place(reduction)]
    return Layout(shape, (*steps, Reorder((*front, *outer, *rest, outer[0] + 1, outer[1] + 1))))
