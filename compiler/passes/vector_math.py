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


def lower_vector_math(func: tirx.PrimFunc) -> tirx.PrimFunc:
    """Replace calls of float32 math functions by polynomials, before the TIR lowering pipeline.

        y[i] = T.exp(x[i])  ->  y[i] = let t = x[i] in <multiplies, adds, shifts and selects>

    float16 calls are computed in float32. float64 calls and the functions without an
    approximation (asin, acos, ...) stay calls of libm. `round` becomes `nearbyint`, half to even
    as ONNX defines it, for every dtype. Errors are stated in `vector_math_functions`.
    """

    def store(statement: tirx.BufferStore) -> tirx.BufferStore:
        value = lower_expression(statement.value)
        return tirx.BufferStore(statement.buffer, value, statement.indices)

    def binding(statement: tirx.Bind) -> tirx.Bind:
        return tirx.Bind(statement.var, lower_expression(statement.value))

    body = tvm_ffi.structural_map(
        func.body, [(tirx.BufferStore, store), (tirx.Bind, binding)], order="pre"
    )
    return func.with_body(body)


def lower_expression(expr: Expr) -> Expr:
    """Return the expression with its math calls replaced and all `Let`s outermost.

    The branches of `if_then_else` and `Select` keep their own `Let`s: what a branch loads may
    only be loaded where its condition holds.
    """
    bindings = functions.Bindings()

    def let(value: tirx.Let, mutator: Any) -> Expr:
        bindings.add(value.var, mutator.mutate(value.value))
        return mutator.mutate(value.body)

    def select(value: tirx.Select, mutator: Any) -> Expr:
        return tirx.Select(
            mutator.mutate(value.condition),
            lower_expression(value.true_value),
            lower_expression(value.false_value),
        )

    def call(value: tvm.ir.Call, mutator: Any) -> Expr:
        if not isinstance(value.op, tvm.ir.Op) or not isinstance(value.ty, tvm.ir.PrimType):
            return mutator.default_mutate(value)
        name, dtype = str(value.op.name).rpartition(".")[2], str(value.ty.dtype)
        if name == "if_then_else":
            condition, *branches = value.args
            return tirx.if_then_else(
                mutator.mutate(condition), *(lower_expression(branch) for branch in branches)
            )
        arguments = [mutator.mutate(argument) for argument in value.args]
        if name == "round":
            return tirx.nearbyint(*arguments)
        if name in _FLOAT32 and dtype == "float32":
            return _FLOAT32[name](bindings, *arguments)
        if name in _FLOAT32 and dtype == "float16":
            wide = [argument.astype("float32") for argument in arguments]
            return _FLOAT32[name](bindings, *wide).astype("float16")
        return tvm.ir.Call(
            value.op, arguments, attrs=value.attrs, ty_args=list(value.ty_args), ret_ty=value.ty
        )

    result = tvm_ffi.structural_mutate(
        expr, [(tirx.Let, let), (tirx.Select, select), (tvm.ir.Call, call)]
    )
    return bindings.wrap(result)
