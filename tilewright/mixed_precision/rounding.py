"""Round the layers of a model to a bit plan, one after the other, on the calibration samples.

    nearest      every weight to the nearest level, the greatest is the last level
    clipped      the range with the least error of the layer's output, then the nearest level
    compensated  clipped ranges; then columns are rounded one by one and make up for each other
                 (GPTQ), for the layers before, and the bias for the mean

A layer is compensated for what it really reads: the samples are run with the layers before it
rounded already, in deep models a few layers at a time.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from tilewright.compiler.quantize import input_moments as moments_of
from tilewright.compiler.quantize import weight_rounding as rounding
from tilewright.compiler.quantize.bit_plan import BitPlan, LayerBits
from tilewright.compiler.quantize.input_moments import InputMoments, MomentSums
from tilewright.compiler.quantize.layer_matrix import LayerMatrix
from tilewright.compiler.quantize.switchable import UNROUNDED, LayerState, Rounding
from tilewright.compiler.quantize.weight_rounding import RoundedWeights
from tilewright.mixed_precision.evaluator import Evaluator

CORRECTIONS = ("nearest", "clipped", "compensated")
# Below this many bits rounding to the nearest is worth improving on.
_COMPENSATED_BELOW = 8
# Of the mean of the diagonal, added to it before a second moment is inverted.
_DAMPINGS = (0.01, 0.1, 1.0)
# Of so many samples one judges, the others are fitted to.
_JUDGED_EVERY = 4
# Runs of all samples, each with more layers rounded.
_MOST_PASSES = 12
Roundings = Mapping[tuple[str, int], Rounding]


@dataclass(frozen=True, eq=False)
class RoundedLayer:
    """One layer after rounding.

    Attributes:
        weights: as integers; None where they stay floats.
        shift: to add to the bias, float64 [outputs].
        error: squared error of the layer's output over its squared sum, for what it reads.
    """

    weights: RoundedWeights | None
    shift: np.ndarray
    error: float


def state_of(
    layer: LayerMatrix, bits: LayerBits, rounded: RoundedLayer, roundings: Roundings
) -> LayerState:
    """Return how a rounded layer computes."""
    matrix = layer.matrix if rounded.weights is None else rounded.weights.matrix
    reads = UNROUNDED
    if bits.reads_integers:
        reads = roundings[layer.source, bits.activations]
    return LayerState(layer.stored(matrix), rounded.shift.astype(np.float32), reads)


def rounded_input(data: np.ndarray, how: Rounding) -> np.ndarray:
    """Return a tensor as a layer reads it, in floats."""
    if how is UNROUNDED:
        return data
    return np.clip(np.rint(data / np.float32(how.step)), how.low, how.high) * np.float32(how.step)


@dataclass(frozen=True, eq=False)
class Split:
    """Moments of what a layer reads: of the samples to fit to, of those to judge by, of all."""

    fitted: InputMoments
    judged: InputMoments
    every: InputMoments

    def centred(self) -> Split:
        """Return the moments around the means."""
        return Split(self.fitted.centred(), self.judged.centred(), self.every.centred())


def round_layer(
    layer: LayerMatrix,
    bits: LayerBits,
    moments: Split | None,
    correction: str,
    has_bias: bool,
) -> RoundedLayer:
    """Round one layer.

    Args:
        layer: which one.
        bits: of its weights.
        moments: of what it reads; None: not known, and neither compensated nor weighted.
        correction: one of `CORRECTIONS`.
        has_bias: there is a place for a shift.
    """
    none = np.zeros(len(layer.matrix))
    if not bits.has_integer_weights:
        return RoundedLayer(None, none, 0.0)
    if correction == "nearest" or moments is None:
        found = _plainly(layer.matrix, bits, correction)
        return RoundedLayer(found, none, _error(layer, found, moments))
    around = moments.centred() if has_bias else moments
    if correction == "clipped":
        found = _clipped(layer.matrix, bits, around.every)
    else:
        found = _compensated(layer, bits, around)
    compensates = correction == "compensated" and has_bias
    shift = none
    if compensates:
        shift = moments_of.mean_shift(layer.matrix, found.matrix, moments.every)
    return RoundedLayer(found, shift, _error(layer, found, moments))


def _clipped(matrix: np.ndarray, bits: LayerBits, moments: InputMoments) -> RoundedWeights:
    scale = _scales(matrix, bits, moments)
    return rounding.nearest(matrix, scale, bits.weights, bits.group)


def _scales(matrix: np.ndarray, bits: LayerBits, moments: InputMoments) -> np.ndarray:
    worth = np.repeat(moments.diagonal, len(matrix) // len(moments.diagonal), axis=0)
    return rounding.clipped_scales(matrix, bits.weights, worth, bits.group)


def _compensated(layer: LayerMatrix, bits: LayerBits, moments: Split) -> RoundedWeights:
    """Return the weights rounded in the way that does best on samples left out.

    Few samples do not say much about many columns: what makes up perfectly for the errors on them
    can be worse than nothing on others. So the damping is chosen, or not to make up at all.
    """

    def target(damping: float | None, of: InputMoments) -> np.ndarray:
        if damping is None:
            return layer.matrix
        return moments_of.best_weights(layer.matrix, of, damping)

    def attempt(
        damping: float | None, wanted: np.ndarray, scale: np.ndarray, of: InputMoments
    ) -> RoundedWeights:
        if damping is None:
            return rounding.nearest(wanted, scale, bits.weights, bits.group)
        hessian = rounding.damped(of.second, damping)
        return rounding.compensated(wanted, scale, bits.weights, hessian, bits.group)

    def judged(matrix: np.ndarray) -> float:
        return moments_of.added_error(layer.matrix, matrix, moments.judged)

    fitted = moments.fitted
    change = None
    if fitted.cross.any():
        change = min((None, *_DAMPINGS), key=lambda d: judged(target(d, fitted)))
    sharing = None
    if bits.weights < _COMPENSATED_BELOW:
        tried = target(change, fitted)
        scale = _scales(tried, bits, fitted)
        sharing = min(
            (None, *_DAMPINGS), key=lambda d: judged(attempt(d, tried, scale, fitted).matrix)
        )
    wanted = target(change, moments.every)
    return attempt(sharing, wanted, _scales(wanted, bits, moments.every), moments.every)


def _plainly(matrix: np.ndarray, bits: LayerBits, correction: str) -> RoundedWeights:
    """Round without knowing what the layer reads."""
    if correction == "nearest" and bits.weights > 1:
        low, high = rounding.levels(bits.weights)
        size = bits.group or matrix.shape[1]
        starts = np.arange(0, matrix.shape[1], size)
        greatest = np.maximum.reduceat(matrix, starts, axis=1) / high
        least = np.minimum.reduceat(matrix, starts, axis=1) / low
        scale = np.maximum(np.maximum(greatest, least), 1e-12).astype(np.float32)
    else:
        scale = rounding.clipped_scales(matrix, bits.weights, None, bits.group)
    return rounding.nearest(matrix, scale, bits.weights, bits.group)


def _error(layer: LayerMatrix, found: RoundedWeights, moments: Split | None) -> float:
    if moments is None:
        return 0.0
    noise, signal = moments_of.output_error(layer.matrix, found.matrix, moments.every)
    return max(0.0, noise) / max(signal, 1e-30)


def plain_moments(evaluator: Evaluator, progress: Callable[[str], None]) -> dict[str, Split | None]:
    """Return the moments of what every layer reads in floats; None for very wide layers."""
    names = [name for name, layer in evaluator.layers.items() if _fits(layer)]
    found = _moments(evaluator, names, {}, lambda _layer, data: data, progress)
    return {name: found.get(name) for name in evaluator.layers}


def _fits(layer: LayerMatrix) -> bool:
    return layer.matrix.shape[1] <= moments_of.MOST_COLUMNS


def _moments(
    evaluator: Evaluator,
    names: Sequence[str],
    states: Mapping[str, LayerState],
    read: Callable[[str, np.ndarray], np.ndarray],
    progress: Callable[[str], None],
) -> dict[str, Split]:
    """Return the moments of what layers read in floats, and what they will read.

    Args:
        evaluator: the model and its samples.
        names: of the layers.
        states: of the layers before.
        read: layer and what it is given -> what it reads.
        progress: called before every sample.
    """
    sums = {name: [MomentSums(evaluator.layers[name]) for _ in range(2)] for name in names}
    count = len(evaluator.samples)
    plain = evaluator.plain_reads(names) if states else None
    for number, found in enumerate(evaluator.reads(states, names)):
        progress(f"second moments, sample {number + 1} of {count}")
        wanted = found if plain is None else next(plain)
        is_judged = number % _JUDGED_EVERY == _JUDGED_EVERY - 1
        for name, parts in sums.items():
            parts[is_judged].add(wanted[name], read(name, found[name]))
    return {name: _split(*parts) for name, parts in sums.items()}


def _split(fitted: MomentSums, judged: MomentSums) -> Split:
    every = fitted.joined(judged).result()
    if not fitted.count or not judged.count:  # too few samples to leave any out
        return Split(every, every, every)
    return Split(fitted.result(), judged.result(), every)


def round_layers(
    evaluator: Evaluator,
    plan: BitPlan,
    roundings: Roundings,
    correction: str,
    has_bias: Callable[[str], bool],
    progress: Callable[[str], None] = lambda _stage: None,
) -> dict[str, RoundedLayer]:
    """Round all layers of a plan in order.

    Args:
        evaluator: the model and its samples.
        plan: bits of every layer.
        roundings: of tensor and bits.
        correction: one of `CORRECTIONS`.
        has_bias: says of a layer whether there is a place for a shift.
        progress: called with the name of each stage.
    """
    done: dict[str, RoundedLayer] = {}
    states: dict[str, LayerState] = {}
    bits_of = dict(plan.layers)

    def read(name: str, data: np.ndarray) -> np.ndarray:
        bits = bits_of[name]
        if not bits.reads_integers:
            return data
        return rounded_input(data, roundings[evaluator.layers[name].source, bits.activations])

    for number, names in enumerate(parts := _parts(list(bits_of)), 1):
        progress(f"rounding weights, part {number} of {len(parts)}")
        known: dict[str, Split] = {}
        if correction != "nearest":
            wide = [
                n for n in names if _fits(evaluator.layers[n]) and bits_of[n].has_integer_weights
            ]
            known = _moments(evaluator, wide, states, read, lambda _stage: None) if wide else {}
        for name in names:
            layer, bits = evaluator.layers[name], bits_of[name]
            done[name] = round_layer(layer, bits, known.get(name), correction, has_bias(name))
            states[name] = state_of(layer, bits, done[name], roundings)
    return done


def _parts(names: list[str]) -> list[list[str]]:
    """Return the layers in order, in parts that are rounded at once."""
    size = -(-len(names) // _MOST_PASSES)
    return [names[start : start + size] for start in range(0, len(names), size)]
