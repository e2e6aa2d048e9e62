"""Element-wise arithmetic, comparison and logic."""

from __future__ import annotations

from collections.abc import Callable
from functools import reduce
from typing import Any

import numpy as np
from tvm import relax, te, tirx

from tilewright.frontends.onnx.node import NodeContext
from tilewright.frontends.onnx.ops.small_types import decode, encode, is_small_integer
from tilewright.frontends.onnx.registry import register
from tilewright.frontends.onnx.values import Value, dtype_of_onnx, is_small, numpy_dtype

R = relax.op

FLOATS = ("float16", "float32", "float64", "bfloat16")

_UNARY: dict[str, Callable[..., relax.Expr]] = {
    "Abs": R.abs,
    "Acos": R.acos,
    "Acosh": R.acosh,
    "Asin": R.asin,
    "Asinh": R.asinh,
    "Atan": R.atan,
    "Atanh": R.atanh,
    "BitwiseNot": R.bitwise_not,
    "Ceil": R.ceil,
    "Cos": R.cos,
    "Cosh": R.cosh,
    "Erf": R.erf,
    "Exp": R.exp,
    "Floor": R.floor,
    "IsNaN": R.isnan,
    "Log": R.log,
    "Neg": R.negative,
    "Not": R.logical_not,
    "Sigmoid": R.sigmoid,
    "Sign": R.sign,
    "Sin": R.sin,
    "Sinh": R.sinh,
    "Sqrt": R.sqrt,
    "Tan": R.tan,
    "Tanh": R.tanh,
}

_BINARY: dict[str, Callable[..., relax.Expr]] = {
    "Add": R.add,
    "And": R.logical_and,
    "BitwiseAnd": R.bitwise_and,
    "BitwiseOr": R.bitwise_or,
    "BitwiseXor": R.bitwise_xor,
    "Equal": R.equal,
    "Greater": R.greater,
    "GreaterOrEqual": R.greater_equal,
    "Less": R.less,
    "LessOrEqual": R.less_equal,
    "Mul": R.multiply,
    "Or": R.logical_or,
    "Sub": R.subtract,
    "Xor": R.logical_xor,
}

_VARIADIC: dict[str, Callable[..., relax.Expr]] = {
    "Max": R.maximum,
    "Min": R.minimum,
    "Sum": R.add,
}


def _register_tables() -> None:
    """Register the operators that map to one Relax operator."""

    def unary(function: Callable[..., relax.Expr]) -> Callable[[NodeContext], Value]:
        return lambda op: op.call(function, op.input(0))

    def binary(function: Callable[..., relax.Expr]) -> Callable[[NodeContext], Value]:
        return lambda op: op.call(function, op.input(0), aligned(op, op.input(0), op.input(1)))

    def variadic(function: Callable[..., relax.Expr]) -> Callable[[NodeContext], Value]:
        return lambda op: reduce(lambda a, b: op.call(function, a, b), _all_inputs(op))

    for name, function in _UNARY.items():
        register(name)(unary(function))
    for name, function in _BINARY.items():
        register(name)(binary(function))
    for name, function in _VARIADIC.items():
        register(name)(variadic(function))


ELEMENTWISE = (*_UNARY, *_BINARY, *_VARIADIC)


def _all_inputs(op: NodeContext) -> list[Value]:
    return [op.input(index) for index in range(len(op.inputs))]


def aligned(op: NodeContext, left: Value, right: Value) -> Value:
    """Shape the second operand as opset 6 aligned it: its dimensions start at attribute `axis`."""
    if op.opset >= 7:
        return right
    axis = op.attr("axis", None)
    if not op.attr("broadcast", 0) or axis is None:
        return right
    trailing = left.rank - axis % left.rank - right.rank
    return op.call(R.reshape, right, (*right.shape, *(1,) * trailing)) if trailing else right


_register_tables()


@register("Identity")
def identity(op: NodeContext) -> Any:
    """https://onnx.ai/onnx/operators/onnx__Identity.html"""
    return [op.inputs[0]]


@register("Dropout")
@register("Dropout", 12, shape_inputs=(1, 2))
def dropout(op: NodeContext) -> Any:
    """https://onnx.ai/onnx/operators/onnx__Dropout.html (inference; training is unsupported)."""
    for name in ("ratio", "seed"):
        op.attr(name, None)
    if op.opset >= 12:
        training = op.optional_data(2)
        ratio = op.optional_data(1)
        active = training is not None and bool(np.ravel(training)[0])
        if active and (ratio is None or float(np.ravel(ratio)[0]) != 0.0):
            op.fail("training_mode is true; export the model for inference")
    data = op.input(0)
    mask = Value(data.shape, "bool", data=np.ones(data.shape, bool)) if op.wants(1) else None
    return [data, mask]


@register("Mean")
def mean(op: NodeContext) -> Value:
    """https://onnx.ai/onnx/operators/onnx__Mean.html"""
    values = _all_inputs(op)
    total = reduce(lambda a, b: op.call(R.add, a, b), values)
    if len(values) == 1:
        return total
    return op.call(R.divide, total, op.scalar(len(values), total.dtype))


@register("Reciprocal")
def reciprocal(op: NodeContext) -> Value:
    """https://onnx.ai/onnx/operators/onnx__Reciprocal.html"""
    data = op.input(0)
    return op.call(R.divide, op.scalar(1, data.dtype), data)


@register("Round")
def round_half_even(op: NodeContext) -> Value:
    """https://onnx.ai/onnx/operators/onnx__Round.html (ties go to even, unlike te.round)."""
    return round_to_even(op, op.input(0))


def round_to_even(op: NodeContext, data: Value) -> Value:
    """Round to the nearest whole number, ties to even."""
    return op.te(_nearbyint, data, name="round")


def _nearbyint(data: te.Tensor) -> te.Tensor:
    return te.compute(data.shape, lambda *i: tirx.nearbyint(data(*i)), name="round")


@register("Pow")
def power(op: NodeContext) -> Value:
    """https://onnx.ai/onnx/operators/onnx__Pow.html

    Small constant exponents become products and roots, which are exact and vectorise.
    """
    base, exponent = op.input(0), op.input(1)
    number = _scalar(exponent)
    if base.dtype in FLOATS and number is not None and exponent.rank <= base.rank:
        if number == 1:
            return base
        if number == 2:
            return op.call(R.multiply, base, base)
        if number == 3:
            return op.call(R.multiply, op.call(R.multiply, base, base), base)
        if number == 0.5:
            return op.call(R.sqrt, base)
        if number == -0.5:
            return op.call(R.rsqrt, base)
        if number == -1:
            return op.call(R.divide, op.scalar(1, base.dtype), base)
    if base.dtype == exponent.dtype and base.dtype in FLOATS:
        return op.call(R.power, base, exponent)
    wide = "float64" if "64" in base.dtype or base.dtype == "int32" else "float32"
    result = op.call(R.power, cast(op, base, wide), cast(op, exponent, wide))
    if base.dtype not in FLOATS:
        result = round_to_even(op, result) if number is None else result
    return cast(op, result, base.dtype)


def _scalar(value: Value) -> float | None:
    """Return the number that a constant holds in every element, or None."""
    if value.data is None or value.size != 1:
        return None
    return float(value.data.reshape(()))


def broadcast_te(op: NodeContext, function: Callable[..., Any], name: str, *values: Value) -> Value:
    """Emit an element-wise tensor expression over values that broadcast together."""
    shape = np.broadcast_shapes(*(value.shape for value in values))

    def compute(*tensors: te.Tensor) -> te.Tensor:
        def element(*indices: Any) -> Any:
            return function(*(tensor(*_aligned(tensor, indices)) for tensor in tensors))

        return te.compute(shape, element, name=name)

    return op.te(compute, *values, name=name)


def _aligned(tensor: te.Tensor, indices: tuple[Any, ...]) -> list[Any]:
    """Pick the indices of a broadcast tensor: the last ones, 0 where its extent is 1."""
    tail = indices[len(indices) - len(tensor.shape) :]
    return [
        tirx.const(0, "int32") if int(extent) == 1 else index
        for extent, index in zip(tensor.shape, tail, strict=True)
    ]


@register("BitShift")
def bit_shift(op: NodeContext) -> Value:
    """https://onnx.ai/onnx/operators/onnx__BitShift.html

    A shift by the width of the type or more, or by a negative number (undefined for the
    processor), shifts everything out: 0, or the sign for a signed right shift.
    """
    left = op.attr("direction") == "LEFT"
    data, count = op.input(0), op.input(1)
    bits = 8 * numpy_dtype(data.dtype).itemsize

    def shift(value: Any, by: Any) -> Any:
        # As int64: TVM's simplifier fails on comparisons of unsigned numbers with constants.
        wide = by.astype("int64")
        inside = tirx.all(wide >= 0, wide < bits)
        safe = tirx.Select(inside, by, tirx.const(0, count.dtype))
        zero = tirx.const(0, data.dtype)
        if left:
            return tirx.Select(inside, (value << safe).astype(data.dtype), zero)
        ones = zero if "u" in data.dtype else tirx.const(-1, data.dtype)
        gone = tirx.Select(value < zero, ones, zero)
        return tirx.Select(inside, (value >> safe).astype(data.dtype), gone)

    return broadcast_te(op, shift, "bit_shift", data, count)


@register("IsInf")
def is_inf(op: NodeContext) -> Value:
    """https://onnx.ai/onnx/operators/onnx__IsInf.html"""
    negative, positive = op.attr("detect_negative"), op.attr("detect_positive")
    data = op.input(0)
    if negative and positive:
        return op.call(R.isinf, data)
    if not negative and not positive:
        return Value(data.shape, "bool", data=np.zeros(data.shape, bool))
    bound = np.inf if positive else -np.inf
    return op.call(R.equal, data, op.scalar(bound, data.dtype))


@register("Where")
def where(op: NodeContext) -> Value:
    """https://onnx.ai/onnx/operators/onnx__Where.html"""
    return op.call(R.where, op.input(0), op.input(1), op.input(2))


@register("Clip")
def clip_attributes(op: NodeContext) -> Value:
    """https://onnx.ai/onnx/operators/onnx__Clip.html (bounds as attributes)."""
    return clip(op, op.input(0), op.attr("min", None), op.attr("max", None))


@register("Clip", 11)
def clip_inputs(op: NodeContext) -> Value:
    """https://onnx.ai/onnx/operators/onnx__Clip.html (bounds as inputs)."""
    data = op.input(0)
    low, high = op.optional(1), op.optional(2)
    if all(bound is None or bound.is_constant for bound in (low, high)):
        numbers = [
            None if bound is None or bound.data is None else bound.data.reshape(()).item()
            for bound in (low, high)
        ]
        return clip(op, data, *numbers)
    if low is not None:
        data = op.call(R.maximum, data, low)
    return data if high is None else op.call(R.minimum, data, high)


def clip(op: NodeContext, data: Value, low: float | None, high: float | None) -> Value:
    """Limit a value to a range with open ends."""
    if low is not None and high is not None and low <= high and data.dtype in FLOATS:
        return op.call(R.clip, data, min=float(low), max=float(high))
    if low is not None:
        data = op.call(R.maximum, data, op.scalar(low, data.dtype))
    if high is not None:
        data = op.call(R.minimum, data, op.scalar(high, data.dtype))
    return data


@register("Cast")
def cast_node(op: NodeContext) -> Value:
    """https://onnx.ai/onnx/operators/onnx__Cast.html"""
    return _cast_by_attributes(op, dtype_of_onnx(op.attr("to")))


@register("CastLike")
def cast_like(op: NodeContext) -> Value:
    """https://onnx.ai/onnx/operators/onnx__CastLike.html"""
    return _cast_by_attributes(op, op.input(1).dtype)


def _cast_by_attributes(op: NodeContext, dtype: str) -> Value:
    saturate, mode = bool(op.attr("saturate", 1)), op.attr("round_mode", "up")
    return cast(op, op.input(0), dtype, saturate, mode)


def cast(
    op: NodeContext, data: Value, dtype: str, saturate: bool = True, round_mode: str = "up"
) -> Value:
    """Convert the elements of a value; a constant is converted at once.

    Args:
        op: The node.
        data: What to convert.
        dtype: The wanted type.
        saturate: Whether numbers beyond the range of a float8 become its largest, not NaN.
        round_mode: "up", "down" or "nearest", for float8_e8m0fnu.
    """
    if data.dtype == dtype:
        return data
    if is_small(data.dtype):
        return cast(op, decode(op, data), dtype, saturate, round_mode)
    if is_small(dtype):
        wide = "int32" if is_small_integer(dtype) else "float32"
        return encode(op, cast(op, data, wide), dtype, saturate, round_mode)
    if dtype == "bool":
        return op.call(R.not_equal, data, op.scalar(0, data.dtype))
    return op.call(R.astype, data, dtype)


@register("Binarizer", domain="ai.onnx.ml")
def binarizer(op: NodeContext) -> Value:
    """https://onnx.ai/onnx/operators/onnx_aionnxml_Binarizer.html"""
    data = op.input(0)
    above = op.call(R.greater, data, op.scalar(op.attr("threshold"), data.dtype))
    return op.call(R.astype, above, data.dtype)
