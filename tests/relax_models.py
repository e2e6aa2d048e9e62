"""Small Relax modules for the tests, and a reference that runs them unscheduled."""

from collections.abc import Callable, Sequence

import numpy as np
import tvm
from tvm import relax


def module(
    shapes: Sequence[tuple[int, ...]],
    body: Callable[..., relax.Expr],
    dtype: str = "float32",
) -> tvm.IRModule:
    """Build main(x0, x1, ...) -> (result,) with `body(emit, x0, x1, ...)`."""
    params = [relax.Var(f"x{i}", relax.TensorType(shape, dtype)) for i, shape in enumerate(shapes)]
    builder = relax.BlockBuilder()
    with builder.function("main", params):
        with builder.dataflow():
            result = body(builder.emit, *params)
            out = builder.emit_output(relax.Tuple([result]))
        builder.emit_func_output(out)
    return builder.get()


def constant(rng: np.random.Generator, *shape: int) -> relax.Expr:
    """Return a float32 constant whose products stay at unit scale."""
    scale = np.sqrt(max(1, np.prod(shape[1:])))
    return relax.const((rng.standard_normal(shape) / scale).astype("float32"))


def run(mod: tvm.IRModule, *arrays: np.ndarray) -> np.ndarray:
    """Run main with TVM's own lowering, nothing of ours."""
    vm = relax.VirtualMachine(relax.build(mod, "llvm"), tvm.cpu())
    return vm["main"](*[tvm.runtime.tensor(array) for array in arrays])[0].numpy()
