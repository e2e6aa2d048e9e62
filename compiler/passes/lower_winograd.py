"""Lower 3x3 convolutions to Winograd's algorithm where that is estimated to be faster.

    conv2d(x, W)  ->  V = winograd_input(x)        [t, t, N, TH, TW, C]
                      M = matmul(V, U)              [t, t, N * TH * TW, O], U constant
                      y = winograd_output(M)        [N, O, H, W]

The product is an ordinary matrix product with constant weights, so it gets packed weights and the
register micro-kernel; the two transforms have a scheduler of their own
(`compiler/schedule/winograd.py`). Whatever follows the convolution fuses with the output transform.

Preconditions: float32, 3x3, stride 1, no dilation, one group, constant weights, at least a vector
of channels on both sides. Weights grow by t^2 / 9: layers whose weights would not stay in cache are
left direct.
"""

from __future__ import annotations

from collections.abc import Callable

import tvm
from tvm import relax, te, tirx, topi

from tilewright.compiler.algorithms import Chooser, Convolution, choose_by_estimate
from tilewright.compiler.relax_utils import constant_array, is_constant, op_name, static_shape
from tilewright.compiler.targets import Target
from tilewright.compiler.winograd import INPUT_BLOCK, OUTPUT_BLOCK, Matrix, Winograd

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
        shapes = Convolution(static_shape(data), static_shape(weight), out)
        variant = self.choose(shapes, self.target)
        return call if variant is None else self._lower(call, variant, out)

    def _lower(self, call: relax.Call, variant: Winograd, out: tuple[int, ...]) -> relax.Expr:
        data, weight = call.args
        t = variant.tile
        padding = [int(pad) for pad in call.attrs.padding]
        tiles = [-(-extent // variant.outputs) for extent in out[2:]]
        rows = out[0] * tiles[0] * tiles[1]
        channels = static_shape(data)[1]

        def emit_te(
            name: str, function: Callable[[te.Tensor], te.Tensor], source: relax.Expr
        ) -> relax.Var:
            lowered = self.builder_.call_te(function, source, primfunc_name_hint=name)
            name_in_module = lowered.args[0]
            func = self.builder_.get()[name_in_module].with_attr("op_pattern", _FUSIBLE_OUTPUT)
            self.builder_.update_func(name_in_module, func)
            return self.builder_.emit(lowered)

        transformed = emit_te(
            INPUT_BLOCK, lambda x: input_transform(x, variant, padding, tiles), data
        )
        matrix = self.builder_.emit(relax.op.reshape(transformed, (t, t, rows, channels)))
        packed = relax.const(variant.transform_weight(constant_array(weight)))
        result = self.builder_.emit(relax.op.matmul(matrix, packed))
        result = self.builder_.emit(relax.op.reshape(result, (t, t, out[0], *tiles, out[1])))
        return emit_te(OUTPUT_BLOCK, lambda x: output_transform(x, variant, out), result)


def _is_candidate(call: relax.Call, target: Target) -> bool:
    if op_name(call) != "relax.nn.conv2d" or not is_constant(call.args[1]):
        return False
    attrs, shape = call.attrs, static_shape(call.args[1])
    lanes = target.lanes("float32")
    return (
        shape[2:] == (3, 3)
        and all(int(v) == 1 for v in (*attrs.strides, *attrs.dilation, attrs.groups))
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
    x: te.Tensor, variant: Winograd, padding: list[int], tiles: list[int]
) -> te.Tensor:
    """V[a, b, n, th, tw, c] = sum over i, j of B^T[a, i] B^T[b, j] x[n, c, m th + i, m tw + j]."""
    batch, channels, height, width = (int(extent) for extent in x.shape)
    m, t = variant.outputs, variant.tile
    before = [0, 0, padding[0], padding[1]]
    needed = [m * tiles[0] + 2 - height - padding[0], m * tiles[1] + 2 - width - padding[1]]
    padded = topi.nn.pad(x, before, [0, 0, *needed], 0.0, name="pad_temp")
    i, j = te.reduce_axis((0, t), "i"), te.reduce_axis((0, t), "j")
    return te.compute(
        (t, t, batch, *tiles, channels),
        lambda a, b, n, th, tw, c: te.sum(
            padded[n, c, th * m + i, tw * m + j]
            * (_entry(variant.data, a, i) * _entry(variant.data, b, j)),
            axis=[i, j],
        ),
        name=INPUT_BLOCK,
    )


def output_transform(x: te.Tensor, variant: Winograd, out: tuple[int, ...]) -> te.Tensor:
    """y[n, o, h, w] = sum over a, b of A^T[h % m, a] A^T[w % m, b] M[a, b, n, h / m, w / m, o]."""
    m, t = variant.outputs, variant.tile
    a, b = te.reduce_axis((0, t), "a"), te.reduce_axis((0, t), "b")
    return te.compute(
        out,
        lambda n, o, h, w: te.sum(
            x[a, b, n, h // m, w // m, o]
            * (_entry(variant.result, h % m, a) * _entry(variant.result, w % m, b)),
            axis=[a, b],
        ),
        name=OUTPUT_BLOCK,
    )
