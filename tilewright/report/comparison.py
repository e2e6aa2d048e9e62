"""Rows of measured ratios, whatever kind of result file they come from, and their summaries."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

OURS = "tilewright"
# Below this, times the peak of one thread, two threads shared a core.
LEAST_SCALING = 1.5
LOST, EVEN, WON = "lost", "even", "won"


@dataclass(frozen=True, slots=True)
class Figure:
    """How one engine did on one row.

    Attributes:
        median_s: seconds of a call.
        ratio: its time over ours, the median over rounds; above 1 ours is faster; None for ours.
        low, high: 95% interval of the ratio.
        peak_share: of the machine's multiply-add peak, measured in the same rounds.
    """

    median_s: float
    ratio: float | None = None
    low: float | None = None
    high: float | None = None
    peak_share: float | None = None

    @property
    def verdict(self) -> str:
        """Return whether we won, lost, or the interval holds 1."""
        if self.ratio is None or self.low is None or self.high is None:
            return ""
        if self.high < 1:
            return LOST
        return WON if self.low > 1 else EVEN


@dataclass(frozen=True, slots=True)
class Row:
    """One operator or model.

    Attributes:
        name: as the result file names it.
        group: operator class, or "model".
        about: shape and source, for people.
        figures: by engine.
        failed: engine -> why it has no figure.
        curves: tuner -> [seconds of a call or None, seconds of the trial] as measured.
        flags: what to mind about the figures.
    """

    name: str
    group: str
    about: str
    figures: Mapping[str, Figure]
    failed: Mapping[str, str] = field(default_factory=dict)
    curves: Mapping[str, Sequence[Sequence[float | None]]] = field(default_factory=dict)
    flags: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Comparison:
    """All rows of one result file, and what belongs to them."""

    title: str
    rows: tuple[Row, ...]
    machine: Mapping[str, str]
    settings: Mapping[str, Any]
    peers: Mapping[str, str] = field(default_factory=dict)
    left_out: Mapping[str, str] = field(default_factory=dict)

    @property
    def peer_names(self) -> list[str]:
        """Return the peers with a figure or a failure in any row."""
        names = dict.fromkeys(self.peers)
        for row in self.rows:
            names |= dict.fromkeys([*row.figures, *row.failed])
        return [name for name in names if name != OURS]

    @property
    def groups(self) -> list[str]:
        """Return the groups in their order."""
        return list(dict.fromkeys(row.group for row in self.rows))


def geometric_mean(values: Iterable[float]) -> float | None:
    """Return the geometric mean, or None of nothing."""
    logs = [math.log(value) for value in values]
    return math.exp(sum(logs) / len(logs)) if logs else None


def ratios(rows: Iterable[Row], peer: str) -> list[float]:
    """Return the ratios of a peer where there are any."""
    figures = (row.figures.get(peer) for row in rows)
    return [f.ratio for f in figures if f is not None and f.ratio is not None]


def read_contest(content: Mapping[str, Any]) -> Comparison:
    """Return the rows of a result of `tilewright bench-ops` or `tilewright bench`."""
    of_operators = content["kind"] == "operators"
    rows = []
    for item in content["rows"]:
        curves: dict[str, Any] = {}
        for name, notes in item["notes"].items():
            for layout, curve in notes.get("curves", {}).items():
                curves[f"{name} {layout}".rstrip()] = curve
        rows.append(
            Row(
                item["name"],
                item["operator"]["kind"] if of_operators else "model",
                _about_operator(item) if of_operators else _about_model(item),
                {name: _figure(figure) for name, figure in item["engines"].items()},
                item["failed"],
                curves,
                _flags(item, content["settings"]),
            )
        )
    return Comparison(
        "Operators" if of_operators else "Models",
        tuple(rows),
        content["machine"],
        content["settings"],
        content["peers"],
        content["left_out"],
    )


def _flags(item: Mapping[str, Any], settings: Mapping[str, Any]) -> tuple[str, ...]:
    """Say where several threads were not given several cores."""
    now = item.get("machine_now", {})
    if "peak_threads_gflops" not in now:
        return ()
    scaling = now["peak_threads_gflops"] / now["peak_gflops"]
    if scaling >= LEAST_SCALING * settings["threads"] / 2:
        return ()
    return (f"{settings['threads']} threads had {scaling:.2f} times the peak of one",)


def read_untuned(content: Mapping[str, Any]) -> Comparison:
    """Return the rows of a result of `python -m benchmarks.untuned`, whose ratios are inverse."""
    rows = []
    for item in content["rows"]:
        if "error" in item:
            rows.append(Row(item["model"], "model", "", {}, {OURS: item["error"]}))
            continue
        for threads, timed in item["times"].items():
            figures = {}
            for name, figure in timed["engines"].items():
                if name == OURS:
                    figures[name] = Figure(figure["median_s"])
                    continue
                low, high = figure["interval"]
                figures[name] = Figure(figure["median_s"], 1 / figure["ratio"], 1 / high, 1 / low)
            plural = "" if threads == "1" else "s"
            rows.append(
                Row(f"{item['model']}, {threads}", "model", f"{threads} thread{plural}", figures)
            )
    return Comparison("Models", tuple(rows), content["machine"], {"target": content["target"]})


def _figure(item: Mapping[str, Any]) -> Figure:
    low, high = item.get("interval", (None, None))
    return Figure(item["median_s"], item.get("ratio"), low, high, item.get("peak_share"))


def _about_model(item: Mapping[str, Any]) -> str:
    shapes = (f"{name} {'x'.join(map(str, shape))}" for name, shape in item["inputs"].items())
    return f"{item['model']}, {', '.join(shapes)}"


def _about_operator(item: Mapping[str, Any]) -> str:
    op = item["operator"]
    if op["kind"] == "GMM":
        shape = f"{op['batch'] * op['rows']}x{op['in_channels']}x{op['out_channels']}"
    else:
        extents = "x".join(map(str, op["size"]))
        shape = f"{op['batch']}x{op['in_channels']}x{extents} to {op['out_channels']}, "
        shape += "kernel " + "x".join(map(str, op["kernel"]))
        for key in ("stride", "dilation"):
            if any(value != 1 for value in op.get(key, [])):
                shape += f", {key} " + "x".join(map(str, op[key]))
        if op.get("groups", 1) != 1:
            shape += f", {op['groups']} groups"
    activation = "" if op["activation"] == "none" else f", {op['activation']}"
    return f"{shape}{activation} ({op['source']})"
