"""Keep FuseOps from putting a small anchor into the loops of a larger tensor.

    s = sigmoid(conv(pooled)) [N, C, 1, 1];  y = x * s [N, C, H, W]

FuseOps would make one function of both, with an output larger than its anchor; the register tile
of the anchor could not end in the output. Such a multiplication is marked injective, which an
anchor does not absorb. Element-wise operators on the large operand's side still fuse with it.
Functions of very many parameters fuse with nothing.
Runs after AnnotateTIROpPattern.
"""

from __future__ import annotations

from math import prod

import tvm
from tvm import relax

from tilewright.compiler.relax_utils import bindings, op_name, static_shape

_ELEMENTWISE, _BROADCAST, _INJECTIVE, _REDUCTION, _ANCHOR = range(5)
_OPAQUE = 8
# A concatenation of more stays alone: each part is a box of loops, and with the expressions of its
# neighbours in each the code would be more than LLVM bears.
_MOST_PARAMETERS = 30


@tvm.ir.transform.module_pass(opt_level=0, name="LimitFusion")
class LimitFusion:
    """Module pass; see the module's docstring."""

    def transform_module(self, mod: tvm.IRModule, _ctx: object) -> tvm.IRModule:
        made_by: dict[relax.Var, relax.Call] = {}
        marked: set[tvm.ir.GlobalVar] = set()
        alone: set[tvm.ir.GlobalVar] = set()
        for binding in bindings(mod["main"]):
            value = binding.value
            if op_name(value) != "relax.call_tir":
                continue
            if len(mod[value.args[0]].params) > _MOST_PARAMETERS:
                alone.add(value.args[0])
                continue
            if not isinstance(binding.var.ty, relax.TupleType):
                made_by[binding.var] = value
                if _pattern(mod, value) <= _BROADCAST and _enlarges(mod, binding, made_by):
                    marked.add(value.args[0])
        if not marked | alone:
            return mod
        mod = tvm.IRModule(mod.functions, attrs=mod.attrs)
        for global_var in marked:
            mod[global_var] = mod[global_var].with_attr("op_pattern", _INJECTIVE)
        for global_var in alone:
            mod[global_var] = mod[global_var].with_attr("op_pattern", _OPAQUE)
        return mod


def _pattern(mod: tvm.IRModule, call: relax.Call) -> int:
    return int(mod[call.args[0]].attrs["op_pattern"])


def _enlarges(
    mod: tvm.IRModule, binding: relax.VarBinding, made_by: dict[relax.Var, relax.Call]
) -> bool:
    """Say whether an operand that an anchor may end in is smaller than the result."""
    size = prod(static_shape(binding.var))
    return any(
        operand in made_by
        and prod(static_shape(operand)) < size
        and _pattern(mod, made_by[operand]) in (_ELEMENTWISE, _BROADCAST, _ANCHOR)
        for operand in binding.value.args[1].fields
    )
