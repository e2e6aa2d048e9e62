"""Fourier transforms as products with constant matrices."""

from __future__ import annotations

import math

import numpy as np
from tvm import relax

from tilewright.frontends.onnx.node import NodeContext
from tilewright.frontends.onnx.ops.reshaping import cut, reshape_to
from tilewright.frontends.onnx.registry import register
from tilewright.frontends.onnx.values import Value, constant

R = relax.op


@register("DFT", 17, shape_inputs=(1,))
def dft_attribute(op: NodeContext) -> Value:
    """https://onnx.ai/onnx/operators/onnx__DFT.html before opset 20 (axis as an attribute)."""
    return _dft(op, op.attr("axis"))


@register("DFT", 20, shape_inputs=(1, 2))
def dft(op: NodeContext) -> Value:
    """https://onnx.ai/onnx/operators/onnx__DFT.html"""
    axis = op.ints(2)
    return _dft(op, axis[0] if axis else -2)


def _dft(op: NodeContext, axis: int) -> Value:
    """Transform along one axis: a product with the matrix of the transform."""
    data, inverse, one_sided = op.input(0), bool(op.attr("inverse")), bool(op.attr("onesided"))
    axis = axis % data.rank
    given = op.ints(1)
    real_output = inverse and one_sided
    spectrum = given[0] if given else data.shape[axis]
    if real_output and not given:
        spectrum = 2 * (data.shape[axis] - 1)
    real, imaginary = _parts(op, data)
    rows = spectrum // 2 + 1 if one_sided and not inverse else spectrum
    used = min(data.shape[axis], spectrum)
    if real_output:
        used = min(data.shape[axis], spectrum // 2 + 1)
    real = cut(op, real, axis, 0, used)
    imaginary = None if imaginary is None else cut(op, imaginary, axis, 0, used)
    matrix = _matrix(rows, used, spectrum, inverse)
    if real_output:
        # The other half of a one-sided spectrum is the conjugate; it doubles all but the ends.
        weights = np.full(used, 2.0)
        weights[0] = 1
        if spectrum % 2 == 0 and used == spectrum // 2 + 1:
            weights[-1] = 1
        matrix = matrix * weights
    out_real, out_imaginary = _product(op, matrix, real, imaginary, axis)
    parts = [out_real] if real_output else [out_real, out_imaginary]
    lifted = [reshape_to(op, part, (*part.shape, 1)) for part in parts]
    return lifted[0] if len(lifted) == 1 else op.call(R.concat, lifted, data.rank - 1)


def _parts(op: NodeContext, data: Value) -> tuple[Value, Value | None]:
    """Split [..., 1 or 2] into real and imaginary parts without the last dimension."""
    last = data.rank - 1
    real = reshape_to(op, cut(op, data, last, 0, 1), data.shape[:-1])
    if data.shape[-1] == 1:
        return real, None
    return real, reshape_to(op, cut(op, data, last, 1, 2), data.shape[:-1])


def _matrix(rows: int, columns: int, size: int, inverse: bool) -> np.ndarray:
    """Matrix of a (inverse) transform of ``size`` points, complex128 [rows, columns]."""
    turns = np.outer(np.arange(rows), np.arange(columns)) % size / size
    sign = 2j if inverse else -2j
    return np.exp(sign * math.pi * turns) / (size if inverse else 1)


def _product(
    op: NodeContext, matrix: np.ndarray, real: Value, imaginary: Value | None, axis: int
) -> tuple[Value, Value]:
    """Apply a complex matrix along an axis."""

    def apply(part: np.ndarray, value: Value) -> Value:
        last = value.rank - 1
        axes = [place for place in range(value.rank) if place != axis] + [axis]
        moved = value if axis == last else op.call(R.permute_dims, value, axes)
        result = op.call(R.matmul, moved, constant(part.T.astype(value.dtype)))
        back = list(np.argsort(axes))
        return result if axis == last else op.call(R.permute_dims, result, [int(a) for a in back])

    if imaginary is None:
        return apply(matrix.real, real), apply(matrix.imag, real)
    out_real = op.call(R.subtract, apply(matrix.real, real), apply(matrix.imag, imaginary))
    out_imaginary = op.call(R.add, apply(matrix.imag, real), apply(matrix.real, imaginary))
    return out_real, out_imaginary


@register("STFT", 17, shape_inputs=(1, 3))
def stft(op: NodeContext) -> Value:
    """https://onnx.ai/onnx/operators/onnx__STFT.html: overlapping frames, then a transform."""
    data, step = op.input(0), int(op.data(1).reshape(()))
    window, given = op.optional(2), op.ints(3)
    one_sided = bool(op.attr("onesided"))
    length = given[0] if given else window.shape[0] if window is not None else data.shape[1]
    count = (data.shape[1] - length) // step + 1
    if data.rank == 2:
        data = reshape_to(op, data, (*data.shape, 1))
    real, imaginary = _parts(op, data)

    def framed(value: Value) -> Value:
        frames = [
            reshape_to(
                op, cut(op, value, 1, k * step, k * step + length), (value.shape[0], 1, length)
            )
            for k in range(count)
        ]
        joined = frames[0] if count == 1 else op.call(R.concat, frames, 1)
        return joined if window is None else op.call(R.multiply, joined, window)

    rows = length // 2 + 1 if one_sided else length
    matrix = _matrix(rows, length, length, inverse=False)
    frames = framed(real), None if imaginary is None else framed(imaginary)
    parts = _product(op, matrix, *frames, 2)
    lifted = [reshape_to(op, part, (*part.shape, 1)) for part in parts]
    return op.call(R.concat, lifted, 3)
