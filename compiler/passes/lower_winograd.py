"""Lower 3x3 convolutions to Winograd's algorithm where that is estimated to be faster.

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

Preconditions: float32, 3x3, stride 1 within slices, no depth with a dilation, one group, constant
weights, at least a vector of channels on both sides, and more than one tile along both sides of the
image. Weights grow by t^2 / 9: layers whose weights would not stay in cache are left direct.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import prod

import tvm
from tvm import relax, te, tirx, topi

from tilewright.compiler.algorithms import (
    Chooser,
    Convolution,
    choose_by_estimate,
    has_tiles,
)
from tilewright.compiler.relax_utils import constant_array, is_constant, op_name, static_shape
from tilewright.compiler.targets import Target
from tilewright.compiler.winograd import INPUT_BLOCK, OUTPUT_BLOCK, Matrix, Winograd

PRODUCT = "winograd_product"
_CONVOLUTIONS = ("relax.nn.conv2d", "relax.nn.conv3d")
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
        out = static_shape(call)
        height, width = (int(step) for step in call.attrs.dilation[-2:])
        shapes = Convolution(static_shape(data), static_shape(weight), out, (height, width))
        variant = self.choose(shapes, self.target)
        if variant is None or not has_tiles(shapes, variant):
            return call
        return self._lower(call, variant, shapes)

    def _lower(self, call: relax.Call, variant: Winograd, shapes: Convolution) -> relax.Expr:
        data, weight = call.args
        out, t = shapes.out, variant.tile
        padding = [int(pad) for pad in call.attrs.padding]
        before, after = padding[: len(padding) // 2], padding[len(padding) // 2 :]
        tiles, steps = shapes.tiles(variant), shapes.dilation
        # Where pixels of a dilated image lie: which of its images, then which of that one's tiles.
        grid = tiles if steps == (1, 1) else (*steps, *tiles)
        channels = static_shape(data)[1]
        packed = relax.const(variant.transform_weight(constant_array(weight)))

        def emit_te(name: str, function: Callable[..., te.Tensor], *sources: relax.Expr):
            lowered = self.builder_.call_te(function, *sources, primfunc_name_hint=name)
            name_in_module = lowered.args[0]
            func = self.builder_.get()[name_in_module].with_attr("op_pattern", _FUSIBLE_OUTPUT)
            self.builder_.update_func(name_in_module, func)
            return self.builder_.emit(lowered)

        def reshape(source: relax.Expr, *shape: int) -> relax.Expr:
            return self.builder_.emit(relax.op.reshape(source, shape))

        transformed = emit_te(
            INPUT_BLOCK, lambda x: input_transform(x, variant, before, after, tiles, steps), data
        )
        if len(out) == _PLANAR_RANK:
            rows = reshape(transformed, t, t, out[0] * prod(grid), channels)
            result = self.builder_.emit(relax.op.matmul(rows, packed))
        else:
            depth, stride = static_shape(transformed)[3], int(call.attrs.strides[0])
            rows = reshape(transformed, t, t, out[0], depth, prod(tiles), channels)
            result = emit_te(
                PRODUCT, lambda v, u: depth_product(v, u, stride, out[2]), rows, packed
            )
        result = reshape(result, t, t, out[0], *out[2:-2], *grid, out[1])
        return emit_te(OUTPUT_BLOCK, lambda x: output_transform(x, variant, out, steps), result)


def _is_candidate(call: relax.Call, target: Target) -> bool:
    if op_name(call) not in _CONVOLUTIONS or not is_constant(call.args[1]):
        return False
    attrs, shape = call.attrs, static_shape(call.args[1])
    lanes = target.lanes("float32")
    dilation = () if len(shape) == _PLANAR_RANK else attrs.dilation
    return (
        shape[-2:] == (3, 3)
        and all(int(v) == 1 for v in (*attrs.strides[-2:], *dilation, attrs.groups))
        and shape[0] >= lanes
        and shape[1] >= lanes
        and str(call.args[1].ty.dtype) == "float32"
    )


def _entry(matrix: Matrix, row: tirx.Expr, column: tirx.Expr) -> tirx.Expr:
    """Return matrix[row, column] as an expression, for loops that are not written out."""
    value: tirx.Expr = tirx.const(0.0, "float32")
    for i, values in enumerate(matrix):
        for j, entry in enumerate(values):
            if entry:
                here = tirx.all(row == i, column == j)
                value = tirx.Select(here, tirx.const(entry, "float32"), value)
    return value


def input_transform(
    x: te.Tensor,
    variant: Winograd,
    before: Sequence[int],
    after: Sequence[int],
    tiles: tuple[int, int],
    steps: tuple[int, int] = (1, 1),
) -> te.Tensor:
    """V[a, b, n, .., th, tw, c] = sum of B^T[a, i] B^T[b, j] x[n, c, .., m th + i, m tw + j].

    The sum is over i and j; between them and n and c may be a depth, which keeps its padding. With
    dilation there are indices p and q in front of th and tw, and rows are (m th + i) steps + p.

    Args:
        x: [N, C, (D,) H, W].
        variant: which tiles.
        before, after: padding of each axis behind the channels.
        tiles: number of tiles along height and width.
        steps: the dilation of height and width.
    """
    batch, channels, *extents = (int(extent) for extent in x.shape)
    m, t = variant.outputs, variant.tile
    needed = [
        (m * count + 2) * step - extent - pad
        for count, step, extent, pad in zip(tiles, steps, extents[-2:], before[-2:], strict=True)
    ]
    behind = [*after[:-2], *needed]
    padded = topi.nn.pad(x, [0, 0, *before], [0, 0, *behind], 0.0, name="pad_temp")
    images = [] if steps == (1, 1) else steps
    depth = [int(extent) for extent in padded.shape[2:-2]]
    i, j = te.reduce_axis((0, t), "i"), te.reduce_axis((0, t), "j")

    def value(a: tirx.Expr, b: tirx.Expr, n: tirx.Expr, *rest: tirx.Expr) -> tirx.Expr:
        *outer, th, tw, c = rest
        row, column = th * m + i, tw * m + j
        if images:
            *outer, p, q = outer
            row, column = row * steps[0] + p, column * steps[1] + q
        matrices = _entry(variant.data, a, i) * _entry(variant.data, b, j)
        return te.sum(padded[(n, c, *outer, row, column)] * matrices, axis=[i, j])

    return te.compute((t, t, batch, *depth, *images, *tiles, channels), value, name=INPUT_BLOCK)


def depth_product(data: te.Tensor, weight: te.Tensor, stride: int, depth: int) -> te.Tensor:
    """M[a, b, n, d, r, o] = sum over k, c of V[a, b, n, d stride + k, r, c] U[a, b, k, c, o].

    Args:
        data: V [t, t, N, padded depth, tiles of a slice, C].
        weight: U [t, t, K, C, O].
        stride: of the depth.
        depth: of the result.
    """
    t, _, batch, _, rows, channels = (int(extent) for extent in data.shape)
    *_, taps, _, outputs = (int(extent) for extent in weight.shape)
    k, c = te.reduce_axis((0, taps), "k"), te.reduce_axis((0, channels), "c")
    return te.compute(
        (t, t, batch, depth, rows, outputs),
        lambda a, b, n, d, r, o: te.sum(
            data[a, b, n, d * stride + k, r, c] * weight[a, b, k, c, o], axis=[k, c]
        ),
        name=PRODUCT,
    )


def output_transform(
    x: te.Tensor, variant: Winograd, out: tuple[int, ...], steps: tuple[int, int] = (1, 1)
) -> te.Tensor:
    """y[n, o, .., h, w] = sum of A^T[h % m, a] A^T[w % m, b] M[a, b, n, .., h / m, w / m, o].

    The sum is over a and b. With dilation there are indices h % steps and w % steps before the
    last three, and the others have h / steps and w / steps for h and w.
    """
    m, t = variant.outputs, variant.tile
    a, b = te.reduce_axis((0, t), "a"), te.reduce_axis((0, t), "b")

    def value(n: tirx.Expr, o: tirx.Expr, *rest: tirx.Expr) -> tirx.Expr:
        *outer, h, w = rest
        if steps != (1, 1):
            outer += [h % steps[0], w % steps[1]]
            h, w = h // steps[0], w // steps[1]
        matrices = _entry(variant.result, h % m, a) * _entry(variant.result, w % m, b)
        return te.sum(x[(a, b, n, *outer, h // m, w // m, o)] * matrices, axis=[a, b])

    return te.compute(out, value, name=OUTPUT_BLOCK)
