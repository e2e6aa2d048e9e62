"""How one layout choice per operator is picked: for the whole graph, or as others do.

`assign_globally` is what tilewright does. The rest are the rows of `benchmarks/layouts.py`: one
fixed format for the whole network, each operator for itself, and ALT's greedy propagation. All
choose among the same tables, so that kernels, packing and algorithms are the same.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from tilewright.compiler.access import blocks, find_contraction
from tilewright.compiler.layout.assignment import assign, total_cost
from tilewright.compiler.layout.costs import conversion_seconds
from tilewright.compiler.layout.formats import format_of
from tilewright.compiler.layout.operator import Choice, Operator
from tilewright.compiler.layout.primitives import Layout
from tilewright.compiler.program import Program


@dataclass(frozen=True, eq=False)
class LayoutProblem:
    """A program's calls, each with its table of choices, and the edges between them.

    Attributes:
        tables: one table of choices per call, in order.
    """

    program: Program
    operators: tuple[Operator, ...]
    tables: tuple[tuple[Choice, ...], ...]

    @cached_property
    def producers(self) -> dict[int, tuple[int, int]]:
        """Tensor -> (call, parameter position) that writes it."""
        return {
            tensor: (index, len(call.args) - call.n_outputs + offset)
            for index, call in enumerate(self.program.calls)
            for offset, tensor in enumerate(call.writes)
        }

    @cached_property
    def nodes(self) -> dict[str, list[float]]:
        """Seconds of every choice of every call; "logical" stands for callers and views."""
        nodes = {
            f"call{index}": [choice.seconds for choice in table]
            for index, table in enumerate(self.tables)
        }
        return {**nodes, "logical": [0.0]}

    @cached_property
    def edges(self) -> dict[tuple[str, str], np.ndarray]:
        """Seconds of the conversions that two neighbours' choices ask for."""
        edges: dict[tuple[str, str], np.ndarray] = {}
        for index, call in enumerate(self.program.calls):
            for position, tensor in enumerate(call.reads):
                if self.program.tensors[tensor].kind != "constant":
                    wanted = [choice.layouts[position] for choice in self.tables[index]]
                    self._connect(edges, tensor, f"call{index}", wanted)
        views = [t.alias_of for t in self.program.tensors if t.alias_of is not None]
        for tensor in [*self.program.outputs, *views]:
            if tensor in self.producers:
                logical = [Layout(self.program.tensors[tensor].shape)]
                self._connect(edges, tensor, "logical", logical)
        edges.pop(("logical", "logical"), None)
        return edges

    def _connect(self, edges: dict, tensor: int, reader: str, wanted: Sequence[Layout]) -> None:
        maker = self.producers.get(tensor)
        description = self.program.tensors[tensor]
        have = [Layout(description.shape)]
        if maker is not None:
            have = [choice.layouts[maker[1]] for choice in self.tables[maker[0]]]
        price = conversion_seconds(description.shape, description.dtype)
        table = np.array([[0.0 if a == b else price for b in wanted] for a in have])
        key = ("logical" if maker is None else f"call{maker[0]}", reader)
        edges[key] = edges[key] + table if key in edges else table

    def cost(self, indices: Sequence[int]) -> float:
        """Return the seconds of one choice per call, conversions included."""
        choice = {f"call{index}": chosen for index, chosen in enumerate(indices)}
        return total_cost(self.nodes, self.edges, {**choice, "logical": 0})


Strategy = Callable[[LayoutProblem], tuple[list[int], bool]]
"""Returns one index per table, and whether no better choice exists."""


def assign_globally(problem: LayoutProblem) -> tuple[list[int], bool]:
    """Choose for the whole graph at once (`layout.assignment`)."""
    result = assign(problem.nodes, problem.edges)
    return [result.choice[f"call{index}"] for index in range(len(problem.tables))], result.proven


def per_operator(problem: LayoutProblem) -> tuple[list[int], bool]:
    """Give every operator its own best choice, and pay for the conversions."""
    return [_fastest(table) for table in problem.tables], False


def fixed(image_format: str) -> Strategy:
    """Return a strategy that keeps all images in one format wherever an operator can."""

    def strategy(problem: LayoutProblem) -> tuple[list[int], bool]:
        indices = []
        for operator, table in zip(problem.operators, problem.tables, strict=True):
            kept = [_images_in(operator, choice, image_format) for choice in table]
            best = [i for i, count in enumerate(kept) if count == max(kept)]
            indices.append(min(best, key=[choice.seconds for choice in table].__getitem__))
        return indices, False

    return strategy


def greedy(problem: LayoutProblem) -> tuple[list[int], bool]:
    """Propagate as ALT does (Xu et al., EuroSys 2023, section 4.2).

    Complex operators take their own best layout, in order; an operator between them takes the one
    that its producers' layouts make cheapest, so that it stays fused with them.
    """
    indices: list[int] = []
    for operator, table, call in zip(
        problem.operators, problem.tables, problem.program.calls, strict=True
    ):
        if find_contraction(blocks(operator.func)) is not None:
            indices.append(_fastest(table))
            continue
        costs = []
        for choice in table:
            seconds = choice.seconds
            for tensor, wanted in zip(call.reads, choice.layouts, strict=False):
                description = problem.program.tensors[tensor]
                if description.kind == "constant":
                    continue
                maker = problem.producers.get(tensor)
                have = Layout(description.shape)
                if maker is not None:
                    have = problem.tables[maker[0]][indices[maker[0]]].layouts[maker[1]]
                if have != wanted:
                    seconds += conversion_seconds(description.shape, description.dtype)
            costs.append(seconds)
        indices.append(int(np.argmin(costs)))
    return indices, False


def _fastest(table: Sequence[Choice]) -> int:
    return min(range(len(table)), key=lambda index: table[index].seconds)


def _images_in(operator: Operator, choice: Choice, image_format: str) -> int:
    """Count the operator's images that the choice has in the format, among those that could."""
    return sum(format_of(choice.layouts[position]) == image_format for position in operator.images)


STRATEGIES: dict[str, Strategy] = {
    "global": assign_globally,
    "greedy": greedy,
    "per-operator": per_operator,
    "NCHW": fixed("L"),
    "NHWC": fixed("C"),
    "NCHWc": fixed("B"),
}
