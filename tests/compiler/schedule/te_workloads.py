"""Operators in blocked layouts as TE functions, with numpy references, for the schedule tests."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import tvm
from tvm import te, tirx

from tilewright.compiler.codegen import assembly
from tilewright.compiler.targets import Target

_RNG_SEED = 7


@dataclass(frozen=True, eq=False)
class Workload:
    """A function, the shapes of its parameters, and a reference for its last one."""

    func: tirx.PrimFunc
    shapes: tuple[tuple[int, ...], ...]

    def arrays(self) -> list[np.ndarray]:
        """Return random inputs and an output filled with NaN."""
        rng = np.random.default_rng(_RNG_SEED)
        inputs = [rng.standard_normal(shape).astype("float32") for shape in self.shapes[:-1]]
        return [*inputs, np.full(self.shapes[-1], np.nan, "float32")]


def run(func: tirx.PrimFunc, arrays: list[np.ndarray], target: Target) -> np.ndarray:
    """Compile a function and return its last parameter after one call."""
    module = tvm.compile(func.with_attr("global_symbol", "main"), target.tvm_target())
    tensors = [tvm.runtime.tensor(array) for array in arrays]
    module(*tensors)
    return tensors[-1].numpy()


def machine_code(func: tirx.PrimFunc, target: Target) -> str:
    """Return the assembly of a scheduled function."""
    return assembly({"main": func}, target)


def padded(data: te.Tensor, before: int, after: int, fill: float = 0.0) -> te.Tensor:
    """Pad dimensions 2 and 3 of an image."""
    if before == after == 0:
        return data
    n, c, h, w, *rest = (int(extent) for extent in data.shape)

    def value(*index: tirx.Var) -> tirx.PrimExpr:
        n_, c_, y, x, *inner = index
        inside = te.all(y >= before, y < h + before, x >= before, x < w + before)
        return te.if_then_else(inside, data[(n_, c_, y - before, x - before, *inner)], fill)

    total = before + after
    return te.compute((n, c, h + total, w + total, *rest), value, name="pad")


def conv2d(
    images: int,
    inputs: int,
    size: tuple[int, int],
    outputs: int,
    kernel: int,
    stride: int = 1,
    pad: tuple[int, int] = (0, 0),
    dilation: int = 1,
    lanes: int = 16,
    input_block: int | None = None,
    residual: bool = False,
) -> Workload:
    """Convolution, bias, optional residual, ReLU on N C/b H W b; weights O/l I/b KH KW b l."""
    block = input_block or lanes
    reach = (kernel - 1) * dilation + 1
    oh, ow = ((extent + sum(pad) - reach) // stride + 1 for extent in size)
    data = te.placeholder((images, inputs // block, *size, block), name="data")
    weight = te.placeholder(
        (outputs // lanes, inputs // block, kernel, kernel, block, lanes), name="weight"
    )
    bias = te.placeholder((outputs // lanes, lanes), name="bias")
    out = (images, outputs // lanes, oh, ow, lanes)
    source = padded(data, *pad)
    rc, ri = te.reduce_axis((0, inputs // block), "rc"), te.reduce_axis((0, block), "ri")
    kh, kw = te.reduce_axis((0, kernel), "kh"), te.reduce_axis((0, kernel), "kw")
    conv = te.compute(
        out,
        lambda n, o, y, x, i: te.sum(
            source[n, rc, y * stride + kh * dilation, x * stride + kw * dilation, ri]
            * weight[o, rc, kh, kw, ri, i],
            axis=[rc, kh, kw, ri],
        ),
        name="conv",
    )
    value = te.compute(out, lambda n, o, y, x, i: conv[n, o, y, x, i] + bias[o, i], name="bias_add")
    tensors = [data, weight, bias]
    if residual:
        other = te.placeholder(out, name="residual")
        tensors.append(other)
        biased = value
        value = te.compute(out, lambda *i: biased(*i) + other(*i), name="residual_add")
    relu = te.compute(out, lambda *i: te.max(value(*i), 0.0), name="relu")
    return _workload(*tensors, relu)


def depthwise(
    images: int, channels: int, size: tuple[int, int], kernel: int, stride: int, pad: int,
    lanes: int = 16,
) -> Workload:  # fmt: skip
    """Depthwise convolution and ReLU6 on N C/l H W l, weights C/l KH KW l."""
    oh, ow = ((extent + 2 * pad - kernel) // stride + 1 for extent in size)
    data = te.placeholder((images, channels // lanes, *size, lanes), name="data")
    weight = te.placeholder((channels // lanes, kernel, kernel, lanes), name="weight")
    source = padded(data, pad, pad)
    kh, kw = te.reduce_axis((0, kernel), "kh"), te.reduce_axis((0, kernel), "kw")
    out = (images, channels // lanes, oh, ow, lanes)
    conv = te.compute(
        out,
        lambda n, c, y, x, i: te.sum(
            source[n, c, y * stride + kh, x * stride + kw, i] * weight[c, kh, kw, i], axis=[kh, kw]
        ),
        name="depthwise",
    )
    relu6 = te.compute(out, lambda *i: te.min(te.max(conv(*i), 0.0), 6.0), name="relu6")
    return _workload(data, weight, relu6)


def planar_depthwise(
    images: int, channels: int, size: tuple[int, int], kernel: int, stride: int,
    pads: tuple[int, int], dilation: int = 1,
) -> Workload:  # fmt: skip
    """Depthwise convolution and ReLU6 on N C H W, weights C 1 KH KW."""
    reach = (kernel - 1) * dilation + 1
    oh, ow = ((extent + sum(pads) - reach) // stride + 1 for extent in size)
    data = te.placeholder((images, channels, *size), name="data")
    weight = te.placeholder((channels, 1, kernel, kernel), name="weight")
    source = padded(data, *pads)
    kh, kw = te.reduce_axis((0, kernel), "kh"), te.reduce_axis((0, kernel), "kw")
    out = (images, channels, oh, ow)
    conv = te.compute(
        out,
        lambda n, c, y, x: te.sum(
            source[n, c, y * stride + kh * dilation, x * stride + kw * dilation]
            * weight[c, 0, kh, kw],
            axis=[kh, kw],
        ),
        name="depthwise",
    )
    relu6 = te.compute(out, lambda *i: te.min(te.max(conv(*i), 0.0), 6.0), name="relu6")
    return _workload(data, weight, relu6)


def planar_max_pool(
    images: int, channels: int, size: tuple[int, int], kernel: int, stride: int,
    pads: tuple[int, int],
) -> Workload:  # fmt: skip
    """Max pooling on N C H W."""
    oh, ow = ((extent + sum(pads) - kernel) // stride + 1 for extent in size)
    data = te.placeholder((images, channels, *size), name="data")
    source = padded(data, *pads, tvm.tirx.min_value("float32"))
    kh, kw = te.reduce_axis((0, kernel), "kh"), te.reduce_axis((0, kernel), "kw")
    pool = te.compute(
        (images, channels, oh, ow),
        lambda n, c, y, x: te.max(source[n, c, y * stride + kh, x * stride + kw], axis=[kh, kw]),
        name="pool",
    )
    return _workload(data, pool)


def max_pool(
    images: int, channels: int, size: tuple[int, int], kernel: int, stride: int, pad: int,
    lanes: int = 16,
) -> Workload:  # fmt: skip
    """Max pooling on N C/l H W l."""
    oh, ow = ((extent + 2 * pad - kernel) // stride + 1 for extent in size)
    data = te.placeholder((images, channels // lanes, *size, lanes), name="data")
    source = padded(data, pad, pad, tvm.tirx.min_value("float32"))
    kh, kw = te.reduce_axis((0, kernel), "kh"), te.reduce_axis((0, kernel), "kw")
    out = (images, channels // lanes, oh, ow, lanes)
    pool = te.compute(
        out,
        lambda n, c, y, x, i: te.max(
            source[n, c, y * stride + kh, x * stride + kw, i], axis=[kh, kw]
        ),
        name="pool",
    )
    return _workload(data, pool)


def matmul(m: int, k: int, n: int, lanes: int = 16, activation: str = "relu") -> Workload:
    """[M, K] times packed weights [N/l, K, l], bias, and ReLU or a sigmoid."""
    data = te.placeholder((m, k), name="data")
    weight = te.placeholder((-(-n // lanes), k, lanes), name="weight")
    bias = te.placeholder((n,), name="bias")
    rk = te.reduce_axis((0, k), "rk")
    product = te.compute(
        (m, n),
        lambda i, j: te.sum(data[i, rk] * weight[j // lanes, rk, j % lanes], axis=[rk]),
        name="matmul",
    )
    biased = te.compute((m, n), lambda i, j: product[i, j] + bias[j], name="bias_add")
    if activation == "relu":
        out = te.compute((m, n), lambda i, j: te.max(biased[i, j], 0.0), name="relu")
    else:
        out = te.compute((m, n), lambda i, j: te.sigmoid(biased[i, j]), name="sigmoid")
    return _workload(data, weight, bias, out)


def batch_matmul(batch: int, m: int, k: int, n: int, transposed: bool = False) -> Workload:
    """[B, M, K] times [B, K, N], or [B, N, K] where transposed."""
    left = te.placeholder((batch, m, k), name="left")
    right = te.placeholder((batch, n, k) if transposed else (batch, k, n), name="right")
    rk = te.reduce_axis((0, k), "rk")
    product = te.compute(
        (batch, m, n),
        lambda b, i, j: te.sum(
            left[b, i, rk] * (right[b, j, rk] if transposed else right[b, rk, j]), axis=[rk]
        ),
        name="matmul",
    )
    return _workload(left, right, product)


def planar_conv1d(batch: int, out: int, width: int, kernel: int, stride: int) -> Workload:
    """One channel [B, (W - 1) * stride + K] to [B, O, W], weights [O, K]."""
    data = te.placeholder((batch, (width - 1) * stride + kernel), name="data")
    weight = te.placeholder((out, kernel), name="weight")
    rk = te.reduce_axis((0, kernel), "rk")
    conv = te.compute(
        (batch, out, width),
        lambda b, o, x: te.sum(data[b, x * stride + rk] * weight[o, rk], axis=[rk]),
        name="conv",
    )
    return _workload(data, weight, conv)


def _workload(*tensors: te.Tensor) -> Workload:
    shapes = tuple(tuple(int(extent) for extent in tensor.shape) for tensor in tensors)
    return Workload(te.create_prim_func(list(tensors)), shapes)
