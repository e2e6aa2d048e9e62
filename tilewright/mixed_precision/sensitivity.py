"""How much the output of a model changes when one layer alone is rounded to some precision.

output   measured: the model runs on the samples with this layer rounded
hessian  estimated: weights W become V at the cost of curvature * |(V - W) x|^2, where the
         curvature of a layer is measured once, with random changes of its weights: Hutchinson's
         estimate of the Gauss-Newton Hessian's mean eigenvalue, in the metric of what the layer
         reads (HAWQ-V2, arXiv 1911.03852, and K-FAC's factor E[x x^T]); what rounding of the
         activations adds is measured as for "output"
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

import numpy as np

from tilewright.compiler.quantize import input_moments as moments_of
from tilewright.compiler.quantize.bit_plan import FLOAT_BITS, LayerBits
from tilewright.compiler.quantize.layer_matrix import LayerMatrix
from tilewright.compiler.quantize.switchable import LayerState
from tilewright.mixed_precision.evaluator import Evaluator
from tilewright.mixed_precision.rounding import (
    RoundedLayer,
    Roundings,
    Split,
    round_layer,
    state_of,
)

SENSITIVITIES = ("output", "hessian")
# Size of the random changes relative to the weights: small enough to be linear.
_CHANGE = 0.02

Options = Mapping[str, Sequence[LayerBits]]
Key = tuple[str, LayerBits]


def round_each(
    evaluator: Evaluator,
    options: Options,
    moments: Mapping[str, Split | None],
    correction: str,
    has_bias: Callable[[str], bool],
    progress: Callable[[str], None],
) -> dict[Key, RoundedLayer]:
    """Return every layer rounded in every way, on what it reads in floats."""
    rounded: dict[Key, RoundedLayer] = {}
    for number, (name, choices) in enumerate(options.items(), 1):
        progress(f"rounding layers apart, layer {number} of {len(options)}")
        known: dict[tuple[int, int], RoundedLayer] = {}
        for bits in choices:
            stored = (bits.weights, bits.group)
            if stored not in known:
                layer = evaluator.layers[name]
                known[stored] = round_layer(layer, bits, moments[name], correction, has_bias(name))
            rounded[name, bits] = known[stored]
    return rounded


def by_output(
    evaluator: Evaluator,
    rounded: Mapping[Key, RoundedLayer],
    roundings: Roundings,
    progress: Callable[[str], None],
) -> dict[Key, float]:
    """Return the output's error for every layer and precision, the layer alone rounded."""
    errors = {}
    for number, ((name, bits), result) in enumerate(rounded.items(), 1):
        progress(f"sensitivity, case {number} of {len(rounded)}")
        state = state_of(evaluator.layers[name], bits, result, roundings)
        is_plain = not bits.has_integer_weights and not bits.reads_integers
        errors[name, bits] = 0.0 if is_plain else _error(evaluator, {name: state})
    return errors


def by_hessian(
    evaluator: Evaluator,
    rounded: Mapping[Key, RoundedLayer],
    roundings: Roundings,
    moments: Mapping[str, Split | None],
    seed: int,
    progress: Callable[[str], None],
) -> dict[Key, float]:
    """Return estimates of the same: two or three runs for each layer instead of one per case."""
    generator = np.random.default_rng(seed)
    curvature: dict[str, float] = {}
    reading: dict[tuple[str, int], float] = {}
    errors: dict[Key, float] = {}
    for number, ((name, bits), result) in enumerate(rounded.items(), 1):
        progress(f"sensitivity, case {number} of {len(rounded)}")
        layer = evaluator.layers[name]
        if name not in curvature:
            curvature[name] = _curvature(evaluator, layer, moments[name], generator)
        key = (name, bits.activations)
        if key not in reading:
            reads = replace(bits, weights=FLOAT_BITS, activations=FLOAT_BITS, group=0)
            plain = RoundedLayer(None, np.zeros(len(layer.matrix)), 0.0)
            state = state_of(layer, reads, plain, roundings)
            if bits.reads_integers:
                how = roundings[layer.source, bits.activations]
                state = replace(state, rounding=how)
            reading[key] = _error(evaluator, {name: state}) if bits.reads_integers else 0.0
        change = _power(layer, result, moments[name])
        errors[name, bits] = curvature[name] * change + reading[key]
    return errors


def _curvature(
    evaluator: Evaluator,
    layer: LayerMatrix,
    moments: Split | None,
    generator: np.random.Generator,
) -> float:
    """Return the output's error for each unit of the power that a change of weights makes."""
    size = _CHANGE * float(np.sqrt((layer.matrix.astype(np.float64) ** 2).mean()))
    signs = generator.choice(np.array([-1.0, 1.0]), layer.matrix.shape)
    changed = (layer.matrix + size * signs).astype(np.float32)
    state = replace(LayerState.plain(layer), weights=layer.stored(changed))
    power = _change_power(layer.matrix, changed, moments)
    return _error(evaluator, {layer.name: state}) / max(power, 1e-30)


def _power(layer: LayerMatrix, result: RoundedLayer, moments: Split | None) -> float:
    if result.weights is None:
        return 0.0
    return _change_power(layer.matrix, result.weights.matrix, moments)


def _change_power(matrix: np.ndarray, changed: np.ndarray, moments: Split | None) -> float:
    if moments is None:
        return float(((changed.astype(np.float64) - matrix) ** 2).sum())
    return max(0.0, moments_of.output_error(matrix, changed, moments.every.centred())[0])


def _error(evaluator: Evaluator, states: Mapping[str, LayerState]) -> float:
    return evaluator.drop(evaluator.outputs(states), "error")
