"""Approximations of float32 functions in plain TIR arithmetic, free of calls and branches.

Every function takes a `Bindings` and float32 expressions, scalars or vectors, and returns one over
variables that it bound, so that nothing is computed twice.
The polynomials are minimax fits of relative error made with Lawson's iteration in float64; the
largest errors below were measured over dense sweeps of floats (see the tests), in ulp of the
result, with fused multiply-add:

    exp, exp2 1.2   sigmoid 3.2   tanh 5   erf 5   log, log2, log10 1   log1p 1.5   pow 0.6
    sin, cos 2 and tan 3.2 for |x| < 1e6   atan 2.8   sinh 3.5   cosh 3

Results below the smallest normal float are flushed to zero by exp, exp2 and sigmoid. Sines of
|x| > 1e9 have no correct digits, but stay within [-1, 1].
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import tvm
from tvm import tirx
from tvm.ir import Expr

_F32_SQRT_HALF_BITS = 0x3F3504F3
_F32_MANTISSA = 0x007FFFFF
_F32_MIN_NORMAL = 2.0**-126
# Adding 1.5 * 2**23 rounds a float32 to an integer that sits in the low bits of the sum. The sum
# is bound as bits: TVM's simplifier folds (x + c) - c of floats, but not across reinterpret.
_F32_ROUND = 12582912.0
_F64_ROUND = 1.5 * 2.0**52
# ln 2 = high + low; the high part has 9 trailing zero bits, so n * high is exact for |n| < 512.
_LN2_HIGH = 0.693359375
_LN2_LOW = -2.12194440054690583e-4

_EXP_HIGH = 88.7228394
_EXP_SHORT = (0.4999922881704802, 0.16667116315366884, 0.04189055120772144, 0.008312477940965141)
_EXP = (0.5, 0.16666520106462657, 0.04166839422334828, 0.008368780574569835, 0.0013814467056944679)
_LOG = (
    0.333333124923857,
    -0.25000009445315685,
    0.20002127168483194,
    -0.1666801241078195,
    0.14219376348512572,
    -0.12405147664215362,
    0.11889109369709232,
    -0.11678955916928448,
    0.06748573734894775,
)
_TANH_NUMERATOR = (
    1.0,
    0.1337971954271624,
    0.003494036423030858,
    2.058351009057001e-05,
    1.3319107961414607e-08,
)
_TANH_DENOMINATOR = (
    1.0,
    0.46713034784303875,
    0.02587108039403794,
    0.00032830958105859435,
    7.762035039350629e-07,
)
_TANH_ONE_FROM = 9.02
_ERF_NUMERATOR = (
    1.1283791453640006,
    0.1907835472081377,
    0.05279025758674098,
    0.0037795993897561855,
    0.0002848086890515873,
    2.041976564679269e-06,
)
_ERF_DENOMINATOR = (
    1.0,
    0.5024102361576248,
    0.11425741297318968,
    0.01499741780979537,
    0.0011652109051173741,
    3.800414089866592e-05,
)
_ERF_ONE_FROM = 3.92


class Bindings:
    """Values computed once, each kept in a local buffer of one element that LLVM makes a register.

    Variables (`Bind`, `Let`) will not do: TVM's analyzers, the one in its LLVM code generator
    included, replace them by their values again, which takes time exponential in their number.
    """

    def __init__(self) -> None:
        self._bound: list[tuple[Any, Expr]] = []

    def let(self, value: Expr, name: str = "t") -> Expr:
        """Bind `value` and return a load of it; variables and constants stay as they are."""
        if isinstance(value, tirx.Var | tirx.FloatImm | tirx.IntImm):
            return value
        buffer = tirx.decl_buffer((1,), str(value.ty.dtype), name, scope="local", layout=None)
        self._bound.append((buffer, value))
        return tirx.BufferLoad(buffer, [_i32(0)])

    def before(self, statement: tirx.Stmt) -> tirx.Stmt:
        """Return a statement that computes all values in order, then runs the given one."""
        statements: list[tirx.Stmt] = []
        for buffer, value in self._bound:
            statements.append(tirx.AllocBuffer(buffer))
            statements.append(tirx.BufferStore(buffer, value, [_i32(0)]))
        return tirx.SeqStmt([*statements, statement]) if statements else statement


def _f32(value: float) -> Expr:
    return tirx.const(value, "float32")


def _f64(value: float) -> Expr:
    return tirx.const(value, "float64")


def _i32(value: int) -> Expr:
    return tirx.const(value, "int32")


def _polynomial(x: Expr, coefficients: Sequence[float]) -> Expr:
    """Horner's scheme; coefficients run from the constant term up, in the dtype of `x`."""
    number = _f64 if "64" in str(x.ty.dtype) else _f32
    result = number(coefficients[-1])
    for coefficient in reversed(coefficients[:-1]):
        result = result * x + number(coefficient)
    return result


def lanes_of(x: Expr) -> int:
    """Return how many lanes the expression's type has; 1 for a scalar."""
    return tvm.DataType(str(x.ty.dtype)).lanes


def cast(x: Expr, element: str) -> Expr:
    """Convert to another element type, lane by lane."""
    lanes = lanes_of(x)
    return tirx.Cast(element if lanes == 1 else f"{element}x{lanes}", x)


def _as(element: str, x: Expr) -> Expr:
    """Reinterpret the bits of every lane."""
    lanes = lanes_of(x)
    return tirx.reinterpret(element if lanes == 1 else f"{element}x{lanes}", x)


def _equal(a: Expr, b: Expr) -> Expr:
    lanes = lanes_of(a)
    return tirx.EQ(a, b if lanes_of(b) == lanes else tirx.Broadcast(b, lanes))


def _select(condition: Expr, yes: Expr, no: Expr) -> Expr:
    """Select lane by lane; a scalar on either side is broadcast."""
    lanes = lanes_of(condition)

    def widened(x: Expr) -> Expr:
        return x if lanes == lanes_of(x) else tirx.Broadcast(x, lanes)

    return tirx.Select(condition, widened(yes), widened(no))


def _bits(x: Expr) -> Expr:
    return _as("int32", x)


def _float(bits: Expr) -> Expr:
    return _as("float32", bits)


def _shift_left(x: Expr, amount: int) -> Expr:
    return tirx.shift_left(x, tirx.const(amount, x.ty.dtype))


def _magnitude(x: Expr) -> Expr:
    return _float(_bits(x) & _i32(0x7FFFFFFF))


def _with_sign_of(magnitude: Expr, x: Expr) -> Expr:
    """Flip the sign of `magnitude` where `x` is negative, -0 included."""
    sign = _bits(x) & _i32(-0x80000000)
    return _float(tirx.bitwise_xor(_bits(magnitude), sign))


def _clamp(x: Expr, limit: float) -> Expr:
    """Limit a variable to [-limit, limit]; NaN stays NaN."""
    low = _select(x < _f32(-limit), _f32(-limit), x)
    return _select(x > _f32(limit), _f32(limit), low)


def _exp_reduced(
    b: Bindings, x: Expr, shifted_bits: Expr, remainder: Expr, low: float, high: float
) -> Expr:
    """2**n * e**remainder, n in the low bits of `shifted_bits`; 0 below `low`, inf above `high`.

    2**n is applied by an integer add to the exponent field, which also holds for n = 128,
    because there e**remainder < 1 unless the result overflows. Unsigned, as it may wrap.
    """
    r = b.let(remainder, "r")
    value = b.let(r * r * _polynomial(r, _EXP) + r + _f32(1.0), "value")
    bits = _as("uint32", value) + _shift_left(shifted_bits, 23)
    # Above `high` lies NaN too, whose payload would spoil the bits: x + inf serves both.
    above = _select(x <= _f32(high), b.let(_float(bits), "scaled"), x + _f32(math.inf))
    return _select(x < _f32(low), _f32(0.0), above)


def exp(b: Bindings, x: Expr) -> Expr:
    """e**x."""
    x = b.let(x, "x")
    shifted = x * _f32(math.log2(math.e)) + _f32(_F32_ROUND)
    bits = b.let(_as("uint32", shifted), "shifted")
    n = b.let(_float(bits) - _f32(_F32_ROUND), "n")
    r = x - n * _f32(_LN2_HIGH) - n * _f32(_LN2_LOW)
    return _exp_reduced(b, x, bits, r, -87.3365447, _EXP_HIGH)


def exp2(b: Bindings, x: Expr) -> Expr:
    """2**x."""
    x = b.let(x, "x")
    bits = b.let(_as("uint32", x + _f32(_F32_ROUND)), "shifted")
    r = (x - b.let(_float(bits) - _f32(_F32_ROUND), "n")) * _f32(math.log(2.0))
    return _exp_reduced(b, x, bits, r, -126.0, 127.99999)


def exp10(b: Bindings, x: Expr) -> Expr:
    """10**x."""
    return power(b, _f32(10.0), x)


def sigmoid(b: Bindings, x: Expr) -> Expr:
    """1 / (1 + e**-x), e**-x to 22 bits and not below 2**-126, where the sum is 1 anyway."""
    negated = b.let(_f32(0.0) - x, "negated")
    low = _f32(-87.3)
    t = b.let(_select(negated < low, low, negated), "t")
    bits = b.let(_as("uint32", t * _f32(math.log2(math.e)) + _f32(_F32_ROUND)), "shifted")
    n = b.let(_float(bits) - _f32(_F32_ROUND), "n")
    r = b.let(t - n * _f32(_LN2_HIGH) - n * _f32(_LN2_LOW), "r")
    value = b.let(r * r * _polynomial(r, _EXP_SHORT) + r + _f32(1.0), "value")
    scaled = b.let(_float(_as("uint32", value) + _shift_left(bits, 23)), "scaled")
    e = _select(t <= _f32(_EXP_HIGH), scaled, t + _f32(math.inf))
    return _f32(1.0) / (_f32(1.0) + e)


def _clamped_rational(
    b: Bindings, x: Expr, limit: float, numerator: Sequence[float], denominator: Sequence[float]
) -> Expr:
    """x * P(x**2) / Q(x**2) for x clamped to +-`limit`, where the function rounds to +-1."""
    x = b.let(_clamp(b.let(x, "x"), limit), "clamped")
    z = b.let(x * x, "z")
    ratio = b.let(x * _polynomial(z, numerator) / _polynomial(z, denominator), "ratio")
    # Rounding errors may put the quotient one ulp beyond 1.
    return _clamp(ratio, 1.0)


def tanh(b: Bindings, x: Expr) -> Expr:
    """Hyperbolic tangent, a rational function of odd degree 9 over even degree 8."""
    return _clamped_rational(b, x, _TANH_ONE_FROM, _TANH_NUMERATOR, _TANH_DENOMINATOR)


def erf(b: Bindings, x: Expr) -> Expr:
    """Error function, a rational function of odd degree 11 over even degree 10."""
    return _clamped_rational(b, x, _ERF_ONE_FROM, _ERF_NUMERATOR, _ERF_DENOMINATOR)


def _split_float(b: Bindings, x: Expr) -> tuple[Expr, Expr]:
    """Return (e, f) float32: x = 2**e * (1 + f), sqrt(1/2) <= 1 + f < sqrt(2); x > 0 bound."""
    tiny = x < _f32(_F32_MIN_NORMAL)
    normal = _select(tiny, x * _f32(2.0**23), x)
    extra = _select(tiny, _f32(-23.0), _f32(0.0))
    bits = b.let(_bits(normal) - _i32(_F32_SQRT_HALF_BITS), "bits")
    exponent = cast(tirx.shift_right(bits, _i32(23)), "float32") + extra
    mantissa = _float((bits & _i32(_F32_MANTISSA)) + _i32(_F32_SQRT_HALF_BITS))
    return b.let(exponent, "e"), b.let(mantissa - _f32(1.0), "f")


def _log_special(b: Bindings, x: Expr, value: Expr) -> Expr:
    """Give a logarithm's value the special cases of its argument: 0, inf, negative and NaN."""
    value = _select(_equal(x, _f32(0.0)), _f32(-math.inf), b.let(value, "value"))
    value = _select(_equal(x, _f32(math.inf)), x, value)
    return _select(x >= _f32(0.0), value, _f32(math.nan))


def _log_fraction(b: Bindings, f: Expr) -> Expr:
    """log(1 + f) - f for f in [sqrt(1/2) - 1, sqrt(2) - 1]."""
    s = b.let(f * f, "s")
    return f * s * _polynomial(f, _LOG) - _f32(0.5) * s


def log(b: Bindings, x: Expr) -> Expr:
    """Natural logarithm."""
    x = b.let(x, "x")
    e, f = _split_float(b, x)
    value = (e * _f32(_LN2_LOW) + _log_fraction(b, f)) + f + e * _f32(_LN2_HIGH)
    return _log_special(b, x, value)


def _log_base(b: Bindings, x: Expr, base: float) -> Expr:
    # 1 / ln(base) and log_base(2) as sums of two floats, so that e * high is exact.
    scale, two = 1.0 / math.log(base), math.log(2.0) / math.log(base)
    scale_high, two_high = round(scale * 4096.0) / 4096.0, round(two * 4096.0) / 4096.0
    x = b.let(x, "x")
    e, f = _split_float(b, x)
    rest = _log_fraction(b, f)
    small = e * _f32(two - two_high) + rest * _f32(scale) + f * _f32(scale - scale_high)
    return _log_special(b, x, e * _f32(two_high) + (f * _f32(scale_high) + small))


def log2(b: Bindings, x: Expr) -> Expr:
    """Logarithm to base 2, exact for powers of two."""
    return _log_base(b, x, 2.0)


def log10(b: Bindings, x: Expr) -> Expr:
    """Logarithm to base 10."""
    return _log_base(b, x, 10.0)


def log1p(b: Bindings, x: Expr) -> Expr:
    """log(1 + x), with the rounding error of 1 + x put back to first order."""
    x = b.let(x, "x")
    u = b.let(_float(b.let(_bits(x + _f32(1.0)), "bits")), "u")
    main = b.let(log(b, u), "main")
    value = main + (x - (u - _f32(1.0))) / u
    value = _select(_equal(u, _f32(1.0)), x, value)
    return _select(tirx.Or(_equal(u, _f32(math.inf)), _equal(u, _f32(0.0))), main, value)


_SIN = (1.0, -1.6666654611e-1, 8.3321608736e-3, -1.9515295891e-4)
_COS = (1.0, -0.5, 4.166664568298827e-2, -1.388731625493765e-3, 2.443315711809948e-5)


def _circular(b: Bindings, x: Expr) -> tuple[Expr, Expr, Expr]:
    """Return (quadrant: int32, sine, cosine) of x reduced to |r| <= pi / 4 in float64."""
    wide = b.let(cast(x, "float64"), "wide")
    shifted = wide * _f64(2.0 / math.pi) + _f64(_F64_ROUND)
    bits = b.let(_as("uint64", shifted), "shifted")
    n = b.let(_as("float64", bits) - _f64(_F64_ROUND), "n")
    # pi / 2 = high + low, the high part with 20 trailing zero bits.
    reduced = wide - n * _f64(1.5707963267341256) - n * _f64(6.077100506506192e-11)
    # The clamp keeps sines of huge arguments, whose reduction has no digits left, within [-1, 1].
    r = b.let(_clamp(b.let(cast(reduced, "float32"), "r"), math.pi / 4 + 1e-3), "r")
    z = b.let(r * r, "z")
    sine = b.let(r * _polynomial(z, _SIN), "sine")
    cosine = b.let(_polynomial(z, _COS), "cosine")
    return b.let(cast(bits, "int32"), "quadrant"), sine, cosine


def _negate_if(value: Expr, quadrant: Expr) -> Expr:
    """Flip the sign of `value` in quadrants 2 and 3."""
    sign = _shift_left(quadrant & _i32(2), 30)
    return _float(tirx.bitwise_xor(_bits(value), sign))


def _odd(quadrant: Expr) -> Expr:
    return _equal(quadrant & _i32(1), _i32(1))


def sin(b: Bindings, x: Expr) -> Expr:
    """Sine."""
    x = b.let(x, "x")
    q, sine, cosine = _circular(b, _magnitude(x))
    return _with_sign_of(_negate_if(_select(_odd(q), cosine, sine), q), x)


def cos(b: Bindings, x: Expr) -> Expr:
    """Cosine."""
    q, sine, cosine = _circular(b, x)
    return _negate_if(_select(_odd(q), sine, cosine), q + _i32(1))


def tan(b: Bindings, x: Expr) -> Expr:
    """Tangent."""
    x = b.let(x, "x")
    q, sine, cosine = _circular(b, _magnitude(x))
    top = _select(_odd(q), _f32(0.0) - cosine, sine)
    return _with_sign_of(top / _select(_odd(q), sine, cosine), x)


_ATAN = (-3.33329491539e-1, 1.99777106478e-1, -1.38776856032e-1, 8.05374449538e-2)


def atan(b: Bindings, x: Expr) -> Expr:
    """Arc tangent: three ranges of |x|, then Cephes' polynomial (atanf)."""
    x = b.let(x, "x")
    a = b.let(_magnitude(x), "a")
    large, middle = a > _f32(2.414213562373095), a > _f32(0.4142135623730950)

    def choose(above: Expr, between: Expr, below: Expr) -> Expr:
        return _select(large, above, _select(middle, between, below))

    top = choose(_f32(-1.0), a - _f32(1.0), a)
    bottom = choose(a, a + _f32(1.0), _f32(1.0))
    offset = choose(_f32(math.pi / 2), _f32(math.pi / 4), _f32(0.0))
    t = b.let(top / bottom, "t")
    z = b.let(t * t, "z")
    return _with_sign_of(offset + (t * z * _polynomial(z, _ATAN) + t), x)


_SINH = (1.66667160211e-1, 8.33028376239e-3, 2.03721912945e-4)


def _half_exp(b: Bindings, x: Expr) -> Expr:
    """e**x / 2 without early overflow."""
    half = b.let(exp(b, x * _f32(0.5)), "half")
    return b.let(half * _f32(0.5) * half, "half_exp")


def sinh(b: Bindings, x: Expr) -> Expr:
    """Hyperbolic sine: Cephes' polynomial below 1, exponentials above."""
    x = b.let(x, "x")
    a = b.let(_magnitude(x), "a")
    z = b.let(a * a, "z")
    small = b.let(a * z * _polynomial(z, _SINH) + a, "small")
    h = _half_exp(b, a)
    return _with_sign_of(_select(a < _f32(1.0), small, h - _f32(0.25) / h), x)


def cosh(b: Bindings, x: Expr) -> Expr:
    """Hyperbolic cosine."""
    h = _half_exp(b, _magnitude(x))
    return h + _f32(0.25) / h


def _integer_power(b: Bindings, x: Expr, exponent: int) -> Expr:
    """x**exponent by repeated squaring, exponent >= 1."""
    if exponent == 1:
        return x
    half = b.let(_integer_power(b, x, exponent // 2), "half")
    return half * half * x if exponent % 2 else half * half


def _constant_power(b: Bindings, x: Expr, exponent: float) -> Expr | None:
    """Return x**exponent by products and roots for the exponents of real models, else None."""
    if exponent == 0.0:
        return _f32(1.0)
    if exponent == 0.5:
        return tirx.sqrt(x)
    if exponent == -0.5:
        return _f32(1.0) / tirx.sqrt(x)
    if abs(exponent) <= 8 and exponent == int(exponent):
        value = _integer_power(b, b.let(x, "x"), abs(int(exponent)))
        return value if exponent > 0 else _f32(1.0) / value
    return None


def _exp2_wide(b: Bindings, x: Expr) -> Expr:
    """2**x in float64 for a variable |x| <= 300, relative error below 1e-11; NaN stays NaN."""
    taylor = [math.log(2.0) ** k / math.factorial(k) for k in range(11)]
    bits = b.let(_as("uint64", x + _f64(_F64_ROUND)), "shifted")
    fraction = b.let(x - (_as("float64", bits) - _f64(_F64_ROUND)), "fraction")
    value = _as("uint64", _polynomial(fraction, taylor))
    return _as("float64", value + _shift_left(bits, 52))


def _log2_wide(b: Bindings, x: Expr) -> Expr:
    """log2 of a variable x >= 0 in float64, relative error below 1e-11; +-1e300 for inf and 0."""
    series = [2.0 / math.log(2.0) / (2 * k + 1) for k in range(8)]
    e, f = _split_float(b, x)
    wide = b.let(cast(f, "float64"), "wide")
    s = b.let(wide / (wide + _f64(2.0)), "s")
    z = b.let(s * s, "z")
    value = b.let(cast(e, "float64") + s * _polynomial(z, series), "log2")
    value = _select(_equal(x, _f32(0.0)), _f64(-1e300), value)
    return _select(_equal(x, _f32(math.inf)), _f64(1e300), value)


def power(b: Bindings, x: Expr, y: Expr) -> Expr:
    """x**y as C99's powf, by way of float64: exact special cases, rounded once at the end."""
    if isinstance(y, tirx.FloatImm):
        simple = _constant_power(b, x, float(y.value))
        if simple is not None:
            return simple
    x, y = b.let(x, "x"), b.let(y, "y")
    a = b.let(_magnitude(x), "a")
    t = b.let(_log2_wide(b, a) * cast(y, "float64"), "t")
    t = _select(t > _f64(300.0), _f64(300.0), t)
    t = b.let(t, "t")
    t = b.let(_select(t < _f64(-300.0), _f64(-300.0), t), "t")
    value = b.let(cast(_exp2_wide(b, t), "float32"), "value")
    half = b.let(y * _f32(0.5), "half")
    whole = _equal(tirx.floor(y), y)
    odd = tirx.And(whole, tirx.Not(_equal(tirx.floor(half), half)))
    result = _select(tirx.And(_bits(x) < _i32(0), odd), _f32(0.0) - value, value)
    finite_negative = tirx.And(x < _f32(0.0), x > _f32(-math.inf))
    finite_y = _magnitude(y) < _f32(math.inf)
    invalid = tirx.And(tirx.And(finite_negative, finite_y), tirx.Not(whole))
    result = _select(invalid, _f32(math.nan), result)
    result = _select(tirx.isnan(x), x, result)
    result = _select(tirx.isnan(y), y, result)
    unit = tirx.And(_equal(x, _f32(-1.0)), _equal(_magnitude(y), _f32(math.inf)))
    one = tirx.Or(tirx.Or(_equal(x, _f32(1.0)), _equal(y, _f32(0.0))), unit)
    return _select(one, _f32(1.0), result)
