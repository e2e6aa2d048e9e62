"""An operator in the layout that it has in a network: data comes and goes in it.

By itself an operator gets its data as the model has it, and pays for every conversion. In a network
its neighbours agree with it, and nobody pays. Where tuners are compared, each is taken at its best:
Ansor in NCHW or NHWC, whichever is faster, tilewright as it is or in a layout of its own.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from tilewright.compiler.layout.primitives import Layout
    from tilewright.compiler.layout.strategies import LayoutProblem
    from tilewright.compiler.pipeline import Lowered
    from tilewright.compiler.program import Program, TensorSpec


@dataclass(frozen=True)
class InNetwork:
    """A module whose inputs and outputs are in layouts of its own.

    Attributes:
        path: of the module.
        inputs, outputs: layouts by name, where they are not as the model has them.
    """

    path: Path
    inputs: Mapping[str, Layout]
    outputs: Mapping[str, Layout]

    @property
    def about(self) -> str:
        """What the layouts are."""
        layouts = {**self.inputs, **self.outputs}
        return ", ".join(f"{name} {layout.physical_shape}" for name, layout in layouts.items())

    def bring(self, feed: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Return inputs as the module takes them."""
        return {
            name: self.inputs[name].transform(array) if name in self.inputs else array
            for name, array in feed.items()
        }

    def take(self, results: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Return outputs as the model gives them."""
        return {
            name: self.outputs[name].inverse().transform(array) if name in self.outputs else array
            for name, array in results.items()
        }


def compile_in_network(
    model: Path, target: str, logs: tuple[Path, ...], folder: Path
) -> InNetwork | None:
    """Compile a model of one operator in the layout in which it is fastest.

    Args:
        model: an ONNX file.
        target: what for.
        logs: tuning logs.
        folder: where to write the module.

    Returns:
        None where the model is several operators, or one that is fastest as it is.
    """
    from tilewright.api import lower_by
    from tilewright.compiler.package import package
    from tilewright.compiler.pipeline import lower
    from tilewright.compiler.targets import parse_target
    from tilewright.tuning import find_tuned

    description = parse_target(target)
    lookup = find_tuned(description, logs)
    lowering: Callable[..., Lowered] = partial(
        lower,
        target=description,
        tuned=lookup,
        winograd=True if lookup is None else lookup.algorithm,
        strategy=_own_layout,
    )
    lowered, _ = lower_by(lowering, model, None, None, lambda _stage: None)
    if len(lowered.plan.choices) != 1 or not lowered.conversions:
        return None
    path = folder / "in_network.so"
    package(_without_conversions(lowered.program), description, path, {})
    program = lowered.program
    inputs = {spec.name for spec in program.input_specs}
    converted = {c.tensor: c for c in lowered.conversions}
    by_output = {
        spec.name: converted[program.tensors[index].name]
        for spec, index in zip(program.output_specs, program.outputs, strict=True)
        if program.tensors[index].name in converted
    }
    return InNetwork(
        path,
        {name: c.after for name, c in converted.items() if name in inputs},
        {name: c.before for name, c in by_output.items()},
    )


def _own_layout(problem: LayoutProblem) -> tuple[list[int], bool]:
    """Give a single operator its fastest layout that neighbours could have, else do as usual."""
    from tilewright.compiler.layout.primitives import Unfold
    from tilewright.compiler.layout.strategies import assign_globally

    if len(problem.tables) != 1:
        return assign_globally(problem)
    (table,), (operator,) = problem.tables, problem.operators
    shared = [
        number
        for number, choice in enumerate(table)
        if not any(
            isinstance(primitive, Unfold)  # holds elements twice: nobody gives that for nothing
            for position, layout in enumerate(choice.layouts)
            for primitive in layout.primitives
            if position not in operator.constants
        )
    ]
    return [min(shared, key=lambda number: table[number].seconds)], False


def _without_conversions(program: Program) -> Program:
    """Return a program that takes and gives what is converted at its borders as it is inside."""
    tensors = list(program.tensors)
    inputs, outputs, kept = list(program.inputs), list(program.outputs), []
    for call in program.calls:
        source, made = call.args[0], call.args[-1]
        if not call.label.startswith("convert "):
            kept.append(call)
        elif source in inputs:
            inputs[inputs.index(source)] = made
            tensors[made] = replace(tensors[made], kind="input")
        elif made in outputs:
            outputs[outputs.index(made)] = source

    def physical(specs: Sequence[TensorSpec], indices: Sequence[int]) -> tuple[TensorSpec, ...]:
        pairs = zip(specs, indices, strict=True)
        return tuple(replace(spec, shape=tensors[index].shape) for spec, index in pairs)

    return replace(
        program,
        tensors=tuple(tensors),
        calls=tuple(kept),
        inputs=tuple(inputs),
        outputs=tuple(outputs),
        input_specs=physical(program.input_specs, inputs),
        output_specs=physical(program.output_specs, outputs),
    )
