"""Compile one scheduled PrimFunc to a function that runs here, for tests of kernels."""

import numpy as np
import pytest
import tvm
from tvm import s_tir, tirx

from tilewright.compiler.codegen import KeepLocalBuffers
from tilewright.compiler.passes.vector_math import LowerVectorMath
from tilewright.compiler.targets import Target, parse_target


def compile_kernel(
    func: tirx.PrimFunc, target: Target | str = "native"
) -> tuple[tvm.runtime.Module, str]:
    """Return a module that holds the function as "main", and its assembly."""
    description = parse_target(target) if isinstance(target, str) else target
    tvm_target = description.tvm_target()
    module = tvm.IRModule({"main": func.with_attr("global_symbol", "main")})
    module = tirx.transform.BindTarget(tvm_target.with_host(tvm_target))(module)
    lowering, *_ = s_tir.pipeline.default_s_tir_pipeline()
    module = lowering(module)
    for final in (
        KeepLocalBuffers(),
        tirx.transform.LowerTVMBuiltin(),
        LowerVectorMath(),
        tirx.transform.LowerIntrin(),
    ):
        module = final(module)
    built = tvm.get_global_func("target.build.llvm")(module, tvm_target)
    return built, str(built.inspect_source("asm"))


def run_kernel(
    func: tirx.PrimFunc, inputs: list[np.ndarray], target: Target | str = "native"
) -> list[np.ndarray]:
    """Run a function whose first parameters are `inputs`; return its other parameters.

    Outputs start as garbage, so that elements which the kernel leaves out are seen. Skips the test
    where this processor lacks an instruction that the target has.
    """
    description = parse_target(target) if isinstance(target, str) else target
    missing = set(description.features) - set(parse_target("native").features)
    if missing:
        pytest.skip(f"this processor lacks {', '.join(sorted(missing))}")
    outputs = []
    for param in func.params[len(inputs) :]:
        shape = tuple(int(extent) for extent in param.shape)
        garbage = np.full(
            shape, 77, np.dtype("bool" if param.dtype == "bool" else str(param.dtype))
        )
        outputs.append(garbage)
    arguments = [tvm.runtime.tensor(np.asarray(a, order="C")) for a in [*inputs, *outputs]]
    compile_kernel(func, description)[0]["main"](*arguments)
    return [argument.numpy() for argument in arguments[len(inputs) :]]
