"""Run a model on the calibration samples with any of its layers rounded, compiled only once."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from copy import copy
from typing import TYPE_CHECKING, Any

import numpy as np

from tilewright.compiler.quantize.switchable import LayerState, Switchable, make_switchable
from tilewright.errors import ModelError

if TYPE_CHECKING:
    from tilewright.runtime.module import Module

Arrays = Mapping[str, np.ndarray]
Outputs = list[dict[str, np.ndarray]]

METRICS = ("error", "cosine", "top1")
# What all layers read, over all samples, is kept up to this size, and computed again beyond.
_MOST_KEPT_BYTES = 1 << 30


class Evaluator:
    """A model whose layers can be switched, and its samples.

    Args:
        proto: the float model.
        samples: inputs of the model.
        target: what the samples are run on; must be this machine.
        shapes: shape per input, where the model leaves dimensions open.

    Attributes:
        switchable: the model.
        layers: its layers by name, in order.
        plain: the state of every layer as it is in floats.
        wanted: the float outputs of the model for each sample.

    Raises:
        ModelError: no output is a float tensor, or one is not finite.
    """

    def __init__(
        self,
        proto: Any,
        samples: Sequence[Arrays],
        target: str = "native",
        shapes: Mapping[str, Sequence[int]] | None = None,
    ) -> None:
        from tilewright.api import compile

        self.switchable: Switchable = make_switchable(proto)
        self.layers = self.switchable.layers
        self.samples = list(samples)
        if not self.switchable.outputs:
            raise ModelError("the model has no output of floats to judge a rounding by")
        self._compiled = compile(self.switchable.proto, target, shapes)
        self._module: Module = self._compiled.module
        self._names = {spec.name for spec in self._module.inputs}
        self._kept: list[dict[str, np.ndarray]] | None = None
        self.plain = {name: LayerState.plain(layer) for name, layer in self.layers.items()}
        self.wanted = self.outputs({})
        for outputs in self.wanted:
            for name, array in outputs.items():
                if not np.isfinite(array).all():
                    raise ModelError(f"output {name!r} is not finite on the samples")

    def on(self, samples: Sequence[Arrays]) -> Evaluator:
        """Return the same model on other samples."""
        other = copy(self)
        other.samples = list(samples)
        other._kept = None
        other.wanted = other.outputs({})
        return other

    def outputs(self, states: Mapping[str, LayerState]) -> Outputs:
        """Return the float outputs for every sample, with some layers switched."""
        names = self.switchable.outputs
        return [{name: found[name] for name in names} for found in self._run(states)]

    def reads(
        self, states: Mapping[str, LayerState], layers: Sequence[str]
    ) -> Iterator[dict[str, np.ndarray]]:
        """Yield for every sample what layers read, before it is rounded."""
        for sample, found in zip(self.samples, self._run(states), strict=True):
            yield {
                name: found[tensor] if (tensor := self.layers[name].source) in found
                else np.asarray(sample[tensor])
                for name in layers
            }  # fmt: skip

    def plain_reads(self, layers: Sequence[str]) -> Iterator[dict[str, np.ndarray]]:
        """Yield what `reads` does with no layer switched; kept from call to call where it fits."""
        if self._kept is None:
            sample = next(self.reads({}, list(self.layers)))
            size = sum({id(a): a.nbytes for a in sample.values()}.values()) * len(self.samples)
            if size > _MOST_KEPT_BYTES:
                yield from self.reads({}, layers)
                return
            self._kept = list(self.reads({}, list(self.layers)))
        for kept in self._kept:
            yield {name: kept[name] for name in layers}

    def drop(self, outputs: Outputs, metric: str) -> float:
        """Return how much worse outputs are than those in floats; see `difference`."""
        return difference(outputs, self.wanted, metric)

    def _run(self, states: Mapping[str, LayerState]) -> Iterator[dict[str, np.ndarray]]:
        feed = self.switchable.feed({**self.plain, **states})
        for sample in self.samples:
            given = {**feed, **sample}
            yield self._module.run({n: array for n, array in given.items() if n in self._names})


def difference(found: Outputs, wanted: Outputs, metric: str) -> float:
    """Return how far outputs are from what they should be, 0 for equal.

    Args:
        found, wanted: for every sample, output -> array.
        metric: "error", squared error over squared sum; "cosine", one minus the mean cosine;
            "top1", share of places where the greatest element of the last dimension is another.
            The mean over the outputs.
    """
    measure = _MEASURES[metric]
    names = wanted[0].keys()
    return float(np.mean([measure([f[n] for f in found], [w[n] for w in wanted]) for n in names]))


def _error(found: list[np.ndarray], wanted: list[np.ndarray]) -> float:
    pairs = list(zip(found, wanted, strict=True))
    noise = sum(float(((f - w).astype(np.float64) ** 2).sum()) for f, w in pairs)
    signal = sum(float((w.astype(np.float64) ** 2).sum()) for _, w in pairs)
    return noise / max(signal, 1e-30)


def _cosine(found: list[np.ndarray], wanted: list[np.ndarray]) -> float:
    cosines: list[float] = []
    for f, w in zip(found, wanted, strict=True):
        a, b = f.astype(np.float64).reshape(-1), w.astype(np.float64).reshape(-1)
        length = np.linalg.norm(a) * np.linalg.norm(b)
        cosines.append(float(a @ b / length) if length else float((a == b).all()))
    return max(0.0, 1 - float(np.mean(cosines)))


def _top1(found: list[np.ndarray], wanted: list[np.ndarray]) -> float:
    differ = [
        float((f.argmax(-1) != w.argmax(-1)).mean()) for f, w in zip(found, wanted, strict=True)
    ]
    return float(np.mean(differ))


_MEASURES: dict[str, Callable[[list[np.ndarray], list[np.ndarray]], float]] = {
    "error": _error,
    "cosine": _cosine,
    "top1": _top1,
}
