"""Assignment: equal to exhaustive search, and close to its bound on graphs too large for that."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from tilewright.compiler.layout.assignment import Assignment, assign, total_cost
from tilewright.errors import LayoutError

_LAYOUTS = 6  # formats that the choices of the generated operators read and write

Nodes = dict[str, np.ndarray]
Edges = dict[tuple[str, str], np.ndarray]


def _exhaustive(nodes: Nodes, edges: Edges) -> float:
    names = list(nodes)
    ranges = [range(len(nodes[name])) for name in names]
    return min(
        total_cost(nodes, edges, dict(zip(names, choice, strict=True)))
        for choice in itertools.product(*ranges)
    )


def _random_graph(rng: np.random.Generator) -> tuple[Nodes, Edges]:
    """Up to 8 operators x 4 choices; edges both ways, self loops, forbidden choices and pairs."""
    count = int(rng.integers(1, 9))
    most = 4 if count < 8 else 3
    nodes = {f"n{i}": rng.uniform(0, 1, rng.integers(1, most + 1)) for i in range(count)}
    edges: Edges = {}
    density = rng.uniform(0.1, 1.0)
    for a, b in itertools.product(nodes, nodes):
        if rng.random() < density / (5 if a == b else 1):
            table = rng.uniform(0, 1, (nodes[a].size, nodes[b].size))
            table[rng.random(table.shape) < 0.1] = np.inf
            edges[a, b] = np.round(table, 1) if rng.random() < 0.3 else table
    return nodes, edges


class _Generator:
    """Residual stages, dense (concatenating) blocks and attention, strung together at random.

    A choice of an operator reads one format and writes one (element-wise ones write what they
    read); an edge costs the conversion between what is written and what is read.
    """

    def __init__(self, seed: int, choices: int = 8) -> None:
        self.rng = np.random.default_rng(seed)
        self.choices = choices
        self.nodes: Nodes = {}
        self.edges: Edges = {}
        self.reads: dict[str, np.ndarray] = {}
        self.writes: dict[str, np.ndarray] = {}
        self.conversion = self.rng.uniform(1.0, 1.5, (_LAYOUTS, _LAYOUTS))
        np.fill_diagonal(self.conversion, 0.0)

    def build(self, operators: int) -> tuple[Nodes, Edges]:
        last = self.complex()
        while len(self.nodes) < operators:
            last = [self.residual, self.dense, self.attention][self.rng.integers(3)](last)
        return self.nodes, self.edges

    def node(self, costs: np.ndarray, *inputs: str, simple: bool = False) -> str:
        name = f"op{len(self.nodes)}"
        self.nodes[name] = costs
        self.reads[name] = self.rng.integers(0, _LAYOUTS, self.choices)
        self.writes[name] = (
            self.reads[name] if simple else self.rng.integers(0, _LAYOUTS, self.choices)
        )
        for source in inputs:
            volume = self.rng.uniform(0.1, 0.8)
            table = volume * self.conversion[np.ix_(self.writes[source], self.reads[name])]
            self.edges[source, name] = self.edges.get((source, name), 0.0) + table
        return name

    def complex(self, *inputs: str) -> str:
        costs = self.rng.uniform(1, 4) * self.rng.uniform(1, 2, self.choices)
        return self.node(costs, *inputs)

    def simple(self, *inputs: str) -> str:
        costs = self.rng.uniform(0.2, 0.4) * self.rng.uniform(1, 1.15, self.choices)
        return self.node(costs, *inputs, simple=True)

    def residual(self, last: str) -> str:
        for _ in range(self.rng.integers(2, 6)):
            branch = last
            for _ in range(self.rng.integers(1, 4)):
                branch = self.complex(branch)
            last = self.simple(last, branch)
        return last

    def dense(self, last: str) -> str:
        features = [last]
        for _ in range(self.rng.integers(4, 13)):
            features.append(self.complex(self.simple(*features)))
        return self.simple(*features)

    def attention(self, last: str) -> str:
        heads = []
        for _ in range(self.rng.integers(1, 5)):
            query, key, value = (self.complex(last) for _ in range(3))
            heads.append(self.complex(self.simple(self.complex(query, key)), value))
        last = self.simple(last, self.complex(self.simple(*heads)))
        return self.simple(last, self.complex(self.complex(last)))


def _densenet(seed: int) -> tuple[Nodes, Edges]:
    """DenseNet-121's graph: every concatenation reads all features before it, 6 formats."""
    rng = np.random.default_rng(seed)
    conversion = rng.uniform(1.0, 1.5, (_LAYOUTS, _LAYOUTS))
    np.fill_diagonal(conversion, 0.0)
    nodes: Nodes = {}
    edges: Edges = {}

    def node(costs: np.ndarray, *inputs: tuple[str, float]) -> str:
        name = f"op{len(nodes)}"
        nodes[name] = costs
        for source, volume in inputs:
            edges[source, name] = volume * conversion
        return name

    def convolution(cost: float, *inputs: tuple[str, float]) -> str:
        return node(cost * rng.uniform(1.0, 1.8, _LAYOUTS), *inputs)

    last, channels, size = convolution(3.0), 64, 1.0
    for layers in (6, 12, 24, 16):
        features = [(last, channels * size / 300)]
        for _ in range(layers):
            volume = channels * size / 300
            concat = node(np.full(_LAYOUTS, volume / 2), *features)
            narrow = convolution(2 * size, (concat, volume))
            features.append((convolution(3 * size, (narrow, 0.4 * size)), 0.1 * size))
            channels += 32
        concat = node(np.full(_LAYOUTS, 0.1), *features)
        last = convolution(3 * size, (concat, channels * size / 300))
        channels, size = channels // 2, size / 2
    return nodes, edges


def _check(nodes: Nodes, edges: Edges, result: Assignment) -> None:
    assert list(result.choice) == list(nodes)
    assert result.cost == pytest.approx(total_cost(nodes, edges, result.choice))
    assert result.lower_bound <= result.cost


def test_assign_equals_exhaustive_search_on_300_random_graphs() -> None:
    rng = np.random.default_rng(20)
    forbidden = 0
    for _ in range(300):
        nodes, edges = _random_graph(rng)
        least = _exhaustive(nodes, edges)
        if np.isinf(least):
            forbidden += 1
            with pytest.raises(LayoutError, match="no choice of layouts is allowed"):
                assign(nodes, edges)
            continue
        result = assign(nodes, edges)
        _check(nodes, edges, result)
        assert result.proven
        assert result.cost == pytest.approx(least, rel=1e-9, abs=1e-12)
    assert 0 < forbidden < 150


def test_integer_program_equals_exhaustive_search(monkeypatch: pytest.MonkeyPatch) -> None:
    """The same without elimination of the core, which these graphs are too small to need."""
    monkeypatch.setattr("tilewright.compiler.layout.assignment._TABLE_ENTRIES", 0)
    rng = np.random.default_rng(21)
    for _ in range(150):
        nodes, edges = _random_graph(rng)
        least = _exhaustive(nodes, edges)
        if np.isinf(least):
            with pytest.raises(LayoutError, match="no choice of layouts is allowed"):
                assign(nodes, edges)
            continue
        result = assign(nodes, edges)
        _check(nodes, edges, result)
        assert result.proven
        assert result.cost == pytest.approx(least, rel=1e-7)


def test_assign_is_within_one_percent_of_its_bound_on_100_operators() -> None:
    nodes, edges = _Generator(seed=1).build(100)
    result = assign(nodes, edges, time_limit_s=10.0)
    _check(nodes, edges, result)
    assert result.cost <= 1.01 * result.lower_bound


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(5))
def test_assign_is_within_one_percent_of_its_bound_on_500_operators(seed: int) -> None:
    nodes, edges = _Generator(seed).build(500)
    result = assign(nodes, edges)
    _check(nodes, edges, result)
    assert result.cost <= 1.01 * result.lower_bound


def test_densenet_121_is_solved_to_proven_optimality() -> None:
    nodes, edges = _densenet(seed=0)
    result = assign(nodes, edges)
    _check(nodes, edges, result)
    assert result.proven


def test_chain_prefers_a_slower_operator_over_two_conversions() -> None:
    conversion = np.array([[0.0, 1.0], [1.0, 0.0]])
    nodes = {"a": [0.0, 9.0], "b": [1.5, 0.0], "c": [0.0, 9.0]}
    result = assign(nodes, {("a", "b"): conversion, ("b", "c"): conversion})
    assert result == Assignment({"a": 0, "b": 0, "c": 0}, 1.5, True, 1.5)


def test_edges_in_both_directions_are_added() -> None:
    nodes = {"a": [0.0, 0.0], "b": [0.0, 0.0]}
    edges = {("a", "b"): np.array([[0, 1], [2, 5]]), ("b", "a"): np.array([[4, 1], [1, 0]])}
    assert assign(nodes, edges).cost == 2.0


def test_assign_of_nothing_costs_nothing() -> None:
    assert assign({}, {}) == Assignment({}, 0.0, True, 0.0)


@pytest.mark.parametrize(
    ("nodes", "edges", "message"),
    [
        ({"a": []}, {}, "operator 'a' has costs"),
        ({"a": [np.inf]}, {}, "at least one finite cost"),
        ({"a": [np.nan, 1.0]}, {}, "operator 'a' contain NaN"),
        ({"a": [1.0]}, {("a", "b"): np.zeros((1, 1))}, "names 'b', which is no operator"),
        ({"a": [1.0], "b": [1.0, 2.0]}, {("a", "b"): np.zeros((2, 1))}, r"shape \[2, 1\]"),
    ],
)
def test_tables_that_make_no_sense_are_refused(nodes, edges, message) -> None:
    with pytest.raises(LayoutError, match=message):
        assign(nodes, edges)
