"""Compile models in one way, run them, and compare with ONNX's reference."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence

import numpy as np
import onnx

from benchmarks.fuzz.ways import WAYS
from tilewright.errors import MeasureError
from tilewright.reference import reference_outputs

# Of the largest value of an output. Winograd's transforms cost two digits of float32.
_TOLERANCE = 3e-4
# Relative change of the inputs by which the conditioning of a model is judged.
_NUDGE = 1e-6
_AMPLIFIED = 30
# Of what is quantized: a value halfway between two steps may go to either.
_STEPS = 0.35
_MEAN = 0.03


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


def check(models: Sequence[onnx.ModelProto], way: str, seed: int = 0) -> None:
    """Compile graphs side by side in one of `WAYS`, run them, compare each with its reference.

    Raises:
        Mismatch: the results are wrong; anything else that is raised is a bug as well.
    """
    chosen = WAYS[way]
    feeds = [random_feed(model, seed + index) for index, model in enumerate(models)]
    whole = {f"g{i}_{name}": array for i, feed in enumerate(feeds) for name, array in feed.items()}
    together = chosen.prepare(merged(models), whole)
    found = chosen.run(together, whole, seed)
    for index in range(len(models)):
        alone = part(together, index)
        names = [output.name for output in alone.graph.output]
        feed = {info.name: whole[info.name] for info in alone.graph.input}
        _compare(alone, feed, {name: found[name] for name in names})


def merged(models: Sequence[onnx.ModelProto]) -> onnx.ModelProto:
    """Return one model of several graphs, prefixed g0_, g1_: they share the cost of linking."""
    together = onnx.ModelProto()
    together.CopyFrom(models[0])
    together.ClearField("graph")
    together.graph.name = "fuzz"
    for index, model in enumerate(models):
        graph = onnx.compose.add_prefix(model, f"g{index}_").graph
        for field in ("node", "initializer", "input", "output"):
            getattr(together.graph, field).extend(getattr(graph, field))
    return together


def part(together: onnx.ModelProto, index: int) -> onnx.ModelProto:
    """Return one graph of `merged`, by its prefix and what its outputs need."""
    prefix, graph = f"g{index}_", together.graph
    outputs = [info for info in graph.output if info.name.startswith(prefix)]
    needed, nodes = {info.name for info in outputs}, []
    for node in reversed(graph.node):
        if needed.intersection(node.output):
            nodes.append(node)
            needed.update(node.input)
    alone = onnx.ModelProto()
    alone.CopyFrom(together)
    alone.graph.ClearField("node")
    alone.graph.node.extend(reversed(nodes))
    for field, kept in (
        ("initializer", [weight for weight in graph.initializer if weight.name in needed]),
        ("input", [info for info in graph.input if info.name.startswith(prefix)]),
        ("output", outputs),
    ):
        alone.graph.ClearField(field)
        getattr(alone.graph, field).extend(kept)
    return alone


def _compare(
    model: onnx.ModelProto, feed: Mapping[str, np.ndarray], found: Mapping[str, np.ndarray]
) -> None:
    with np.errstate(all="ignore"):
        expected = _reference(model, feed)
        nudged = _reference(model, {name: x * np.float32(1 + _NUDGE) for name, x in feed.items()})
    steps = any(node.op_type == "QuantizeLinear" for node in model.graph.node)
    for name, value in expected.items():
        message = difference(found[name], value, nudged[name], steps)
        if message and not _agrees_with_onnxruntime(model, feed, found):
            raise Mismatch(f"output {name} {value.shape}: {message}")


def difference(
    found: np.ndarray, expected: np.ndarray, nudged: np.ndarray, steps: bool
) -> str | None:
    """Say how a result is wrong, or return None; where the expected value overflowed, all is right.

    Args:
        found, expected: to be compared; of one shape.
        nudged: expected of inputs changed by one in a million.
        steps: whether something is rounded to steps on the way.
    """
    if found.shape != expected.shape:
        return f"shape {found.shape}, expected {expected.shape}"
    finite = np.isfinite(expected) & np.isfinite(nudged)
    if not finite.any():
        return None
    found, expected, nudged = (np.where(finite, x, 0) for x in (found, expected, nudged))
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
    """Return what ONNX's reference computes; ONNX Runtime helps where that has bugs."""
    names = [output.name for output in model.graph.output]
    # GlobalMaxPool of one point loses a dimension, for instance: there, or where it is used.
    with contextlib.suppress(MeasureError):
        found = reference_outputs(model, feed, names, "onnx")
        if all(found[output.name].shape == _declared(output) for output in model.graph.output):
            return found
    return node_by_node(model, feed)


def _declared(output: onnx.ValueInfoProto) -> tuple[int, ...]:
    return tuple(dim.dim_value for dim in output.type.tensor_type.shape.dim)


def node_by_node(model: onnx.ModelProto, feed: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Return the outputs of a model whose nodes no single reference can run all.

    A node is ONNX Runtime's where ONNX's reference fails or returns another shape than it infers.
    """
    values = dict(feed)
    inferred = onnx.shape_inference.infer_shapes(model, strict_mode=True, data_prop=True).graph
    shapes = {
        info.name: tuple(dim.dim_value for dim in info.type.tensor_type.shape.dim)
        for info in (*inferred.value_info, *inferred.output)
    }
    for tensor in model.graph.initializer:
        values[tensor.name] = onnx.numpy_helper.to_array(tensor)
    for node in model.graph.node:
        given = {name: values[name] for name in node.input if name}
        infos = [
            onnx.helper.make_tensor_value_info(
                name, onnx.helper.np_dtype_to_tensor_dtype(array.dtype), array.shape
            )
            for name, array in given.items()
        ]
        outputs = [onnx.helper.make_empty_tensor_value_info(name) for name in node.output]
        alone = onnx.helper.make_model(
            onnx.helper.make_graph([node], "node", infos, outputs),
            opset_imports=model.opset_import,
            ir_version=model.ir_version,
        )
        try:
            found = reference_outputs(alone, given, node.output, "onnx")
        except MeasureError:
            found = {}
        if any(name not in found or found[name].shape != shapes[name] for name in node.output):
            found = reference_outputs(alone, given, node.output, "onnxruntime")
        values |= found
    return {output.name: values[output.name] for output in model.graph.output}


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
