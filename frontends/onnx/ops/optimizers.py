"""Update steps of optimisers (ai.onnx.preview.training), for devices that learn."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from tvm import relax

from tilewright.frontends.onnx.node import NodeContext
from tilewright.frontends.onnx.registry import register
from tilewright.frontends.onnx.values import Value

R = relax.op
DOMAIN = "ai.onnx.preview.training"


class _Step:
    """The arithmetic of one update, on tensors and scalars of one type."""

    def __init__(self, op: NodeContext, dtype: str) -> None:
        self.op, self.dtype = op, dtype
        self.rate, self.count = op.input(0), op.input(1)

    def number(self, value: Value | float) -> Value:
        return value if isinstance(value, Value) else self.op.scalar(value, self.dtype)

    def add(self, left: Value, right: Value | float) -> Value:
        return self.op.call(R.add, left, self.number(right))

    def subtract(self, left: Value | float, right: Value) -> Value:
        return self.op.call(R.subtract, self.number(left), right)

    def multiply(self, left: Value, right: Value | float) -> Value:
        return self.op.call(R.multiply, left, self.number(right))

    def divide(self, left: Value, right: Value) -> Value:
        return self.op.call(R.divide, left, right)

    def root(self, value: Value) -> Value:
        return self.op.call(R.sqrt, value)

    def power(self, base: float) -> Value:
        """Return `base` to the power of the update count."""
        count = self.op.call(R.astype, self.count, self.dtype)
        return self.op.call(R.power, self.op.scalar(base, self.dtype), count)

    def regularized(self, tensor: Value, gradient: Value) -> Value:
        """Add the gradient of the penalty on large weights."""
        factor = self.op.attr("norm_coefficient", 0.0)
        return self.add(gradient, self.multiply(tensor, factor)) if factor else gradient


def _groups(op: NodeContext, size: int) -> list[list[Value]]:
    """Return the inputs after rate and count by tensor: all tensors, all gradients, ..."""
    count = (len(op.inputs) - 2) // size
    return [[op.input(2 + kind * count + index) for kind in range(size)] for index in range(count)]


def _by_kind(results: Sequence[tuple[Value, ...]]) -> Any:
    """Return all new tensors, then all new states of the first kind, ..."""
    return [value for kind in zip(*results, strict=True) for value in kind]


@register("Adagrad", domain=DOMAIN)
def adagrad(op: NodeContext) -> Any:
    """https://onnx.ai/onnx/operators/onnx_aionnxpreviewtraining_Adagrad.html"""
    step = _Step(op, op.input(2).dtype)
    count = op.call(R.astype, step.count, step.dtype)
    slowed = step.add(step.multiply(count, op.attr("decay_factor", 0.0)), 1.0)
    rate = step.divide(step.rate, slowed)
    results = []
    for tensor, gradient, squares in _groups(op, 3):
        slope = step.regularized(tensor, gradient)
        total = step.add(squares, step.multiply(slope, slope))
        scale = step.add(step.root(total), op.attr("epsilon", 0.0))
        change = step.divide(step.multiply(slope, rate), scale)
        results.append((step.subtract(tensor, change), total))
    return _by_kind(results)


@register("Adam", domain=DOMAIN)
def adam(op: NodeContext) -> Any:
    """https://onnx.ai/onnx/operators/onnx_aionnxpreviewtraining_Adam.html"""
    step = _Step(op, op.input(2).dtype)
    alpha, beta = op.attr("alpha", 0.9), op.attr("beta", 0.999)
    corrected = step.divide(
        step.multiply(step.rate, step.root(step.subtract(1.0, step.power(beta)))),
        step.subtract(1.0, step.power(alpha)),
    )
    is_first = op.call(R.greater, step.count, op.scalar(0, step.count.dtype))
    rate = op.call(R.where, is_first, corrected, step.rate)
    penalty = 1.0 - op.attr("norm_coefficient_post", 0.0)
    results = []
    for tensor, gradient, average, squares in _groups(op, 4):
        slope = step.regularized(tensor, gradient)
        mean = step.add(step.multiply(average, alpha), step.multiply(slope, 1 - alpha))
        square = step.multiply(slope, slope)
        spread = step.add(step.multiply(squares, beta), step.multiply(square, 1 - beta))
        scale = step.add(step.root(spread), op.attr("epsilon", 0.0))
        moved = step.subtract(tensor, step.divide(step.multiply(mean, rate), scale))
        results.append((step.multiply(moved, penalty), mean, spread))
    return _by_kind(results)


@register("Momentum", domain=DOMAIN)
def momentum(op: NodeContext) -> Any:
    """https://onnx.ai/onnx/operators/onnx_aionnxpreviewtraining_Momentum.html"""
    step = _Step(op, op.input(2).dtype)
    alpha, beta, mode = op.attr("alpha"), op.attr("beta"), op.attr("mode")
    is_later = op.call(R.greater, step.count, op.scalar(0, step.count.dtype))
    share = op.call(R.where, is_later, step.number(beta), step.number(1.0))
    results = []
    for tensor, gradient, velocity in _groups(op, 3):
        slope = step.regularized(tensor, gradient)
        new = step.add(step.multiply(velocity, alpha), step.multiply(slope, share))
        ahead = step.add(slope, step.multiply(new, alpha)) if mode == "nesterov" else new
        results.append((step.subtract(tensor, step.multiply(ahead, step.rate)), new))
    return _by_kind(results)
