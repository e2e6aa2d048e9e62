"""From a float model and samples to a model by a bit plan: given, or chosen for a goal."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from tilewright.compiler.quantize.bit_plan import BitPlan, LayerBits
from tilewright.compiler.quantize.plan_model import integer_tensors
from tilewright.errors import ModelError
from tilewright.mixed_precision import latency, sensitivity
from tilewright.mixed_precision.choice import Goal, allowed, find_plans, options_of
from tilewright.mixed_precision.curve import Point, draw
from tilewright.mixed_precision.evaluator import METRICS, difference
from tilewright.mixed_precision.program import Choice
from tilewright.mixed_precision.rounding import RoundedLayer, plain_moments, round_layers
from tilewright.mixed_precision.subject import Subject

if TYPE_CHECKING:
    from tilewright.api import CompiledModule

_SEED = 0


@dataclass(frozen=True)
class Outcome:
    """A quantized model and what is known of it.

    Attributes:
        proto: the model.
        report: plain data; see `tilewright.quantization.quantize`.
        drawing: the trade-off as SVG, of a chosen plan.
    """

    proto: Any
    report: dict[str, Any]
    drawing: str | None = None


def quantize_uniformly(subject: Subject, bits: LayerBits) -> Outcome:
    """Give all layers the same bits; convolutions without groups."""
    plan = BitPlan(
        tuple((name, allowed(bits, subject.is_convolution(name))) for name in subject.layers)
    )
    rounded = _rounded(subject, plan)
    proto = subject.written(plan, rounded)
    drops = _measured_drops(subject, proto)
    return Outcome(proto, _report(subject, plan, rounded, drops))


def measure_times(subject: Subject, goal: Goal) -> latency.Times:
    """Return the time of every layer in every candidate; it does not depend on what weights are."""
    kinds = [(name, subject.is_convolution(name)) for name in subject.layers]
    options = options_of(kinds, goal)
    unknown = dict.fromkeys(subject.layers)
    apart = sensitivity.round_each(
        subject.evaluator, options, unknown, "nearest", subject.has_bias, subject.progress
    )
    return _times(subject, goal, options, apart)


@dataclass(frozen=True)
class Costs:
    """What every layer costs in every precision that it may have.

    Attributes:
        apart: the layer rounded alone, on what it reads in floats.
        errors: of the output when only this layer is rounded.
        times: of the layer; empty where no time was asked for.
        choices: the same as the integer program wants it.
    """

    apart: Mapping[sensitivity.Key, RoundedLayer]
    errors: Mapping[sensitivity.Key, float]
    times: latency.Times
    choices: Mapping[str, Sequence[Choice]]


def measure_costs(subject: Subject, goal: Goal, times: latency.Times | None = None) -> Costs:
    """Round every layer alone in every way, and measure errors and, where needed, times.

    Args:
        subject: the model and its samples.
        goal: whose candidates, and whether times are needed.
        times: known ones, of `measure_times`; None: they are measured.
    """
    progress, settings = subject.progress, subject.settings
    kinds = [(name, subject.is_convolution(name)) for name in subject.layers]
    options = options_of(kinds, goal)
    moments = plain_moments(subject.evaluator, progress)
    apart = sensitivity.round_each(
        subject.evaluator, options, moments, settings.correction, subject.has_bias, progress
    )
    if goal.sensitivity == "output":
        errors = sensitivity.by_output(subject.judge, apart, subject.roundings, progress)
    else:
        errors = sensitivity.by_hessian(
            subject.judge, apart, subject.roundings, moments, _SEED, progress
        )
    if times is None:
        times = _times(subject, goal, options, apart) if goal.needs_latency else {}
    choices = {
        name: tuple(_choice(subject, name, bits, errors, times) for bits in may)
        for name, may in options.items()
    }

    return Costs(apart, errors, times, choices)


def quantize_for(subject: Subject, goal: Goal, costs: Costs | None = None) -> Outcome:
    """Choose the bits of every layer for a goal.

    Args:
        subject: the model and its samples.
        goal: what to keep.
        costs: known from another goal of the same candidates; None: they are measured.

    Raises:
        ModelError: nothing keeps the goal; says what can be reached.
    """
    costs = measure_costs(subject, goal) if costs is None else costs
    apart, errors, times, choices = costs.apart, costs.errors, costs.times, costs.choices

    def drop(plan: BitPlan) -> float:
        return subject.drop_of(plan, {n: apart[n, b] for n, b in plan.layers}, goal.metric)

    curve, keeping = find_plans(choices, goal, subject.other_bytes(), drop, subject.progress)
    point, rounded, proto, drops = _first_that_keeps(subject, goal, keeping)
    report = _report(subject, point.plan, rounded, drops)
    report |= {
        "metric": goal.metric,
        "predicted_s": point.predicted.seconds if times else None,
        "curve": [
            {**p.to_json(), "size_bytes": p.predicted.size_bytes + subject.other_bytes()}
            for p in curve
        ],
    }
    for row in report["layers"]:
        bits = point.plan[row["layer"]]
        row["sensitivity"] = errors[row["layer"], bits]
        if times:
            time = times[row["layer"], bits]
            row |= {"seconds": time.seconds, "latency_from": time.origin}
    drawing = draw(curve, point.plan, goal.minimised, goal.metric, goal.max_drop)
    return Outcome(proto, report, drawing)


def _choice(
    subject: Subject,
    name: str,
    bits: LayerBits,
    errors: Mapping[sensitivity.Key, float],
    times: latency.Times,
) -> Choice:
    seconds = times[name, bits].seconds if times else 0.0
    return Choice(bits, errors[name, bits], seconds, subject.layer_bytes(name, bits))


def _times(
    subject: Subject,
    goal: Goal,
    options: Mapping[str, Sequence[LayerBits]],
    apart: Mapping[sensitivity.Key, RoundedLayer],
) -> latency.Times:
    from tilewright.api import compile

    def compiled(plan: BitPlan) -> CompiledModule:
        proto = subject.written(plan, {name: apart[name, bits] for name, bits in plan.layers})
        settings = subject.settings
        return compile(proto, settings.target, settings.shapes, logs=settings.logs)

    order = latency.product_order(subject.model)
    feed = subject.samples[0]
    return latency.measure(goal.options, options, order, compiled, feed, subject.progress)


def _rounded(subject: Subject, plan: BitPlan) -> dict[str, RoundedLayer]:
    return round_layers(
        subject.evaluator,
        plan,
        subject.roundings,
        subject.settings.correction,
        subject.has_bias,
        subject.progress,
    )


def _first_that_keeps(
    subject: Subject, goal: Goal, keeping: Sequence[Point]
) -> tuple[Point, dict[str, RoundedLayer], Any, dict[str, float]]:
    """Return the first plan whose written model keeps the drop, and that model.

    Raises:
        ModelError: none does.
    """
    reached, excess = math.inf, 1.0
    for point in keeping:
        # Where a written model dropped further than its plan did, others are expected to as well.
        is_last_hope = point.drop == min(other.drop for other in keeping)
        if goal.max_drop is not None and not is_last_hope and point.drop * excess > goal.max_drop:
            continue
        rounded = _rounded(subject, point.plan)
        proto = subject.written(point.plan, rounded)
        drops = _measured_drops(subject, proto)
        if goal.max_drop is None or drops[goal.metric] <= goal.max_drop:
            return point, rounded, proto, drops
        reached = min(reached, drops[goal.metric])
        excess = max(excess, drops[goal.metric] / max(point.drop, 1e-30))
    raise ModelError(
        f"no written model drops by {goal.metric} {goal.max_drop:g} or less; the least is "
        f"{reached:.3g}; allow more, or add candidates with more bits"
    )


def _measured_drops(subject: Subject, proto: Any) -> dict[str, float]:
    """Compile the written model and return its drop by every metric."""
    from tilewright.quantization import runner

    subject.progress("comparison")
    run = runner(proto, subject.settings.target, subject.settings.shapes)
    names = subject.evaluator.switchable.outputs
    outputs = []
    for sample in subject.judged:
        found = run(sample)
        outputs.append({name: found[name] for name in names})
    return {m: difference(outputs, subject.judge.wanted, m) for m in METRICS}


def _report(
    subject: Subject,
    plan: BitPlan,
    rounded: Mapping[str, RoundedLayer],
    drops: Mapping[str, float],
) -> dict[str, Any]:
    tensors = integer_tensors(subject.model, plan)
    layers = [
        {
            "layer": name,
            "tensor": subject.layers[name].node.output[0],
            "bits": bits.name,
            "snr_db": _decibels(rounded[name].error),
            "size_bytes": subject.layer_bytes(name, bits),
        }
        for name, bits in plan.layers
    ]
    layers.sort(key=lambda row: float(row["snr_db"]))
    return {
        "tensors": len(tensors),
        "samples": len(subject.samples),
        "judged": len(subject.judged),
        "bits": plan.counts(),
        "size_bytes": sum(int(row["size_bytes"]) for row in layers) + subject.other_bytes(),
        "float_bytes": sum(layer.matrix.nbytes for layer in subject.layers.values())
        + subject.other_bytes(),
        "drop": dict(drops),
        "layers": layers,
    }


def _decibels(error: float) -> float:
    """Return a signal-to-noise ratio; a layer without error has 999 dB, which JSON can hold."""
    return 999.0 if error <= 0 else min(999.0, -10 * math.log10(error))
