"""Draw a lowered model as a graph: operators, the layouts of their tensors, conversions marked."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from tilewright.errors import CompileError, MissingExtraError

if TYPE_CHECKING:
    import networkx as nx

    from tilewright.compiler.pipeline import Lowered

_CONVERSION = "convert "
_COLOURS = {"operator": "#cfe3f5", "conversion": "#f4a6a0", "interface": "#e6e6e6"}
_INCHES_PER_ROW = 0.55
_INCHES_PER_COLUMN = 3.2


def layout_graph(lowered: Lowered) -> nx.DiGraph:
    """Return the calls as nodes and the tensors between them as edges.

    Nodes have "text" and "kind" (operator, conversion, interface); edges have "text", the physical
    shape of the tensor that flows.
    """
    import networkx as nx

    program, graph = lowered.program, nx.DiGraph()
    made_by: dict[int, str] = {}
    for tensor, spec in zip(program.inputs, program.input_specs, strict=True):
        made_by[tensor] = f"input {spec.name}"
        graph.add_node(made_by[tensor], text=spec.name, kind="interface")
    choices = iter(lowered.plan.choices)
    for call in program.calls:
        is_conversion = call.label.startswith(_CONVERSION)
        text = call.label if is_conversion else f"{call.label}\n{next(choices).name}"
        kind = "conversion" if is_conversion else "operator"
        graph.add_node(call.label, text=text, kind=kind)
        for tensor in call.reads:
            _connect(graph, lowered, made_by, tensor, call.label)
        for tensor in call.writes:
            made_by[program.storage_of(tensor)] = call.label
    for tensor, spec in zip(program.outputs, program.output_specs, strict=True):
        node = f"output {spec.name}"
        graph.add_node(node, text=spec.name, kind="interface")
        _connect(graph, lowered, made_by, tensor, node)
    return graph


def _connect(
    graph: nx.DiGraph, lowered: Lowered, made_by: dict[int, str], tensor: int, reader: str
) -> None:
    maker = made_by.get(lowered.program.storage_of(tensor))
    if maker is not None:
        shape = lowered.program.tensors[tensor].shape
        graph.add_edge(maker, reader, text="x".join(map(str, shape)))


def write_dot(lowered: Lowered, path: Path) -> None:
    """Write the graph in Graphviz's DOT language.

    Raises:
        CompileError: the file cannot be written.
    """
    graph = layout_graph(lowered)
    lines = ["digraph layouts {", "  node [shape=box, style=filled, fontname=sans];"]
    for node, data in graph.nodes(data=True):
        colour = _COLOURS[data["kind"]]
        lines.append(f'  {_quote(node)} [label={_quote(data["text"])}, fillcolor="{colour}"];')
    for source, target, data in graph.edges(data=True):
        lines.append(f"  {_quote(source)} -> {_quote(target)} [label={_quote(data['text'])}];")
    try:
        path.write_text("\n".join([*lines, "}"]) + "\n")
    except OSError as error:
        raise CompileError(f"cannot write {path}: {error.strerror or error}") from error


def _quote(text: str) -> str:
    escaped = text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
    return f'"{escaped}"'


def write_svg(lowered: Lowered, path: Path) -> None:
    """Draw the graph from top to bottom as SVG.

    Raises:
        MissingExtraError: matplotlib is not installed.
        CompileError: the file cannot be written.
    """
    import networkx as nx

    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise MissingExtraError(
            "drawing needs matplotlib; install it with: pip install 'tilewright[report]'"
        ) from error
    graph = layout_graph(lowered)
    generations = [list(nodes) for nodes in nx.topological_generations(graph)]
    rows, widest = len(generations), max(len(nodes) for nodes in generations)
    places = {
        node: (column - (len(nodes) - 1) / 2, -row)
        for row, nodes in enumerate(generations)
        for column, node in enumerate(nodes)
    }
    figure = Figure(figsize=(_INCHES_PER_COLUMN * (widest + 0.2), max(3.0, _INCHES_PER_ROW * rows)))
    axes = figure.add_axes((0, 0, 1, 1))
    axes.axis("off")
    axes.set_xlim(-widest / 2 - 0.1, widest / 2 + 0.1)
    axes.set_ylim(-rows, 1)
    colours = [_COLOURS[data["kind"]] for _, data in graph.nodes(data=True)]
    nx.draw_networkx_edges(graph, places, ax=axes, edge_color="#888888", arrows=True)
    for (node, data), colour in zip(graph.nodes(data=True), colours, strict=True):
        box = {"boxstyle": "round", "facecolor": colour, "edgecolor": "#555555"}
        text = data["text"].replace("\n", "   ")
        axes.text(*places[node], text, fontsize=7, ha="center", va="center", bbox=box)
    texts = {(a, b): data["text"] for a, b, data in graph.edges(data=True)}
    nx.draw_networkx_edge_labels(graph, places, texts, ax=axes, font_size=6, rotate=False)
    try:
        figure.savefig(path, format="svg")
    except OSError as error:
        raise CompileError(f"cannot write {path}: {error.strerror or error}") from error
