"""A module as part of the page: what it is, where its time goes, what would help."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from html import escape

from tilewright.labels import short_label
from tilewright.report.graph import graph_chart
from tilewright.report.module import ModuleReport, short_layout
from tilewright.report.operators import roofline, time_chart
from tilewright.report.svg import short_time

HEADER = ("operator", "time", "share", "to win", "waits for", "tuning", "layouts", "inner loop")
_FIGURES = (1, 2, 3)  # columns of numbers
_ADVICE = 10


def rows_of(report: ModuleReport) -> list[tuple[str, ...]]:
    """Return a line of text for every call, in the order in which they run."""
    rows = []
    for call in report.calls:
        figures = call.figures
        measured = (
            short_time(figures["seconds"]),
            f"{figures['share']:.1%}",
            short_time(figures["to_win_s"]),
            figures["waits_for"],
        ) if figures else ("", "", "", "")  # fmt: skip
        tuning = f"{call.tuning}{': ' * bool(call.reason)}{call.reason}"
        loop = figures.get("instructions") or ""
        layouts = " | ".join(short_layout(layout) or "plain" for layout in call.layouts)
        rows.append((short_label(call.label), *measured, tuning, layouts, loop))
    return rows


def advice_of(report: ModuleReport) -> list[str]:
    """Return what would help, the most milliseconds first."""
    if report.measured is None:
        return []
    advised = [row for row in report.measured["operators"] if row["advice"]]
    return [
        f"up to {short_time(row['to_win_s'])}: {short_label(row['label'])}: {row['advice']}"
        for row in advised[:_ADVICE]
    ]


def floats_of(report: ModuleReport) -> list[tuple[str, str]]:
    """Return (operator, why) of what a quantized model computes in floats."""
    return [
        (f"{row['operator']} {row['name']}", row["reason"])
        for row in report.quantized
        if not row["integer"]
    ]


def module_section(
    report: ModuleReport, table: Callable[[Sequence[str], Sequence[Sequence[str]]], str]
) -> str:
    """Return the section; `table` makes a table of cells that are HTML already."""
    parts = [f"<h2>{escape(report.title)}</h2>", _facts(report)]
    if report.why_not:
        parts.append(f'<p class="note">Not measured here: {escape(report.why_not)}</p>')
    chart = time_chart(report)
    if chart:
        parts.append("<h3>Time by operator</h3>")
        parts.append(
            '<p class="note">The full colour is what peak and bandwidth of this machine leave; '
            "the pale is the most that can be won.</p>"
        )
        parts.append(_scroll(chart))
    advice = advice_of(report)
    if advice:
        items = "".join(f"<li>{escape(line)}</li>" for line in advice)
        parts.append(f"<h3>What would help most</h3><ol>{items}</ol>")
    plot = roofline(report)
    if plot:
        parts.append("<h3>Roofline</h3>")
        parts.append(
            '<p class="note">Each operator by its operations a byte; the area is its share of the '
            "time. Above the slope its data came from a cache.</p>"
        )
        parts.append(_scroll(plot))
    graph = graph_chart(report)
    if graph:
        parts.append("<h3>Operators and their layouts</h3>")
        parts.append(
            '<p class="note">The darker, the more of the time; conversions are orange.</p>'
        )
        parts.append(f'<div class="graph" tabindex="0">{graph}</div>')
    if report.quantized:
        parts.append(_quantized(report, table))
    parts.append("<h3>Every operator</h3>")
    rows = [
        [_figure(cell) if at in _FIGURES else escape(cell) for at, cell in enumerate(row)]
        for row in rows_of(report)
    ]
    parts.append(table(HEADER, rows))
    return "".join(parts)


def _figure(text: str) -> str:
    """Return a number with its unit, which stay on one line."""
    return f'<span class="figure">{escape(text)}</span>'


def _facts(report: ModuleReport) -> str:
    facts = dict(report.facts)
    facts |= {"inputs": "; ".join(report.inputs), "outputs": "; ".join(report.outputs)}
    items = (f"<dt>{escape(k)}</dt><dd>{escape(v)}</dd>" for k, v in facts.items())
    return f"<dl>{''.join(items)}</dl>"


def _quantized(
    report: ModuleReport, table: Callable[[Sequence[str], Sequence[Sequence[str]]], str]
) -> str:
    floats = floats_of(report)
    integers = len(report.quantized) - len(floats)
    text = f"<p>{integers} of {len(report.quantized)} operators run on integers.</p>"
    if floats:
        rows = [[escape(name), escape(reason)] for name, reason in floats]
        text += table(("in floats", "why"), rows)
    return f"<h3>Integers and floats</h3>{text}"


def _scroll(content: str) -> str:
    return f'<div class="scroll">{content}</div>'
