"""Charts as inline SVG: colours come from the page's style, so that they follow light and dark."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from html import escape

from tilewright.report.comparison import Figure, Row
from tilewright.report.svg import drawing, line, text

_WIDTH = 900
_LABEL = 150
_RIGHT = 20
_ROW = 19
_TOP = 26
_RATIO_TICKS = (0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 50, 100)
_STYLES = 6  # colours in the page's style


def legend(names: Sequence[str]) -> str:
    """Return the key of the colours: name by name, in the order of the series."""
    items = (
        f'<span><i class="key s{index % _STYLES}"></i>{escape(name)}</span>'
        for index, name in enumerate(names)
    )
    return f'<p class="legend">{"".join(items)}</p>'


def ratio_chart(rows: Sequence[Row], peers: Sequence[str]) -> str:
    """Draw each peer's time over ours, one line a row, with its 95% interval, on a log scale.

    Right of 1 tilewright is faster; the left side is shaded.
    """
    found = [f for row in rows for p in peers if (f := row.figures.get(p)) and f.ratio]
    if not found:
        return ""
    low = min(0.5, *(f.low or f.ratio or 1 for f in found))
    high = max(2.0, *(f.high or f.ratio or 1 for f in found))
    span = math.log(high / low) * 1.04

    def x(value: float) -> float:
        share = math.log(value / low) / span
        return _LABEL + max(0.0, share) * (_WIDTH - _LABEL - _RIGHT)

    height = _TOP + _ROW * (len(rows) + 1) + 8
    bottom = height - 6
    parts = [f'<rect class="lost" x="{_LABEL}" y="{_TOP}" width="{x(1) - _LABEL:.1f}" ']
    parts.append(f'height="{bottom - _TOP}"/>')
    for tick in _RATIO_TICKS:
        if low <= tick <= high:
            kind = "one" if tick == 1 else "grid"
            parts.append(line(kind, x(tick), _TOP, x(tick), bottom))
            parts.append(text(x(tick), _TOP - 8, f"{tick:g}x", "middle"))
    parts.append(text(x(1) - 8, _TOP + 10, "tilewright slower", "end"))
    parts.append(text(x(1) + 8, _TOP + 10, "faster", "start"))
    for index, row in enumerate(rows):
        y = _TOP + _ROW * (index + 1.5)
        parts.append(text(_LABEL - 8, y + 4, row.name, "end"))
        for series, peer in enumerate(peers):
            figure = row.figures.get(peer)
            if figure is not None and figure.ratio is not None:
                offset = (series - (len(peers) - 1) / 2) * min(3.0, 12 / len(peers))
                parts.append(_point(x, y + offset, figure, series, f"{row.name}, {peer}"))
    return drawing(_WIDTH, height, "".join(parts), "Time of each peer over tilewright's")


def curve_chart(curves: Mapping[str, Sequence[Sequence[float | None]]], by_seconds: bool) -> str:
    """Draw the best time found so far, in milliseconds, against trials or against seconds."""
    found = {name: _best_so_far(curve, by_seconds) for name, curve in curves.items()}
    points = [point for curve in found.values() for point in curve]
    if not points:
        return ""
    width, height, left, bottom = 440, 220, 66, 190
    last = max(at for at, _ in points)
    top = max(value for _, value in points)
    least = min(value for _, value in points)
    span = math.log(top / least) or 1.0

    def place(at: float, value: float) -> str:
        x = left + at / last * (width - left - 12)
        y = bottom - math.log(value / least) / span * (bottom - 16)
        return f"{x:.1f},{y:.1f}"

    parts = [line("grid", left, bottom, width - 12, bottom)]
    for value in (least, math.sqrt(least * top), top):
        y = bottom - math.log(value / least) / span * (bottom - 16)
        parts.append(line("grid", left, y, width - 12, y))
        parts.append(text(left - 6, y + 4, f"{1e3 * value:.3g} ms", "end"))
    unit = "seconds" if by_seconds else "trials"
    parts.append(text(width - 12, bottom + 18, f"{last:.0f} {unit}", "end"))
    for index, curve in enumerate(found.values()):
        if curve:
            steps = [place(*curve[0])]
            for (_, before), (at, value) in itertools.pairwise(curve):
                steps += [place(at, before), place(at, value)]
            steps.append(place(last, curve[-1][1]))
            points_text = " ".join(steps)
            parts.append(f'<polyline class="curve s{index % _STYLES}" points="{points_text}"/>')
    return drawing(width, height, "".join(parts), f"Best time against {unit}")


def _best_so_far(
    curve: Sequence[Sequence[float | None]], by_seconds: bool
) -> list[tuple[float, float]]:
    best: float | None = None
    spent = 0.0
    points = []
    for index, (seconds, cost) in enumerate(curve, start=1):
        spent += cost or 0.0
        if seconds is not None and (best is None or seconds < best):
            best = seconds
            points.append((spent if by_seconds else float(index), best))
    if best is not None:  # what came after the best counts as spent
        points.append((spent if by_seconds else float(len(curve)), best))
    return points


def _point(x: Callable[[float], float], y: float, figure: Figure, series: int, title: str) -> str:
    assert figure.ratio is not None
    low, high = figure.low or figure.ratio, figure.high or figure.ratio
    name = f"s{series % _STYLES}"
    return (
        f"<g><title>{escape(title)}: {figure.ratio:.2f} [{low:.2f} .. {high:.2f}]</title>"
        + line(f"range {name}", x(low), y, x(high), y)
        + f'<circle class="dot {name}" cx="{x(figure.ratio):.1f}" cy="{y:.1f}" r="3.6"/></g>'
    )
