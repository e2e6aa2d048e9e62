"""Convolutions and matrix products of integers whose zero point is only known at run time.

    sum (x - zx) w = sum x w - zx sum w

The first sum is what dot instructions compute: unsigned data, signed constant weights. The second
is a constant; at the border of an image it leaves out the taps that fall outside.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from tvm import relax, te, tirx

from tilewright.compiler.quantize.affine import Affine
from tilewright.compiler.quantize.linear import Linear, accumulate, centred_bytes
from tilewright.frontends.onnx.node import NodeContext
from tilewright.frontends.onnx.ops.elementwise import cast
from tilewright.frontends.onnx.ops.window import Window
from tilewright.frontends.onnx.values import Value, constant

R = relax.op

# What FuseOps knows as an anchor that takes an element-wise epilogue.
_ANCHOR = 4
_GROUP = 4


def dot_product(
    op: NodeContext, data: Value, zero: Value | None, weight: Value, weight_zero: Value | None
) -> Value | None:
    """Return the product with a constant matrix in int32, or None where bytes cannot hold it."""
    centred = _weights(weight, weight_zero, 1)
    if centred is None or weight.rank != 2 or not _is_scalar_or_absent(zero):
        return None
    data, point = _unsigned(op, data, zero)
    pad = -centred.shape[0] % _GROUP
    if pad:
        data = op.call(R.nn.pad, data, [*(0,) * (2 * data.rank - 1), pad])
    padded = np.pad(centred, ((0, pad), (0, 0)))
    sums = _anchor(op, data, padded, None)
    return _less(op, sums, point, centred.astype(np.int64).sum(axis=0))


def dot_convolution(
    op: NodeContext,
    data: Value,
    zero: Value | None,
    weight: Value,
    weight_zero: Value | None,
    window: Window,
    groups: int,
) -> Value | None:
    """Return the convolution with constant weights in int32, or None."""
    centred = _weights(weight, weight_zero, 0)
    if centred is None or groups != 1 or not _is_scalar_or_absent(zero):
        return None
    data, point = _unsigned(op, data, zero)
    pad = -centred.shape[1] % _GROUP
    if pad:
        widths = [0, 0, 0, pad, *(0,) * (2 * data.rank - 4)]
        data = op.call(R.nn.pad, data, widths)
    padded = np.pad(centred, [(0, 0), (0, pad), *[(0, 0)] * (centred.ndim - 2)])
    sums = _anchor(op, data, padded, window)
    return _less(op, sums, point, _sums_inside(centred, window, data.shape[2:]))


def _weights(weight: Value, zero: Value | None, axis: int) -> np.ndarray | None:
    if weight.data is None or (zero is not None and zero.data is None):
        return None
    if weight.dtype not in ("int8", "uint8"):
        return None
    zeros = np.zeros((), "int32") if zero is None else np.asarray(zero.data).astype("int32")
    zeros = zeros.reshape(()) if zeros.size == 1 else zeros.reshape(-1)
    return centred_bytes(np.asarray(weight.data), zeros, axis)


def _is_scalar_or_absent(zero: Value | None) -> bool:
    return zero is None or zero.size == 1


def _unsigned(op: NodeContext, data: Value, zero: Value | None) -> tuple[Value, Value | None]:
    """Return the data as unsigned bytes, and its zero point in int32."""
    point = None if zero is None else cast(op, zero, "int32")
    if data.dtype == "uint8":
        return data, point

    def flip(x: te.Tensor) -> te.Tensor:
        top = tirx.const(-128, "int8")
        return te.compute(
            x.shape, lambda *at: tirx.reinterpret("uint8", x(*at) ^ top), name="flip_sign"
        )

    data = op.te(flip, data, name="to_unsigned")
    moved = op.scalar(128, "int32")
    return data, moved if point is None else op.call(R.add, point, moved)


def _anchor(op: NodeContext, data: Value, weight: np.ndarray, window: Window | None) -> Value:
    shape = None if window is None else (window.strides, window.padding, window.dilations, 1)
    none = np.zeros((), "float32")
    affine = Affine("dequantize", relax.const(none), "uint8", none, np.zeros((), "int32"), 0)
    linear = Linear(None, affine, weight, none, none, 1, 0, shape)
    builder = op.builder.block
    compute: Callable[..., te.Tensor] = lambda x, w: accumulate(linear, x, w)  # noqa: E731
    name = "matmul_int8" if window is None else "conv_int8"
    lowered = builder.call_te(
        compute, op.builder.expr(data), relax.const(weight), primfunc_name_hint=name
    )
    global_var = lowered.args[0]
    func = builder.get()[global_var].with_attr("op_pattern", _ANCHOR)
    builder.update_func(global_var, func)
    return op.builder.emit(lowered, op.hint)


def _less(op: NodeContext, sums: Value, point: Value | None, weights: np.ndarray) -> Value:
    """Take zero point times the sums of the weights off."""
    if point is None:
        return sums
    product = op.call(R.multiply, constant(weights.astype("int32")), _scalar(op, point))
    return op.call(R.subtract, sums, product)


def _scalar(op: NodeContext, value: Value) -> Value:
    return value if value.rank == 0 else op.call(R.reshape, value, ())


def _sums_inside(weight: np.ndarray, window: Window, extents: tuple[int, ...]) -> np.ndarray:
    """Return [O, ...]: the sum of the taps that lie inside the image, at every place."""
    taps = weight.astype(np.int64).sum(axis=1)
    result = taps
    counts = window.output(extents)
    for axis, count in enumerate(counts):
        places = np.arange(count)[:, None] * window.strides[axis]
        steps = np.arange(weight.shape[2 + axis])[None, :] * window.dilations[axis]
        at = places + steps - window.begin[axis]
        inside = ((at >= 0) & (at < extents[axis])).astype(np.int64)
        # The first remaining tap dimension is summed; its place goes to the end.
        result = np.tensordot(result, inside, axes=([1], [1]))
    return result
