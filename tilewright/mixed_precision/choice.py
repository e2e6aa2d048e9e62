"""What a person asks of a mixed precision, and the plan that keeps it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from tilewright.compiler.quantize.bit_plan import BitPlan, LayerBits, parse_bits
from tilewright.errors import ModelError
from tilewright.mixed_precision.curve import Point, trade_off
from tilewright.mixed_precision.evaluator import METRICS
from tilewright.mixed_precision.program import Choices, least, solve, totals
from tilewright.mixed_precision.sensitivity import SENSITIVITIES
from tilewright.report.svg import short_time

CANDIDATES = ("fp32", "w8a8", "w4a8", "w4g32")
PREFERENCES = {"latency": "seconds", "bytes": "size_bytes"}


@dataclass(frozen=True, slots=True)
class Goal:
    """What a choice of bits has to keep, and what it then makes small.

    Attributes:
        max_drop: greatest drop of the outputs in units of the metric.
        max_latency_s: greatest time of a run.
        max_bytes: greatest size of the model's constants.
        metric: one of `METRICS`.
        prefer: what is made small where only the drop is limited: "latency" or "bytes".
        candidates: precisions that a layer may have.
        sensitivity: one of `SENSITIVITIES`.

    Raises:
        ModelError: nothing is limited, or a value is not accepted.
    """

    max_drop: float | None = None
    max_latency_s: float | None = None
    max_bytes: int | None = None
    metric: str = "error"
    prefer: str = "latency"
    candidates: tuple[str, ...] = CANDIDATES
    sensitivity: str = "output"

    def __post_init__(self) -> None:
        limits = (self.max_drop, self.max_latency_s, self.max_bytes)
        if all(limit is None for limit in limits):
            raise ModelError(
                "choosing bits needs something to keep: give --max-drop, --max-latency or "
                "--max-bytes"
            )
        if any(limit is not None and limit <= 0 for limit in limits):
            raise ModelError("limits of drop, latency and bytes are greater than 0")
        for value, known, what in (
            (self.metric, METRICS, "metric"),
            (self.prefer, tuple(PREFERENCES), "preference"),
            (self.sensitivity, SENSITIVITIES, "sensitivity"),
        ):
            if value not in known:
                raise ModelError(f"unknown {what} {value!r}; accepted are {', '.join(known)}")
        if len(set(self.options)) < 2:
            raise ModelError("a choice needs at least two candidates")

    @property
    def options(self) -> tuple[LayerBits, ...]:
        """Return the precisions."""
        return tuple(parse_bits(name) for name in self.candidates)

    @property
    def needs_latency(self) -> bool:
        """Whether layers have to be timed."""
        return self.max_latency_s is not None or self.prefer == "latency"

    @property
    def minimised(self) -> str:
        """Return what the curve is drawn over."""
        return PREFERENCES[self.prefer]


def find_plans(
    choices: Choices,
    goal: Goal,
    other_bytes: int,
    measure_drop: Callable[[BitPlan], float],
    progress: Callable[[str], None] = lambda _stage: None,
) -> tuple[list[Point], list[Point]]:
    """Return the trade-off curve, and the plans that keep the goal, the best first.

    Args:
        choices: for every layer, in order.
        goal: what to keep.
        other_bytes: of constants that belong to no layer.
        measure_drop: runs a plan on the samples.
        progress: called with the name of each stage.

    Raises:
        ModelError: nothing keeps the goal; says what can be reached.
    """
    limits = _limits(choices, goal, other_bytes)
    curve = trade_off(choices, goal.minimised, limits, measure_drop, goal.max_drop, progress)
    if goal.max_drop is not None:
        keeping = [point for point in curve if point.drop <= goal.max_drop]
        if not keeping:
            best = min(curve, key=lambda point: point.drop)
            raise ModelError(
                f"no plan drops by {goal.metric} {goal.max_drop:g} or less{_within(goal)}; the "
                f"least that was found is {best.drop:.3g} with {_mixed(best.plan)}; allow more, "
                "or add candidates with more bits"
            )
        keeping.sort(key=lambda point: getattr(point.predicted, goal.minimised))
        return curve, keeping
    plan = solve(choices, "error", limits)
    assert plan is not None
    chosen = next((point for point in curve if point.plan == plan), None)
    if chosen is None:
        chosen = Point(plan, totals(choices, plan), measure_drop(plan))
        curve = [*curve, chosen]
    return curve, [chosen]


def _limits(choices: Choices, goal: Goal, other_bytes: int) -> dict[str, float]:
    """Return the limits of the program, each of which can be kept, and all at once.

    Raises:
        ModelError: they cannot.
    """
    limits: dict[str, float] = {}
    if goal.max_bytes is not None:
        limits["size_bytes"] = float(goal.max_bytes - other_bytes)
        possible = int(least(choices, "size_bytes")) + other_bytes
        if goal.max_bytes < possible:
            raise ModelError(
                f"the constants cannot be made smaller than {possible:,} bytes with these "
                f"candidates ({other_bytes:,} of them are not weights of layers), and "
                f"{goal.max_bytes:,} were allowed"
            )
    if goal.max_latency_s is not None:
        limits["seconds"] = goal.max_latency_s
        fastest = least(choices, "seconds")
        if goal.max_latency_s < fastest:
            raise ModelError(
                f"the fastest plan is predicted to take {short_time(fastest)}, and "
                f"{short_time(goal.max_latency_s)} was allowed; add candidates, or tune the model"
            )
    if len(limits) > 1 and solve(choices, "error", limits) is None:
        small = solve(choices, "seconds", {"size_bytes": limits["size_bytes"]})
        assert small is not None
        raise ModelError(
            f"no plan keeps {goal.max_bytes:,} bytes and {short_time(limits['seconds'])} at once; "
            f"within these bytes the fastest takes {short_time(totals(choices, small).seconds)}"
        )
    return limits


def _within(goal: Goal) -> str:
    kept = []
    if goal.max_latency_s is not None:
        kept.append(short_time(goal.max_latency_s))
    if goal.max_bytes is not None:
        kept.append(f"{goal.max_bytes:,} bytes")
    return f" within {' and '.join(kept)}" if kept else ""


def _mixed(plan: BitPlan) -> str:
    return ", ".join(f"{count} {name}" for name, count in plan.counts().items())


def options_of(shapes: Sequence[tuple[str, bool]], goal: Goal) -> dict[str, tuple[LayerBits, ...]]:
    """Return the precisions of every layer: a convolution has no groups.

    Args:
        shapes: names of the layers in order, and whether each is a convolution.
        goal: whose candidates.
    """
    found = {}
    for name, is_convolution in shapes:
        given = [allowed(bits, is_convolution) for bits in goal.options]
        found[name] = tuple(dict.fromkeys(given))
    return found


def allowed(bits: LayerBits, is_convolution: bool) -> LayerBits:
    """Return a precision as a layer can have it: groups are for products."""
    return LayerBits(bits.weights, bits.activations) if is_convolution else bits
