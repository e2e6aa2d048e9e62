"""Replace float32 math calls by arithmetic that becomes plain vector instructions."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import tvm
import tvm_ffi
from tvm import tirx
from tvm.ir import Expr

from tilewright.compiler.passes import vector_math_functions as functions

_FLOAT32: dict[str, Callable[..., Expr]] = {
    "exp": functions.exp,
    "exp2": functions.exp2,
    "exp10": functions.exp10,
    "log": functions.log,
    "log2": functions.log2,
    "log10": functions.log10,
    "log1p": functions.log1p,
    "sigmoid": functions.sigmoid,
    "tanh": functions.tanh,
    "erf": functions.erf,
    "sin": functions.sin,
    "cos": functions.cos,
    "tan": functions.tan,
    "atan": functions.atan,
    "sinh": functions.sinh,
    "cosh": functions.cosh,
    "pow": functions.power,
}
# |x f'(x) / f(x)| <= 1: a relative error of the argument does not grow in the result.
_CALM = ("erf", "tanh")
# Outside of these the reciprocal might be infinite or denormal.
_DIVISORS = (1e-30, 1e37)


@tirx.transform.prim_func_pass(opt_level=0)
class LowerVectorMath:
    """`lower_vector_math` as a pass; its place is right before `LowerIntrin`."""

    def transform_function(
        self, func: tirx.PrimFunc, _module: tvm.IRModule, _context: tvm.transform.PassContext
    ) -> tirx.PrimFunc:
        """Rewrite one function."""
        return lower_vector_math(func)


def lower_vector_math(func: tirx.PrimFunc) -> tirx.PrimFunc:
    """Replace calls of float32 math functions, of scalars and of vectors, by polynomials.

        y[i] = T.exp(x[i])  ->  t = x[i]; ...; y[i] = <multiplies, adds, shifts and selects>

    Belongs at the end of the lowering of TIR, after loops became vectors, before `LowerIntrin`.
    float16 calls are computed in float32. float64 calls and the functions without an
    approximation (asin, acos, ...) stay calls of libm. `round` becomes `nearbyint`, half to even
    as ONNX defines it, for every dtype. Errors are stated in `vector_math_functions`. `Let`s of
    a rewritten expression are hoisted out of it; both branches of an `if_then_else` that holds a
    rewritten call are computed, but each loads only where its condition holds.
    """

    if not _concerned(func):
        return func

    def store(statement: tirx.BufferStore, _mutator: Any) -> tirx.Stmt:
        value, bindings = _lower(statement.value)
        changed = tirx.BufferStore(statement.buffer, value, statement.indices)
        return bindings.before(changed)

    def bind(statement: tirx.Bind, _mutator: Any) -> tirx.Stmt:
        value, bindings = _lower(statement.value)
        return bindings.before(tirx.Bind(statement.var, value))

    body = tvm_ffi.structural_mutate(func.body, [(tirx.BufferStore, store), (tirx.Bind, bind)])
    return func.with_body(body)


def _lower(expr: Expr) -> tuple[Expr, functions.Bindings]:
    """Return the expression with its math calls replaced, and the values that it needs."""
    bindings = functions.Bindings()
    variables: dict[tirx.Var, Expr] = {}

    def let(value: tirx.Let, mutator: Any) -> Expr:
        variables[value.var] = bindings.let(mutator.mutate(value.value), str(value.var.name))
        return mutator.mutate(value.body)

    def variable(value: tirx.Var, _mutator: Any) -> Expr:
        return variables.get(value, value)

    def call(value: tvm.ir.Call, mutator: Any) -> Expr:
        name = _name(value)
        if name is None:
            return mutator.default_mutate(value)
        if name == "if_then_else" and any(_has_math(branch) for branch in value.args[1:]):
            value = _guard_loads(value, bindings.let(mutator.mutate(value.args[0]), "condition"))
        arguments = [mutator.mutate(argument) for argument in value.args]
        element = str(value.ty.dtype).partition("x")[0]
        if name == "round":
            return tirx.nearbyint(*arguments)
        if name in _FLOAT32 and element == "float32":
            if name in _CALM:
                arguments = [_times_reciprocal(argument) for argument in arguments]
            return _FLOAT32[name](bindings, *arguments)
        if name in _FLOAT32 and element == "float16":
            wide = [functions.cast(argument, "float32") for argument in arguments]
            return functions.cast(_FLOAT32[name](bindings, *wide), "float16")
        return tvm.ir.Call(
            value.op, arguments, attrs=value.attrs, ty_args=list(value.ty_args), ret_ty=value.ty
        )

    callbacks = [(tirx.Let, let), (tvm.ir.Call, call), (tirx.Var, variable)]
    return tvm_ffi.structural_mutate(expr, callbacks), bindings


def _times_reciprocal(expr: Expr) -> Expr:
    """Return a / c as a * (1 / c), where c is a constant: GELU has erf(x / sqrt(2)).

    A division takes as long as a dozen multiplications, and the difference is half an ulp.
    """
    if not isinstance(expr, tirx.Div):
        return expr
    divisor = expr.b.value if isinstance(expr.b, tirx.Broadcast) else expr.b
    least, most = _DIVISORS
    if not isinstance(divisor, tirx.FloatImm) or not least < abs(divisor.value) < most:
        return expr
    reciprocal: Expr = tirx.const(1.0 / divisor.value, divisor.ty.dtype)
    if isinstance(expr.b, tirx.Broadcast):
        reciprocal = tirx.Broadcast(reciprocal, expr.b.lanes)
    return expr.a * reciprocal


def _name(call: tvm.ir.Call) -> str | None:
    """Return the short name of a call of an operator on numbers, else None."""
    if not isinstance(call.op, tvm.ir.Op) or not isinstance(call.ty, tvm.ir.PrimType):
        return None
    return str(call.op.name).rpartition(".")[2]


def _has_math(expr: Expr) -> bool:
    def visit(call: tvm.ir.Call) -> tvm_ffi.VisitInterrupt | None:
        return tvm_ffi.VisitInterrupt(call) if _name(call) in _FLOAT32 else None

    return tvm_ffi.structural_walk(expr, (tvm.ir.Call, visit)) is not None


def _concerned(func: tirx.PrimFunc) -> bool:
    """Say whether there is anything to rewrite; most kernels only multiply and add."""

    def call(value: tvm.ir.Call) -> tvm_ffi.VisitInterrupt | None:
        name = _name(value)
        return tvm_ffi.VisitInterrupt(value) if name == "round" or name in _FLOAT32 else None

    def let(value: tirx.Let) -> tvm_ffi.VisitInterrupt:
        return tvm_ffi.VisitInterrupt(value)

    visitors = [(tvm.ir.Call, call), (tirx.Let, let)]
    return tvm_ffi.structural_walk(func.body, visitors) is not None


def _guard_loads(call: tvm.ir.Call, condition: Expr) -> Expr:
    """Let each branch of an if_then_else load only where its condition holds, and 0 elsewhere.

    The arithmetic of both branches can then be computed unconditionally.
    """

    def guarded(branch: Expr, chosen: Expr) -> Expr:
        def load(value: tvm.ir.TensorLoad, _mutator: Any) -> Expr:
            zero = tirx.const(0, value.ty.dtype)
            return tirx.if_then_else(chosen, value, zero)

        return tvm_ffi.structural_mutate(branch, (tvm.ir.TensorLoad, load))

    _, yes, no = call.args
    return tirx.if_then_else(condition, guarded(yes, condition), guarded(no, tirx.Not(condition)))
