"""Compile one model in one way, run it, and compare with ONNX's reference."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import onnx

import tilewright as tw
from tests.arm.board import Board
from tilewright.compiler.layout.rewrite import rewrite
from tilewright.compiler.schedule import default_decisions
from tilewright.compiler.targets import Target, parse_target
from tilewright.compiler.tasks import Lookup, Task, TunedDecision
from tilewright.errors import InvalidScheduleError, LayoutError, MeasureError
from tilewright.reference import reference_outputs
from tilewright.tuner.candidate import canonical_json
from tilewright.tuner.layouts import layout_choices
from tilewright.tuner.space import LoopSpace
from tilewright.tuner.workload import describe_loops

VARIANTS = ("default", "random decisions", "other target")
# Of the largest value of an output. Winograd's transforms cost two digits of float32.
_TOLERANCE = 3e-4
# Relative change of the inputs by which the conditioning of a model is judged.
_NUDGE = 1e-6
_AMPLIFIED = 30
# Of what is quantized: a value halfway between two steps may go to either.
_STEPS = 0.35
_MEAN = 0.03
_ATTEMPTS = 20


class Mismatch(Exception):
    """A compiled model computed something else than the reference."""


def random_feed(model: onnx.ModelProto, seed: int) -> dict[str, np.ndarray]:
    """Return normally distributed inputs."""
    rng = np.random.default_rng(seed)
    return {
        info.name: rng.standard_normal(
            [d.dim_value for d in info.type.tensor_type.shape.dim]
        ).astype(np.float32)
        for info in model.graph.input
    }


def check(model: onnx.ModelProto, variant: str, seed: int = 0) -> None:
    """Compile and run a model in one of `VARIANTS`.

    Raises:
        Mismatch: the results are wrong; anything else that is raised is a bug as well.
    """
    feed = random_feed(model, seed)
    with np.errstate(all="ignore"):
        expected = _reference(model, feed)
        nudged = _reference(model, {name: x * np.float32(1 + _NUDGE) for name, x in feed.items()})
    found = _run(model, variant, seed, feed)
    steps = any(node.op_type == "QuantizeLinear" for node in model.graph.node)
    for name, value in expected.items():
        message = difference(found[name], value, nudged[name], steps)
        if message and not _agrees_with_onnxruntime(model, feed, found):
            raise Mismatch(f"output {name} {value.shape}: {message}")


def difference(
    found: np.ndarray, expected: np.ndarray, nudged: np.ndarray, steps: bool
) -> str | None:
    """Say how a result is wrong, or return None.

    Args:
        found, expected: to be compared; of one shape.
        nudged: expected of inputs changed by one in a million.
        steps: whether something is rounded to steps on the way.
    """
    if found.shape != expected.shape:
        return f"shape {found.shape}, expected {expected.shape}"
    if not np.isfinite(expected).all() or not expected.size:
        return None
    if not np.isfinite(found).all():
        return "not finite"
    errors = np.abs(found.astype(np.float64) - expected)
    largest = float(np.abs(expected).max())
    if steps:
        mean = _MEAN * (float(np.abs(expected).mean()) + 0.2)
        if errors.mean() > mean and errors.max() > _STEPS * (1 + largest):
            return f"mean error {errors.mean():.3g}, largest value {largest:.3g}"
        return None
    limit = _TOLERANCE * (largest + 1e-2) + _AMPLIFIED * float(np.abs(nudged - expected).max())
    if errors.max() > limit:
        return f"error {errors.max():.3g} at {np.unravel_index(errors.argmax(), errors.shape)}"
    return None


def _reference(model: onnx.ModelProto, feed: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Return what ONNX's reference computes, or ONNX Runtime where the reference fails."""
    names = [output.name for output in model.graph.output]
    try:
        return reference_outputs(model, feed, names, "onnx")
    except MeasureError:  # bugs of its own: GlobalMaxPool of one point loses a dimension
        return reference_outputs(model, feed, names, "onnxruntime")


def _agrees_with_onnxruntime(
    model: onnx.ModelProto, feed: Mapping[str, np.ndarray], found: Mapping[str, np.ndarray]
) -> bool:
    """Say whether a second implementation sides with us: ONNX's reference has bugs as well."""
    try:
        second = reference_outputs(model, feed, list(found), "onnxruntime")
    except MeasureError:  # what it cannot run, it cannot say anything about
        return False
    return all(
        found[name].shape == value.shape
        and np.abs(found[name] - value).max() <= 1e-3 * np.abs(value).max() + 1e-5
        for name, value in second.items()
    )


def _run(
    model: onnx.ModelProto, variant: str, seed: int, feed: Mapping[str, np.ndarray]
) -> dict[str, np.ndarray]:
    if variant == "other target":
        return _run_on_another(model, feed)
    if variant == "random decisions":
        return compile_with(model, random_decisions(parse_target("native"), seed)).run(feed)
    return tw.compile(model, logs=()).run(feed)


def _run_on_another(
    model: onnx.ModelProto, feed: Mapping[str, np.ndarray]
) -> dict[str, np.ndarray]:
    """Run with AVX2 where there is AVX-512, else on aarch64 under qemu where that is installed."""
    if parse_target("native").vector_bits > 256:
        return tw.compile(model, target="x86-64-v3", logs=()).run(feed)
    board = Board("aarch64", "cortex-a76")
    if board.missing():
        return tw.compile(model, target="haswell", logs=()).run(feed)
    compiled = tw.compile(model, target="aarch64:cortex-a76", logs=())
    names = [output.name for output in model.graph.output]
    return dict(zip(names, board.run(compiled.path, feed), strict=True))


def compile_with(model: onnx.ModelProto, lookup: Lookup) -> tw.CompiledModule:
    """Compile for this processor with decisions from a function instead of a log."""
    from tilewright.api import lower_model
    from tilewright.compiler.package import package

    target = parse_target("native")
    lowered, digest = lower_model(model, target, tuned=lookup)
    folder = tempfile.TemporaryDirectory(prefix="tilewright-fuzz-")
    path = Path(folder.name) / "model.so"
    package(lowered.program, target, path, {"model_digest": digest}, "so")
    return tw.CompiledModule(path, folder, {})


def random_decisions(target: Target, seed: int) -> Lookup:
    """Return a lookup that knows a random layout and random loops for every task."""
    rng = np.random.default_rng(seed)

    def lookup(task: Task) -> tuple[TunedDecision, ...]:
        choices = layout_choices(task.operator, target)
        choice = choices[rng.integers(len(choices))]
        changed = {p: layout for p, layout in enumerate(choice.layouts) if layout.primitives}
        try:
            func = rewrite(task.operator.func, changed) if changed else task.operator.func
            default = json.loads(default_decisions(func, target).to_json())
            space = LoopSpace(describe_loops(func, target), default, target)
        except (LayoutError, InvalidScheduleError, ValueError):
            return ()
        decisions = default
        for _ in range(_ATTEMPTS):
            drawn = space.decisions(space.random(rng))
            if space.plausible(drawn):
                decisions = drawn
                break
        # So fast that it is chosen wherever its layouts are not too far from its neighbours'.
        return (TunedDecision(task.key, choice.layouts, canonical_json(decisions), 1e-12),)

    return lookup
