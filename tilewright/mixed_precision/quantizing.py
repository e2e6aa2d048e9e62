"""From a float model and samples to a model by a bit plan: given, or chosen for a goal."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np

from tilewright.compiler.quantize import post_training as ptq
from tilewright.compiler.quantize.bit_plan import BYTES, BitPlan, LayerBits
from tilewright.compiler.quantize.float_model import FloatModel
from tilewright.compiler.quantize.layer_matrix import LayerMatrix
from tilewright.compiler.quantize.plan_model import (
    integer_tensors,
    shared_parameters,
    write_plan,
)
from tilewright.compiler.quantize.qdq_writer import stored_bits
from tilewright.compiler.quantize.ranges import choose_range, parameters
from tilewright.compiler.quantize.switchable import rounding_of
from tilewright.errors import ModelError
from tilewright.mixed_precision import latency, sensitivity
from tilewright.mixed_precision.choice import Goal, allowed, find_plans, options_of
from tilewright.mixed_precision.curve import Point, draw
from tilewright.mixed_precision.evaluator import METRICS, Evaluator, difference
from tilewright.mixed_precision.program import Choice
from tilewright.mixed_precision.rounding import (
    RoundedLayer,
    plain_moments,
    round_layers,
    state_of,
)

if TYPE_CHECKING:
    from tilewright.api import CompiledModule

Arrays = Mapping[str, np.ndarray]
Progress = Callable[[str], None]

# From so many samples on, every fourth is left out of all fitting and says how good the result is.
_FEWEST_TO_SPLIT = 8
_JUDGED_EVERY = 4
_ALL_BITS = (8, 4, 2)
# The ranges of few levels are searched whatever the method for bytes is.
_FEW_LEVELS_METHOD = "mse"
_SEED = 0


@dataclass(frozen=True)
class Settings:
    """How a model is rounded.

    Attributes:
        method, percentile: of choosing the ranges of bytes; see `ranges`.
        correction: of rounding weights; see `mixed_precision.rounding`.
        target: what samples are run on; must be this machine.
        shapes: shape per input, where the model leaves dimensions open.
        logs: of the tuner, for compiles that are timed; None: the usual ones.
    """

    method: str = "minmax"
    percentile: float = 99.99
    correction: str = "compensated"
    target: str = "native"
    shapes: Mapping[str, Sequence[int]] | None = None
    logs: Sequence[Any] | None = None


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


@dataclass
class Subject:
    """A float model with its samples, compiled once, and all that is derived from them.

    Args:
        proto: the model.
        samples: inputs of the model.
        settings: how it is rounded.
        progress: called with the name of each stage.
    """

    proto: Any
    samples: Sequence[Arrays]
    settings: Settings
    progress: Progress = field(default=lambda _stage: None)

    def __post_init__(self) -> None:
        if not self.samples:
            raise ModelError("there are no calibration samples; give at least one")
        split = len(self.samples) >= _FEWEST_TO_SPLIT
        self.judged = list(
            self.samples[_JUDGED_EVERY - 1 :: _JUDGED_EVERY] if split else self.samples
        )
        left_out = {id(sample) for sample in self.judged} if split else set()
        self.fitted = [sample for sample in self.samples if id(sample) not in left_out]
        self.model = FloatModel(self.proto)
        self.progress("compile")
        self.evaluator = Evaluator(
            self.proto, self.fitted, self.settings.target, self.settings.shapes
        )
        self.layers: Mapping[str, LayerMatrix] = self.evaluator.layers
        if not self.layers:
            raise ModelError("the model has no convolution or matrix product to quantize")
        self.judge = self.evaluator.on(self.judged)

    def has_bias(self, name: str) -> bool:
        """Say whether a layer has a place for a shift of its outputs."""
        return self.model.can_take_bias(self.layers[name].node)

    def is_convolution(self, name: str) -> bool:
        """Say whether a layer is a convolution."""
        return bool(self.layers[name].node.op_type == "Conv")

    @cached_property
    def parameters(self) -> dict[tuple[str, int], tuple[np.float32, int]]:
        """Scale and zero point of all tensors that may be integers, of all widths."""
        from tilewright.quantization import _runner

        names = list(integer_tensors(self.model, BitPlan.uniform(self.layers, BYTES)))
        settings = self.settings
        run, _ = _runner(ptq.with_outputs(self.proto, names), settings.target, settings.shapes)
        self.progress("calibration")
        found = {}
        for name, observer in ptq.observe(names, self.fitted, run).items():
            for bits in _ALL_BITS:
                method = settings.method if bits == BYTES.activations else _FEW_LEVELS_METHOD
                levels = 1 << bits
                low, high = choose_range(observer, method, settings.percentile, levels)
                found[name, bits] = parameters(low, high, levels)
        return shared_parameters(self.model, dict.fromkeys(names, _ALL_BITS), found)

    @cached_property
    def roundings(self) -> dict:
        """The same as the evaluator wants it."""
        return {key: rounding_of(*value, key[1]) for key, value in self.parameters.items()}

    def drop_of(self, plan: BitPlan, rounded: Mapping[str, RoundedLayer], metric: str) -> float:
        """Return the drop of rounded layers on the samples that judge."""
        states = {
            name: state_of(self.layers[name], bits, rounded[name], self.roundings)
            for name, bits in plan.layers
        }
        return self.judge.drop(self.judge.outputs(states), metric)

    def written(self, plan: BitPlan, rounded: Mapping[str, RoundedLayer]) -> Any:
        """Return the model by a plan."""
        weights = {n: r.weights for n, r in rounded.items() if r.weights is not None}
        shifts = {n: r.shift for n, r in rounded.items() if r.shift.any()}
        return write_plan(self.proto, plan, self.parameters, weights, shifts)

    def layer_bytes(self, name: str, bits: LayerBits) -> int:
        """Return the size of a layer's weights and scales."""
        matrix = self.layers[name].matrix
        if not bits.has_integer_weights:
            return matrix.nbytes
        groups = -(-matrix.shape[1] // bits.group) if bits.group else 1
        return -(-matrix.size * stored_bits(bits.weights) // 8) + 4 * len(matrix) * groups

    def other_bytes(self) -> int:
        """Return the size of all constants that are not weights of layers."""
        weights = {layer.node.input[1] for layer in self.layers.values()}
        total = 0
        for item in self.proto.graph.initializer:
            if item.name not in weights:
                array = self.model.array(item.name)
                total += 0 if array is None else array.nbytes
        return total


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
    reached = math.inf
    for point in keeping:
        rounded = _rounded(subject, point.plan)
        proto = subject.written(point.plan, rounded)
        drops = _measured_drops(subject, proto)
        if goal.max_drop is None or drops[goal.metric] <= goal.max_drop:
            return point, rounded, proto, drops
        reached = min(reached, drops[goal.metric])
    raise ModelError(
        f"no written model drops by {goal.metric} {goal.max_drop:g} or less; the least is "
        f"{reached:.3g}; allow more, or add candidates with more bits"
    )


def _measured_drops(subject: Subject, proto: Any) -> dict[str, float]:
    """Compile the written model and return its drop by every metric."""
    from tilewright.quantization import _runner

    subject.progress("comparison")
    run, _ = _runner(proto, subject.settings.target, subject.settings.shapes)
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
