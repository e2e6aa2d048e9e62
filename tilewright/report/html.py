"""Reports as one HTML page without scripts, fonts or anything else from a network."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from tilewright.report import charts, markdown
from tilewright.report.comparison import EVEN, LOST, OURS, WON, Comparison, Figure, Row
from tilewright.report.module import ModuleReport
from tilewright.report.module_page import module_section
from tilewright.report.operators import error_chart
from tilewright.report.quantization import QuantizationReport
from tilewright.report.tuning import Facts

Section = Comparison | Facts | ModuleReport | QuantizationReport

_STYLE = """
:root { color-scheme: light dark; --ground: #fcfcfb; --ink: #1d1d1b; --dim: #6b6a66;
  --rule: #dddbd5; --shade: #f3e9e4; --lost: #b3261e; --won: #1b6e3c;
  --c0: #2a78d6; --c1: #eb6834; --c2: #1baf7a; --c3: #b98300; --c4: #c2528b; --c5: #5b53c9; }
@media (prefers-color-scheme: dark) { :root { --ground: #1a1a19; --ink: #ecebe7; --dim: #a3a19b;
  --rule: #3b3a37; --shade: #33261f; --lost: #ff8a7a; --won: #6fd495;
  --c0: #5a9ff0; --c1: #f08454; --c2: #35c791; --c3: #e0ab2b; --c4: #e583b3; --c5: #9a93f5; } }
body { background: var(--ground); color: var(--ink); font: 15px/1.5 system-ui, sans-serif;
  max-width: 1080px; margin: 2rem auto; padding: 0 1rem; }
h1 { font-size: 1.6rem; } h2 { margin-top: 2.5rem; } h3 { margin-top: 1.8rem; }
p.note, dl { color: var(--dim); }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; font-size: 13px; font-variant-numeric: tabular-nums; }
th, td { padding: .25rem .7rem .25rem 0; text-align: left; vertical-align: top;
  border-bottom: 1px solid var(--rule); }
th { color: var(--dim); font-weight: 600; }
td small { color: var(--dim); display: block; white-space: nowrap; }
td:first-child small { min-width: 15rem; white-space: normal; }
td small.flag { color: var(--lost); }
.figure { white-space: nowrap; }
.lost-cell { color: var(--lost); font-weight: 600; } .won-cell { color: var(--won); }
.failed-cell { color: var(--dim); font-style: italic; max-width: 16rem; }
svg { max-width: 100%; height: auto; } svg text { fill: var(--dim); font-size: 12px; }
svg .lost { fill: var(--shade); } svg .grid { stroke: var(--rule); }
svg .one { stroke: var(--ink); } svg .range { stroke-width: 2; opacity: .45; }
svg .curve { fill: none; stroke-width: 2; }
svg .bar { fill: var(--c0); } svg .convert { fill: var(--c1); }
svg .roof { stroke: var(--ink); stroke-width: 1.5; }
svg .edge { fill: none; stroke: var(--dim); stroke-opacity: .55; }
svg .under { fill: var(--ground); }
svg text.on-top { paint-order: stroke; stroke: var(--ground); stroke-width: 4px; }
svg .node { fill: var(--c0); stroke: var(--rule); } svg .node.convert { fill: var(--c1); }
svg text.name { fill: var(--ink); font-size: 13px; } svg text.layout { fill: var(--ink); }
.graph { overflow: auto; max-height: 75vh; border: 1px solid var(--rule); text-align: center; }
.graph svg { max-width: none; }
svg .s0 { stroke: var(--c0); } svg .s1 { stroke: var(--c1); } svg .s2 { stroke: var(--c2); }
svg .s3 { stroke: var(--c3); } svg .s4 { stroke: var(--c4); } svg .s5 { stroke: var(--c5); }
svg .dot.s0 { fill: var(--c0); } svg .dot.s1 { fill: var(--c1); } svg .dot.s2 { fill: var(--c2); }
svg .dot.s3 { fill: var(--c3); } svg .dot.s4 { fill: var(--c4); } svg .dot.s5 { fill: var(--c5); }
.legend span { margin-right: 1.2rem; } .key { display: inline-block; width: .75rem; height: .75rem;
  border-radius: 50%; margin-right: .4rem; }
.key.s0 { background: var(--c0); } .key.s1 { background: var(--c1); }
.key.s2 { background: var(--c2); } .key.s3 { background: var(--c3); }
.key.s4 { background: var(--c4); } .key.s5 { background: var(--c5); }
dl { display: grid; grid-template-columns: max-content 1fr; gap: .1rem 1rem; font-size: 13px; }
dt { font-weight: 600; } dd { margin: 0; }
.pair { display: flex; flex-wrap: wrap; gap: 1rem; }
"""
_CLASSES = {LOST: "lost-cell", WON: "won-cell", EVEN: "", "": ""}


def render(sections: Sequence[Section]) -> str:
    """Return the whole page."""
    body = "".join(map(_section, sections))
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>tilewright report</title><style>{_STYLE}</style></head>"
        f"<body><h1>tilewright report</h1>{body}</body></html>\n"
    )


def _section(section: Section) -> str:
    if isinstance(section, ModuleReport):
        return module_section(section, _table)
    if isinstance(section, QuantizationReport):
        return _quantization(section)
    return _facts(section) if isinstance(section, Facts) else _comparison(section)


def _quantization(section: QuantizationReport) -> str:
    text = (
        f"{section.tensors} tensors in bytes, calibrated on {section.samples} samples; the error "
        "of each tensor against the float model, on the first sample. Less is worse."
    )
    return (
        f'<h2>{escape(section.title)}</h2><p class="note">{escape(text)}</p>'
        f'<div class="scroll">{error_chart(section.layers)}</div>'
    )


def _comparison(section: Comparison) -> str:
    peers = section.peer_names
    parts = [f"<h2>{escape(section.title)}</h2>", _verdicts(section)]
    note = markdown.RATIO_NOTE
    if any(figure.peak_share for row in section.rows for figure in row.figures.values()):
        note += " " + markdown.PEAK_NOTE
    parts.append(f'<p class="note">{escape(note)}</p>')
    header, rows = markdown.summary(section)
    parts.append(_table(header, [[escape(cell) for cell in row] for row in rows]))
    parts.append("<h3>Every row</h3>" + charts.legend(peers))
    parts.append(f'<div class="scroll">{charts.ratio_chart(section.rows, peers)}</div>')
    parts.append(_rows(section.rows, [OURS, *peers]))
    curves = "".join(_curves(row) for row in section.rows if row.curves)
    if curves:
        parts.append(f"<h3>Tuning: best time so far</h3>{curves}")
    if section.left_out:
        items = (f"<li>{escape(k)}: {escape(v)}</li>" for k, v in section.left_out.items())
        parts.append(f"<h3>Not compared</h3><ul>{''.join(items)}</ul>")
    if section.peers:
        parts.append("<h3>Peers</h3>" + _list(section.peers))
    parts.append("<h3>Machine and method</h3>" + _list({**section.settings, **section.machine}))
    return "".join(parts)


def _verdicts(section: Comparison) -> str:
    """Say how many rows were won and lost against each peer, in words."""
    lines = []
    for peer in section.peer_names:
        found = [row.figures[peer].verdict for row in section.rows if peer in row.figures]
        counts = {verdict: found.count(verdict) for verdict in (WON, EVEN, LOST)}
        failed = sum(peer in row.failed for row in section.rows)
        absent = len(section.rows) - len(found) - failed
        text = ", ".join(f"{count} {verdict}" for verdict, count in counts.items())
        lines.append(
            f"<li>{escape(peer)}: {text}"
            + (f", {failed} failed" * bool(failed))
            + (f", {absent} not measured" * bool(absent))
            + "</li>"
        )
    ours = sum(OURS in row.failed for row in section.rows)
    if ours:
        lines.append(f'<li class="lost-cell">tilewright itself failed on {ours} rows</li>')
    return f"<ul>{''.join(lines)}</ul>"


def _rows(rows: Sequence[Row], engines: Sequence[str]) -> str:
    cells = []
    for row in rows:
        flags = "".join(f'<small class="flag">{escape(flag)}</small>' for flag in row.flags)
        line = [f"{escape(row.name)}<small>{escape(row.about)}</small>{flags}"]
        line += [_cell(row, engine) for engine in engines]
        cells.append(line)
    return _table(["row", *engines], cells)


def _cell(row: Row, engine: str) -> str:
    figure: Figure | None = row.figures.get(engine)
    if figure is None or figure.ratio is None:
        kind = "failed-cell" if figure is None else "figure"
        return f'<span class="{kind}">{escape(markdown.cell(row, engine))}</span>'
    kind = f"figure {_CLASSES[figure.verdict]}".strip()
    interval = f"{figure.low:.2f} .. {figure.high:.2f}"
    return (
        f'<span class="{kind}">{figure.ratio:.2f} {figure.verdict}</span><small>{interval}</small>'
    )


def _curves(row: Row) -> str:
    drawn = "".join(charts.curve_chart(row.curves, by_seconds) for by_seconds in (False, True))
    if not drawn:
        return ""
    legend = charts.legend(list(row.curves))
    return f'<h4>{escape(row.name)}</h4>{legend}<div class="pair">{drawn}</div>'


def _facts(section: Facts) -> str:
    rows = [[escape(cell) for cell in row] for row in section.rows]
    curves = ""
    for name, curve in section.curves.items():
        pair = "".join(charts.curve_chart({name: curve}, seconds) for seconds in (False, True))
        curves += f'<h4>{escape(name)}</h4><div class="pair">{pair}</div>' if pair else ""
    return f"<h2>{escape(section.title)}</h2>{_table(section.header, rows)}{curves}"


def _table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return a table; the cells of `rows` are HTML already."""
    head = "".join(f"<th>{escape(name)}</th>" for name in header)
    body = "".join("<tr>" + "".join(f"<td>{c}</td>" for c in row) + "</tr>" for row in rows)
    return f'<div class="scroll"><table><tr>{head}</tr>{body}</table></div>'


def _list(facts: Mapping[str, Any]) -> str:
    items = (f"<dt>{escape(str(k))}</dt><dd>{escape(str(v))}</dd>" for k, v in facts.items())
    return f"<dl>{''.join(items)}</dl>"
