"""Transposed convolutions of stride 2 as sums over phases: the tensor expression and its weights.

Output 2 p + q along an axis, of phase q = 0 or 1, sums inputs p + q shift + j - before over half of
the taps (`passes/lower_phases.py`). All phases together are one sum

    y[n, q.., o, p..] = sum of x[n, c, p + q shift + j - before ..] w[q.., c, j.., o]

whose block is known by name to its schedule (`compiler/schedule/phases.py`). As an ordinary
convolution the phases are groups of output channels, which fill vectors badly where channels are
few (the image that a generator draws); here the vectors are pixels of a row.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from tvm import te, tirx

PHASE_BLOCK = "phase_convolution"
STRIDE = 2


@dataclass(frozen=True, slots=True)
class PhaseAxis:
    """One spatial axis.

    Attributes:
        taps: of each phase.
        shift: how much further right phase 1 reads than phase 0: 0 or 1.
        before: inputs before the data that output 0 of phase 0 reads.
        first: tap of the weights that phase 0 reads last; phase 1 reads the other parity.
        positions: outputs of a phase.
    """

    taps: int
    shift: int
    before: int
    first: int
    positions: int

    @classmethod
    def plan(cls, kernel: int, pad_before: int, extent: int) -> PhaseAxis | None:
        """Return the axis of a transposed convolution of stride 2, if its phases are equally large.

        Args:
            kernel: taps, dilation included.
            pad_before: outputs that are cut off in front.
            extent: outputs.
        """
        if extent % STRIDE or kernel % STRIDE or pad_before >= kernel:
            return None
        shift = (1 + pad_before) // STRIDE - pad_before // STRIDE
        taps = kernel // STRIDE
        before = taps - 1 - pad_before // STRIDE
        return cls(taps, shift, before, pad_before % STRIDE, extent // STRIDE)

    @property
    def reach(self) -> int:
        """How many inputs in a row the outputs of one position read."""
        return self.taps + self.shift


def phase_weight(weight: np.ndarray, axes: Sequence[PhaseAxis]) -> np.ndarray:
    """[C, O, *kernel] -> [*phases but the last, C, *taps, last phase, O]: as a tile reads them."""
    found = weight
    for number, axis in enumerate(axes):
        dim = 2 + 2 * number
        phases = [
            found.take(range((axis.first + phase) % STRIDE, STRIDE * axis.taps, STRIDE), dim)
            for phase in range(STRIDE)
        ]
        # [C, O, (phase, tap).., rest]
        found = np.flip(np.stack(phases, dim), dim + 1)
    rank = len(axes)
    phase_dims = [2 + 2 * number for number in range(rank)]
    tap_dims = [3 + 2 * number for number in range(rank)]
    order = [*phase_dims[:-1], 0, *tap_dims, phase_dims[-1], 1]
    return np.ascontiguousarray(found.transpose(order))


def phase_convolution(x: te.Tensor, weight: te.Tensor, axes: Sequence[PhaseAxis]) -> te.Tensor:
    """Return [N, *phases, O, *positions].

    Args:
        x: [N, C, *sizes].
        weight: of `phase_weight`.
        axes: one for each spatial axis.
    """
    batch, channels, *sizes = (int(extent) for extent in x.shape)
    rank, outputs = len(axes), int(weight.shape[-1])
    channel = te.reduce_axis((0, channels), "c")
    taps = [te.reduce_axis((0, axis.taps), f"j{number}") for number, axis in enumerate(axes)]

    def element(n: tirx.Var, *place: tirx.Var) -> tirx.Expr:
        phases, o, positions = place[:rank], place[rank], place[rank + 1 :]
        reads = [
            position + phase * axis.shift + tap - axis.before
            for position, phase, tap, axis in zip(positions, phases, taps, axes, strict=True)
        ]
        inside = [
            bound
            for read, size in zip(reads, sizes, strict=True)
            for bound in (read >= 0, read < size)
        ]
        zero = tirx.const(0, x.dtype)
        data = tirx.if_then_else(tirx.all(*inside), x(n, channel, *reads), zero)
        return te.sum(
            data * weight(*phases[:-1], channel, *taps, phases[-1], o), axis=[channel, *taps]
        )

    shape = [batch, *[STRIDE] * rank, outputs, *(axis.positions for axis in axes)]
    return te.compute(shape, element, name=PHASE_BLOCK)
