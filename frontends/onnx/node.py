"""What a converter sees of the node that it converts, and how it emits Relax."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from copy import copy
from typing import TYPE_CHECKING, Any, NoReturn

import numpy as np
import onnx
from tvm import relax

from tilewright.errors import UnsupportedModelError
from tilewright.frontends.onnx.attributes import Attributes
from tilewright.frontends.onnx.builder import GraphBuilder
from tilewright.frontends.onnx.values import STORAGE_DTYPE, Value, constant, is_small, numpy_dtype

if TYPE_CHECKING:
    from tilewright.frontends.onnx.regions import Failed
    from tilewright.frontends.onnx.walk import Scope


class NodeContext:
    """One node: its inputs, attributes and opset, and the builder to emit into.

    Attributes:
        node: The proto.
        inputs: One entry per input named by the node; None where an optional input is absent.
        opset: Opset version of the node's domain.
        attrs: The attribute reader.
    """

    def __init__(
        self,
        node: onnx.NodeProto,
        inputs: Sequence[Any],
        opset: int,
        schema: onnx.defs.OpSchema | None,
        builder: GraphBuilder,
        scope: Scope,
    ) -> None:
        self.node = node
        self.inputs = tuple(inputs)
        self.opset = opset
        self.schema = schema
        self.attrs = Attributes(node, schema)
        self.builder = builder
        self.scope = scope

    @property
    def label(self) -> str:
        """The node as messages name it."""
        return describe(self.node)

    @property
    def hint(self) -> str:
        """Name hint for the variables of this node: its first output."""
        return next((name for name in self.node.output if name), self.node.op_type)

    def attr(self, name: str, *default: Any) -> Any:
        """Read an attribute; see :meth:`Attributes.get`."""
        return self.attrs.get(name, *default)

    def wants(self, index: int) -> bool:
        """Tell whether the node names its output ``index``."""
        return index < len(self.node.output) and self.node.output[index] != ""

    def optional(self, index: int) -> Value | None:
        """Return an input, or None where it is absent."""
        return self.inputs[index] if index < len(self.inputs) else None

    def input(self, index: int) -> Value:
        """Return an input that must be present."""
        value = self.optional(index)
        if value is None:
            self.fail(f"input {index} is missing")
        return value

    def data(self, index: int) -> np.ndarray:
        """Return the content of an input that must be known when compiling."""
        value = self.input(index)
        if value.data is None:
            name = self.node.input[index]
            self.fail(
                f"input {index} ({name!r}) must be known when the model is compiled; if it is an "
                f"input of the model, bind it with --constant {name}=VALUE"
            )
        return value.data

    def optional_data(self, index: int) -> np.ndarray | None:
        """Return the content of a constant input, or None where it is absent."""
        return None if self.optional(index) is None else self.data(index)

    def ints(self, index: int) -> tuple[int, ...] | None:
        """Return a constant integer input as a tuple, or None where it is absent."""
        data = self.optional_data(index)
        return None if data is None else tuple(int(item) for item in np.ravel(data))

    def call(self, function: Callable[..., relax.Expr], *args: Any, **kwargs: Any) -> Value:
        """Emit ``function(*args)``; values among the arguments become Relax expressions."""
        return self.builder.emit(function(*self._exprs(args), **kwargs), self.hint)

    def call_tuple(
        self, function: Callable[..., relax.Expr], *args: Any, **kwargs: Any
    ) -> list[Value]:
        """Emit a Relax operator that returns several tensors."""
        return self.builder.emit_tuple(function(*self._exprs(args), **kwargs), self.hint)

    def te(self, function: Callable[..., Any], *args: Any, name: str) -> Value:
        """Emit a tensor expression as a PrimFunc; ``args`` may hold values and plain Python."""
        function, values = _close_over(function, args)
        return self.builder.emit_te(function, self._exprs(values), name, self.hint)

    def te_tuple(self, function: Callable[..., Any], *args: Any, name: str) -> list[Value]:
        """Emit a tensor expression with several outputs."""
        function, values = _close_over(function, args)
        return self.builder.emit_te_tuple(function, self._exprs(values), name, self.hint)

    def bits(self, value: Value) -> Value:
        """Return the stored bytes of a value of a small type (int4, float8...), as uint8."""
        return Value(value.shape, STORAGE_DTYPE, expr=self.builder.expr(value))

    def from_bits(self, bits: Value, dtype: str) -> Value:
        """Return the value of a small type whose stored bytes are given."""
        if bits.data is not None:
            return constant(bits.data.view(numpy_dtype(dtype)))
        return Value(bits.shape, dtype, expr=self.builder.expr(bits))

    def scalar(self, number: float | int | bool, dtype: str) -> Value:
        """Return a constant of rank 0."""
        return constant(number, dtype)

    def with_inputs(self, inputs: Sequence[Any]) -> NodeContext:
        """Return this node with other inputs; what is read of its attributes counts for both."""
        other = copy(self)
        other.inputs = tuple(inputs)
        return other

    def inside(self, scope: Scope) -> NodeContext:
        """Return this node as seen in a body of its own: what is emitted goes there."""
        return NodeContext(self.node, (), self.opset, self.schema, scope.builder, scope)

    def walk(self, graph: onnx.GraphProto, inputs: Mapping[str, Any], copies: int = 1) -> list[Any]:
        """Import a subgraph of this node in place, one of so many times; return its outputs."""
        return self.scope.run_subgraph(graph, inputs, copies)

    def give_up(self, failed: Failed) -> Any:
        """Report why a body of this node cannot be imported."""
        if not failed.problems.absorbed_by(self.scope.problems):
            raise failed.error
        return self.scope.unknown(len(self.node.output))

    def fail(self, reason: str) -> NoReturn:
        """Report that this node is not supported."""
        raise UnsupportedModelError(f"{self.label}: {reason}")

    def _exprs(self, args: Sequence[Any]) -> list[Any]:
        return [self._expr(arg) for arg in args]

    def _expr(self, arg: Any) -> Any:
        if isinstance(arg, Value):
            if is_small(arg.dtype):
                self.fail(f"there is no arithmetic on {arg.dtype}; put a Cast before the node")
            if arg.sizes is not None:
                self.fail("the size of its input depends on data")
            return self.builder.expr(arg)
        if isinstance(arg, list):
            return self._exprs(arg)
        return arg


def _close_over(
    function: Callable[..., Any], args: Sequence[Any]
) -> tuple[Callable[..., Any], list[Value]]:
    """Bind the arguments that are not values, which Relax would not pass through."""
    places = [index for index, arg in enumerate(args) if isinstance(arg, Value)]

    def bound(*tensors: Any) -> Any:
        filled = list(args)
        for place, tensor in zip(places, tensors, strict=True):
            filled[place] = tensor
        return function(*filled)

    return bound, [args[place] for place in places]


def describe(node: onnx.NodeProto) -> str:
    """Name a node for a message: operator, node name or first output."""
    name = node.name or next((output for output in node.output if output), "")
    domain = f"{node.domain}." if node.domain not in ("", "ai.onnx") else ""
    return f"{domain}{node.op_type} node {name!r}"
