"""The element-wise part of an integer-only kernel: sums in, bytes out, no float in between.

A value of the region is an int64 with `shift` binary places, in units of the result's scale:

    conv:      (sums + offset) * M[channel]              M = round(sx sw / sy * 2^shift)
    residual:  (a - za) * Ma + (b - zb) * Mb
    result:    limited(shifted(value, shift) + zy)       rounds half to even

Relu and clip are maxima and minima of such values; products are of two bytes, as integers.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np
from tvm import relax, tirx

from tilewright.compiler.quantize.affine import RANGES, unsigned_zero
from tilewright.compiler.quantize.epilogue import EpilogueBuilder, Load, is_variable, plain_number
from tilewright.compiler.quantize.fixed_point import SATURATING, Precision, limited, shifted
from tilewright.compiler.quantize.integer_tensors import IntegerTensor
from tilewright.compiler.relax_utils import op_name

_BYTE_BOUND = 255
_CONSTANT_LIMIT = 2**30

Factor = float | np.ndarray


class NotIntegerError(Exception):
    """An expression that integers cannot compute; the message names it."""


@dataclass(frozen=True, eq=False)
class _Whole:
    """Integers with a real unit: what a leaf of the expression is before it is scaled.

    Attributes:
        load: int32 element.
        scale: float64 [] or shaped to broadcast from the right.
        bound: greatest absolute integer.
    """

    load: Load
    scale: np.ndarray | np.floating
    bound: int


@dataclass(eq=False)
class FixedEpilogueBuilder(EpilogueBuilder):
    """Builds the expression of a region in integers; attributes as `EpilogueBuilder`, and

    Attributes:
        integers: gives a variable as integers in memory, where an operator computes it so.
    """

    exact_bias: ClassVar[bool] = False

    integers: Callable[[relax.Var], IntegerTensor | None]
    _precision: dict[relax.Var, Precision] = field(init=False, default_factory=dict)
    _target: relax.Var | None = field(init=False, default=None)
    _measuring: bool = field(init=False, default=False)

    def root(self) -> Load:
        """Return what computes an element of the result, in unsigned bytes.

        Raises:
            NotIntegerError: an operator of the region has no integer form, or reads floats.
        """
        affine = self.graph.affines[self.region.root]
        low, high = RANGES[affine.unsigned]
        rounded = self._rounded(self.region.root, affine.source, float(affine.scale))
        zero = tirx.const(unsigned_zero(affine), "int32")
        return lambda at: limited(rounded(at) + zero, low, high).astype("uint8")

    def _rounded(self, root: relax.Var, source: relax.Expr, scale: float) -> Load:
        """Return an expression in whole units of `scale`, as int32."""
        outer, outer_measuring = self._target, self._measuring
        self._target = root
        if root not in self._precision:
            self._precision[root] = Precision()
            self._measuring = True
            known = len(self.operands.exprs)
            self.value(source, 1.0 / scale)
            # What was only measured loads nothing.
            del self.operands.exprs[known:]
        self._measuring = False
        shift = self._precision[root].shift
        value = self.value(source, 1.0 / scale)
        bound = self._precision[root].bound
        self._target, self._measuring = outer, outer_measuring
        if bound < 2.0**30:
            return lambda at: shifted(value(at), shift).astype("int32")
        edge = 2**30
        return lambda at: limited(shifted(value(at), shift), -edge, edge).astype("int32")

    def value(self, expr: relax.Expr, factor: Any) -> Load:
        """Return what computes `factor` times an expression, with the root's binary places."""
        whole = self._whole(expr)
        if whole is not None:
            return self._scaled(whole, factor)
        if not isinstance(expr, relax.Var) or expr not in self.region.members:
            return self._memory(expr, factor)
        return self._operator(expr, factor)

    def _memory(self, expr: relax.Expr, factor: Any) -> Load:
        """Return what another kernel stores as integers."""
        tensor = self.integers(expr) if isinstance(expr, relax.Var) else None
        if tensor is None:
            call = self.graph.made_by(expr)
            kind = "an input" if call is None else str(op_name(call)).removeprefix("relax.")
            raise NotIntegerError(f"reads '{getattr(expr, 'name', '?')}' ({kind}) in floats")
        stored = self.operands.load(tensor.expr)
        value = self._scaled(_Whole(stored, tensor.scale, tensor.bound), factor)
        if tensor.added is None:
            return value
        added = self._scaled(self._whole_constant(tensor.added), factor)
        return lambda at: value(at) + added(at)

    # -- leaves -----------------------------------------------------------------------------

    def _whole(self, expr: relax.Expr) -> _Whole | None:
        """Return an expression as integers with a unit, if it is such a leaf."""
        array = self.graph.constant(expr)
        if array is not None:
            return self._whole_constant(array)
        if is_variable(expr, self.region.anchor):
            return self._accumulator()
        affine = self.graph.of_kind(expr, "dequantize")
        if affine is None or not affine.in_bytes:
            return None
        scale = np.float64(affine.scale)
        if affine.source in self.region.members:
            inner = self.graph.affines[affine.source]
            low, high = RANGES[inner.dtype]
            zero, shift = int(inner.zero), int(inner.zero) - int(affine.zero)
            rounded = self._rounded(affine.source, inner.source, float(inner.scale))

            def whole(at: Sequence[Any]) -> Any:
                value = limited(rounded(at), low - zero, high - zero)
                return value + tirx.const(shift, "int32") if shift else value

            return _Whole(whole, scale, _BYTE_BOUND)
        load = self.operands.load(self.read_bytes(affine.source))
        point = tirx.const(unsigned_zero(affine), "int32")
        return _Whole(lambda at: load(at).astype("int32") - point, scale, _BYTE_BOUND)

    def _whole_constant(self, array: np.ndarray) -> _Whole:
        greatest = float(np.abs(array).max(initial=0)) or 1.0
        scale = np.float64(greatest / _CONSTANT_LIMIT)
        integers = np.rint(array / scale).astype(np.int32)
        if array.size == 1:
            number = tirx.const(int(integers.reshape(())), "int32")
            return _Whole(lambda _at: number, scale, _CONSTANT_LIMIT)
        load = self.operands.load(relax.const(integers))
        return _Whole(load, scale, _CONSTANT_LIMIT)

    def _accumulator(self) -> _Whole:
        assert self.linear is not None
        linear = self.linear
        shape = (-1, *(1,) * (linear.channel - 1))
        offset = self.operands.load(relax.const(linear.offset.reshape(shape)))

        def total(at: Sequence[Any]) -> Any:
            assert self.sums is not None
            return self.sums(*at) + offset(at)

        return _Whole(total, linear.scale.astype(np.float64).reshape(shape), linear.bound)

    def _scaled(self, whole: _Whole, factor: Factor) -> Load:
        """Return int64 products of integers with their multiplier."""
        assert self._target is not None
        # Kernels with floats have the factor in single precision and round its product once: with
        # the same factor, which a multiplier holds exactly, both give the same bytes.
        factors = np.asarray(whole.scale * factor).astype(np.float32).astype(np.float64)
        precision = self._precision[self._target]
        if self._measuring:
            precision.note(float(np.abs(factors).max()), whole.bound)
            return whole.load
        if factors.size == 1 and abs(factors) >= SATURATING:
            limit = int(np.copysign(SATURATING, factors.reshape(()))) << precision.shift
            return lambda at: whole.load(at).astype("int64") * tirx.const(limit, "int64")
        multipliers = np.rint(np.ldexp(factors, precision.shift))
        multipliers = np.clip(multipliers, 1 - 2**31, 2**31 - 1).astype(np.int32)
        if multipliers.size == 1:
            number = tirx.const(int(multipliers.reshape(())), "int64")
            return lambda at: whole.load(at).astype("int64") * number
        load = self.operands.load(relax.const(multipliers))
        return lambda at: whole.load(at).astype("int64") * load(at).astype("int64")

    # -- operators --------------------------------------------------------------------------

    def _operator(self, var: relax.Var, factor: Factor) -> Load:
        call = self.graph.value[var]
        name = str(op_name(call))
        if name in ("relax.add", "relax.subtract"):
            return self._sum(var, name == "relax.add", factor)
        if name == "relax.nn.relu":
            inner = self.value(call.args[0], factor)
            return lambda at: tirx.max(inner(at), tirx.const(0, "int64"))
        if name == "relax.clip":
            inner = self.value(call.args[0], factor)
            low, high = (self._bound(plain_number(edge), factor) for edge in call.args[1:3])
            return lambda at: tirx.max(tirx.min(inner(at), high(at)), low(at))
        if name in ("relax.maximum", "relax.minimum"):
            choose = tirx.max if name == "relax.maximum" else tirx.min
            a, b = (self.value(arg, factor) for arg in call.args)
            return lambda at: choose(a(at), b(at))
        if name in ("relax.multiply", "relax.divide"):
            return self._product(call, name, factor)
        if name == "relax.nn.leakyrelu":
            positive = self.value(call.args[0], factor)
            negative = self.value(call.args[0], np.asarray(factor) * float(call.attrs.alpha))
            zero = tirx.const(0, "int64")
            return lambda at: tirx.max(positive(at), zero) + tirx.min(negative(at), zero)
        raise NotIntegerError(f"{name.removeprefix('relax.')} has no integer form here")

    def _sum(self, var: relax.Var, plus: bool, factor: Any) -> Load:
        left, right = self.graph.value[var].args
        if var not in self._biased and plus and self._with_bias(left, right):
            self._biased.add(var)
        if var in self._biased:
            return self._scaled(self._accumulator(), factor)
        a = self.value(left, factor)
        b = self.value(right, factor if plus else -np.asarray(factor))
        return lambda at: a(at) + b(at)

    def _product(self, call: relax.Call, name: str, factor: Factor) -> Load:
        left, right = call.args
        constant = self.graph.constant(right)
        if constant is None and name == "relax.multiply":
            constant = self.graph.constant(left)
            left, right = (right, left) if constant is not None else (left, right)
        if constant is not None:
            constant = constant.astype(np.float64)
            if name == "relax.divide":
                constant = 1 / constant
            if constant.size == 1:
                constant = constant.reshape(())
            return self.value(left, np.asarray(factor) * constant)
        a, b = self._whole(left), self._whole(right)
        if name == "relax.divide" or a is None or b is None:
            raise NotIntegerError(f"{name.removeprefix('relax.')} of values that are not bytes")
        if a.bound * b.bound >= 2**31:
            raise NotIntegerError("multiply of values that are not bytes")
        whole = _Whole(lambda at: a.load(at) * b.load(at), a.scale * b.scale, a.bound * b.bound)
        return self._scaled(whole, factor)

    def _bound(self, edge: float, factor: Factor) -> Load:
        """Return the end of an interval, in the root's binary places."""
        if np.ndim(factor) or not np.isfinite(edge):
            raise NotIntegerError("clip between bounds that differ by channel or are infinite")
        assert self._target is not None
        if self._measuring:
            # It costs precision only where what is clipped can be as great.
            return lambda _at: tirx.const(0, "int64")
        places = self._precision[self._target].shift
        number = int(np.clip(np.rint(np.ldexp(edge * float(factor), places)), -(2.0**62), 2.0**62))
        return lambda _at: tirx.const(number, "int64")
