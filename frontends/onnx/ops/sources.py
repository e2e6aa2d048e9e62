"""Operators that make tensors from attributes, shapes or numbers."""

from __future__ import annotations

import math
import zlib
from typing import Any

import numpy as np
import onnx
from tvm import relax, topi

from tilewright.frontends.onnx.folding import GROWTH_LIMIT_BYTES
from tilewright.frontends.onnx.node import NodeContext
from tilewright.frontends.onnx.registry import register
from tilewright.frontends.onnx.values import Value, constant, dtype_of_onnx, numpy_dtype

R = relax.op


@register("Constant")
def constant_node(op: NodeContext) -> Any:
    """https://onnx.ai/onnx/operators/onnx__Constant.html (no strings, no sparse tensors)."""
    for name, dtype in (
        ("value_float", np.float32),
        ("value_floats", np.float32),
        ("value_int", np.int64),
        ("value_ints", np.int64),
    ):
        if op.attrs.has(name):
            return constant(np.asarray(op.attr(name), dtype))
    if op.attrs.has("value"):
        return constant(onnx.numpy_helper.to_array(op.attr("value")))
    if op.attrs.has("value_string") or op.attrs.has("value_strings"):
        op.fail("string constants cannot be compiled")
    op.fail("sparse constants are not supported")


@register("ConstantOfShape", shape_inputs=(0,))
def constant_of_shape(op: NodeContext) -> Value:
    """https://onnx.ai/onnx/operators/onnx__ConstantOfShape.html"""
    shape = op.ints(0) or ()
    tensor = op.attr("value", None)
    fill = np.zeros(1, np.float32) if tensor is None else onnx.numpy_helper.to_array(tensor)
    if math.prod(shape) * fill.itemsize <= GROWTH_LIMIT_BYTES:
        return constant(np.full(shape, fill.reshape(())))
    return op.call(R.full, shape, constant(fill.reshape(())), str(fill.dtype))


@register("Shape")
def shape_of(op: NodeContext) -> Value:
    """https://onnx.ai/onnx/operators/onnx__Shape.html: always known, so always a constant."""
    shape = op.input(0).shape
    start, end = op.attr("start", 0), op.attr("end", None)
    return constant(np.array(shape[start:end], np.int64))


@register("Size")
def size_of(op: NodeContext) -> Value:
    """https://onnx.ai/onnx/operators/onnx__Size.html"""
    return constant(np.array(op.input(0).size, np.int64))


@register("Range", shape_inputs=(0, 1, 2))
def range_of(op: NodeContext) -> Value:
    """https://onnx.ai/onnx/operators/onnx__Range.html"""
    start, limit, delta = (op.data(index).reshape(()) for index in range(3))
    count = max(0, math.ceil((limit - start) / delta))
    if count * start.itemsize > GROWTH_LIMIT_BYTES:
        op.fail(f"a range of {count} numbers would be stored in the compiled file")
    steps = np.arange(count).astype(start.dtype)
    return constant((start + steps * delta).astype(start.dtype))


@register("EyeLike")
def eye_like(op: NodeContext) -> Value:
    """https://onnx.ai/onnx/operators/onnx__EyeLike.html"""
    data, offset, to = op.input(0), op.attr("k"), op.attr("dtype", None)
    dtype = data.dtype if to is None else dtype_of_onnx(to)
    rows, columns = data.shape
    return constant(np.eye(rows, columns, k=offset).astype(numpy_dtype(dtype)))


@register("HannWindow", 17, shape_inputs=(0,))
@register("HammingWindow", 17, shape_inputs=(0,))
@register("BlackmanWindow", 17, shape_inputs=(0,))
def window(op: NodeContext) -> Value:
    """https://onnx.ai/onnx/operators/onnx__HannWindow.html: a sum of cosines."""
    size, periodic = int(op.data(0).reshape(())), bool(op.attr("periodic"))
    dtype = numpy_dtype(dtype_of_onnx(op.attr("output_datatype")))
    angle = 2 * np.pi * np.arange(size) / max(1, size if periodic else size - 1)
    terms = _WINDOW_TERMS[op.node.op_type]
    waves = np.stack([a * np.cos(k * angle) for k, a in enumerate(terms)])
    return constant(waves.sum(axis=0).astype(dtype))


_WINDOW_TERMS = {
    "HannWindow": (0.5, -0.5),
    "HammingWindow": (25 / 46, -21 / 46),
    "BlackmanWindow": (0.42, -0.5, 0.08),
}


@register("RandomNormal", foldable=False)
@register("RandomUniform", foldable=False)
def random(op: NodeContext) -> Value:
    """https://onnx.ai/onnx/operators/onnx__RandomNormal.html (drawn once, when compiling)."""
    return _draw(op, tuple(op.attr("shape")), dtype_of_onnx(op.attr("dtype")))


@register("RandomNormalLike", foldable=False)
@register("RandomUniformLike", foldable=False)
def random_like(op: NodeContext) -> Value:
    """https://onnx.ai/onnx/operators/onnx__RandomNormalLike.html (drawn once, when compiling)."""
    data, to = op.input(0), op.attr("dtype", None)
    return _draw(op, data.shape, data.dtype if to is None else dtype_of_onnx(to))


@register("Multinomial", 7, foldable=False)
def multinomial(op: NodeContext) -> Value:
    """https://onnx.ai/onnx/operators/onnx__Multinomial.html

    The numbers that choose are drawn when compiling; the probabilities are those of the input.
    """
    data, count = op.input(0), op.attr("sample_size")
    dtype = dtype_of_onnx(op.attr("dtype"))
    if data.rank != 2 or count < 1:
        op.fail(f"an input with {data.rank} dimensions and sample_size {count}")
    chosen = _generator(op).rand(data.shape[0], count, 1).astype(data.dtype)
    shares = op.call(R.nn.softmax, data, 1)
    ends = op.te(topi.cumsum, shares, 1, data.dtype, name="ends")
    # The last end may be rounded below 1: it does not count.
    ends = op.call(R.strided_slice, ends, [1], [0], [data.shape[1] - 1], [1])
    ends = op.call(R.reshape, ends, (data.shape[0], 1, data.shape[1] - 1))
    passed = op.call(R.astype, op.call(R.greater_equal, constant(chosen), ends), dtype)
    return op.call(R.sum, passed, axis=[2])


def _draw(op: NodeContext, shape: tuple[int, ...], dtype: str) -> Value:
    """Draw numbers; with a seed, those that ONNX's reference implementation draws."""
    if math.prod(shape) * 8 > GROWTH_LIMIT_BYTES:
        op.fail(f"{math.prod(shape)} random numbers would be stored in the compiled file")
    if "Normal" in op.node.op_type:
        low, width = op.attr("mean"), op.attr("scale")
        drawn = _generator(op).randn(*shape)
    else:
        low, width = op.attr("low"), op.attr("high") - op.attr("low")
        drawn = _generator(op).rand(*shape)
    kind = numpy_dtype(dtype)
    return constant(np.asarray(drawn).astype(kind) * kind.type(width) + kind.type(low))


def _generator(op: NodeContext) -> np.random.RandomState:
    """Return the generator that the node's seed, or else its name, starts."""
    seed = op.attr("seed", None)
    if seed is not None and 0 <= seed < 1 << 32:
        return np.random.RandomState(int(seed))
    text = op.label if seed is None else str(seed)
    return np.random.RandomState(zlib.crc32(text.encode()))


@register("AffineGrid", 20, shape_inputs=(1,))
def affine_grid(op: NodeContext) -> Value:
    """https://onnx.ai/onnx/operators/onnx__AffineGrid.html: a constant grid times theta."""
    theta, size, align = op.input(0), op.ints(1) or (), bool(op.attr("align_corners"))
    extents = size[2:]
    axes = [np.linspace(-1, 1, n) if align else (2 * np.arange(n) + 1) / n - 1 for n in extents]
    # The last dimension runs x, y, z, 1, while the axes run (z,) y, x.
    places = [grid.ravel() for grid in np.meshgrid(*axes, indexing="ij")][::-1]
    base = np.stack([*places, np.ones(math.prod(extents))]).astype(theta.dtype)
    product = op.call(R.matmul, theta, constant(base))
    moved = op.call(R.permute_dims, product, [0, 2, 1])
    return op.call(R.reshape, moved, (size[0], *extents, len(extents)))


@register("MelWeightMatrix", 17, shape_inputs=(0, 1, 2, 3, 4))
def mel_weight_matrix(op: NodeContext) -> Value:
    """https://onnx.ai/onnx/operators/onnx__MelWeightMatrix.html: triangles on the mel scale."""
    bins, points, rate, low, high = (op.data(index).reshape(()).item() for index in range(5))
    dtype = numpy_dtype(dtype_of_onnx(op.attr("output_datatype")))
    spectrum = points // 2 + 1
    ends = 2595 * np.log10(1 + np.array([low, high]) / 700)
    mels = np.arange(bins + 2) * (ends[1] - ends[0]) / (bins + 2) + ends[0]
    edges = ((points + 1) * 700 * (10 ** (mels / 2595) - 1) // rate).astype(np.int64)
    matrix = np.zeros((spectrum, bins))
    for index in range(bins):
        left, centre, right = edges[index : index + 3]
        rise = np.arange(left, centre + 1)
        matrix[rise, index] = 1 if left == centre else (rise - left) / (centre - left)
        fall = np.arange(centre, right)
        if right > centre:
            matrix[fall, index] = (right - fall) / (right - centre)
    return constant(matrix.astype(dtype))
