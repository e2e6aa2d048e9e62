"""Reports as Markdown: the tables of the page, without charts."""

from __future__ import annotations

from collections.abc import Sequence

from tilewright.report.comparison import OURS, Comparison, Row, geometric_mean, ratios
from tilewright.report.module import ModuleReport
from tilewright.report.module_page import HEADER, advice_of, floats_of, rows_of
from tilewright.report.quantization import QuantizationReport
from tilewright.report.tuning import Facts

RATIO_NOTE = (
    "Ratios are the time of the peer over ours, round by round, the median and its 95% interval; "
    "above 1 tilewright is faster."
)

PEAK_NOTE = (
    "The share of the multiply-add peak counts the operations of direct computation, the border's "
    "zeros included: Winograd's algorithm and skipped borders need fewer, and may pass 100%."
)


def render(sections: Sequence[Comparison | Facts | ModuleReport | QuantizationReport]) -> str:
    """Return the whole report."""
    parts = ["# tilewright report"]
    for section in sections:
        if isinstance(section, ModuleReport):
            parts += _module(section)
        elif isinstance(section, QuantizationReport):
            parts += _quantization(section)
        else:
            parts += _facts(section) if isinstance(section, Facts) else _comparison(section)
    return "\n\n".join(parts) + "\n"


def summary(section: Comparison) -> tuple[list[str], list[list[str]]]:
    """Return header and rows of the geometric means, by group and peer."""
    peers = section.peer_names
    rows = []
    for group in [*section.groups, "all"]:
        members = [row for row in section.rows if group in (row.group, "all")]
        cells = []
        for peer in peers:
            found = ratios(members, peer)
            mean = geometric_mean(found)
            cells.append("" if mean is None else f"{mean:.2f} ({len(found)})")
        if len(section.groups) > 1 or group != "all":
            rows.append([group, *cells])
    return ["geometric mean (rows)", *peers], rows


def cell(row: Row, engine: str) -> str:
    """Return what one engine did on one row, as text."""
    figure = row.figures.get(engine)
    if figure is None:
        return f"no figure: {row.failed[engine]}" if engine in row.failed else "not measured"
    if engine == OURS:
        share = "" if figure.peak_share is None else f", {100 * figure.peak_share:.0f}% of peak"
        return f"{1e3 * figure.median_s:.3f} ms{share}"
    if figure.ratio is None:
        return f"{1e3 * figure.median_s:.3f} ms"
    return f"{figure.ratio:.2f} [{figure.low:.2f} .. {figure.high:.2f}] {figure.verdict}"


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return a Markdown table."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join(f"| {' | '.join(c.replace('|', '/') for c in line)} |" for line in lines)


def _comparison(section: Comparison) -> list[str]:
    engines = [OURS, *section.peer_names]
    rows = [
        [row.name, "; ".join((row.about, *row.flags)), *(cell(row, name) for name in engines)]
        for row in section.rows
    ]
    parts = [f"## {section.title}", RATIO_NOTE, table(*summary(section))]
    parts.append(table(["row", "what", *engines], rows))
    parts += [f"Not compared: {name}: {why}" for name, why in section.left_out.items()]
    parts += ["\n".join(f"- {name}: {text}" for name, text in section.peers.items())]
    facts = [*section.settings.items(), *section.machine.items()]
    parts.append("\n".join(f"- {name}: {value}" for name, value in facts))
    return [part for part in parts if part]


def _facts(section: Facts) -> list[str]:
    return [f"## {section.title}", table(section.header, section.rows)]


def _module(section: ModuleReport) -> list[str]:
    facts = "\n".join(f"- {name}: {text}" for name, text in section.facts.items())
    parts = [f"## {section.title}", facts]
    if section.why_not:
        parts.append(f"Not measured here: {section.why_not}")
    parts += ["\n".join(f"- {line}" for line in advice_of(section))]
    parts.append(table(HEADER, rows_of(section)))
    floats = floats_of(section)
    if floats:
        parts.append(table(("in floats", "why"), floats))
    return [part for part in parts if part]


def _quantization(section: QuantizationReport) -> list[str]:
    rows = [(name, f"{value:.1f}") for name, value in section.layers]
    return [f"## {section.title}", table(("tensor", "dB"), rows)]
