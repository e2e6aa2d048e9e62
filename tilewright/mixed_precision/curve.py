"""The trade-off: plans from the cheapest to the most faithful, what they cost, and a drawing."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from tilewright.compiler.quantize.bit_plan import BitPlan
from tilewright.mixed_precision.program import Choices, Totals, least, solve, totals
from tilewright.report.svg import drawing, line, short_time, text, titled

_STEPS = 16
_REFINEMENTS = 6
# Errors below this share of the greatest are none.
_LEAST_SHARE = 1e-6
_WIDTH, _HEIGHT = 640, 340
_LEFT, _RIGHT, _TOP, _BOTTOM = 70, 30, 30, 60
_STYLE = (
    "<style>text{font:12px sans-serif;fill:#333}.grid{stroke:#ddd}.curve{fill:none;stroke:#4477aa;"
    "stroke-width:1.5}.dot{fill:#4477aa}.chosen{fill:#cc3311}.limit{stroke:#cc3311;"
    "stroke-dasharray:4 3}</style>"
)


@dataclass(frozen=True, slots=True)
class Point:
    """One plan of the curve.

    Attributes:
        plan: bits of every layer.
        predicted: sums of what the layers cost.
        drop: of the whole plan, measured on the samples.
    """

    plan: BitPlan
    predicted: Totals
    drop: float

    def to_json(self) -> dict[str, Any]:
        """Return plain data."""
        return {
            "drop": self.drop,
            "seconds": self.predicted.seconds,
            "size_bytes": self.predicted.size_bytes,
            "error": self.predicted.error,
            "layers": self.plan.to_json(),
        }


def trade_off(
    choices: Choices,
    minimise: str,
    limits: Mapping[str, float],
    measure_drop: Callable[[BitPlan], float],
    max_drop: float | None = None,
    progress: Callable[[str], None] = lambda _stage: None,
) -> list[Point]:
    """Return plans of least cost for errors from the greatest to the least possible, in order.

    Args:
        choices: for every layer, in order.
        minimise: "seconds" or "size_bytes".
        limits: of other quantities.
        measure_drop: runs a plan on the samples.
        max_drop: where plans are looked for more closely.
        progress: called before each plan.
    """
    points: dict[BitPlan, Point] = {}

    def add(bound: float) -> Point | None:
        allowed = {} if math.isinf(bound) else {"error": bound}
        plan = solve(choices, minimise, {**limits, **allowed})
        if plan is None:
            return None
        if plan not in points:
            points[plan] = Point(plan, totals(choices, plan), measure_drop(plan))
        return points[plan]

    most = sum(max(choice.error for choice in options) for options in choices.values())
    start = max(least(choices, "error"), most * _LEAST_SHARE)
    bounds = [math.inf, *np.geomspace(max(most, start), start, _STEPS), least(choices, "error")]
    for number, bound in enumerate(bounds, 1):
        progress(f"trade-off, plan {number} of {len(bounds)}")
        if add(float(bound)) is None:
            break
    found = sorted(points.values(), key=lambda point: -point.predicted.error)
    keeping = [point for point in found if max_drop is not None and point.drop <= max_drop]
    if keeping and keeping[0] is not found[0]:
        low = keeping[0].predicted.error
        high = found[found.index(keeping[0]) - 1].predicted.error
        for number in range(_REFINEMENTS):
            progress(f"trade-off, closer look {number + 1} of {_REFINEMENTS}")
            point = add((low + high) / 2)
            if point is not None and max_drop is not None and point.drop <= max_drop:
                low = (low + high) / 2
            else:
                high = (low + high) / 2
    return sorted(points.values(), key=lambda point: -point.predicted.error)


def draw(
    points: Sequence[Point], chosen: BitPlan, minimised: str, metric: str, limit: float | None
) -> str:
    """Return the curve as SVG: the drop on a logarithmic scale over seconds or bytes."""
    costs = [float(getattr(point.predicted, minimised)) for point in points]
    positive = [point.drop for point in points if point.drop > 0] + ([limit] if limit else [])
    # No drop at all stands a little below the least.
    floor = min(positive, default=1.0) / 3
    drops = [max(point.drop, floor) for point in points] + ([limit] if limit else [])
    low, high = min(costs), max(costs)
    least_drop, most_drop = math.log10(min(drops)), math.log10(max(drops))

    def x(cost: float) -> float:
        return _LEFT + (cost - low) / ((high - low) or 1.0) * (_WIDTH - _LEFT - _RIGHT)

    def y(drop: float) -> float:
        share = (math.log10(max(drop, floor)) - least_drop) / ((most_drop - least_drop) or 1.0)
        return _HEIGHT - _BOTTOM - share * (_HEIGHT - _TOP - _BOTTOM)

    parts = [_STYLE]
    for power in range(math.ceil(least_drop), math.floor(most_drop) + 1):
        at = y(10.0**power)
        parts += [
            line("grid", _LEFT, at, _WIDTH - _RIGHT, at),
            text(_LEFT - 8, at + 4, f"1e{power}", "end"),
        ]
    places = [(x(cost), y(point.drop)) for cost, point in zip(costs, points, strict=True)]
    path = " ".join(f"{a:.1f},{b:.1f}" for a, b in places)
    parts.append(f'<polyline class="curve" points="{path}"/>')
    if limit:
        parts.append(line("limit", _LEFT, y(limit), _WIDTH - _RIGHT, y(limit)))
    for (a, b), cost, point in zip(places, costs, points, strict=True):
        kind = "chosen" if point.plan == chosen else "dot"
        mixed = ", ".join(f"{count} {name}" for name, count in point.plan.counts().items())
        title = f"{_cost(cost, minimised)}, {metric} {point.drop:.3g}: {mixed}"
        dot = f'<circle class="{kind}" cx="{a:.1f}" cy="{b:.1f}" r="4.5"/>'
        parts.append(titled(dot, title))
    bottom = _HEIGHT - _BOTTOM + 22
    parts += [
        text(_LEFT, bottom, _cost(low, minimised), "middle"),
        text(_WIDTH - _RIGHT, bottom, _cost(high, minimised), "end"),
        text(_LEFT, _TOP - 12, f"drop ({metric})"),
        text((_LEFT + _WIDTH) / 2, bottom + 20, f"predicted {_AXES[minimised]}", "middle"),
    ]
    body = drawing(_WIDTH, _HEIGHT, "".join(parts), f"{metric} against {_AXES[minimised]}")
    return body.replace("<svg ", '<svg xmlns="http://www.w3.org/2000/svg" ', 1) + "\n"


_AXES = {"seconds": "time", "size_bytes": "size of the constants"}


def _cost(value: float, quantity: str) -> str:
    return short_time(value) if quantity == "seconds" else f"{value / 1e3:,.1f} kB"
