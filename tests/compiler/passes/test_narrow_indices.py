"""Indices in 32 bits."""

import tvm
from tvm import te, tirx

from tilewright.compiler.passes.narrow_indices import NarrowIndices
from tilewright.compiler.schedule import schedule
from tilewright.compiler.targets import parse_target


def _func(dtype, extent=12):
    x = te.placeholder((tirx.IntImm("int64", extent),), dtype, "x")
    y = te.compute(x.shape, lambda i: x[i] + x[i], "y")
    return schedule(te.create_prim_func([x, y]), parse_target("armv7:cortex-a7"))


def _narrowed(func):
    return NarrowIndices()(tvm.IRModule({"main": func}))["main"]


def test_loops_and_addresses_are_narrowed():
    func = _func("float32")
    assert "int64" in func.script()
    assert "int64" not in _narrowed(func).script()


def test_narrowing_twice_changes_nothing_more():
    once = _narrowed(_func("float32"))
    tvm.ir.assert_structural_equal(_narrowed(once), once)


def test_functions_that_compute_with_int64_are_left_alone():
    func = _func("int64")
    tvm.ir.assert_structural_equal(_narrowed(func), func)


def test_functions_of_tensors_beyond_2_gb_are_left_alone():
    func = _func("float32", 1 << 30)
    tvm.ir.assert_structural_equal(_narrowed(func), func)
