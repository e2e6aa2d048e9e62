"""The element-wise part of an integer kernel as one tensor expression: sums in, bytes out.

Scales are folded: what a quantize operator would divide by is multiplied, when compiling, into the
scales and bounds that come before it. So relu(conv + bias) / scale becomes

    max(float32(sums + offset) * (sx * sw / scale), 0)
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np
from tvm import relax, te, tirx

from tilewright.compiler.quantize.affine import (
    MAGIC_BITS,
    RANGES,
    SMALL,
    rounded_bits,
    saturated,
    unsigned_zero,
)
from tilewright.compiler.quantize.bounds import greatest
from tilewright.compiler.quantize.graph import Graph
from tilewright.compiler.quantize.linear import Linear
from tilewright.compiler.quantize.pooling import Average
from tilewright.compiler.quantize.region import Region
from tilewright.compiler.relax_utils import is_constant, op_name

Load = Callable[[Sequence[Any]], Any]

_CALLS = {
    "relax.sigmoid": tirx.sigmoid,
    "relax.tanh": tirx.tanh,
    "relax.exp": tirx.exp,
    "relax.erf": tirx.erf,
}
_ROOT_HALF = 0.5**0.5
# x + this x^3, times the root of 8 / pi, is what the approximation of GELU takes the sigmoid of.
_GELU_CUBE = 0.044715
_GELU_SLOPE = 1.5957691216057308


@dataclass(eq=False)
class Operands:
    """Tensors that an expression reads, in the order in which a PrimFunc gets them.

    `tensors` is filled with placeholders when the tensor expression is made.
    """

    exprs: list[relax.Expr] = field(default_factory=list)
    tensors: tuple[te.Tensor, ...] = ()

    def load(self, expr: relax.Expr) -> Load:
        """Return what loads an element, broadcast from the right."""
        number = next((i for i, known in enumerate(self.exprs) if known is expr), None)
        if number is None:
            number = len(self.exprs)
            self.exprs.append(expr)

        def element(at: Sequence[Any]) -> Any:
            tensor = self.tensors[number]
            shape = [int(extent) for extent in tensor.shape]
            inner = list(at)[len(at) - len(shape) :] if shape else []
            return tensor(*(0 if n == 1 else i for i, n in zip(inner, shape, strict=True)))

        return element


def _number(value: float) -> Any:
    return tirx.const(float(np.float32(value)), "float32")


@dataclass(eq=False)
class EpilogueBuilder:
    """Builds the expression of a region.

    Attributes:
        graph: the function.
        region: what to compute.
        linear: the anchor with its bias folded in so far; None without an anchor.
        read_bytes: gives for a quantized variable its unsigned bytes (signed ones plus 128).
        remap: gives the new expression of a float variable.
        operands: what the expression reads beside the sums.
        sums: tensor of the anchor's sums, once the tensor expression is made.
    """

    exact_bias: ClassVar[bool] = True

    graph: Graph
    region: Region
    linear: Linear | Average | None
    read_bytes: Callable[[relax.Var], relax.Expr]
    remap: Callable[[relax.Expr], relax.Expr]
    operands: Operands = field(init=False, default_factory=Operands)
    sums: te.Tensor | None = field(init=False, default=None)
    _known: dict[tuple[relax.Var, float], Load] = field(init=False, default_factory=dict)
    _biased: set[relax.Var] = field(init=False, default_factory=set)

    def root(self) -> Load:
        """Return what computes an element of the result, in unsigned bytes."""
        affine = self.graph.affines[self.region.root]
        scale, zero = float(affine.scale), unsigned_zero(affine)
        source, is_small = affine.source, False
        if source in self.region.members:
            bound = greatest(self.graph, source, self.region.anchor, self.linear)
            is_small = bound / scale < SMALL
            value = self.value(self._before_relu(source) if zero == 0 else source, 1.0 / scale)
        else:
            # Alone, it divides, as the standard says.
            inner = self.value(source, 1.0)

            def value(at: Sequence[Any]) -> Any:
                return inner(at) / _number(scale)

        point = tirx.const(zero, "int32")
        return lambda at: saturated(value(at), point, affine.unsigned, is_small=is_small)

    def _before_relu(self, expr: relax.Expr) -> relax.Expr:
        """Return what a relu reads, if it ends an expression whose zero is the least byte."""
        call = self.graph.made_by(expr)
        if call is None or expr not in self.region.members or op_name(call) != "relax.nn.relu":
            return expr
        return call.args[0]

    def value(self, expr: relax.Expr, factor: float) -> Load:
        """Return what computes `factor` times an expression of the region or before it."""
        array = self.graph.constant(expr)
        if array is not None:
            return self._constant(array, factor)
        if not isinstance(expr, relax.Var) or expr not in self.region.members:
            return self._outside(expr, factor)
        if (expr, factor) not in self._known:
            self._known[expr, factor] = self._member(expr, factor)
        return self._known[expr, factor]

    def _member(self, var: relax.Var, factor: float) -> Load:
        if is_variable(var, self.region.anchor):
            return self._sums(factor)
        if var in self.graph.affines:
            return self._dequantized(var, factor)
        return self._operator(var, factor)

    def _constant(self, array: np.ndarray, factor: float) -> Load:
        if array.size == 1:
            number = _number(float(array.reshape(())) * factor)
            return lambda _at: number
        scaled = (array.astype(np.float64) * factor).astype(np.float32)
        return self.operands.load(relax.const(scaled))

    def _outside(self, expr: relax.Expr, factor: float) -> Load:
        affine = self.graph.of_kind(expr, "dequantize")
        if affine is not None and affine.in_bytes:
            source = self.read_bytes(affine.source)
            return self._bytes(source, unsigned_zero(affine), float(affine.scale) * factor)
        load = self.operands.load(self.remap(expr))
        if factor == 1.0:
            return load
        return lambda at: load(at) * _number(factor)

    def _bytes(self, source: relax.Expr, zero: int, factor: float) -> Load:
        load = self.operands.load(source)

        def element(at: Sequence[Any]) -> Any:
            whole = load(at).astype("int32")
            centred = whole - tirx.const(zero, "int32") if zero else whole
            return centred.astype("float32") * _number(factor)

        return element

    def _sums(self, factor: float) -> Load:
        assert self.linear is not None
        linear = self.linear
        shape = (-1, *(1,) * (linear.channel - 1))
        scale = linear.scale.astype(np.float64) * factor
        scales = self._constant(np.float32(scale).reshape(shape), 1.0)
        offsets = None
        if linear.offset.any():
            offsets = self.operands.load(relax.const(linear.offset.reshape(shape)))

        def element(at: Sequence[Any]) -> Any:
            assert self.sums is not None
            total = self.sums(*at)
            if offsets is not None:
                total = total + offsets(at)
            return total.astype("float32") * scales(at)

        return element

    def _dequantized(self, var: relax.Var, factor: float) -> Load:
        """Return a dequantize of the region; its source is rounded in place, or is memory."""
        affine = self.graph.affines[var]
        scale, source = float(affine.scale), affine.source
        if source not in self.region.members:
            return self._outside(var, factor)
        inner = self.graph.affines[source]
        low, high = RANGES[inner.dtype]
        given = self.value(inner.source, 1.0 / float(inner.scale))
        zero = int(inner.zero)
        shift = zero - int(affine.zero)

        def element(at: Sequence[Any]) -> Any:
            # Rounded and saturated, with the zero point left out.
            bits = rounded_bits(given(at), _number(low - zero), _number(high - zero))
            # In integers: taking the magic number off in floats would be simplified away.
            whole = tirx.reinterpret("int32", bits) - tirx.const(MAGIC_BITS - shift, "int32")
            centred = whole.astype("float32")
            return centred * _number(scale * factor)

        return element

    def _operator(self, var: relax.Var, factor: float) -> Load:
        call = self.graph.value[var]
        name = op_name(call)
        if name in ("relax.add", "relax.subtract"):
            return self._sum(var, name == "relax.add", factor)
        if name == "relax.nn.relu":
            inner = self.value(call.args[0], factor)
            return lambda at: tirx.max(inner(at), _number(0))
        if name == "relax.clip":
            inner = self.value(call.args[0], factor)
            low, high = (_number(plain_number(bound) * factor) for bound in call.args[1:3])
            return lambda at: tirx.max(tirx.min(inner(at), high), low)
        if name in ("relax.maximum", "relax.minimum"):
            choose = tirx.max if name == "relax.maximum" else tirx.min
            a, b = (self.value(arg, factor) for arg in call.args)
            return lambda at: choose(a(at), b(at))
        if name == "relax.multiply":
            a, b = self.value(call.args[0], 1.0), self.value(call.args[1], factor)
            return lambda at: a(at) * b(at)
        if name == "relax.divide":
            a, b = self.value(call.args[0], factor), self.value(call.args[1], 1.0)
            return lambda at: a(at) / b(at)
        return self._function(call, str(name), factor)

    def _sum(self, var: relax.Var, plus: bool, factor: float) -> Load:
        left, right = self.graph.value[var].args
        # Another factor may ask for the same sum again; its bias counts once.
        if var not in self._biased and plus and self._with_bias(left, right):
            self._biased.add(var)
        if var in self._biased:
            return self._sums(factor)
        a, b = self.value(left, factor), self.value(right, factor)
        return (lambda at: a(at) + b(at)) if plus else (lambda at: a(at) - b(at))

    def _with_bias(self, left: relax.Expr, right: relax.Expr) -> bool:
        """Take the bias of the anchor into its integer offset, where that is exact."""
        if self.linear is None:
            return False
        if is_constant(left) or not is_variable(left, self.region.anchor):
            left, right = right, left
        if not is_variable(left, self.region.anchor) or len(self.graph.users[left]) != 1:
            return False
        bias = self.graph.constant(right)
        if bias is None or not _per_channel(bias, self.linear):
            return False
        biased = self.linear.with_bias(bias, exact=self.exact_bias)
        if biased is None:
            return False
        self.linear = biased
        return True

    def _function(self, call: relax.Call, name: str, factor: float) -> Load:
        inner = self.value(call.args[0], 1.0)

        def plain(at: Sequence[Any]) -> Any:
            x = inner(at)
            if name == "relax.nn.silu":
                return x * tirx.sigmoid(x)
            if name == "relax.nn.leakyrelu":
                return tirx.max(x, _number(0)) + tirx.min(x, _number(0)) * _number(
                    float(call.attrs.alpha)
                )
            if name == "relax.nn.gelu":
                return x * _number(0.5) * (_number(1) + tirx.erf(x * _number(_ROOT_HALF)))
            if name == "relax.nn.gelu_tanh":
                inner_sum = x + _number(_GELU_CUBE) * x * x * x
                return x * tirx.sigmoid(_number(_GELU_SLOPE) * inner_sum)
            return _CALLS[name](x)

        return lambda at: plain(at) * _number(factor)


def is_variable(expr: relax.Expr, var: relax.Var | None) -> bool:
    """Say whether an expression is a variable."""
    return var is not None and isinstance(expr, relax.Var) and expr.same_as(var)


def _per_channel(bias: np.ndarray, linear: Linear | Average) -> bool:
    """Say whether a constant varies along the output channels alone."""
    if bias.size == 1:
        return True
    place = bias.ndim - linear.channel
    return bias.size == linear.offset.size and place >= 0 and bias.shape[place] == bias.size


def plain_number(expr: relax.Expr) -> float:
    """Return the number in a primitive argument of an operator."""
    value = getattr(expr, "value", expr)
    return float(getattr(value, "value", value))
