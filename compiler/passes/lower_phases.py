"""Lower transposed convolutions of stride 2 with few output channels to one kernel for all phases.

    conv_transpose(x, W, stride 2)  ->  interleave(phase_convolution(x, W'))

What they compute is in `compiler/phase_convolution.py`, how in `compiler/schedule/phases.py`. All
others are left to `LowerConvTranspose`, whose ordinary convolutions keep vectors of channels.

Preconditions: float32, constant weights, one group, two or three spatial axes of stride 2, phases
that are equally large, and rows and channels that fill the registers of a tile.
"""

from __future__ import annotations

from math import prod

import tvm
from tvm import relax

from tilewright.compiler.passes.lower_conv_transpose import dilate
from tilewright.compiler.phase_convolution import (
    PHASE_BLOCK,
    STRIDE,
    PhaseAxis,
    phase_convolution,
    phase_weight,
)
from tilewright.compiler.relax_utils import (
    OP_PATTERN,
    call_marked,
    constant_array,
    is_constant,
    op_name,
    static_shape,
)
from tilewright.compiler.schedule.phases import most_vectors
from tilewright.compiler.targets import Target

_CONVOLUTIONS = ("relax.nn.conv2d_transpose", "relax.nn.conv3d_transpose")
# What FuseOps knows as an operator that nothing fuses with.
_OPAQUE = 8
# Steps of a sum that pay for the copy of what it reads.
_FEWEST_STEPS = 64


@tvm.ir.transform.module_pass(opt_level=0, name="LowerPhases")
class LowerPhases:
    """Module pass; see the module's docstring."""

    def __init__(self, target: Target) -> None:
        self.target = target

    def transform_module(self, mod: tvm.IRModule, _ctx: object) -> tvm.IRModule:
        lower = _Lower(mod, self.target)
        lowered = lower.visit_expr(mod["main"])
        if lowered.same_as(mod["main"]):
            return mod
        mod = lower.builder_.get()
        mod["main"] = lowered
        return mod


@relax.expr_functor.mutator
class _Lower(relax.expr_functor.PyExprMutator):
    def __init__(self, mod: tvm.IRModule, target: Target) -> None:
        super().__init__(mod)
        self.target = target

    def visit_call_(self, call: relax.Call) -> relax.Expr:
        call = super().visit_call_(call)
        axes = self._axes(call)
        return call if axes is None else self._lower(call, axes)

    def _axes(self, call: relax.Call) -> list[PhaseAxis] | None:
        """Return the axes of a convolution that fits, else None."""
        if op_name(call) not in _CONVOLUTIONS or not is_constant(call.args[1]):
            return None
        attrs, weight = call.attrs, static_shape(call.args[1])
        if int(attrs.groups) != 1 or any(int(step) != STRIDE for step in attrs.strides):
            return None
        if str(call.args[1].ty.dtype) != "float32":
            return None
        out = static_shape(self.builder_.normalize(call))
        found = [
            PhaseAxis.plan((taps - 1) * int(step) + 1, int(pad), extent)
            for taps, step, pad, extent in zip(
                weight[2:], attrs.dilation, attrs.padding, out[2:], strict=False
            )
        ]
        axes = [axis for axis in found if axis is not None]
        if len(axes) < len(found):
            return None
        steps = weight[0] * prod(axis.taps for axis in axes)
        rows = prod(axis.taps for axis in axes[:-1])
        fits = most_vectors(weight[1], axes[-1].positions, rows, self.target) > 0
        return axes if fits and steps >= _FEWEST_STEPS else None

    def _lower(self, call: relax.Call, axes: list[PhaseAxis]) -> relax.Expr:
        weight = dilate(constant_array(call.args[1]), [int(step) for step in call.attrs.dilation])
        packed = relax.const(phase_weight(weight, axes))
        rank, images = len(axes), static_shape(call.args[0])[0]
        out = (images, weight.shape[1], *(STRIDE * axis.positions for axis in axes))
        phases = self.builder_.emit(
            call_marked(
                self.builder_,
                PHASE_BLOCK,
                lambda x, w: phase_convolution(x, w, axes),
                [call.args[0], packed],
                {OP_PATTERN: _OPAQUE},
            )
        )
        # N q.. O p.. -> N O (p q)..
        order = [0, 1 + rank]
        for number in range(rank):
            order += [2 + rank + number, 1 + number]
        return self.builder_.emit(
            relax.op.reshape(self.builder_.emit(relax.op.permute_dims(phases, order)), out)
        )
