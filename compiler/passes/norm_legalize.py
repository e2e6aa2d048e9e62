"""TensorIR forms of normalisations that the row schedule runs in one kernel.

TVM's own forms of instance and group norm reduce to a sum and a sum of squares at once. Their
variance E[x^2] - E[x]^2 loses its digits where the mean is large, and a block with two results
cannot be scheduled with the others. Here variance is the mean of squared differences.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import prod
from typing import Any

from tvm import relax, te, tirx

from tilewright.compiler.relax_utils import static_shape


def legalize_instance_norm(builder: relax.BlockBuilder, call: relax.Call) -> relax.Expr:
    """Lower relax.nn.instance_norm: data [N, C, ...], gamma and beta [C] -> like data."""
    data, gamma, beta = call.args
    rank = len(static_shape(data))
    channel = int(call.attrs.channel_axis) % rank
    reduced = [int(axis) % rank for axis in call.attrs.axes]

    def compute(x: te.Tensor, scale: te.Tensor, shift: te.Tensor) -> te.Tensor:
        def of_channel(index: Sequence[Any]) -> tuple[Any, Any]:
            return scale[index[channel]], shift[index[channel]]

        return _normalize(x, reduced, float(call.attrs.epsilon), of_channel)

    return builder.call_te(compute, data, gamma, beta, primfunc_name_hint="instance_norm")


def legalize_group_norm(builder: relax.BlockBuilder, call: relax.Call) -> relax.Expr:
    """Lower relax.nn.group_norm: data [N, C, ...], gamma and beta [C] -> like data.

    The channels are split by views around the kernel, so that a group is a row of it.
    """
    data, gamma, beta = call.args
    shape = static_shape(data)
    channel = int(call.attrs.channel_axis) % len(shape)
    groups = int(call.attrs.num_groups)
    size = shape[channel] // groups
    reduced = {int(axis) % len(shape) for axis in call.attrs.axes} - {channel}
    split = [*shape[:channel], groups, size, *shape[channel + 1 :]]
    axes = [channel + 1, *(axis + (1 if axis > channel else 0) for axis in sorted(reduced))]

    def compute(x: te.Tensor, scale: te.Tensor, shift: te.Tensor) -> te.Tensor:
        def of_channel(index: Sequence[Any]) -> tuple[Any, Any]:
            number = index[channel] * size + index[channel + 1]
            return scale[number], shift[number]

        return _normalize(x, axes, float(call.attrs.epsilon), of_channel)

    parts = builder.emit(relax.op.reshape(data, split))
    normal = builder.emit(
        builder.call_te(compute, parts, gamma, beta, primfunc_name_hint="group_norm")
    )
    return relax.op.reshape(normal, list(shape))


def _normalize(
    x: te.Tensor,
    reduced: Sequence[int],
    epsilon: float,
    affine: Callable[[Sequence[Any]], tuple[Any, Any]],
) -> te.Tensor:
    """(x - mean) / sqrt(variance + epsilon) * scale + shift, statistics over `reduced` axes."""
    shape = [int(extent) for extent in x.shape]
    kept = [axis for axis in range(len(shape)) if axis not in reduced]
    count = tirx.const(float(prod(shape[axis] for axis in reduced)), x.dtype)

    def reduce(name: str, term: Callable[[Sequence[Any]], Any]) -> te.Tensor:
        walked = {axis: te.reduce_axis((0, shape[axis]), f"k{axis}") for axis in reduced}

        def total(*index: Any) -> Any:
            outer = dict(zip(kept, index, strict=True))
            full = [walked[a] if a in walked else outer[a] for a in range(len(shape))]
            return te.sum(term(full), axis=list(walked.values()))

        return te.compute([shape[axis] for axis in kept], total, name=name)

    def row(index: Sequence[Any]) -> list[Any]:
        return [index[axis] for axis in kept]

    total = reduce("total", lambda index: x[tuple(index)])
    mean = te.compute(total.shape, lambda *i: total(*i) / count, name="mean")

    def squared(index: Sequence[Any]) -> Any:
        difference = x[tuple(index)] - mean(*row(index))
        return difference * difference

    squares = reduce("squares", squared)

    def element(*index: Any) -> Any:
        scale, shift = affine(index)
        deviation = tirx.rsqrt(squares(*row(index)) / count + tirx.const(epsilon, x.dtype))
        return (x(*index) - mean(*row(index))) * deviation * scale + shift

    return te.compute(shape, element, name="normalized")
