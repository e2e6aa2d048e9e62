"""Charts of one module: time by operator, and the roofline."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from tilewright.labels import short_label
from tilewright.report.module import Call, ModuleReport
from tilewright.report.svg import box, drawing, line, short_time, text, titled

_SHOWN = 30
_ROW = 20
_WIDTH = 900
_LABEL = 300
_CHARACTERS = 40  # of a name that fits there
_NUMBERS = 130
_PLOT = (900, 380, 66, 16, 340)  # width, height, left, top, bottom
_LARGEST_DOT = 16.0


def time_chart(report: ModuleReport) -> str:
    """Draw the time of each operator, the longest first: what the machine allows, and the rest."""
    rows = sorted((c for c in report.calls if c.figures), key=lambda c: -c.figures["seconds"])
    if not rows:
        return ""
    longest = rows[0].figures["seconds"]
    shown, rest = rows[:_SHOWN], rows[_SHOWN:]
    width = _WIDTH - _LABEL - _NUMBERS
    parts = []
    for index, call in enumerate(shown):
        figures, y = call.figures, _ROW * index + 4
        whole = figures["seconds"] / longest * width
        least = min(whole, figures["least_s"] / longest * width)
        kind = "bar convert" if call.is_conversion else "bar"
        bar = box(kind, _LABEL, y, whole, _ROW - 6, 0.35)
        bar += box(kind, _LABEL, y, least, _ROW - 6)
        parts.append(titled(bar, _about(call)))
        parts.append(text(_LABEL - 8, y + 11, short_label(call.label, _CHARACTERS), "end"))
        numbers = f"{short_time(figures['seconds'])}, {figures['share']:.1%}"
        parts.append(text(_LABEL + whole + 6, y + 11, numbers))
    height = _ROW * len(shown) + 8
    if rest:
        share = sum(call.figures["share"] for call in rest)
        parts.append(text(_LABEL, height + 10, f"{len(rest)} more take {share:.1%}"))
        height += 18
    return drawing(_WIDTH, height, "".join(parts), "Time by operator")


def roofline(report: ModuleReport) -> str:
    """Draw operations a second against operations a byte, below what the machine allows."""
    measured = report.measured
    points = [c for c in report.calls if c.figures and c.figures["operations"] > 0]
    if measured is None or not points:
        return ""
    width, height, left, top, bottom = _PLOT
    peak, bandwidth = measured["peak_gflops"], measured["bandwidth_gbytes"]
    highest = peak * report.byte_ratio
    at = [_place(call) for call in points]
    low_x = min(0.05, *(x for x, _ in at))
    high_x = max(highest / bandwidth * 8, *(1.6 * x for x, _ in at))
    low_y = max(min(peak / 100, *(y for _, y in at)), peak / 3000)
    high_y = max(highest * 1.6, *(y for _, y in at))

    def across(value: float) -> float:
        return left + _log(value, low_x, high_x) * (width - left - 20)

    def up(value: float) -> float:
        return bottom - _log(value, low_y, high_y) * (bottom - top)

    parts = [_grid(low_x, high_x, low_y, high_y, across, up)]
    start = max(low_x, low_y / bandwidth)
    roofs = [(peak, f"{peak:.0f} GFLOP/s")]
    if report.byte_ratio > 1:
        roofs.append((highest, f"{highest:.0f} GOP/s of bytes"))
    ridge = highest / bandwidth
    parts.append(line("roof", across(start), up(start * bandwidth), across(ridge), up(highest)))
    names = []
    for roof, name in roofs:
        y = up(roof)
        parts.append(line("roof", across(roof / bandwidth), y, across(high_x), y))
        names.append(text(width - 22, y - 6, name, "end", "on-top"))
    slope_x = across(math.sqrt(start * ridge))
    slope_y = up(math.sqrt(start * ridge) * bandwidth)
    names.append(text(slope_x - 8, slope_y - 8, f"{bandwidth:.0f} GB/s", "end", "on-top"))
    for call, (x, y) in sorted(zip(points, at, strict=True), key=lambda p: -p[0].figures["share"]):
        radius = 2.5 + _LARGEST_DOT * math.sqrt(call.figures["share"])
        kind = "dot s1" if call.is_conversion else "dot s0"
        circle = (
            f'<circle class="{kind}" fill-opacity="0.45" cx="{across(x):.1f}" '
            f'cy="{up(max(y, low_y)):.1f}" r="{radius:.1f}"/>'
        )
        parts.append(titled(circle, _about(call)))
    parts += names  # after the dots, which would hide them
    parts.append(text((left + width) / 2, height - 4, "operations a byte of arguments", "middle"))
    return drawing(width, height, "".join(parts), "Roofline of the operators")


def _place(call: Call) -> tuple[float, float]:
    figures = call.figures
    operations = figures["operations"]
    return operations / max(1, figures["bytes"]), operations / figures["seconds"] / 1e9


def _grid(low_x: float, high_x: float, low_y: float, high_y: float, across: Any, up: Any) -> str:
    width, _, left, top, bottom = _PLOT
    parts = []
    for exponent in range(-3, 6):
        value = 10.0**exponent
        if low_x <= value <= high_x:
            parts.append(line("grid", across(value), top, across(value), bottom))
            parts.append(text(across(value), bottom + 16, f"{value:g}", "middle"))
        if low_y <= value <= high_y:
            parts.append(line("grid", left, up(value), width - 20, up(value)))
            parts.append(text(left - 6, up(value) + 4, f"{value:g}", "end"))
    parts.append(text(left, top - 4, "GFLOP/s"))
    return "".join(parts)


def _log(value: float, low: float, high: float) -> float:
    return math.log(value / low) / math.log(high / low)


def _about(call: Call) -> str:
    """Return what is known of a call, for the pointer."""
    figures = call.figures
    _, rate = _place(call)
    return (
        f"{call.label}: {short_time(figures['seconds'])} ({figures['share']:.1%}), "
        f"{rate:.1f} GFLOP/s, {short_time(figures['to_win_s'])} to win; "
        f"waits for {figures['waits_for']}"
    )


def error_chart(layers: Sequence[tuple[str, float]]) -> str:
    """Draw the signal-to-noise ratio of each quantized tensor in dB, the worst first."""
    if not layers:
        return ""
    highest = max(1.0, *(value for _, value in layers))
    width = _WIDTH - _LABEL - _NUMBERS
    parts = []
    for index, (name, value) in enumerate(layers):
        y, length = _ROW * index + 4, max(0.0, value) / highest * width
        parts.append(titled(box("bar", _LABEL, y, length, _ROW - 6), f"{name}: {value:.2f} dB"))
        parts.append(text(_LABEL - 8, y + 11, _cut(name, _CHARACTERS), "end"))
        parts.append(text(_LABEL + length + 6, y + 11, f"{value:.1f} dB"))
    return drawing(_WIDTH, _ROW * len(layers) + 8, "".join(parts), "Quantization error by layer")


def _cut(name: str, most: int) -> str:
    return name if len(name) <= most else f"{name[: most // 2 - 1]}..{name[-(most // 2 - 1) :]}"
