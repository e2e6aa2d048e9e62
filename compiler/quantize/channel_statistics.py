"""Mean, least and greatest value of every channel of a tensor, over calibration samples."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from tilewright.compiler.quantize.float_model import FloatModel

Arrays = Mapping[str, np.ndarray]


@dataclass(frozen=True, eq=False)
class ChannelStatistics:
    """What was seen of a tensor; all float64 [channels]."""

    mean: np.ndarray
    low: np.ndarray
    high: np.ndarray


def linear_inputs(model: FloatModel) -> dict[str, int]:
    """Return the inputs of convolutions and products with weights -> dimension of the channels."""
    return {
        node.input[0]: 1 if node.op_type == "Conv" else -1
        for node in model.proto.graph.node
        if model.is_linear(node)
    }


def channel_statistics(
    axes: Mapping[str, int], samples: Sequence[Arrays], run: Callable[[Arrays], Arrays]
) -> dict[str, ChannelStatistics]:
    """Return the statistics of tensors.

    Args:
        axes: tensor -> dimension of its channels.
        samples: inputs of the model.
        run: computes the tensors of one sample; graph inputs come from the sample.
    """
    sums: dict[str, list[np.ndarray]] = {}
    for sample in samples:
        computed = {**sample, **run(sample)}
        for name, axis in axes.items():
            value = np.moveaxis(np.asarray(computed[name], np.float64), axis, -1)
            rows = value.reshape(-1, value.shape[-1])
            seen = [rows.sum(axis=0), np.float64(len(rows)), rows.min(axis=0), rows.max(axis=0)]
            if name in sums:
                total, count, low, high = sums[name]
                seen = [seen[0] + total, seen[1] + count]
                seen += [np.minimum(rows.min(axis=0), low), np.maximum(rows.max(axis=0), high)]
            sums[name] = seen
    return {n: ChannelStatistics(t / c, low, high) for n, (t, c, low, high) in sums.items()}
