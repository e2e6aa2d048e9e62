"""Give products with integer weights the form in which a target's kernel reads their weights.

    w4_matmul(x, packed, scales, zeros)  ->  w4_matmul(x, words)          for a processor
                                         ->  matmul(x, decoded weights)   for a GPU

Run twice the pass gives the same module as run once: its result has none of these products.
"""

from __future__ import annotations

import tvm
from tvm import relax

from tilewright.compiler.quantize.weight_product import WeightProduct, read_product
from tilewright.compiler.relax_utils import OP_PATTERN, call_marked, static_shape
from tilewright.compiler.targets import Target
from tilewright.compiler.weight_only import WeightWords, pack_words, product

# What FuseOps knows as an anchor that takes an epilogue.
_ANCHOR = 4


@tvm.ir.transform.module_pass(opt_level=0, name="PackWeights")
class PackWeights:
    """Module pass; see the module's docstring.

    Args:
        target: the processor; None decodes the weights to floats.
    """

    def __init__(self, target: Target | None) -> None:
        self.lanes = None if target is None else target.lanes("float32")

    def transform_module(self, mod: tvm.IRModule, _ctx: object) -> tvm.IRModule:
        rewriter = _Rewriter(mod, self.lanes)
        main = rewriter.visit_expr(mod["main"])
        if not rewriter.count:
            return mod
        mod = rewriter.builder_.get()
        mod["main"] = main
        return relax.transform.DeadCodeElimination(["main"])(mod)


@relax.expr_functor.mutator
class _Rewriter(relax.expr_functor.PyExprMutator):
    def __init__(self, mod: tvm.IRModule, lanes: int | None) -> None:
        super().__init__(mod)
        self.mod, self.lanes, self.count = mod, lanes, 0

    def visit_call_(self, call: relax.Call) -> relax.Expr:
        found = read_product(self.mod, call)
        call = super().visit_call_(call)
        if found is None:
            return call
        self.count += 1
        data = call.args[1].fields[0]
        if self.lanes is None:
            return relax.op.matmul(data, relax.const(found.weights.decoded()))
        return self._packed(data, found, self.lanes)

    def _packed(self, data: relax.Expr, found: WeightProduct, lanes: int) -> relax.Expr:
        weights = found.weights
        words = WeightWords(
            weights.bits,
            weights.rows,
            weights.columns,
            weights.group,
            weights.zeros is None,
            min(lanes, max(1, weights.columns)),
        )
        packed = pack_words(words, weights.codes(), weights.scales, weights.zeros)
        assert static_shape(data)[-1] == words.rows
        return call_marked(
            *(self.builder_, f"w{words.bits}_matmul", lambda x, w: product(x, w, words)),
            [data, relax.const(tvm.runtime.tensor(packed))],
            {OP_PATTERN: _ANCHOR},
        )
