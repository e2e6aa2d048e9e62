"""Solve the part of a PBQP that elimination leaves: relaxation, local search, integer program.

All tables are over one or two nodes here. The linear relaxation over the local polytope (one
variable per choice of a node and per pair of choices of an edge, each edge's variables adding up to
its nodes') gives a lower bound, the search an upper bound; a choice whose reduced cost does not fit
between the two is dropped, which usually leaves HiGHS little or nothing to branch on.
"""

from __future__ import annotations

import time
from dataclasses import dataclass

import networkx as nx
import numpy as np
from scipy import optimize, sparse

from tilewright.compiler.layout.pbqp import (
    NOTHING_ALLOWED,
    Model,
    back_substitute,
    elimination_order,
)
from tilewright.errors import LayoutError

# Size of the neighbourhoods that the search solves exactly, in nodes and in entries per table.
_BALL_NODES = 16
_BALL_ENTRIES = 1 << 12
# The search ends after this many steps per node without progress, or this share of the time left.
_IDLE_STEPS_PER_NODE = 0.5
_SEARCH_SHARE = 0.25
_SLACK = 1e-9
_INFEASIBLE = 2  # scipy's status


@dataclass(frozen=True, slots=True)
class CoreSolution:
    """Choices of the core's nodes and a lower bound of their cost."""

    choice: dict[str, int]
    lower_bound: float
    proven: bool


def solve_core(model: Model, deadline: float, rng: np.random.Generator) -> CoreSolution:
    """Solve one connected component.

    Args:
        model: tables over at most two nodes each; some of its choices are dropped.
        deadline: `time.monotonic()` at which the best so far is returned.
        rng: for the neighbourhoods of the search.

    Raises:
        LayoutError: no assignment is allowed, or none was found in time.
    """
    program = _Program(model)
    bound, values, reduced_costs = program.relax(deadline)
    choice = _search(model, program.rounded(values), deadline, rng)
    cost = model.cost(choice)
    slack = _SLACK * max(abs(cost), 1e-300)
    if cost <= bound + slack:
        return CoreSolution(choice, cost, True)
    for name, excess in program.per_node(reduced_costs).items():
        model.keep_only(name, np.flatnonzero(bound + excess <= cost + slack))
    exact, exact_bound = _Program(model).integer(deadline)
    proven = exact_bound >= min(model.cost(exact) if exact else np.inf, cost) - slack
    if exact is not None and model.cost(exact) < cost:
        choice, cost = exact, model.cost(exact)
    return CoreSolution(choice, cost if proven else max(bound, exact_bound), proven)


class _Program:
    """The linearised problem: columns are choices of nodes, then allowed pairs of edges."""

    def __init__(self, model: Model) -> None:
        self.model = model
        self.start: dict[str, int] = {}
        costs: list[np.ndarray] = []
        rows: list[np.ndarray] = []
        columns: list[np.ndarray] = []
        values: list[np.ndarray] = []
        n_columns = 0
        n_rows = 0
        for name, kept in model.kept.items():
            self.start[name] = n_columns
            count = len(kept)
            costs.append(model.tables.get((name,), np.zeros(count)))
            rows.append(np.full(count, n_rows))
            columns.append(n_columns + np.arange(count))
            values.append(np.ones(count))
            n_columns += count
            n_rows += 1
        self.n_choices = n_columns
        right = [1.0] * n_rows
        for scope, table in model.tables.items():
            if len(scope) == 1:
                continue
            pairs = np.nonzero(np.isfinite(table))
            costs.append(table[pairs])
            y = n_columns + np.arange(pairs[0].size)
            for axis, name in enumerate(scope):
                count = table.shape[axis]
                rows += [n_rows + pairs[axis], n_rows + np.arange(count)]
                columns += [y, self.start[name] + np.arange(count)]
                values += [np.ones(y.size), -np.ones(count)]
                n_rows += count
                right += [0.0] * count
            n_columns += y.size
        self.costs = np.concatenate(costs)
        self.right = np.array(right)
        self.matrix = sparse.csr_array(
            (np.concatenate(values), (np.concatenate(rows), np.concatenate(columns))),
            shape=(n_rows, n_columns),
        )

    def relax(self, deadline: float) -> tuple[float, np.ndarray, np.ndarray]:
        """Return lower bound, values and reduced costs of the choices; a weak bound if late."""
        options = {"time_limit": max(0.1, deadline - time.monotonic())}
        result = optimize.linprog(
            self.costs, A_eq=self.matrix, b_eq=self.right, bounds=(0, None), options=options
        )
        if result.status == _INFEASIBLE:
            raise LayoutError(NOTHING_ALLOWED)
        choices = slice(0, self.n_choices)
        if result.status != 0:
            least = sum(float(table.min()) for table in self.model.tables.values())
            return least, -self.costs[choices], np.zeros(self.n_choices)
        return result.fun, result.x[choices], result.lower.marginals[choices]

    def integer(self, deadline: float) -> tuple[dict[str, int] | None, float]:
        """Return the best assignment found, if any, and a lower bound of all assignments."""
        integrality = np.zeros(self.costs.size)
        integrality[: self.n_choices] = 1
        result = optimize.milp(
            self.costs,
            integrality=integrality,
            bounds=optimize.Bounds(0, 1),
            constraints=optimize.LinearConstraint(self.matrix, self.right, self.right),
            options={"time_limit": max(0.1, deadline - time.monotonic()), "mip_rel_gap": _SLACK},
        )
        if result.x is None:
            bound = np.inf if result.status == _INFEASIBLE else -np.inf
            return None, bound
        return self.rounded(result.x[: self.n_choices]), result.mip_dual_bound

    def rounded(self, values: np.ndarray) -> dict[str, int]:
        """Take each node's choice with the largest value."""
        kept = self.model.kept
        return {n: kept[n][int(np.argmax(v))] for n, v in self.per_node(values).items()}

    def per_node(self, values: np.ndarray) -> dict[str, np.ndarray]:
        """Cut an array over all choices [n_choices] into one per node."""
        kept = self.model.kept
        return {n: values[at : at + len(kept[n])] for n, at in self.start.items()}


def _search(
    model: Model, choice: dict[str, int], deadline: float, rng: np.random.Generator
) -> dict[str, int]:
    """Improve an assignment by solving small neighbourhoods exactly until that stops helping."""
    graph = model.graph()
    names = list(model.kept)
    cost = model.cost(choice)
    idle = 0
    now = time.monotonic()
    deadline = now + _SEARCH_SHARE * (deadline - now)
    while idle < _IDLE_STEPS_PER_NODE * len(names) and time.monotonic() < deadline:
        free = _ball(graph, names[rng.integers(len(names))], rng)
        small = model.restrict(choice, free)
        order = elimination_order(small, _BALL_ENTRIES)
        while order is None:
            free = free[: len(free) * 2 // 3]
            small = model.restrict(choice, free)
            order = elimination_order(small, _BALL_ENTRIES)
        trial = choice | back_substitute([small.eliminate(name) for name in order], {})
        trial_cost = model.cost(trial)
        idle = 0 if trial_cost < cost - _SLACK * abs(cost) else idle + 1
        if trial_cost < cost:
            choice, cost = trial, trial_cost
    return choice


def _ball(graph: nx.Graph, centre: str, rng: np.random.Generator) -> list[str]:
    """Grow a connected set of nodes at random."""
    inside = [centre]
    border = set(graph.neighbors(centre))
    while border and len(inside) < _BALL_NODES:
        candidates = sorted(border)
        name = candidates[rng.integers(len(candidates))]
        inside.append(name)
        border |= set(graph.neighbors(name))
        border -= set(inside)
    return inside
