"""Choose one layout per operator so that the whole graph costs least.

Every operator has a cost per choice, every edge a cost per pair of choices: a PBQP. It is solved in
four steps, each exact; only the last may run out of time, and then says how far it may be off:

1. choices that can never pay are dropped, operators with at most two neighbours are eliminated
   (this alone solves chains, trees and most residual networks);
2. what remains is eliminated too where the tables of that stay small (bounded tree width);
3. else its linear relaxation gives a lower bound, and a neighbourhood search a good solution;
4. where these differ, the choices that still may be better go to HiGHS as an integer program.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import networkx as nx
import numpy as np

from tilewright.compiler.layout.pbqp import (
    NOTHING_ALLOWED,
    Model,
    back_substitute,
    elimination_order,
    reduce,
)
from tilewright.compiler.layout.pbqp_core import solve_core
from tilewright.errors import LayoutError

# Entries of the largest table that elimination may build: float64, 32 MiB.
_TABLE_ENTRIES = 1 << 22


@dataclass(frozen=True, slots=True)
class Assignment:
    """One choice per operator, and what is known about its quality.

    Attributes:
        choice: index into each operator's table of costs.
        cost: total of the operators' and the edges' costs, in the unit of the tables.
        proven: whether `cost` is the least possible, up to rounding.
        lower_bound: no assignment costs less than this.
    """

    choice: dict[str, int]
    cost: float
    proven: bool
    lower_bound: float


def assign(
    nodes: Mapping[str, Sequence[float]],
    edges: Mapping[tuple[str, str], np.ndarray],
    *,
    time_limit_s: float = 15.0,
    seed: int = 0,
) -> Assignment:
    """Choose one entry per node so that node costs and edge costs add up to the least.

    Args:
        nodes: name -> cost of each choice; `inf` forbids a choice.
        edges: (a, b) -> costs [choices of a, choices of b]; `inf` forbids a pair. Edges between the
            same two nodes, in either direction, are added.
        time_limit_s: for the parts that are not solved by elimination, together.
        seed: of the neighbourhood search.

    Raises:
        LayoutError: a table has the wrong shape or a NaN, or the tables allow no assignment.
    """
    model = Model.build(nodes, edges)
    rng = np.random.default_rng(seed)
    end = time.monotonic() + time_limit_s
    steps = reduce(model)
    if np.isinf(model.constant):
        raise LayoutError(NOTHING_ALLOWED)
    choice: dict[str, int] = {}
    bound = model.constant
    proven = True
    parts = [model.part(sorted(names)) for names in nx.connected_components(model.graph())]
    # Small parts first: what they do not use of the time is left to the large ones.
    parts.sort(key=lambda part: len(part.kept))
    for index, part in enumerate(parts):
        order = elimination_order(part, _TABLE_ENTRIES)
        if order is not None:
            part_steps = [part.eliminate(name) for name in order]
            choice |= back_substitute(part_steps, {})
            bound += part.constant
        else:
            now = time.monotonic()
            solution = solve_core(part, now + (end - now) / (len(parts) - index), rng)
            choice |= solution.choice
            bound += solution.lower_bound
            proven = proven and solution.proven
    if np.isposinf(bound):
        raise LayoutError(NOTHING_ALLOWED)
    choice = back_substitute(steps, choice)
    cost = total_cost(nodes, edges, choice)
    return Assignment(
        choice={name: choice[name] for name in nodes},
        cost=cost,
        proven=proven,
        lower_bound=cost if proven else min(bound, cost),
    )


def total_cost(
    nodes: Mapping[str, Sequence[float]],
    edges: Mapping[tuple[str, str], np.ndarray],
    choice: Mapping[str, int],
) -> float:
    """Add up the costs of all nodes and edges under one choice per node."""
    cost = sum(float(costs[choice[name]]) for name, costs in nodes.items())
    return cost + sum(float(table[choice[a], choice[b]]) for (a, b), table in edges.items())
