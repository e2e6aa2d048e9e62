"""Lower transposed convolutions with constant weights to ordinary ones.

    conv_transpose(x, W, stride s)  ->  crop(interleave(conv(x, W')))

Output position y sums x[i] * W[k] over s * i + k = y + p. Positions with the same remainder
r = (y + p) mod s use the taps k = r + s * j only, so they are an ordinary convolution with
J = ceil(K / s) taps; the s^d remainders ("phases") become groups of output channels of one
convolution, and a depth-to-space interleaves them (sub-pixel convolution: Shi et al., "Is the
deconvolution layer the same as a convolutional layer?", arXiv 1609.07009, section 2).

One convolution for all phases gives each of them as many taps and positions as the largest needs:
4 taps at stride 2 also compute a border that is cropped, 3 taps multiply by zeros. So where the
phases are equally large and have channels enough, each becomes a convolution of its own with its
own taps and padding. Of a single pixel, with which generators begin, nothing overlaps: a matrix
product. Few outputs of stride 2 never come here, see `passes/lower_phases.py`.

Precondition: the weights are constant. Dilation is folded into the weights as zeros.
Operators with run-time weights are left alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product
from math import prod
from typing import Any

import numpy as np
import tvm
from tvm import relax

from tilewright.compiler.relax_utils import constant_array, is_constant, op_name, static_shape

# Output channels are computed in vectors of up to this many.
_LANES = 16
# Every convolution has a cost of its own: small gains are not worth a call for each phase.
_WORTH_CALLS = 0.97
_CONVOLUTIONS = {
    "relax.nn.conv1d_transpose": relax.op.nn.conv1d,
    "relax.nn.conv2d_transpose": relax.op.nn.conv2d,
    "relax.nn.conv3d_transpose": relax.op.nn.conv3d,
}


@dataclass(frozen=True)
class _Axis:
    """One spatial axis, in elements; `start` is the first position kept after interleaving."""

    stride: int
    taps: int
    positions: int
    pad_before: int
    pad_after: int
    start: int
    extent: int


def _plan_axis(kernel: int, stride: int, pad_before: int, size: int, extent: int) -> _Axis:
    taps = -(-kernel // stride)
    skipped = min(pad_before // stride, taps - 1)
    start = pad_before - skipped * stride
    positions = -(-(start + extent) // stride)
    before = taps - 1 - skipped
    return _Axis(
        stride, taps, positions, before, positions + taps - 1 - before - size, start, extent
    )


@dataclass(frozen=True)
class _Phase:
    """One axis of one phase: its taps, first to last, and where it reads."""

    steps: tuple[int, ...]
    axis: _Axis


def _plan_phases(
    kernel: int, stride: int, pad_before: int, size: int, extent: int
) -> list[_Phase] | None:
    """Return the phases in the order of their outputs; None if they are not equally large."""
    if extent % stride or kernel < stride:
        return None
    positions = extent // stride
    phases = []
    for first in range(stride):
        remainder = (first + pad_before) % stride
        steps = tuple(range(remainder, kernel, stride))[::-1]
        shift = (first + pad_before) // stride
        before = len(steps) - 1 - shift
        after = positions + shift - size
        axis = _Axis(stride, len(steps), positions, before, after, 0, extent)
        phases.append(_Phase(steps, axis))
    return phases


def _reads(axis: _Axis, size: int) -> int:
    """Return how often an input along an axis is multiplied; padding is left out of the loops."""
    first = range(-axis.pad_before, axis.positions - axis.pad_before)
    return sum(max(0, min(start + axis.taps, size) - max(start, 0)) for start in first)


def _cheaper_apart(
    axes: list[_Axis], phases: list[list[_Phase]], sizes: Sequence[int], outputs: int
) -> bool:
    """Tell whether phases as convolutions of their own have fewer multiply-adds to do."""

    def vectors(channels: int) -> int:
        return -(-channels // _LANES)

    together = vectors(prod(axis.stride for axis in axes) * outputs)
    together *= prod(_reads(axis, size) for axis, size in zip(axes, sizes, strict=True))
    apart = vectors(outputs) * sum(
        prod(_reads(phase.axis, size) for phase, size in zip(chosen, sizes, strict=True))
        for chosen in product(*phases)
    )
    return apart < _WORTH_CALLS * together


def _phase_weights(weight: np.ndarray, groups: int, axes: list[_Axis]) -> np.ndarray:
    """[I, O/g, *K] -> [g * phases * O/g, I/g, *taps], the taps of each phase reversed."""
    inputs, outputs_per_group = weight.shape[:2]
    grouped = weight.reshape(groups, inputs // groups, *weight.shape[1:])
    strides = [axis.stride for axis in axes]
    taps = [axis.taps for axis in axes]
    result = np.zeros(
        (groups, *strides, outputs_per_group, inputs // groups, *taps), dtype=weight.dtype
    )
    for phase in product(*(range(stride) for stride in strides)):
        steps = (slice(r, None, s) for r, s in zip(phase, strides, strict=True))
        every: tuple[Any, ...] = (..., *steps)
        taken = grouped[every]
        sizes = taken.shape[3:]
        reverse = tuple(
            slice(t - 1, t - 1 - n if t > n else None, -1) for t, n in zip(taps, sizes, strict=True)
        )
        place: tuple[Any, ...] = (slice(None), *phase, slice(None), slice(None), *reverse)
        result[place] = taken.swapaxes(1, 2)
    return result.reshape(-1, inputs // groups, *taps)


def dilate(weight: np.ndarray, dilation: list[int]) -> np.ndarray:
    """Return weights [I, O, *K] with the zeros between their taps that a dilation stands for."""
    sizes = [(k - 1) * d + 1 for k, d in zip(weight.shape[2:], dilation, strict=True)]
    spread = np.zeros((*weight.shape[:2], *sizes), weight.dtype)
    every: tuple[Any, ...] = (..., *(slice(None, None, d) for d in dilation))
    spread[every] = weight
    return spread


@tvm.ir.transform.module_pass(opt_level=0, name="LowerConvTranspose")
class LowerConvTranspose:
    """Module pass; see the module's docstring."""

    def transform_module(self, mod: tvm.IRModule, _ctx: object) -> tvm.IRModule:
        lowered = _Lower(mod).visit_expr(mod["main"])
        if lowered.same_as(mod["main"]):
            return mod
        mod = tvm.IRModule(mod.functions, attrs=mod.attrs)
        mod["main"] = lowered
        return mod


@relax.expr_functor.mutator
class _Lower(relax.expr_functor.PyExprMutator):
    def visit_call_(self, call: relax.Call) -> relax.Expr:
        call = super().visit_call_(call)
        if op_name(call) not in _CONVOLUTIONS or not is_constant(call.args[1]):
            return call
        return self._lower(call)

    def _lower(self, call: relax.Call) -> relax.Expr:
        attrs, rank = call.attrs, len(static_shape(call)) - 2
        groups = int(attrs.groups)
        strides, padding, dilation = (
            [int(v) for v in values] for values in (attrs.strides, attrs.padding, attrs.dilation)
        )
        weight = dilate(constant_array(call.args[1]), dilation)
        shape, sizes = static_shape(call), static_shape(call.args[0])[2:]
        if groups == 1 and prod(sizes) == 1:
            return self._lower_pixel(call, weight, padding[:rank])
        axes = [
            _plan_axis(weight.shape[2 + i], strides[i], padding[i], sizes[i], shape[2 + i])
            for i in range(rank)
        ]
        phases = [
            _plan_phases(weight.shape[2 + i], strides[i], padding[i], sizes[i], shape[2 + i])
            for i in range(rank)
        ]
        equal = [found for found in phases if found is not None]
        if len(equal) == rank and _cheaper_apart(axes, equal, sizes, weight.shape[1]):
            return self._lower_apart(call, weight, equal)
        out = self._convolve(call, call.args[0], _phase_weights(weight, groups, axes), axes)
        return self._interleave(out, shape, groups, axes)

    def _lower_pixel(self, call: relax.Call, weight: np.ndarray, before: list[int]) -> relax.Expr:
        """Return the product that a transposed convolution of one pixel is, without its padding."""
        shape = static_shape(call)
        for axis, first in enumerate(before, 2):
            extent = shape[axis]
            beyond = max(0, first + extent - weight.shape[axis])
            padding = [(0, beyond if each == axis else 0) for each in range(weight.ndim)]
            weight = np.pad(weight, padding).take(range(first, first + extent), axis)
        factor = relax.const(np.ascontiguousarray(weight.reshape(len(weight), -1)))
        data = self.builder_.emit(relax.op.reshape(call.args[0], (shape[0], len(weight))))
        return self.builder_.emit(
            relax.op.reshape(self.builder_.emit(relax.op.matmul(data, factor)), shape)
        )

    def _lower_apart(
        self, call: relax.Call, weight: np.ndarray, phases: list[list[_Phase]]
    ) -> relax.Expr:
        """Return the interleaved results of one convolution for each phase."""
        groups = int(call.attrs.groups)
        grouped = weight.reshape(groups, weight.shape[0] // groups, *weight.shape[1:])
        results = []
        for chosen in product(*phases):
            taken = grouped
            for position, phase in enumerate(chosen):
                taken = taken.take(phase.steps, axis=3 + position)
            # [g, I/g, O/g, *taps] -> [g * O/g, I/g, *taps]
            own = taken.swapaxes(1, 2).reshape(-1, taken.shape[1], *taken.shape[3:])
            axes = [phase.axis for phase in chosen]
            results.append(self._convolve(call, call.args[0], own, axes))
        out = self.builder_.emit(relax.op.concat(results, axis=1))
        axes = [along[0].axis for along in phases]
        return self._interleave(out, static_shape(call), 1, axes)

    def _convolve(
        self, call: relax.Call, data: relax.Expr, weight: np.ndarray, axes: list[_Axis]
    ) -> relax.Expr:
        data = self._crop_for_negative_padding(data, axes)
        return self.builder_.emit(
            _CONVOLUTIONS[str(op_name(call))](
                data,
                relax.const(np.ascontiguousarray(weight)),
                padding=[max(a.pad_before, 0) for a in axes] + [max(a.pad_after, 0) for a in axes],
                groups=int(call.attrs.groups),
            )
        )

    def _crop_for_negative_padding(self, data: relax.Expr, axes: list[_Axis]) -> relax.Expr:
        shape = static_shape(data)
        ends = [shape[2 + i] + min(axis.pad_after, 0) for i, axis in enumerate(axes)]
        begins = [-min(axis.pad_before, 0) for axis in axes]
        return self._slice(data, begins, ends)

    def _interleave(
        self, out: relax.Expr, shape: tuple[int, ...], groups: int, axes: list[_Axis]
    ) -> relax.Expr:
        rank = len(axes)
        if any(axis.stride > 1 for axis in axes):
            strides, positions = [a.stride for a in axes], [a.positions for a in axes]
            split = (shape[0], groups, *strides, shape[1] // groups, *positions)
            # N g s.. O p.. -> N g O (p s)..
            order = [0, 1, 2 + rank]
            for i in range(rank):
                order += [3 + rank + i, 2 + i]
            out = self.builder_.emit(relax.op.reshape(out, split))
            out = self.builder_.emit(relax.op.permute_dims(out, order))
            full = (*shape[:2], *(s * p for s, p in zip(strides, positions, strict=True)))
            out = self.builder_.emit(relax.op.reshape(out, full))
        return self._slice(out, [a.start for a in axes], [a.start + a.extent for a in axes])

    def _slice(self, data: relax.Expr, begins: list[int], ends: list[int]) -> relax.Expr:
        sizes = static_shape(data)[2:]
        if not any(begins) and list(sizes) == ends:
            return data
        axes = list(range(2, 2 + len(sizes)))
        return self.builder_.emit(relax.op.strided_slice(data, axes, begins, ends))
