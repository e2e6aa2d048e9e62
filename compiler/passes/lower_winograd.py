"""Lower convolutions of 3 or 2 taps to Winograd's algorithm where that is estimated to be faster.

    conv2d(x, W)  ->  V = winograd_input(x)        [t, t, N, TH, TW, C]
                      M = matmul(V, U)              [t, t, N * TH * TW, O], U constant
                      y = winograd_output(M)        [N, O, H, W]

The product is an ordinary matrix product with constant weights, so it gets packed weights and the
register micro-kernel; the two transforms have a scheduler of their own
(`compiler/schedule/winograd.py`). Whatever follows the convolution fuses with the output transform.

A convolution over depth too, K x 3 x 3, transforms every slice of its input once; its product sums
K slices, as a convolution along the depth would:

    conv3d(x, W)  ->  V = winograd_input(x)        [t, t, N, D + pads, TH, TW, C]
                      M = sum over k of V[depth * stride + k] U[k]

With a dilation of p by q, every p-th row and q-th column make up an image of their own, on which
the window is dense: V and M then have axes for these images, [t, t, N, p, q, TH, TW, C].

A signal has one row that is not transformed, F(1 x m, 1 x 3). Windows of 2 x 2 are mostly the
phases of transposed convolutions with 4 x 4 taps and stride 2 (`passes/lower_conv_transpose.py`).

Preconditions: float32, 3x3, 2x2 or 3 in a row, stride 1 within slices, no depth with a dilation,
one group, constant weights, at least a vector of channels on both sides, and more than one tile
along both sides of the image. Weights grow by t^2 / 9, or t^2 / 4: layers whose weights would not
stay in cache are left direct.
"""

from __future__ import annotations

from collections.abc import Callable
from math import prod

import tvm
from tvm import relax, te

from tilewright.compiler.algorithms import (
    Chooser,
    Convolution,
    as_images,
    choose_by_estimate,
    has_tiles,
)
from tilewright.compiler.relax_utils import (
    OP_PATTERN,
    call_marked,
    constant_array,
    is_constant,
    op_name,
    static_shape,
)
from tilewright.compiler.targets import Target
from tilewright.compiler.winograd import (
    INPUT_BLOCK,
    OUTPUT_BLOCK,
    PRODUCT,
    Winograd,
    transform_weight,
)
from tilewright.compiler.winograd_tensors import depth_product, input_transform, output_transform

_CONVOLUTIONS = ("relax.nn.conv1d", "relax.nn.conv2d", "relax.nn.conv3d")
_WINDOWS = ((3, 3), (2, 2), (3,))
_PLANAR_RANK = 4
# What FuseOps knows as an operator whose element-wise epilogue fuses with it.
_FUSIBLE_OUTPUT = 4


@tvm.ir.transform.module_pass(opt_level=0, name="LowerWinograd")
class LowerWinograd:
    """Module pass; see the module's docstring."""

    def __init__(self, target: Target, choose: Chooser | None = None) -> None:
        self.target = target
        self.choose = choose or choose_by_estimate

    def transform_module(self, mod: tvm.IRModule, _ctx: object) -> tvm.IRModule:
        lower = _Lower(mod, self.target, self.choose)
        lowered = lower.visit_expr(mod["main"])
        if lowered.same_as(mod["main"]):
            return mod
        mod = lower.builder_.get()
        mod["main"] = lowered
        return mod


@relax.expr_functor.mutator
class _Lower(relax.expr_functor.PyExprMutator):
    def __init__(self, mod: tvm.IRModule, target: Target, choose: Chooser) -> None:
        super().__init__(mod)
        self.target, self.choose = target, choose

    def visit_call_(self, call: relax.Call) -> relax.Expr:
        call = super().visit_call_(call)
        if not _is_candidate(call, self.target):
            return call
        call = self.builder_.normalize(call)
        data, weight = call.args
        shapes = as_images(
            static_shape(data),
            static_shape(weight),
            static_shape(call),
            [int(step) for step in call.attrs.dilation[-2:]],
        )
        variant = self.choose(shapes, self.target)
        if variant is None or not has_tiles(shapes, variant):
            return call
        return self._lower(call, variant, shapes)

    def _lower(self, call: relax.Call, variant: Winograd, shapes: Convolution) -> relax.Expr:
        data, weight = call.args
        out, rows = static_shape(call), shapes.along_rows(variant)
        points = (rows.tile, variant.tile)
        padding = [int(pad) for pad in call.attrs.padding]
        before, after = padding[: len(padding) // 2], padding[len(padding) // 2 :]
        tiles, steps = shapes.tiles(variant), shapes.dilation
        # Where pixels of a dilated image lie: which of its images, then which of that one's tiles.
        grid = tiles if steps == (1, 1) else (*steps, *tiles)
        channels = static_shape(data)[1]
        taps = constant_array(weight).reshape(shapes.weight)
        packed = relax.const(transform_weight(taps, rows, variant))

        def emit_te(name: str, function: Callable[..., te.Tensor], *sources: relax.Expr):
            marks = {OP_PATTERN: _FUSIBLE_OUTPUT}
            return self.builder_.emit(call_marked(self.builder_, name, function, sources, marks))

        def reshape(source: relax.Expr, *shape: int) -> relax.Expr:
            return self.builder_.emit(relax.op.reshape(source, shape))

        transformed = emit_te(
            INPUT_BLOCK,
            lambda x: input_transform(x, variant, before, after, tiles, steps, rows=rows),
            data,
        )
        if len(out) <= _PLANAR_RANK:
            factor = reshape(transformed, *points, out[0] * prod(grid), channels)
            result = self.builder_.emit(relax.op.matmul(factor, packed))
        else:
            depth, stride = static_shape(transformed)[3], int(call.attrs.strides[0])
            factor = reshape(transformed, *points, out[0], depth, prod(tiles), channels)
            result = emit_te(
                PRODUCT, lambda v, u: depth_product(v, u, stride, out[2]), factor, packed
            )
        result = reshape(result, *points, out[0], *out[2:-2], *grid, out[1])
        return emit_te(
            OUTPUT_BLOCK, lambda x: output_transform(x, variant, out, steps, rows), result
        )


def _is_candidate(call: relax.Call, target: Target) -> bool:
    if op_name(call) not in _CONVOLUTIONS or not is_constant(call.args[1]):
        return False
    attrs, shape = call.attrs, static_shape(call.args[1])
    lanes = target.lanes("float32")
    dilation = () if len(shape) <= _PLANAR_RANK else attrs.dilation
    return (
        shape[2:][-2:] in _WINDOWS
        and all(int(v) == 1 for v in (*attrs.strides[-2:], *dilation, attrs.groups))
        and shape[0] >= lanes
        and shape[1] >= lanes
        and str(call.args[1].ty.dtype) == "float32"
    )
