"""Walks the nodes of a graph in order and turns each into values."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import onnx
import tvm

import tilewright.frontends.onnx.ops  # noqa: F401  registers the converters
from tilewright.errors import ModelError, UnsupportedModelError
from tilewright.frontends.onnx.builder import GraphBuilder
from tilewright.frontends.onnx.captures import Captures
from tilewright.frontends.onnx.folding import fold
from tilewright.frontends.onnx.functions import bind_attributes, schema_body, schema_of
from tilewright.frontends.onnx.loading import Weight
from tilewright.frontends.onnx.node import NodeContext, describe
from tilewright.frontends.onnx.registry import Converter, find_bounded_rule, find_converter
from tilewright.frontends.onnx.values import (
    STORAGE_DTYPE,
    Value,
    constant,
    is_small,
    numpy_dtype,
)

# What numpy, TVM and the reference implementation raise for operands that do not fit; a valid
# node never gets there, so the model is at fault.
_REJECTIONS = (
    ValueError, TypeError, IndexError, KeyError, AttributeError, ArithmeticError, RuntimeError,
    AssertionError, MemoryError, tvm.error.InternalError,
)  # fmt: skip
# Operators that move elements without looking at them: of small types, they move the bytes.
_MOVES = frozenset(
    [
        *("Concat", "DepthToSpace", "Expand", "Flatten", "Gather", "GatherElements", "GatherND"),
        *("Reshape", "Slice", "SpaceToDepth", "Split", "Squeeze", "Tile", "Transpose"),
        *("Unsqueeze", "Where"),
    ]
)
_NAMES_SHOWN = 5
_MAX_DEPTH = 32
# A thousand nodes take seconds to compile. Of a large model, every node may be written out a few
# times.
_LEAST_BUDGET = 50_000
_MOST_COPIES = 4


class _Unknown:
    """Stands for the outputs of a node that is not supported, so that the walk can go on."""


UNKNOWN = _Unknown()


class Problems:
    """Everything in a model that is not supported, collected to be raised at once."""

    def __init__(self) -> None:
        self._operators: dict[str, list[str]] = defaultdict(list)
        self._reasons: list[str] = []

    def add_operator(self, node: onnx.NodeProto, opset: int) -> None:
        """Note a node whose operator has no converter."""
        domain = node.domain or "ai.onnx"
        names = self._operators[f"{domain}.{node.op_type} (opset {opset})"]
        names.append(node.name or next(iter(node.output), ""))

    def add_reason(self, reason: str) -> None:
        """Note a node that its converter refuses."""
        if reason not in self._reasons:
            self._reasons.append(reason)

    def absorbed_by(self, other: Problems) -> bool:
        """Note everything elsewhere too; False if there is nothing."""
        for operator, names in self._operators.items():
            other._operators[operator] += names
        for reason in self._reasons:
            other.add_reason(reason)
        return bool(self._operators or self._reasons)

    def raise_if_any(self) -> None:
        """Raise one error that lists all that was noted.

        Raises:
            UnsupportedModelError: Something was noted.
        """
        lines = []
        for operator, names in sorted(self._operators.items()):
            shown = ", ".join(repr(name) for name in names[:_NAMES_SHOWN])
            more = f" and {len(names) - _NAMES_SHOWN} more" if len(names) > _NAMES_SHOWN else ""
            lines.append(f"{operator} x{len(names)}: no converter for node {shown}{more}")
        lines += self._reasons
        if lines:
            raise UnsupportedModelError(
                f"{len(lines)} things in this model are not supported:\n  "
                + "\n  ".join(lines)
                + "\nReplace them before exporting, or open an issue with this list."
                if len(lines) > 1
                else f"this model is not supported: {lines[0]}"
            )


class Budget:
    """How many nodes may be imported: functions in functions, loops in loops multiply them."""

    def __init__(self, written: int) -> None:
        self.most = max(_LEAST_BUDGET, _MOST_COPIES * written)
        self.spent = 0

    def spend(self) -> None:
        """Count a node.

        Raises:
            ModelError: There are too many.
        """
        self.spent += 1
        if self.spent > self.most:
            raise ModelError(
                f"the model unfolds to more than {self.most} nodes, as functions within functions "
                "or loops within loops are written out; export it with fewer calls, or with loops "
                "whose end is decided at run time"
            )


class Scope:
    """The names visible at one place of a model, and how to import nodes there.

    Attributes:
        copies: how often the place is written out, as the bodies of loops around it are unrolled.
    """

    def __init__(
        self,
        builder: GraphBuilder,
        problems: Problems,
        opsets: Mapping[str, int],
        functions: Mapping[tuple[str, str], onnx.FunctionProto],
        budget: Budget,
        parent: Scope | None = None,
        depth: int = 0,
        capture: Captures | None = None,
    ) -> None:
        self.builder = builder
        self.problems = problems
        self.opsets = opsets
        self.functions = functions
        self.budget = budget
        self.copies = 1
        self.parent = parent
        self.depth = depth
        self.capture = capture
        self.values: dict[str, Any] = {}

    def lookup(self, name: str) -> Any:
        """Return the value of a name, looking outwards; None for the empty name.

        Raises:
            ModelError: No node or input defines the name.
        """
        if not name:
            return None
        if name in self.values:
            value = self.values[name]
            if isinstance(value, Weight):
                value = self.values[name] = value.load()
            return value
        if self.parent is None:
            raise ModelError(f"tensor {name!r} is used but never computed; export the model again")
        value = self.parent.lookup(name)
        return value if self.capture is None else self.capture(value)

    def run(self, nodes: Sequence[onnx.NodeProto], outputs: Iterable[str]) -> list[Any]:
        """Import the nodes that the outputs need, and return the values of the outputs."""
        names = list(outputs)
        for node in needed_nodes(nodes, names):
            for name, value in zip(node.output, self._run_node(node), strict=False):
                if name:
                    self.values[name] = value
        return [self.lookup(name) for name in names]

    def run_subgraph(
        self, graph: onnx.GraphProto, inputs: Mapping[str, Any], copies: int = 1
    ) -> list[Any]:
        """Import a graph attribute in place, one of so many times: it sees the names here."""
        inner = self._child(self.opsets, parent=self)
        inner.copies *= copies
        inner.values.update(inputs)
        return inner.run_graph(graph)

    def run_graph(self, graph: onnx.GraphProto) -> list[Any]:
        """Import a graph whose inputs are values of this scope already."""
        for tensor in graph.initializer:
            self.values.setdefault(tensor.name, constant(onnx.numpy_helper.to_array(tensor)))
        return self.run(graph.node, [output.name for output in graph.output])

    @staticmethod
    def unknown(count: int) -> list[Any]:
        """Return outputs for a node that is not supported."""
        return [UNKNOWN] * count

    def body(self) -> Scope:
        """Return a scope whose nodes go into a function of its own; see `regions`."""
        inner = self._child(self.opsets, parent=self)
        inner.builder, inner.problems = GraphBuilder(self.builder.regions), Problems()
        inner.builder.decoded = self.builder.decoded
        inner.capture = Captures(inner.builder)
        return inner

    def _child(self, opsets: Mapping[str, int], parent: Scope | None) -> Scope:
        if self.depth >= _MAX_DEPTH:
            raise ModelError(f"functions and subgraphs are nested more than {_MAX_DEPTH} deep")
        inner = Scope(
            *(self.builder, self.problems, opsets, self.functions, self.budget),
            parent=parent,
            depth=self.depth + 1,
        )
        inner.copies = self.copies
        return inner

    def _run_node(self, node: onnx.NodeProto) -> Sequence[Any]:
        """Return one value per output; UNKNOWN for all where the node is not supported."""
        self.budget.spend()
        inputs = [self.lookup(name) for name in node.input]
        try:
            return self._convert(node, inputs)
        except UnsupportedModelError as error:
            self.problems.add_reason(str(error))
            return [UNKNOWN] * len(node.output)
        except ModelError:
            raise
        except _REJECTIONS as error:
            reason = str(error).strip().split("\n")[0] or type(error).__name__
            raise ModelError(f"{describe(node)} does not fit its inputs: {reason}") from error

    def _convert(self, node: onnx.NodeProto, inputs: Sequence[Any]) -> Sequence[Any]:
        if node.domain == "ai.onnx":
            node.domain = ""
        local = self.functions.get((node.domain, node.op_type))
        if local is not None:
            return self._expand(node, local, bind_attributes(local, node), inputs)
        if node.domain not in self.opsets:
            raise ModelError(
                f"{describe(node)}: the model imports no opset of domain {node.domain!r}"
            )
        opset = self.opsets[node.domain]
        converter = find_converter(node.domain, node.op_type, opset)
        schema = schema_of(node, opset)
        unknown = any(value is UNKNOWN for value in inputs)
        if not unknown and _may_fold(node, converter, inputs):
            folded = fold(node, inputs, opset)
            if folded is not None:
                return [_wrap(item) for item in folded]
        if converter is not None:
            if unknown:
                return [UNKNOWN] * len(node.output)
            return self._apply(node, converter, inputs, opset, schema)
        if schema is not None and not unknown:
            body = schema_body(node, schema, inputs, opset)
            if body is not None:
                return self._expand(node, body, bind_attributes(body, node, schema), inputs)
        if schema is None or not (schema.has_function or schema.has_context_dependent_function):
            self.problems.add_operator(node, opset)
        return [UNKNOWN] * len(node.output)

    def _apply(
        self,
        node: onnx.NodeProto,
        converter: Converter,
        inputs: Sequence[Any],
        opset: int,
        schema: onnx.defs.OpSchema | None,
    ) -> Sequence[Any]:
        small = [v.dtype for v in inputs if isinstance(v, Value) and is_small(v.dtype)]
        moves = bool(small) and node.op_type in _MOVES and not node.domain
        if moves:
            inputs = [_as_bits(value) for value in inputs]
        context = NodeContext(node, inputs, opset, schema, self.builder, self)
        if any(isinstance(value, Value) and value.sizes for value in inputs):
            rule = find_bounded_rule(node.domain, node.op_type)
            if rule is None:
                context.fail(
                    "the size of its input depends on data, which this operator cannot take"
                )
            result = rule(context, converter.convert)
        else:
            result = converter.convert(context)
        if moves:
            values = [result] if isinstance(result, Value) else result
            result = [_from_bits(value, small[0]) for value in values]
        unread = context.attrs.unread()
        if unread:
            names = ", ".join(repr(name) for name in unread)
            context.fail(f"attribute {names} is not supported in opset {opset}")
        # One output that is a sequence is written as [[...]].
        return [result] if isinstance(result, Value) else result

    def _expand(
        self,
        node: onnx.NodeProto,
        body: onnx.FunctionProto,
        nodes: Sequence[onnx.NodeProto],
        inputs: Sequence[Any],
    ) -> Sequence[Any]:
        """Import the body of a function with its formal inputs bound to the node's."""
        for role, actual, formal in (
            ("inputs", inputs, body.input),
            ("outputs", node.output, body.output),
        ):
            if len(actual) > len(formal):
                raise ModelError(
                    f"{describe(node)} has {len(actual)} {role}, but its function has {len(formal)}"
                )
        opsets = {_domain(item.domain): item.version for item in body.opset_import}
        inner = self._child({**self.opsets, **opsets}, parent=None)
        absent = [None] * (len(body.input) - len(inputs))
        inner.values.update(zip(body.input, [*inputs, *absent], strict=False))
        names = zip(body.output, node.output, strict=False)
        results = iter(inner.run(nodes, [formal for formal, actual in names if actual]))
        return [next(results) if actual else None for actual in node.output]


def needed_nodes(nodes: Sequence[onnx.NodeProto], outputs: Iterable[str]) -> list[onnx.NodeProto]:
    """Return the nodes that the outputs depend on, in order."""
    wanted = set(outputs)
    kept = []
    for node in reversed(nodes):
        if wanted.intersection(node.output):
            kept.append(node)
            wanted.update(node.input)
            wanted.update(captured_names(node))
    return kept[::-1]


def captured_names(node: onnx.NodeProto) -> set[str]:
    """Return every name used inside the subgraphs of a node."""
    names: set[str] = set()
    for attribute in node.attribute:
        if attribute.type == onnx.AttributeProto.GRAPH:
            names.update(output.name for output in attribute.g.output)
            for inner in attribute.g.node:
                names.update(inner.input)
                names.update(captured_names(inner))
    return names


def _may_fold(node: onnx.NodeProto, converter: Converter | None, inputs: Sequence[Any]) -> bool:
    """Tell whether a node depends on constants alone and computes the same every time."""
    if converter is not None and not converter.foldable:
        return False
    if any(attribute.type == onnx.AttributeProto.GRAPH for attribute in node.attribute):
        return False
    present = [value for value in inputs if value is not None]
    if node.op_type == "Transpose" and any(_is_blocked_matrix(value) for value in present):
        return False  # its converter keeps the integers behind it
    return bool(present) and all(
        isinstance(value, Value) and value.is_constant for value in present
    )


def _is_blocked_matrix(value: Any) -> bool:
    return isinstance(value, Value) and value.blocks is not None and value.rank == 2


def _wrap(item: Any) -> Any:
    """Wrap what the reference implementation returns."""
    if isinstance(item, list):
        return [_wrap(inner) for inner in item]
    return None if item is None else constant(np.asarray(item))


def _as_bits(value: Any) -> Any:
    """See a value of a small type as the bytes that hold it."""
    if not isinstance(value, Value) or not is_small(value.dtype):
        return value
    if value.data is not None:
        return constant(value.data.view(STORAGE_DTYPE))
    return Value(value.shape, STORAGE_DTYPE, expr=value.expr, sizes=value.sizes)


def _from_bits(value: Any, dtype: str) -> Any:
    """See bytes as values of a small type; sequences element by element."""
    if isinstance(value, list):
        return [_from_bits(item, dtype) for item in value]
    if not isinstance(value, Value) or value.dtype != STORAGE_DTYPE:
        return value
    if value.data is not None:
        return constant(value.data.view(numpy_dtype(dtype)))
    return Value(value.shape, dtype, expr=value.expr, sizes=value.sizes)


def _domain(name: str) -> str:
    return "" if name == "ai.onnx" else name
