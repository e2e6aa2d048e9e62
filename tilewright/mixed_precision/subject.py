"""A float model with its samples, compiled once, and all that rounding it needs to know."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

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
from tilewright.mixed_precision.evaluator import Evaluator
from tilewright.mixed_precision.rounding import RoundedLayer, state_of

Arrays = Mapping[str, np.ndarray]
Progress = Callable[[str], None]

# From so many samples on, every fourth is left out of all fitting and says how good the result is.
_FEWEST_TO_SPLIT = 8
_JUDGED_EVERY = 4
_ALL_BITS = (8, 4, 2)
# The ranges of few levels are searched whatever the method for bytes is.
_FEW_LEVELS_METHOD = "mse"


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
        from tilewright.quantization import runner

        names = list(integer_tensors(self.model, BitPlan.uniform(self.layers, BYTES)))
        settings = self.settings
        run = runner(ptq.with_outputs(self.proto, names), settings.target, settings.shapes)
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
