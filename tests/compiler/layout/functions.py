"""PrimFuncs to rewrite, and how a rewritten one is compared with numpy.

Inputs hold small integers, so that float sums are exact whatever their order. Outputs hold NaN
before the run, their padding too: what nobody writes shows.
"""

import re

import numpy as np
import tvm
from tvm import relax, s_tir

from tilewright.compiler.layout.primitives import Layout
from tilewright.compiler.layout.rewrite import rewrite

LLVM = tvm.target.Target("llvm")
op = relax.op


def fused(build, *params):
    """Return the one PrimFunc that Relax makes of ``build(*params)``; a param is a shape."""
    builder = relax.BlockBuilder()
    typed = [p if isinstance(p[-1], str) else (p, "float32") for p in params]
    variables = [relax.Var(f"p{i}", relax.TensorType(s, d)) for i, (s, d) in enumerate(typed)]
    with builder.function("main", variables):
        with builder.dataflow():
            result = builder.emit_output(builder.normalize(build(*variables)))
        builder.emit_func_output(result)
    passes = [
        relax.transform.LegalizeOps(),
        relax.transform.AnnotateTIROpPattern(),
        relax.transform.FuseOps(),
        relax.transform.FuseTIR(),
    ]
    module = tvm.ir.transform.Sequential(passes)(builder.get())
    functions = [f for f in module.functions.values() if isinstance(f, tvm.tirx.PrimFunc)]
    assert len(functions) == 1
    return functions[0]


def shapes_of(func):
    return [tuple(int(extent) for extent in param.shape) for param in func.params]


def whole_numbers(func, seed=0):
    """Return an array of small integers per parameter."""
    rng = np.random.default_rng(seed)
    return [
        rng.integers(-4, 5, shape).astype(param.dtype)
        for shape, param in zip(shapes_of(func), func.params, strict=True)
    ]


def run(func, arrays):
    tensors = [tvm.runtime.tensor(array) for array in arrays]
    tvm.compile(func.with_attr("global_symbol", "main"), LLVM)(*tensors)
    return [tensor.numpy() for tensor in tensors]


def check(func, layouts, reference, *, outputs=1, tolerance=0.0, buffers=None, inputs=None):
    """Rewrite, run, and compare each output, padding included; return the function's text.

    Args:
        reference: numpy function of the logical inputs; returns the logical output(s).
    """
    arrays = inputs or whole_numbers(func)
    count = len(arrays) - outputs
    expected = reference(*arrays[:count])
    expected = list(expected) if outputs > 1 else [expected]
    new = rewrite(func, layouts, buffers=buffers)
    assert_normal_form(new)
    layouts = {i: layouts.get(i, Layout(shape)) for i, shape in enumerate(shapes_of(func))}
    physical = [layouts[i].transform(array) for i, array in enumerate(arrays)]
    for array in physical[count:]:
        array.fill(np.nan if array.dtype.kind == "f" else 99)
    results = run(new, physical)
    for i, want in enumerate(expected, start=count):
        want = layouts[i].transform(
            np.asarray(want, dtype=arrays[i].dtype).reshape(arrays[i].shape)
        )
        np.testing.assert_allclose(results[i], want, rtol=tolerance, atol=tolerance)
    return new.script()


def assert_normal_form(func):
    """Each block writes W[v0, v1, ...] with its spatial axes, which are loops in the same order."""
    schedule = s_tir.Schedule(func)
    body = func.body.block.body
    for nest in list(body) if isinstance(body, tvm.tirx.SeqStmt) else [body]:
        loops = []
        while isinstance(nest, tvm.tirx.For):
            loops.append(nest.loop_var)
            nest = nest.body
        block = nest.block
        assert schedule.get_sblock(block.name_hint) is not None
        assert [v.name for v in nest.iter_values] == [loop.name for loop in loops]
        spatial = [v.var for v in block.iter_vars if int(v.iter_type) == 0]
        assert [int(v.iter_type) for v in block.iter_vars] == sorted(
            int(v.iter_type) for v in block.iter_vars
        )
        region = [re.sub(r" \+ T.int\d+\(\d+\)", "", str(r.min)) for r in block.writes[0].region]
        assert region == [v.name for v in spatial]


def divisions(text):
    """Return the stores that still contain a division of an index."""
    return [line for line in text.splitlines() if "] = " in line and re.search(r"//|%", line)]
