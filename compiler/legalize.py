"""How Relax operators become TensorIR where TVM's own legalisation is not what we want."""

from __future__ import annotations

from collections.abc import Callable

from tvm import relax, topi
from tvm.tirx import PrimFunc

from tilewright.compiler.passes.norm_legalize import legalize_group_norm, legalize_instance_norm

Legalization = Callable[[relax.BlockBuilder, relax.Call], relax.Expr]

VIEW_ATTRIBUTE = "tilewright.view"
"""Marks the PrimFunc of a reshape: where it was not fused with a neighbour, no kernel runs."""


def _reshape(builder: relax.BlockBuilder, call: relax.Call) -> relax.Expr:
    shape = [int(extent) for extent in call.args[1].values]
    lowered = builder.call_te(topi.reshape, call.args[0], shape, primfunc_name_hint="reshape")
    global_var = lowered.args[0]
    func: PrimFunc = builder.get()[global_var]
    builder.update_func(global_var, func.with_attr(VIEW_ATTRIBUTE, 1))
    return lowered


LEGALIZATIONS: dict[str, Legalization] = {
    "relax.reshape": _reshape,
    "relax.nn.instance_norm": legalize_instance_norm,
    "relax.nn.group_norm": legalize_group_norm,
}
