"""Lower transposed convolutions with constant weights to ordinary ones.

    conv_transpose(x, W, stride s)  ->  crop(interleave(conv(x, W')))

Output position y sums x[i] * W[k] over s * i + k = y + p. Positions with the same remainder
r = (y + p) mod s use the taps k = r + s * j only, so they are an ordinary convolution with
J = ceil(K / s) taps; the s^d remainders ("phases") become groups of output channels of one
convolution, and a depth-to-space interleaves them (sub-pixel convolution: Shi et al., "Is the
deconvolution layer the same as a convolutional layer?", arXiv 1609.07009, section 2).

Precondition: the weights are constant. Dilation is folded into the weights as zeros.
Operators with run-time weights are left alone.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import product
from typing import Any

import numpy as np
import tvm
from tvm import relax

from tilewright.compiler.relax_utils import constant_array, is_constant, op_name, static_shape

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


def _dilate(weight: np.ndarray, dilation: list[int]) -> np.ndarray:
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
        weight = _dilate(constant_array(call.args[1]), dilation)
        shape, sizes = static_shape(call), static_shape(call.args[0])[2:]
        axes = [
            _plan_axis(weight.shape[2 + i], strides[i], padding[i], sizes[i], shape[2 + i])
            for i in range(rank)
        ]
        data = self._crop_for_negative_padding(call.args[0], axes)
        out = self.builder_.emit(
            _CONVOLUTIONS[str(op_name(call))](
                data,
                relax.const(_phase_weights(weight, groups, axes)),
                padding=[max(a.pad_before, 0) for a in axes] + [max(a.pad_after, 0) for a in axes],
                groups=groups,
            )
        )
        return self._interleave(out, shape, groups, axes)

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
