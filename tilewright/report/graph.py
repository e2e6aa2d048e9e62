"""The operators of a module as a graph: what flows where, in which layout, and what takes time."""

from __future__ import annotations

from tilewright.labels import short_label
from tilewright.report.module import Call, ModuleReport
from tilewright.report.svg import box, drawing, short_time, text, titled

_WIDTH, _HEIGHT = 236, 40
_ACROSS, _DOWN = 262, 66
_SIDE = 90  # how far an edge that passes operators swings out
_MOST_CHARACTERS = 28


def graph_chart(report: ModuleReport) -> str:
    """Draw the calls from top to bottom, each below all that it reads.

    The darker an operator, the more of the time it takes; conversions have their own colour.
    """
    if not any(call.reads for call in report.calls):
        return ""  # compiled by a release that did not say what reads what
    layers = _layers(report.calls)
    widest = max(map(len, layers))
    middle = widest * _ACROSS / 2 + _SIDE
    places: dict[int, tuple[float, float]] = {}
    for depth, layer in enumerate(layers):
        for column, index in enumerate(layer):
            x = middle + (column - (len(layer) - 1) / 2) * _ACROSS
            places[index] = (x, depth * _DOWN + 8)
    edges = "".join(_edge(places[a], places[b]) for a, b in _edges(report.calls))
    nodes = "".join(_node(report.calls[index], place) for index, place in places.items())
    return drawing(2 * middle, len(layers) * _DOWN, edges + nodes, "Operators and their layouts")


def _edges(calls: tuple[Call, ...]) -> list[tuple[int, int]]:
    """Return (writer, reader) by position; storage is used again, so the last writer counts."""
    written: dict[int, int] = {}
    found = []
    for index, call in enumerate(calls):
        for tensor in dict.fromkeys(call.reads):
            if tensor in written:
                found.append((written[tensor], index))
        for tensor in call.writes:
            written[tensor] = index
    return found


def _layers(calls: tuple[Call, ...]) -> list[list[int]]:
    """Return the positions of calls by depth; within one, near what they read."""
    depth = [0] * len(calls)
    sources: dict[int, list[int]] = {}
    for source, target in _edges(calls):
        depth[target] = max(depth[target], depth[source] + 1)
        sources.setdefault(target, []).append(source)
    layers: list[list[int]] = [[] for _ in range(max(depth, default=-1) + 1)]
    column: dict[int, float] = {}
    for index in range(len(calls)):
        layers[depth[index]].append(index)
    for layer in layers:
        layer.sort(
            key=lambda index: (
                sum(column[s] for s in sources.get(index, ())) / max(1, len(sources.get(index, ())))
            )
        )
        for position, index in enumerate(layer):
            column[index] = position - (len(layer) - 1) / 2
    return layers


def _edge(source: tuple[float, float], target: tuple[float, float]) -> str:
    x1, y1 = source[0], source[1] + _HEIGHT
    x2, y2 = target
    if y2 - y1 <= _DOWN:
        half = (y1 + y2) / 2
        return _curve((x1, y1), (x1, half), (x2, half), (x2, y2))
    out = max(x1, x2) + _WIDTH / 2 + _SIDE
    return _curve((x1, y1), (out, y1 + 20), (out, y2 - 20), (x2, y2))


def _curve(*points: tuple[float, float]) -> str:
    start, *others = (f"{x:.0f} {y:.0f}" for x, y in points)
    return f'<path class="edge" d="M{start} C{" ".join(others)}"/>'


def _node(call: Call, place: tuple[float, float]) -> str:
    x, y = place[0] - _WIDTH / 2, place[1]
    share = call.figures.get("share", 0.0)
    kind = "node convert" if call.is_conversion else "node"
    below = call.result_layout or ("layout conversion" if call.is_conversion else "plain layout")
    if call.figures:
        below += f"  {short_time(call.figures['seconds'])}"
    body = box("under", x, y, _WIDTH, _HEIGHT)  # edges that pass below would cross the text
    body += box(kind, x, y, _WIDTH, _HEIGHT, min(0.5, 0.05 + 2 * share))
    shown = short_label(call.label, _MOST_CHARACTERS)
    body += text(place[0], y + 16, shown, "middle", "name")
    body += text(place[0], y + 32, below, "middle", "layout")
    about = [call.label, f"kernel {call.kernel}", *call.layouts, " ".join(call.dtypes)]
    if call.tuning:
        about.append(f"{call.tuning}{': ' * bool(call.reason)}{call.reason}")
    return titled(body, "\n".join(about))
