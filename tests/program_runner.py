"""Runs a `Program` kernel by kernel with plain TVM, as a reference for packaging and passes."""

from collections.abc import Sequence
from math import prod

import numpy as np
import tvm

from tilewright.compiler.program import Program


def run_program(
    program: Program, inputs: Sequence[np.ndarray], target: str | tvm.target.Target
) -> list[np.ndarray]:
    """Run all calls in order with TVM's own code generation; outputs hold NaN before."""
    return _Runner(program, target).run(inputs)


class _Runner:
    def __init__(self, program: Program, target: str | tvm.target.Target) -> None:
        self.program, self.target = program, target
        self.storage: dict[int, np.ndarray] = {}
        self.built: dict[str, tvm.runtime.Module] = {}

    def run(self, inputs: Sequence[np.ndarray]) -> list[np.ndarray]:
        for index, array in zip(self.program.inputs, inputs, strict=True):
            self.storage[index] = array
        for call in self.program.calls:
            arguments = [tvm.runtime.tensor(self._array(index)) for index in call.args]
            self._kernel(call.kernel)["main"](*arguments)
            for index, argument in list(zip(call.args, arguments, strict=True))[-call.n_outputs :]:
                self._array(index)[...] = argument.numpy()
        return [self._array(index) for index in self.program.outputs]

    def _array(self, index: int) -> np.ndarray:
        tensor = self.program.tensors[index]
        if tensor.alias_of is not None:
            return (
                self._array(tensor.alias_of).reshape(-1)[: prod(tensor.shape)].reshape(tensor.shape)
            )
        if tensor.data is not None:
            return tensor.data
        if index not in self.storage:
            garbage = np.nan if tensor.dtype.startswith("float") else 77
            self.storage[index] = np.full(tensor.shape, garbage, tensor.dtype)
        return self.storage[index]

    def _kernel(self, name: str) -> tvm.runtime.Module:
        if name not in self.built:
            func = self.program.kernels[name]
            self.built[name] = tvm.compile(func.with_attr("global_symbol", "main"), self.target)
        return self.built[name]
