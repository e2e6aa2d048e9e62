"""CUDA C text of TensorIR expressions.

float16 and bfloat16 are stored in 16 bits and computed in float; integers shorter than 32 bits wrap
as TensorIR's do. Indices are 32-bit: `lower` refuses buffers of 2^31 elements and more.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from tvm import sym, tirx
from tvm.ir import Call, TensorLoad

from tilewright.compiler.schedule.analysis import Axis
from tilewright.compiler.schedule.expressions import Expr, dtype_of, flat_index, range_from_zero
from tilewright.errors import CompileError

STORED = {
    "float32": "float",
    "float64": "double",
    "float16": "unsigned short",
    "bfloat16": "unsigned short",
    "int8": "signed char",
    "uint8": "unsigned char",
    "bool": "unsigned char",
    "int16": "short",
    "uint16": "unsigned short",
    "int32": "int",
    "uint32": "unsigned int",
    "int64": "long long",
    "uint64": "unsigned long long",
}
"""C type of one element in memory."""

_COMPUTED = {**STORED, "float16": "float", "bfloat16": "float", "bool": "bool"}
_FROM = {"float16": "tw_from_half", "bfloat16": "tw_from_bfloat"}
_TO = {"float16": "tw_to_half", "bfloat16": "tw_to_bfloat"}
_SHORT = ("int8", "uint8", "int16", "uint16")
_BINARY = {
    tirx.Add: "+",
    tirx.Sub: "-",
    tirx.Mul: "*",
    tirx.Div: "/",
    tirx.Mod: "%",
    tirx.EQ: "==",
    tirx.NE: "!=",
    tirx.LT: "<",
    tirx.LE: "<=",
    tirx.GT: ">",
    tirx.GE: ">=",
    tirx.And: "&&",
    tirx.Or: "||",
    tirx.BitwiseAnd: "&",
    tirx.BitwiseOr: "|",
    tirx.BitwiseXor: "^",
    tirx.LShift: "<<",
    tirx.RShift: ">>",
}
# TensorIR function -> C function of doubles; that of floats ends in f.
_FUNCTIONS = {
    name: name
    for name in (
        *("exp", "exp2", "exp10", "log", "log2", "log10", "log1p", "sqrt", "rsqrt", "tanh", "erf"),
        *("floor", "ceil", "trunc", "fabs", "sin", "cos", "tan", "sinh", "cosh", "asin", "acos"),
        *("atan", "asinh", "acosh", "atanh", "pow", "atan2", "fmod", "hypot", "copysign"),
        *("nextafter", "ldexp", "fma", "nearbyint", "round"),
    )
}
_TESTS = {"isnan": "isnan", "isinf": "isinf", "isfinite": "isfinite"}
_TRANSPARENT = ("likely", "assume")
Load = Callable[[TensorLoad], str | None]


def computed_type(dtype: str) -> str:
    """Return the C type in which values of a dtype are computed.

    Raises:
        CompileError: GPUs have no code for it here.
    """
    try:
        return _COMPUTED[dtype]
    except KeyError:
        raise CompileError(f"values of type {dtype} are not supported on CUDA targets") from None


def stored(value: str, dtype: str) -> str:
    """Return a computed value as it is stored."""
    convert = _TO.get(dtype)
    if convert is not None:
        return f"{convert}({value})"
    return f"({STORED[dtype]})({value})"


def loaded(place: str, dtype: str) -> str:
    """Return the value of a place in memory as it is computed with."""
    convert = _FROM.get(dtype)
    return place if convert is None else f"{convert}({place})"


class Printer:
    """Writes expressions over named axes and buffers.

    Attributes:
        names: variable -> C text.
        buffers: buffer -> name of its pointer.
        override: asked first for every load; its answer stands for the load.
    """

    def __init__(
        self,
        axes: Sequence[Axis],
        names: Mapping[Any, str],
        buffers: Mapping[Any, str],
        override: Load = lambda _load: None,
    ) -> None:
        self.names, self.buffers, self.override = dict(names), buffers, override
        self.analyzer = sym.Analyzer()
        for axis in axes:
            self.analyzer.bind(axis.var, range_from_zero(axis.extent))

    def index(self, buffer: Any, indices: Sequence[Expr]) -> str:
        """Return the flat offset of an element, simplified."""
        return self.text(self.analyzer.simplify(flat_index(buffer, indices)), is_index=True)

    def place(self, load: TensorLoad) -> str:
        """Return the element that a load reads, as it lies in memory."""
        return f"{self.buffers[load.source]}[{self.index(load.source, load.indices)}]"

    def text(self, expr: Expr, is_index: bool = False) -> str:
        """Return the C text of an expression.

        Args:
            expr: a scalar expression.
            is_index: integers are offsets or axes, which fit 32 bits.

        Raises:
            CompileError: a function, type or node has no CUDA C here.
        """
        if isinstance(expr, int):
            return str(expr)
        if isinstance(expr, tirx.Var):
            return self._variable(expr)
        if isinstance(expr, tirx.IntImm):
            return _integer(int(expr.value), dtype_of(expr), is_index)
        if isinstance(expr, tirx.FloatImm):
            return _float(float(expr.value), dtype_of(expr))
        if isinstance(expr, TensorLoad):
            given = self.override(expr)
            return given if given is not None else loaded(self.place(expr), str(expr.source.dtype))
        if isinstance(expr, tirx.Cast):
            return self._cast(expr, is_index)
        if isinstance(expr, tirx.Select):
            parts = (expr.condition, expr.true_value, expr.false_value)
            return "({} ? {} : {})".format(*(self.text(part, is_index) for part in parts))
        if isinstance(expr, tirx.Not):
            return f"(!{self.text(expr.a, is_index)})"
        if isinstance(expr, tirx.BitwiseNot):
            return _short(f"(~{self.text(expr.a, is_index)})", dtype_of(expr))
        if isinstance(expr, tirx.Let):
            return self._let(expr, is_index)
        if isinstance(expr, tirx.Min | tirx.Max):
            return self._extreme(expr, is_index)
        if isinstance(expr, tirx.FloorDiv | tirx.FloorMod):
            return self._floor(expr, is_index)
        operator = _BINARY.get(type(expr))
        if operator is not None:
            a, b = self.text(expr.a, is_index), self.text(expr.b, is_index)
            return _short(f"({a} {operator} {b})", dtype_of(expr))
        if isinstance(expr, Call):
            return self._call(expr, is_index)
        raise CompileError(f"an expression of kind {type(expr).__name__} has no CUDA C: {expr}")

    def _variable(self, var: Any) -> str:
        if var not in self.names:
            raise CompileError(f"variable '{var.name}' is free in a kernel for CUDA")
        return self.names[var]

    def _cast(self, expr: Any, is_index: bool) -> str:
        value, before, after = self.text(expr.value, is_index), dtype_of(expr.value), dtype_of(expr)
        if is_index and after in ("int32", "int64") and before in ("int32", "int64"):
            return value
        if after in _TO and before not in _TO:
            return f"{_FROM[after]}({_TO[after]}({value}))"  # rounds
        if after == "bool":
            return f"({value} != 0)"
        return f"(({computed_type(after)})({value}))"

    def _let(self, expr: Any, is_index: bool) -> str:
        self.names[expr.var] = self.text(expr.value, is_index)
        return self.text(expr.body, is_index)

    def _extreme(self, expr: Any, is_index: bool) -> str:
        a, b, dtype = self.text(expr.a, is_index), self.text(expr.b, is_index), dtype_of(expr)
        name = "min" if isinstance(expr, tirx.Min) else "max"
        is_float = dtype.startswith(("float", "bfloat"))
        kind = "int" if is_index and not is_float else computed_type(dtype)
        return f"tw_{name}<{kind}>({a}, {b})"

    def _floor(self, expr: Any, is_index: bool) -> str:
        a, b = self.text(expr.a, is_index), self.text(expr.b, is_index)
        is_division = isinstance(expr, tirx.FloorDiv)
        if dtype_of(expr).startswith("float"):
            return f"floorf({a} / {b})" if is_division else f"tw_floor_mod({a}, {b})"
        bound = self.analyzer.const_int_bound(expr.a)
        if bound.min_value >= 0 and isinstance(expr.b, tirx.IntImm) and int(expr.b) > 0:
            return f"({a} {'/' if is_division else '%'} {b})"
        kind = "int" if is_index else computed_type(dtype_of(expr))
        name = "tw_floor_div" if is_division else "tw_floor_mod"
        return f"{name}(({kind})({a}), ({kind})({b}))"

    def _call(self, expr: Any, is_index: bool) -> str:
        name = str(getattr(expr.op, "name", expr.op)).rpartition(".")[2]
        dtype = dtype_of(expr)
        arguments = [self.text(part, is_index) for part in expr.args]
        if name == "if_then_else":
            return "({} ? {} : {})".format(*arguments)
        if name in _TRANSPARENT:
            return arguments[0]
        if name in _TESTS:
            return f"({_TESTS[name]}({arguments[0]}) != 0)"
        if name == "sigmoid":
            return f"(1.0f / (1.0f + expf(-{arguments[0]})))"
        if name == "abs" and not dtype.startswith(("float", "bfloat")):
            return _short(f"tw_abs(({computed_type(dtype)})({arguments[0]}))", dtype)
        if name == "popcount":
            return f"__popcll((unsigned long long)({arguments[0]}))"
        if name == "reinterpret":
            return self._reinterpret(expr, arguments[0], dtype)
        function = _FUNCTIONS.get({"abs": "fabs"}.get(name, name))
        if function is None:
            raise CompileError(f"function {name} on {dtype} has no CUDA C")
        suffix = "" if dtype == "float64" else "f"
        return f"{function}{suffix}({', '.join(arguments)})"

    def _reinterpret(self, expr: Any, argument: str, dtype: str) -> str:
        before = dtype_of(expr.args[0])
        if before in _TO:
            argument = f"{_TO[before]}({argument})"
        value = f"tw_bits<{STORED[dtype]}>(({STORED[before]})({argument}))"
        return loaded(value, dtype)


def _integer(value: int, dtype: str, is_index: bool) -> str:
    if is_index or dtype not in ("int64", "uint64", "uint32"):
        return str(value)
    if dtype == "uint32":
        return f"{value}u"
    if value == -(2**63):
        return "(-9223372036854775807LL - 1)"
    return f"{value}{'ULL' if dtype == 'uint64' else 'LL'}"


def _float(value: float, dtype: str) -> str:
    if math.isnan(value):
        return "tw_nan()"
    if math.isinf(value):
        return "tw_infinity()" if value > 0 else "(-tw_infinity())"
    if dtype == "float64":
        return f"({value!r})"
    # Hexadecimal digits are exact, and of a double that is a float they round to it.
    return f"({value.hex()}f)"


def _short(text: str, dtype: str) -> str:
    return f"(({STORED[dtype]})({text}))" if dtype in _SHORT else text
