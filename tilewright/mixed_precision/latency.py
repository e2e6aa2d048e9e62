"""How long each layer takes in each precision: from the tuner's records, else measured.

The whole model is compiled once for each precision, and the modules are profiled in turns. The time
of a layer is that of its kernel and of all calls since the layer before: what rounds its input is
its own. The times of a module's calls are scaled to the time of the whole module, which has no
clock inside. Where the compile used an exact record of the tuner for this target, the kernel's time
is the record's.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from tilewright.compiler.quantize.bit_plan import BitPlan, LayerBits
from tilewright.compiler.quantize.float_model import FloatModel
from tilewright.compiler.quantize.layer_matrix import linear_layers
from tilewright.errors import ModelError

if TYPE_CHECKING:
    from tilewright.api import CompiledModule

_PRODUCTS = frozenset(("Conv", "ConvTranspose", "MatMul", "Gemm", "ConvInteger", "MatMulInteger"))
# One kernel of every convolution or product; a Winograd convolution may have several.
_KERNEL = re.compile(r"(?!.*winograd_(?:input|output|product)).*(?:conv(?!ert)|matmul|winograd)")
_ROUNDS = 15
# A call of a fast module is repeated until a sample is this long.
_SAMPLE_S = 1e-3


@dataclass(frozen=True, slots=True)
class LayerTime:
    """One layer in one precision.

    Attributes:
        seconds: of its kernel, and of the calls before it since the last layer.
        origin: "record" where the kernel's part is the tuner's, else "measured".
    """

    seconds: float
    origin: str


Times = Mapping[tuple[str, LayerBits], LayerTime]


def product_order(model: FloatModel) -> list[str | None]:
    """Return for every convolution and product of a model the layer that it is, or None."""
    names = {layer.node.output[0]: name for name, layer in linear_layers(model).items()}
    return [
        names.get(node.output[0])
        for node in model.proto.graph.node
        if node.op_type in _PRODUCTS and model.array(node.output[0]) is None
    ]


def measure(
    options: Sequence[LayerBits],
    choices: Mapping[str, Sequence[LayerBits]],
    order: Sequence[str | None],
    compile_plan: Callable[[BitPlan], CompiledModule],
    feed: Mapping[str, np.ndarray],
    progress: Callable[[str], None],
) -> dict[tuple[str, LayerBits], LayerTime]:
    """Return the time of every layer in every precision.

    Args:
        options: precisions; each is given to all layers that may have it.
        choices: what each layer may have, in the order of the model.
        order: of `product_order`.
        compile_plan: writes the model by a plan and compiles it.
        feed: one sample.
        progress: called with the name of each stage.

    Raises:
        ModelError: the layers cannot be found in a module.
    """
    modules: dict[BitPlan, CompiledModule] = {}
    for number, option in enumerate(options, 1):
        progress(f"latency, precision {number} of {len(options)}")
        plan = BitPlan(tuple((name, _nearest(option, may)) for name, may in choices.items()))
        if plan not in modules:
            modules[plan] = compile_plan(plan)
    profiles = _profiled(list(modules.values()), feed, progress)
    times: dict[tuple[str, LayerBits], LayerTime] = {}
    for (plan, compiled), seconds in zip(modules.items(), profiles, strict=True):
        for name, time in _by_layer(plan, order, compiled, seconds).items():
            times.setdefault((name, plan[name]), time)
    return times


def _nearest(option: LayerBits, may: Sequence[LayerBits]) -> LayerBits:
    """Return a precision, or where a layer may not have it, what comes closest."""
    if option in may:
        return option
    return replace(option, group=0) if replace(option, group=0) in may else may[0]


def _profiled(
    modules: Sequence[CompiledModule],
    feed: Mapping[str, np.ndarray],
    progress: Callable[[str], None],
) -> list[np.ndarray]:
    """Return the seconds of every call of every module, the modules measured in turns."""
    from tilewright.runtime.benchmark import interleave

    feeds = [{spec.name: feed[spec.name] for spec in m.module.inputs} for m in modules]
    calls: list[list[list[float]]] = [[] for _ in modules]
    for number in range(_ROUNDS):
        progress(f"latency, round {number + 1} of {_ROUNDS}")
        for place, module in enumerate(modules):
            profile = module.module.profile(feeds[place], rounds=1)
            calls[place].append([item.seconds for item in profile])
    runs = {
        str(place): (lambda module=module, given=feeds[place]: module.module.run(given))
        for place, module in enumerate(modules)
    }
    whole = interleave(runs, _ROUNDS, min_sample_s=_SAMPLE_S)
    parts = [np.median(np.array(rows), axis=0) for rows in calls]
    return [
        part * (float(np.median(whole[str(place)])) / max(float(part.sum()), 1e-12))
        for place, part in enumerate(parts)
    ]


def _by_layer(
    plan: BitPlan, order: Sequence[str | None], compiled: CompiledModule, seconds: np.ndarray
) -> dict[str, LayerTime]:
    entry = compiled.module.description["entries"][0]
    kernels = [call["kernel"] for call in entry["calls"]]
    labels = [call["label"] for call in entry["calls"]]
    found = [place for place, kernel in enumerate(kernels) if _KERNEL.match(kernel)]
    if len(found) != len(order):
        raise ModelError(
            f"the model has {len(order)} convolutions and products but its module {len(found)} "
            "kernels of that kind, so the time of each layer is not known; choose by error and "
            "size: --max-bytes without --max-latency, or --prefer bytes"
        )
    tuned = {
        row["label"]: float(row["expected_s"])
        for row in compiled.report["tuning"]["operators"]
        if row["origin"] == "tuned" and not row["reason"]
    }
    times: dict[str, LayerTime] = {}
    start, waiting = 0, 0.0
    for place, name in zip(found, order, strict=True):
        waiting += float(seconds[start:place].sum())
        start = place + 1
        kernel, origin = float(seconds[place]), "measured"
        if labels[place] in tuned:
            kernel, origin = tuned[labels[place]], "record"
        waiting += kernel
        if name is not None:
            times[name] = LayerTime(waiting, origin)
            waiting = 0.0
    rest = waiting + float(seconds[start:].sum())
    last = plan.layers[-1][0]
    times[last] = replace(times[last], seconds=times[last].seconds + rest)
    return times
