"""ONNX's own interface to a runtime: `onnx.backend.base.Backend`.

    import onnx, tilewright.onnx_backend as backend
    outputs = backend.run_model(onnx.load("model.onnx"), [array])

Inputs that decide shapes (the new shape of a Reshape, the `k` of a TopK, ...) may differ between
runs: each set of values that is seen gets a module of its own, which is kept.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnx
from onnx.backend.base import Backend, BackendRep, Device, DeviceType

from tilewright.api import CompiledModule, compile
from tilewright.errors import ModelError, TargetError

_Key = tuple[tuple[str, str, tuple[int, ...], bytes], ...]


class TilewrightRep(BackendRep):
    """A model that is compiled for the shapes, and the values of shape-like inputs, that it meets.

    Attributes:
        special: names of the inputs whose values are compiled in.
    """

    def __init__(self, model: onnx.ModelProto, target: str = "native") -> None:
        from tilewright.frontends.onnx import shape_inputs

        self.model, self.target = model, target
        self.special = frozenset(shape_inputs(model))
        known = {item.name for item in model.graph.initializer}
        self._names = [item.name for item in model.graph.input]
        self._required = [name for name in self._names if name not in known]
        self._compiled: dict[_Key, CompiledModule] = {}

    def run(self, inputs: Any, **kwargs: Any) -> tuple[Any, ...]:
        """Run once.

        Args:
            inputs: arrays in the order of the graph's inputs (initialisers left out or not), or a
                mapping from names. A sequence is a list of arrays, an absent optional value None.
            kwargs: none is known; the interface allows them.

        Returns:
            One array, list of arrays or None per output of the graph.

        Raises:
            ModelError: the inputs do not fit the model, or it cannot be compiled for them.
        """
        feeds = self._named(inputs)
        module = self.compiled(feeds)
        accepted = {spec.name for spec in module.module.inputs}
        results = module.run({name: array for name, array in feeds.items() if name in accepted})
        return tuple(_assembled(item, results) for item in self.model.graph.output)

    def compiled(self, feeds: Mapping[str, np.ndarray]) -> CompiledModule:
        """Return the module for these inputs; it is compiled when they are first seen."""
        key = tuple(
            (name, array.dtype.name, array.shape, array.tobytes() if name in self.special else b"")
            for name, array in feeds.items()
        )
        if key not in self._compiled:
            self._compiled[key] = compile(
                self.model,
                self.target,
                shapes={name: a.shape for name, a in feeds.items() if name not in self.special},
                constants={name: a for name, a in feeds.items() if name in self.special},
            )
        return self._compiled[key]

    def _named(self, inputs: Any) -> dict[str, np.ndarray]:
        """Return every tensor that is passed, by name; elements of sequences are `name[0]`..."""
        if isinstance(inputs, Mapping):
            given = dict(inputs)
        else:
            values = list(inputs) if isinstance(inputs, (list, tuple)) else [inputs]
            names = self._names if len(values) == len(self._names) else self._required
            if len(values) != len(names):
                raise ModelError(
                    f"{len(values)} inputs given; the model has {len(names)}: {', '.join(names)}"
                )
            given = dict(zip(names, values, strict=True))
        feeds: dict[str, np.ndarray] = {}
        for name, value in given.items():
            if isinstance(value, (list, tuple)):
                feeds |= {f"{name}[{index}]": np.asarray(a) for index, a in enumerate(value)}
            elif value is not None:
                feeds[name] = np.asarray(value)
        return feeds


def _assembled(item: onnx.ValueInfoProto, results: Mapping[str, np.ndarray]) -> Any:
    """Return an output of the graph from the tensors that the module returned."""
    if item.name in results:
        return results[item.name]
    parts: list[np.ndarray] = []
    while f"{item.name}[{len(parts)}]" in results:
        parts.append(results[f"{item.name}[{len(parts)}]"])
    is_absent = not parts and item.type.HasField("optional_type")
    return None if is_absent else parts


class TilewrightBackend(Backend):
    """Compiles models with tilewright, and runs them on the CPU."""

    @classmethod
    def supports_device(cls, device: str) -> bool:
        """Say whether the device, such as "CPU" or "CPU:0", can be used."""
        try:
            return Device(device).type == DeviceType.CPU
        except (AttributeError, ValueError):
            return False

    @classmethod
    def prepare(cls, model: onnx.ModelProto, device: str = "CPU", **kwargs: Any) -> TilewrightRep:
        """Return an executable form of the model; it is compiled at the first run.

        Args:
            model: the model.
            device: "CPU".
            kwargs: `target`, a name from `tilewright.targets()`; others are left to ONNX.

        Raises:
            TargetError: the device is not supported.
            onnx.checker.ValidationError: the model is not valid.
        """
        if not cls.supports_device(device):
            raise TargetError(f"device {device!r} is not supported; accepted is 'CPU'")
        super().prepare(model, device)
        return TilewrightRep(model, kwargs.get("target", "native"))

    @classmethod
    def run_model(
        cls, model: onnx.ModelProto, inputs: Any, device: str = "CPU", **kwargs: Any
    ) -> tuple[Any, ...]:
        """Compile and run a model once; see `prepare` and `TilewrightRep.run`."""
        return cls.prepare(model, device, **kwargs).run(inputs)

    @classmethod
    def run_node(
        cls,
        node: onnx.NodeProto,
        inputs: Any,
        device: str = "CPU",
        outputs_info: Sequence[tuple[np.dtype, Sequence[int]]] | None = None,
        **kwargs: Any,
    ) -> tuple[Any, ...]:
        """Compile and run one node.

        Args:
            node: the node.
            inputs: one array per input that it names, in order, or a mapping from names.
            device: "CPU".
            outputs_info: dtype and shape per output; not needed.
            kwargs: `opset_version` of the node's domain, else the newest; and those of `prepare`.
        """
        present = list(dict.fromkeys(name for name in node.input if name))
        arrays = inputs if isinstance(inputs, Mapping) else dict(zip(present, inputs, strict=True))
        model = _single_node_model(node, arrays, kwargs.pop("opset_version", None))
        return cls.run_model(model, arrays, device, **kwargs)


def _single_node_model(
    node: onnx.NodeProto, arrays: Mapping[str, np.ndarray], opset: int | None
) -> onnx.ModelProto:
    """Wrap a node; the types of its outputs are left open."""
    make = onnx.helper
    inputs = [
        make.make_tensor_value_info(
            name, make.np_dtype_to_tensor_dtype(np.asarray(array).dtype), np.shape(array)
        )
        for name, array in arrays.items()
    ]
    unknown = onnx.TensorProto.UNDEFINED
    outputs = [make.make_tensor_value_info(name, unknown, []) for name in node.output if name]
    version = opset or (1 if node.domain else onnx.defs.onnx_opset_version())
    return make.make_model(
        make.make_graph([node], "node", inputs, outputs),
        opset_imports=[make.make_opsetid(node.domain, version)],
    )


prepare = TilewrightBackend.prepare
run_model = TilewrightBackend.run_model
run_node = TilewrightBackend.run_node
supports_device = TilewrightBackend.supports_device
