"""Bring Relax operators that say the same thing to one form, before legalisation.

    expand_dims, squeeze, flatten, reshape(reshape(x))  ->  reshape(x)     (a view later on)
    reshape(x) to x's own shape                          ->  x
    split(x)                                             ->  (strided_slice(x), ...)
    sum(x, axis=[]), mean, max, min, prod                ->  x
    strided_slice(permute_dims(x))                       ->  permute_dims(strided_slice(x))

The last one is for the packed projections of attention: each user then copies its own part, in one
kernel, and nobody writes the permuted whole. Run twice the pass gives the same module as run once.
"""

from __future__ import annotations

import tvm
from tvm import relax

from tilewright.compiler.relax_utils import op_name, static_shape

_VIEWS = ("relax.expand_dims", "relax.squeeze", "relax.flatten", "relax.reshape")
_REDUCTIONS = ("relax.sum", "relax.mean", "relax.max", "relax.min", "relax.prod")


@tvm.ir.transform.module_pass(opt_level=0, name="CanonicalizeOps")
class CanonicalizeOps:
    """Module pass; see the module's docstring."""

    def transform_module(self, mod: tvm.IRModule, _ctx: object) -> tvm.IRModule:
        main = _Canonicalize(mod).visit_expr(mod["main"])
        mod = tvm.IRModule(mod.functions, attrs=mod.attrs)
        mod["main"] = main
        return tvm.ir.transform.Sequential(
            [relax.transform.CanonicalizeBindings(), relax.transform.DeadCodeElimination(["main"])]
        )(mod)


@relax.expr_functor.mutator
class _Canonicalize(relax.expr_functor.PyExprMutator):
    def visit_call_(self, call: relax.Call) -> relax.Expr:
        call = super().visit_call_(call)
        name = op_name(call)
        if name in _VIEWS:
            return self._view(call)
        if name == "relax.split":
            return self._split(call)
        if name == "relax.strided_slice":
            return self._slice(call)
        if name in _REDUCTIONS and call.attrs.axis is not None and len(call.attrs.axis) == 0:
            return call.args[0]  # None would mean all axes
        return call

    def _view(self, call: relax.Call) -> relax.Expr:
        call = self.builder_.normalize(call)
        source = call.args[0]
        while isinstance(source, relax.Var):
            made_by = self.lookup_binding(source)
            if op_name(made_by) != "relax.reshape":
                break
            source = made_by.args[0]
        shape = static_shape(call)
        return source if static_shape(source) == shape else relax.op.reshape(source, shape)

    def _slice(self, call: relax.Call) -> relax.Expr:
        source, axes, *bounds = call.args
        made_by = self.lookup_binding(source) if isinstance(source, relax.Var) else None
        if made_by is None or op_name(made_by) != "relax.permute_dims":
            return call
        if not isinstance(axes, relax.Tuple):
            return call
        rank = len(static_shape(source))
        reverse = list(reversed(range(rank)))
        perm = [int(p) % rank for p in made_by.attrs.axes or reverse]
        moved = relax.Tuple([tvm.tirx.IntImm("int64", perm[int(a) % rank]) for a in axes.fields])
        part = relax.Call(call.op, [made_by.args[0], moved, *bounds], call.attrs, call.ty_args)
        return relax.op.permute_dims(self.builder_.emit(part), perm)

    def _split(self, call: relax.Call) -> relax.Expr:
        call = self.builder_.normalize(call)
        axis = int(call.attrs.axis) % len(static_shape(call.args[0]))
        parts, begin = [], 0
        for field in call.ty.fields:
            end = begin + int(field.shape[axis])
            part = relax.op.strided_slice(call.args[0], [axis], [begin], [end])
            parts.append(self.builder_.emit(self._slice(part)))
            begin = end
        return relax.Tuple(parts)
