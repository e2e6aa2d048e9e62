"""Divide what runs backwards so that TVM 0.27 gets it right.

    x[(3 - i) % 4]  ->  x[truncmod(3 - i + 4, 4)]  ->  FlattenBuffer  ->  x[(3 - i + 4) % 4]

FlattenBuffer normalises quotients and remainders of loop variables (IterMapSimplify), and loses
the constant beside one that is subtracted: (3 - i) % 4 becomes -(i % -4), which is 0 instead of 3
for i = 0. It knows flooring division only. So a dividend with something subtracted is raised to
where it is never negative, and divided by truncation, which is the same there. Afterwards division
floors again: simplifications of vectors expect that.
"""

from __future__ import annotations

from typing import Any

import tvm
import tvm_ffi
from tvm import s_tir, sym, tirx

from tilewright.compiler.schedule.expressions import Expr, children, dtype_of
from tilewright.compiler.schedule.micro_kernel import constant_like

_INDICES = ("int32", "int64")
_UNBOUNDED = 1 << 60


@tirx.transform.prim_func_pass(opt_level=0)
class HideReversedIndices:
    """Truncate quotients and remainders of what runs backwards; see the module's docstring."""

    def transform_function(
        self, func: tirx.PrimFunc, _module: tvm.IRModule, _context: tvm.transform.PassContext
    ) -> tirx.PrimFunc:
        """Rewrite one function."""
        analyzer = _ranges(func)

        def hidden(node: Any) -> Any:
            if not _is_positive(node.b) or not _subtracts(node.a):
                return node
            lowest = int(analyzer.const_int_bound(node.a).min_value)
            if lowest <= -_UNBOUNDED:
                return node
            turns = max(0, -(lowest // int(node.b)))
            raised = node.a + constant_like(turns * int(node.b), node.a)
            if isinstance(node, tirx.FloorMod):
                return tirx.truncmod(raised, node.b)
            return tirx.truncdiv(raised, node.b) - constant_like(turns, node.a)

        divisions = (tirx.FloorDiv, tirx.FloorMod)
        return func.with_body(tvm_ffi.structural_map(func.body, (divisions, hidden)))


@tirx.transform.prim_func_pass(opt_level=0)
class ShowReversedIndices:
    """Floor quotients and remainders of what is never negative; see the module's docstring."""

    def transform_function(
        self, func: tirx.PrimFunc, _module: tvm.IRModule, _context: tvm.transform.PassContext
    ) -> tirx.PrimFunc:
        """Rewrite one function."""
        analyzer = _ranges(func)

        def shown(node: Any) -> Any:
            if not _is_positive(node.b) or analyzer.const_int_bound(node.a).min_value < 0:
                return node
            floored = tirx.floormod if isinstance(node, tirx.Mod) else tirx.floordiv
            return floored(node.a, node.b)

        return func.with_body(tvm_ffi.structural_map(func.body, ((tirx.Div, tirx.Mod), shown)))


def _ranges(func: tirx.PrimFunc) -> sym.Analyzer:
    """Return an analyzer that knows the ranges of all loops and axes of a function."""
    analyzer = sym.Analyzer()

    def bind_loop(loop: tirx.For) -> None:
        analyzer.bind(loop.loop_var, tvm.ir.Range.from_min_extent(loop.min, loop.extent))

    def bind_axes(block: s_tir.SBlock) -> None:
        for axis in block.iter_vars:
            analyzer.bind(axis.var, axis.dom)

    def bind_value(bind: tirx.Bind) -> None:
        if dtype_of(bind.value) in _INDICES:
            analyzer.bind(bind.var, bind.value)

    for kind, bind in (
        (tirx.For, bind_loop),
        (s_tir.SBlock, bind_axes),
        (tirx.Bind, bind_value),
    ):
        tvm_ffi.structural_walk(func.body, (kind, bind))
    return analyzer


def _is_positive(expr: Expr) -> bool:
    return isinstance(expr, tirx.IntImm) and int(expr) > 0


def _subtracts(expr: Expr) -> bool:
    """Say whether something that is no constant is subtracted, or negated, in an index."""
    if isinstance(expr, tirx.Sub) and not isinstance(expr.b, tirx.IntImm):
        return True
    if isinstance(expr, tirx.IntImm):
        return int(expr) < 0
    return any(_subtracts(child) for child in children(expr))
