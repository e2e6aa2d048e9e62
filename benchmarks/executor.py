"""What the executor itself costs per operator call: `python -m benchmarks.executor`.

Times a module of 200 tiny operators (16 floats each) and one of a single operator, in turns; the
difference is what 199 calls cost. A kernel of this size takes a few nanoseconds. The same with
parallel loops shows what starting the threads of an operator costs.
"""

import argparse
import tempfile
from pathlib import Path

import numpy as np
from tvm import s_tir, te

from tilewright.compiler.package import package
from tilewright.compiler.program import Call, Program, Tensor, TensorSpec
from tilewright.compiler.targets import parse_target
from tilewright.runtime.benchmark import interleave, summarize
from tilewright.runtime.module import Module

ELEMENTS = 16


def chain(length: int, parallel: bool = False) -> Program:
    """Return a program of `length` calls, each adding 1 to 16 floats."""
    data = te.placeholder((ELEMENTS,), "float32", name="data")
    result = te.compute((ELEMENTS,), lambda i: data[i] + 1.0, name="result")
    schedule = s_tir.Schedule(te.create_prim_func([data, result]))
    if parallel:
        schedule.parallel(schedule.get_loops(schedule.get_sblock("result"))[0])
    tensors = [Tensor("x", (ELEMENTS,), "float32", "input")]
    tensors += [Tensor(f"t{i}", (ELEMENTS,), "float32", "intermediate") for i in range(length)]
    spec = TensorSpec("x", (ELEMENTS,), "float32")
    return Program(
        tensors=tuple(tensors),
        calls=tuple(Call("add_one", (i, i + 1), f"add#{i}") for i in range(length)),
        inputs=(0,),
        outputs=(length,),
        kernels={"add_one": schedule.mod["main"]},
        input_specs=(spec,),
        output_specs=(TensorSpec("y", spec.shape, spec.dtype),),
    )


def main() -> None:
    """Print the cost per call."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=50)
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args()
    target = parse_target("native")
    x = np.zeros(ELEMENTS, np.float32)
    modules = {}
    with tempfile.TemporaryDirectory() as folder:
        for name, length, parallel, threads in (
            ("1 call", 1, False, 1),
            ("200 calls", 200, False, 1),
            ("200 parallel calls", 200, True, args.threads),
        ):
            path = Path(folder, f"{name}.so")
            package(chain(length, parallel), target, path)
            modules[name] = Module(path, threads=threads)
        samples = interleave(
            {name: lambda module=module: module(x) for name, module in modules.items()},
            rounds=args.rounds,
        )
        base = summarize(samples["1 call"]).median_s
        print(f"one call from Python: {base * 1e6:.1f} us")
        for name in ("200 calls", "200 parallel calls"):
            per_call_s = (summarize(samples[name]).median_s - base) / 199
            print(f"{name}: {per_call_s * 1e9:.1f} ns each")


if __name__ == "__main__":
    main()
