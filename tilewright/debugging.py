"""Find the first operator of a model at which our results leave the reference's."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import helper
from onnx.utils import Extractor

from tilewright.errors import MeasureError
from tilewright.inputs import save_npz
from tilewright.reference import largest_error, load_proto, reference_outputs
from tilewright.verification import TOLERANCE

# Nodes before the wrong one that a reproducer takes along: the fault may lie in their fusion.
_CONTEXT = (0, 1, 2, 4, 8)


@dataclass(frozen=True)
class Divergence:
    """Where results leave the reference's.

    Attributes:
        node: name and operator of the node, as "Conv 'conv1'".
        tensor: its output.
        error: largest error of that, in standard deviations.
        reproducer: nodes of the smallest part of the model that shows it.
        files: where that part and its inputs were written.
    """

    node: str
    tensor: str
    error: float
    reproducer: tuple[str, ...]
    files: tuple[Path, ...] = ()


def debug_accuracy(
    model: str | os.PathLike[str],
    *,
    against: str = "onnxruntime",
    target: str = "native",
    feed: Mapping[str, np.ndarray] | None = None,
    shapes: Mapping[str, Sequence[int]] | None = None,
    seed: int = 0,
    tolerance: float = TOLERANCE,
    out: str | os.PathLike[str] | None = None,
    progress: Callable[[str], None] = lambda _stage: None,
) -> Divergence | None:
    """Return the first node whose result is wrong, or None where all outputs agree.

    The model is cut after ever fewer nodes (bisection over the order of the file), each part
    compiled as a whole, so that faults that only fusion brings show as well; then the part before
    the wrong node is left out as far as the fault stays.

    Args:
        model: an ONNX file.
        against: see `reference.reference_outputs`.
        target: as for `compile`; must run here.
        feed: inputs; None: random ones.
        shapes: shape per input, where the model leaves dimensions open and there is no `feed`.
        seed: of random inputs.
        tolerance: as for `verify`.
        out: folder for `repro.onnx` and `repro.npz`, the smallest wrong part and its inputs.
        progress: called with what is being tried.

    Raises:
        ModelError: the model cannot be read.
        MeasureError: the reference is missing or cannot run the model.
        TilewrightError: the model cannot be compiled.
    """
    proto = load_proto(Path(model))
    given = {name: array.shape for name, array in (feed or {}).items()}
    _close(proto, {**given, **(shapes or {})})
    proto = onnx.shape_inference.infer_shapes(proto, data_prop=True)
    search = _Search(proto, against, target, feed, seed, tolerance, progress)
    wrong = search.first_wrong()
    if wrong is None:
        return None
    node, tensor, error = wrong
    part, inputs = search.shrink(node, tensor)
    files = _write(part, inputs, Path(out)) if out is not None else ()
    return Divergence(
        f"{node.op_type} '{node.name or node.output[0]}'",
        tensor,
        error,
        tuple(item.op_type for item in part.graph.node),
        files,
    )


class _Search:
    """Parts of one model, compiled and compared with the values of the whole one."""

    def __init__(
        self,
        proto: onnx.ModelProto,
        against: str,
        target: str,
        feed: Mapping[str, np.ndarray] | None,
        seed: int,
        tolerance: float,
        progress: Callable[[str], None],
    ) -> None:
        self.proto, self.target, self.tolerance = proto, target, tolerance
        self.progress = progress
        constants = {item.name for item in proto.graph.initializer}
        self.inputs = [item.name for item in proto.graph.input if item.name not in constants]
        self.feed = dict(feed) if feed is not None else _random_feed(proto, self.inputs, seed)
        self.extractor = Extractor(proto)
        known = {info.name for info in proto.graph.value_info}
        finals = [output.name for output in proto.graph.output]
        self.steps = [
            (node, name)
            for node in proto.graph.node
            for name in node.output
            if name and (name in known or name in finals)
        ]
        self.finals = finals
        shown = onnx.ModelProto()
        shown.CopyFrom(proto)
        present = set(finals)
        shown.graph.output.extend(
            helper.make_empty_tensor_value_info(name)
            for _, name in self.steps
            if name not in present
        )
        names = list(dict.fromkeys([*(name for _, name in self.steps), *finals]))
        self.values = {**self.feed, **reference_outputs(shown, self.feed, names, against)}

    def error_of(self, names: Sequence[str], sources: Sequence[str]) -> float:
        """Compile what leads from some tensors to others; return the largest error."""
        from tilewright.api import compile as compile_model

        part = self._part(sources, names)
        used = {name for node in part.graph.node for name in node.input}
        feed = {name: self.values[name] for name in sources if name in used}
        kept = [item for item in part.graph.input if item.name in feed]
        del part.graph.input[:]
        part.graph.input.extend(kept)
        found = compile_model(part, self.target, logs=()).run(feed)
        return max(largest_error(found[name], self.values[name]) for name in names)

    def _part(self, sources: Sequence[str], names: Sequence[str]) -> onnx.ModelProto:
        """Cut out what leads from some tensors to others, with the shapes that they have here."""
        part = self.extractor.extract_model(list(sources), list(names))
        for item in part.graph.input:
            if item.name in self.values:
                _set_shape(item, self.values[item.name].shape)
        return part

    def first_wrong(self) -> tuple[onnx.NodeProto, str, float] | None:
        """Return the first wrong node by bisection; None where all outputs are right."""
        self.progress("the whole model")
        if self.error_of(self.finals, self.inputs) <= self.tolerance:
            return None
        low, high = 0, len(self.steps) - 1
        error = float("inf")
        # What follows a wrong value is wrong as a rule, so that halving finds a first one.
        while low < high:
            middle = (low + high) // 2
            node, name = self.steps[middle]
            self.progress(f"up to {node.op_type} '{node.name or name}'")
            found = self.error_of([name], self.inputs)
            if found > self.tolerance:
                high, error = middle, found
            else:
                low = middle + 1
        node, name = self.steps[high]
        if not np.isfinite(error):
            error = self.error_of([name], self.inputs)
        return node, name, error

    def shrink(
        self, node: onnx.NodeProto, tensor: str
    ) -> tuple[onnx.ModelProto, dict[str, np.ndarray]]:
        """Return the smallest part that ends at a tensor and is still wrong, and its inputs."""
        nodes = list(self.proto.graph.node)
        constants = {item.name for item in self.proto.graph.initializer}
        at = next(i for i, other in enumerate(nodes) if other.output[0] == node.output[0])
        for context in _CONTEXT:
            taken = nodes[max(0, at - context) : at + 1]
            made = {name for item in taken for name in item.output}
            sources = [
                name
                for name in dict.fromkeys(name for item in taken for name in item.input)
                if name and name not in made and name not in constants and name in self.values
            ]
            self.progress(f"a part of {len(taken)} nodes")
            if self.error_of([tensor], sources) > self.tolerance:
                break
        else:
            sources = self.inputs
        part = self._part(sources, [tensor])
        return part, {name: self.values[name] for name in sources}


def _close(proto: onnx.ModelProto, shapes: Mapping[str, Sequence[int]]) -> None:
    """Give the inputs of a model their shapes.

    Raises:
        ShapeError: one is unknown, or does not fit.
    """
    from tilewright.frontends.onnx.shapes import bind_shapes

    constants = {item.name for item in proto.graph.initializer}
    inputs = [
        item
        for item in proto.graph.input
        if item.name not in constants and item.type.HasField("tensor_type")
    ]
    for item, shape in bind_shapes(inputs, shapes):
        _set_shape(item, shape)


def _set_shape(item: onnx.ValueInfoProto, shape: Sequence[int]) -> None:
    tensor = item.type.tensor_type
    tensor.ClearField("shape")
    tensor.shape.SetInParent()
    for extent in shape:
        tensor.shape.dim.add(dim_value=extent)


def _random_feed(proto: onnx.ModelProto, names: Sequence[str], seed: int) -> dict[str, np.ndarray]:
    from tilewright.inputs import random_inputs
    from tilewright.runtime.module import TensorSpec

    specs = []
    for item in proto.graph.input:
        if item.name not in names:
            continue
        dims = [d.dim_value for d in item.type.tensor_type.shape.dim]
        dtype = helper.tensor_dtype_to_np_dtype(item.type.tensor_type.elem_type)
        specs.append(TensorSpec(item.name, tuple(dims), str(dtype)))
    return random_inputs(specs, seed)


def _write(part: Any, inputs: Mapping[str, np.ndarray], folder: Path) -> tuple[Path, Path]:
    model, arrays = folder / "repro.onnx", folder / "repro.npz"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        onnx.save(part, model)
    except OSError as error:
        raise MeasureError(f"cannot write {model}: {error.strerror or error}") from error
    save_npz(arrays, inputs)
    return model, arrays
