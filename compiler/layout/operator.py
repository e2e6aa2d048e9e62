"""What choosing layouts needs to know of one fused operator, and one way to lay it out."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

from tvm.tirx import PrimFunc

from tilewright.compiler.access import shape_of
from tilewright.compiler.layout.primitives import Layout


@dataclass(frozen=True)
class Choice:
    """One way to lay out an operator's tensors.

    Attributes:
        name: for people, as in "B -> C".
        layouts: one per parameter of the PrimFunc, constants included.
        seconds: estimated or measured time of the operator.
        decisions: JSON of the schedule's decisions; None leaves them to the analytical model.
        origin: where `seconds` comes from: "default" (estimated), "tuned" or "transferred".
        task_key: of the operator's task, where tuned decisions were looked up.
    """

    name: str
    layouts: tuple[Layout, ...]
    seconds: float
    decisions: str | None = None
    origin: str = "default"
    task_key: str = ""


@dataclass(frozen=True)
class Operator:
    """A fused operator.

    Attributes:
        func: the PrimFunc on logical shapes.
        constants: positions of the parameters that are constants.
        images: positions of the parameters that are [N, C, ...spatial] tensors of a convolutional
            part of the graph.
        n_outputs: how many of the last parameters are written.
    """

    func: PrimFunc
    constants: frozenset[int]
    images: frozenset[int]
    n_outputs: int = 1

    @cached_property
    def shapes(self) -> tuple[tuple[int, ...], ...]:
        """Logical shapes of the parameters."""
        return tuple(shape_of(param) for param in self.func.params)

    @property
    def output(self) -> int:
        """Position of the first output among the parameters."""
        return len(self.func.params) - self.n_outputs

    def logical(self) -> list[Layout]:
        """Return the identity layout of every parameter."""
        return [Layout(shape) for shape in self.shapes]
