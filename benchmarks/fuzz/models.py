"""Random valid models as a hypothesis strategy, so that a failing one shrinks to a small one."""

from __future__ import annotations

import onnx
from hypothesis import strategies as st

from benchmarks.fuzz.graph import Draw, Graph, Value, small_enough
from benchmarks.fuzz.moves import MOVES

_MOST_MOVES = 7
_EXTENTS = (1, 2, 3, 4, 5, 7, 8, 9, 11, 13, 14, 16, 17)
_CHANNELS = (1, 2, 3, 4, 5, 7, 8, 12, 16, 17, 24, 32, 33, 48)


@st.composite
def models(draw: Draw) -> onnx.ModelProto:
    """Draw a model of float32 inputs and outputs with up to a dozen nodes."""
    graph = Graph(draw)
    graph.add_input(_input_shape(graph))
    if graph.chance(6):
        graph.add_input(graph.values[0].shape)
    for _ in range(graph.integer(1, _MOST_MOVES)):
        _extend(graph)
    return graph.finish()


def _input_shape(graph: Graph) -> list[int]:
    """Return the shape of an image, a sequence, a matrix, a signal or a volume."""
    kind = graph.pick((*["image"] * 5, "sequence", "matrix", "signal", "volume"))
    batch = graph.pick((1, 1, 2, 3))
    if kind == "matrix":
        return [graph.pick(_EXTENTS), graph.pick(_CHANNELS)]
    if kind == "sequence":
        return [batch, graph.pick(_EXTENTS), graph.pick(_CHANNELS)]
    spatial = {"image": 2, "signal": 1, "volume": 3}[kind]
    extents = _EXTENTS if spatial < 3 else _EXTENTS[:7]
    return [batch, graph.pick(_CHANNELS), *(graph.pick(extents) for _ in range(spatial))]


def _extend(graph: Graph) -> None:
    """Add one move to the graph; the latest tensor is read more often than others."""
    source: Value = graph.pick(graph.values) if graph.chance(4) else graph.values[-1]
    before = len(graph.nodes), len(graph.weights), len(graph.values), set(graph.used)
    found = graph.pick(MOVES)(graph, source)
    if found is not None and small_enough(found.shape):
        graph.values.append(found)
        return
    nodes, weights, values, used = before
    del graph.nodes[nodes:], graph.weights[weights:], graph.values[values:]
    graph.used = used
