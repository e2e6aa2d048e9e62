"""Move bytes instead of floats: reshape(dequantize(x)) -> dequantize(reshape(x)).

Only where the moved tensor is used in floats: what is quantized again at once moves as
bytes anyway, and keeps its own scale.
"""

from __future__ import annotations

import tvm
from tvm import relax

from tilewright.compiler.quantize.affine import emit_affine
from tilewright.compiler.quantize.graph import Graph
from tilewright.compiler.relax_utils import is_constant, op_name

_MOVED = frozenset(
    "relax." + name
    for name in ("reshape", "permute_dims", "expand_dims", "squeeze", "flatten", "strided_slice")
)


def move_bytes(mod: tvm.IRModule) -> tvm.IRModule:
    """Return the module with dequantize operators behind the movements that follow them."""
    graph = Graph(mod)
    if not any(_moves_dequantized(graph, var) for var in graph.value):
        return mod
    mover = _Mover(mod, graph)
    main = mover.visit_expr(mod["main"])
    mod = mover.builder_.get()
    mod["main"] = main
    return mod


def _moves_dequantized(graph: Graph, var: relax.Var) -> bool:
    call = graph.made_by(var)
    if call is None or op_name(call) not in _MOVED:
        return False
    affine = graph.of_kind(call.args[0], "dequantize")
    if affine is None or not affine.in_bytes:
        return False
    if is_constant(affine.source):
        return False
    users = graph.users.get(var, [])
    return any(user is not None and not graph.of_kind(user, "quantize") for user in users)


@relax.expr_functor.mutator
class _Mover(relax.expr_functor.PyExprMutator):
    def __init__(self, mod: tvm.IRModule, graph: Graph) -> None:
        super().__init__(mod)
        self.graph = graph

    def visit_var_binding_(self, binding: relax.VarBinding) -> None:
        var = binding.var
        if not _moves_dequantized(self.graph, var):
            super().visit_var_binding_(binding)
            return
        call = self.graph.value[var]
        affine = self.graph.affines[call.args[0]]
        source = self.visit_expr(affine.source)
        bytes_ = self.builder_.emit(
            relax.Call(call.op, [source, *call.args[1:]], call.attrs, call.ty_args)
        )
        real = emit_affine(
            *(self.builder_, "dequantize", bytes_, affine.dtype, affine.scale, affine.zero, 0)
        )
        self.set_var_remap(var, self.builder_.emit(real, var.name))
