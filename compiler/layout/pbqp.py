"""Cost tables over small sets of choices, and their exact reduction by elimination.

The reductions are those of Scholz and Eckstein, "Register Allocation for Irregular Architectures"
(LCTES 2002), written as variable elimination: a node with no, one or two neighbours is the case in
which no table larger than a pair's arises.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import networkx as nx
import numpy as np

from tilewright.errors import LayoutError

# Costs are compared with this relative slack, so that rounding never drops the best choice.
_SLACK = 1e-9

NOTHING_ALLOWED = "no choice of layouts is allowed by every operator and every edge"

Scope = tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Step:
    """How to choose an eliminated node once its neighbours are chosen.

    Attributes:
        node: the eliminated node.
        neighbours: one per axis of `best`.
        kept: per neighbour, the choices that the positions of its axis stand for.
        best: choices of the node, an integer array [choices of neighbour 0, ...].
    """

    node: str
    neighbours: Scope
    kept: tuple[tuple[int, ...], ...]
    best: np.ndarray

    def choose(self, choice: Mapping[str, int]) -> int:
        """Return the best choice of the node, given those of its neighbours."""
        position = tuple(
            kept.index(choice[name]) for name, kept in zip(self.neighbours, self.kept, strict=True)
        )
        return int(self.best[position])


@dataclass(slots=True)
class Model:
    """A sum of tables over sorted scopes of nodes; the methods change it in place.

    Attributes:
        kept: node -> the choices that are left, one per position of its axes.
        tables: scope -> costs, float64, one axis per node of the scope.
        scopes: node -> the scopes of `tables` that it is in.
        constant: cost that no choice changes; `inf` when nothing is allowed.
    """

    kept: dict[str, tuple[int, ...]] = field(default_factory=dict)
    tables: dict[Scope, np.ndarray] = field(default_factory=dict)
    scopes: dict[str, set[Scope]] = field(default_factory=dict)
    constant: float = 0.0

    @classmethod
    def build(
        cls,
        nodes: Mapping[str, Sequence[float]],
        edges: Mapping[tuple[str, str], np.ndarray],
    ) -> Model:
        """Check the costs and collect them; raises LayoutError if they make no sense."""
        model = cls()
        for name, costs in nodes.items():
            array = _checked(costs, f"the costs of operator '{name}'")
            if array.ndim != 1 or not np.isfinite(array).any():
                raise LayoutError(
                    f"operator '{name}' has costs {array.tolist()}: give a list with at least one "
                    "finite cost, one entry per layout choice"
                )
            model.kept[name] = tuple(range(array.size))
            model.scopes[name] = set()
            model.add((name,), array)
        for (a, b), pairs in edges.items():
            for name in (a, b):
                if name not in model.kept:
                    raise LayoutError(f"edge '{a}' -> '{b}' names '{name}', which is no operator")
            table = _checked(pairs, f"the costs of edge '{a}' -> '{b}'")
            expected = (len(model.kept[a]), len(model.kept[b]))
            if table.shape != expected:
                raise LayoutError(
                    f"edge '{a}' -> '{b}' has a table of shape {list(table.shape)}, but its "
                    f"operators have {expected[0]} and {expected[1]} choices"
                )
            if a == b:
                model.add((a,), table.diagonal())
            else:
                model.add((a, b) if a < b else (b, a), table if a < b else table.T)
        return model

    def add(self, scope: Scope, table: np.ndarray) -> None:
        """Add a table, merging it with one of the same scope."""
        if not scope:
            self.constant += float(table)
        elif scope in self.tables:
            self.tables[scope] = self.tables[scope] + table
        else:
            self.tables[scope] = np.asarray(table, dtype=np.float64)
            for name in scope:
                self.scopes[name].add(scope)

    def remove(self, scope: Scope) -> np.ndarray:
        """Take a table out and return it."""
        for name in scope:
            self.scopes[name].discard(scope)
        return self.tables.pop(scope)

    def neighbours(self, name: str) -> Scope:
        """Return the nodes that share a table with this one, sorted."""
        return tuple(sorted({n for scope in self.scopes[name] for n in scope} - {name}))

    def graph(self) -> nx.Graph:
        """Return the graph of which nodes share a table."""
        graph = nx.Graph()
        graph.add_nodes_from(self.kept)
        graph.add_edges_from((a, b) for a in self.kept for b in self.neighbours(a))
        return graph

    def part(self, names: Sequence[str]) -> Model:
        """Copy the part with some of the nodes, and only the tables that lie within them."""
        inside = set(names)
        tables = {s: t for s, t in self.tables.items() if inside.issuperset(s)}
        scopes = {n: {s for s in self.scopes[n] if s in tables} for n in names}
        return Model({n: self.kept[n] for n in names}, tables, scopes)

    def keep_only(self, name: str, positions: np.ndarray) -> None:
        """Drop all other choices of a node."""
        kept = self.kept[name]
        self.kept[name] = tuple(kept[int(p)] for p in positions)
        for scope in self.scopes[name]:
            self.tables[scope] = np.take(self.tables[scope], positions, axis=scope.index(name))

    def eliminate(self, name: str) -> Step:
        """Remove a node: its best choice becomes a function of its neighbours' choices."""
        neighbours = self.neighbours(name)
        axes = (*neighbours, name)
        table = np.zeros([len(self.kept[n]) for n in axes])
        for scope in list(self.scopes[name]):
            part = self.remove(scope)
            # Scopes are sorted but `axes` ends with the node itself.
            part = np.moveaxis(part, scope.index(name), -1)
            table += part.reshape([len(self.kept[n]) if n in scope else 1 for n in axes])
        best = np.array(self.kept[name])[np.argmin(table, axis=-1)]
        step = Step(name, neighbours, tuple(self.kept[n] for n in neighbours), best)
        self.add(neighbours, np.min(table, axis=-1))
        del self.kept[name], self.scopes[name]
        return step

    def cost(self, choice: Mapping[str, int]) -> float:
        """Add up all tables under one choice per node."""
        position = {name: kept.index(choice[name]) for name, kept in self.kept.items()}
        tables = self.tables.items()
        return self.constant + sum(float(t[tuple(position[n] for n in s)]) for s, t in tables)

    def restrict(self, choice: Mapping[str, int], free: Sequence[str]) -> Model:
        """Return the problem of the `free` nodes when every other node keeps its choice."""
        small = Model({n: self.kept[n] for n in free}, {}, {n: set() for n in free})
        for scope in {s for n in free for s in self.scopes[n]}:
            index = tuple(
                slice(None) if n in small.kept else self.kept[n].index(choice[n]) for n in scope
            )
            small.add(tuple(n for n in scope if n in small.kept), self.tables[scope][index])
        return small


def reduce(model: Model) -> list[Step]:
    """Drop choices and tables that cannot matter, eliminate nodes of at most two neighbours."""
    steps = []
    waiting = dict.fromkeys(model.kept)
    while waiting:
        name, _ = waiting.popitem()
        if name not in model.kept:
            continue
        before = model.neighbours(name)
        changed = _drop_dominated(model, name)
        for scope in [s for s in model.scopes[name] if len(s) == 2]:
            changed |= _split_separable(model, scope)
        if len(model.kept[name]) == 1 or len(model.neighbours(name)) <= 2:
            steps.append(model.eliminate(name))
            changed = True
        if changed:
            waiting.update(dict.fromkeys(n for n in (name, *before) if n in model.kept))
    return steps


def elimination_order(model: Model, max_entries: int) -> list[str] | None:
    """Order all nodes so that no table of more entries arises; None if the greedy order fails.

    Greedy by the smallest table, the usual heuristic for a small tree width.
    """
    graph = model.graph()
    choices = {name: len(kept) for name, kept in model.kept.items()}

    def entries(name: str) -> int:
        product = choices[name]
        for other in graph.neighbors(name):
            product *= choices[other]
        return product

    sizes = {name: entries(name) for name in graph}
    order = []
    while sizes:
        name = min(sizes, key=lambda n: (sizes[n], n))
        if sizes.pop(name) > max_entries:
            return None
        order.append(name)
        around = sorted(graph.neighbors(name))
        graph.remove_node(name)
        graph.add_edges_from((a, b) for i, a in enumerate(around) for b in around[i + 1 :])
        sizes.update((other, entries(other)) for other in around)
    return order


def back_substitute(steps: Sequence[Step], choice: Mapping[str, int]) -> dict[str, int]:
    """Choose the eliminated nodes, last first, after the nodes that were left."""
    complete = dict(choice)
    for step in reversed(steps):
        complete[step.node] = step.choose(complete)
    return complete


def _checked(costs: Sequence[float] | np.ndarray, what: str) -> np.ndarray:
    array = np.array(costs, dtype=np.float64)
    if np.isnan(array).any() or np.isneginf(array).any():
        raise LayoutError(f"{what} contain NaN or -inf; costs are numbers or inf for 'forbidden'")
    return array


def _drop_dominated(model: Model, name: str) -> bool:
    """Drop each choice that another one replaces at no loss, whatever the neighbours choose."""
    if _drop_forbidden(model, name):
        return True
    own = model.tables.get((name,), np.zeros(len(model.kept[name])))
    if not np.isfinite(own).all():
        return False  # nothing is allowed: elimination will say so
    # excess[a, b]: the least that choosing a costs more than choosing b. Forbidden a: inf.
    excess = _difference(own[:, None], own[None, :])
    for scope in model.scopes[name]:
        if len(scope) == 1:
            continue
        table = np.moveaxis(model.tables[scope], scope.index(name), 0)
        rows = table.reshape(len(table), -1)
        least = _difference(rows[:, None, :], rows[None, :, :]).min(axis=-1)
        with np.errstate(invalid="ignore"):  # inf - inf only if nothing is allowed; NaN drops none
            excess = excess + least
    slack = _SLACK * max(1e-300, float(np.max(own, initial=0.0, where=np.isfinite(own))))
    alive = np.ones(len(own), dtype=bool)
    for a in range(len(own)):
        # Of two equal choices the later one goes.
        better = excess[a] >= np.where(np.arange(len(own)) < a, 0.0, slack)
        better[a] = False
        alive[a] = not (better & alive).any()
    if alive.all():
        return False
    model.keep_only(name, np.flatnonzero(alive))
    return True


def _drop_forbidden(model: Model, name: str) -> bool:
    """Drop the choices that some table forbids altogether; if that is all, nothing is allowed."""
    allowed = np.ones(len(model.kept[name]), dtype=bool)
    for scope in model.scopes[name]:
        table = np.moveaxis(model.tables[scope], scope.index(name), 0)
        allowed &= np.isfinite(table).reshape(len(table), -1).any(axis=1)
    if not allowed.any():
        model.constant = np.inf
        return False
    if allowed.all():
        return False
    model.keep_only(name, np.flatnonzero(allowed))
    return True


def _difference(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Return a - b where a forbidden a is never worse to drop, a forbidden b never to prefer."""
    with np.errstate(invalid="ignore"):
        return np.where(np.isposinf(a), np.inf, a - b)


def _split_separable(model: Model, scope: Scope) -> bool:
    """Replace a table that is a sum over its two nodes, so that it ties them no longer."""
    table = model.tables[scope]
    if 1 in table.shape:
        other = scope[1 - table.shape.index(1)]
        model.add((other,), model.remove(scope).reshape(-1))
        return True
    if not np.isfinite(table).all():
        return False
    rows = table.min(axis=1)
    rest = table - rows[:, None]
    columns = rest.min(axis=0)
    if (rest - columns).max() > _SLACK * np.abs(table).max(initial=0.0):
        return False
    model.remove(scope)
    model.add(scope[:1], rows)
    model.add(scope[1:], columns)
    return True
