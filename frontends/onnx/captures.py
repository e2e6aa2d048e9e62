"""What a body with a function of its own takes from the graph around it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from tvm import relax

from tilewright.frontends.onnx.builder import GraphBuilder
from tilewright.frontends.onnx.values import TensorSpec, Value


class Captures:
    """Turns values of the surrounding graph into parameters of a body, each once."""

    def __init__(self, builder: GraphBuilder) -> None:
        self.builder = builder
        self.params: list[relax.Var] = []
        self.specs: list[TensorSpec] = []
        self.outer: list[Value] = []
        self._known: dict[int, tuple[Any, Any]] = {}

    def __call__(self, value: Any) -> Any:
        """Return what the body sees of a value; constants are the same everywhere."""
        if isinstance(value, list):
            return [self(item) for item in value]
        if not isinstance(value, Value) or value.data is not None:
            return value
        if id(value) not in self._known:
            self.outer.append(value)
            inner = self.parameter(f"captured{len(self.outer)}", value.shape, value.dtype)
            if value.sizes is not None:
                inner.sizes = tuple(map(self, value.sizes))
            self._known[id(value)] = (value, inner)  # keeps it alive, and so its id
        return self._known[id(value)][1]

    def source(self, value: Value) -> Value | None:
        """Return the value of the surrounding graph that a value of the body stands for."""
        known = self._known.values()
        return next((outer for outer, inner in known if inner is value), None)

    def parameter(self, name: str, shape: Sequence[int], dtype: str) -> Value:
        """Add a parameter."""
        var, value = self.builder.parameter(name, tuple(shape), dtype)
        self.params.append(var)
        self.specs.append(TensorSpec(f"{len(self.specs)}", tuple(shape), dtype))
        return value
