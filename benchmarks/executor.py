"""What the executor itself costs per operator call: `python -m benchmarks.executor`.

Times a module of 200 tiny operators (16 floats each) and one of a single operator, in turns; the
difference is what 199 calls cost. A kernel of this size takes a few nanoseconds. The same with
parallel loops shows what starting the threads of an operator costs.
"""

import argparse
import sys
import tempfile
from pathlib import Path

import numpy as np
from tvm import s_tir, te

from benchmarks.machine import describe
from benchmarks.report import RESULTS, markdown_machine, markdown_table, write_text
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


LENGTH = 200
LIMIT_S = 2e-6  # per operator call, from the requirements


def measure(threads: int, rounds: int) -> dict[str, float]:
    """Return seconds: one run from Python, one call of the chain, one parallel call."""
    x = np.zeros(ELEMENTS, np.float32)
    modules = {}
    with tempfile.TemporaryDirectory() as folder:
        for name, length, parallel in (
            ("single", 1, False),
            ("serial", LENGTH, False),
            ("parallel", LENGTH, True),
        ):
            path = Path(folder, f"{name}.so")
            package(chain(length, parallel), parse_target("native"), path)
            modules[name] = Module(path, threads=threads if parallel else 1)
        samples = interleave(
            {name: lambda module=module: module(x) for name, module in modules.items()}, rounds
        )
    median_s = {name: summarize(values).median_s for name, values in samples.items()}
    single = median_s["single"]
    return {
        "run from Python": single,
        "operator call": (median_s["serial"] - single) / (LENGTH - 1),
        "parallel operator call": (median_s["parallel"] - single) / (LENGTH - 1),
    }


def main() -> int:
    """Print and write the table; return 1 if an operator call costs more than the limit."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=50)
    parser.add_argument("--threads", type=int, default=2, help="of the parallel calls")
    args = parser.parse_args()
    seconds = measure(args.threads, args.rounds)
    rows = [[name, f"{value * 1e6:.3f}"] for name, value in seconds.items()]
    table = markdown_table(["what", "median, us"], rows)
    print(table)
    text = (
        f"# The executor's own cost\n\n{__doc__.split(chr(10), 2)[2]}\n{table}\n"
        f"At most {LIMIT_S * 1e6:.0f} us per operator call is wanted. Parallel calls ran on "
        f"{args.threads} threads.\n\n{markdown_machine(describe())}"
    )
    write_text(RESULTS / "executor.md", text)
    return 0 if seconds["operator call"] <= LIMIT_S else 1


if __name__ == "__main__":
    sys.exit(main())
