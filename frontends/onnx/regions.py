"""Control flow that is decided at run time: bodies imported as functions of their own.

In the main function stands a call to an empty PrimFunc with the attribute REGION_ATTRIBUTE: the
position of its `Region` in `ImportedModel.regions`. The compiler puts control flow there.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import onnx
import tvm
from tvm import relax, te, tirx

from tilewright.errors import ModelError
from tilewright.frontends.onnx.node import NodeContext
from tilewright.frontends.onnx.values import STORAGE_DTYPE, TensorSpec, Value, is_small

if TYPE_CHECKING:
    from tilewright.frontends.onnx.walk import Problems

# The compiler knows it as `compiler.program.REGION_ATTRIBUTE`.
REGION_ATTRIBUTE = "tilewright.region"


@dataclass(frozen=True, slots=True, eq=False)
class Body:
    """A branch, or what a loop repeats: function ``main`` of a module, like `ImportedModel`."""

    module: tvm.IRModule
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]


@dataclass(frozen=True, slots=True, eq=False)
class Region:
    """Control flow over bodies.

    Attributes:
        kind: "if": arguments are the condition (bool) and what the bodies take; results are
            those of the body that ran, the first for true. "loop": arguments are the number of
            iterations (int64), the condition to start (bool), the carried tensors, and the others
            that the body takes; it takes the iteration (int64), the condition and all of these but
            the first two, and returns the condition to go on, the carried tensors, and one row per
            scan output. Results are the carried tensors, the rows of each scan output, and how
            many iterations ran (int64).
        bodies: two for "if", one for "loop".
        carried: number of carried tensors of a loop.
        takes: for "if", per body the arguments that it takes, counted after the condition.
    """

    kind: Literal["if", "loop"]
    bodies: tuple[Body, ...]
    carried: int = 0
    takes: tuple[tuple[int, ...], ...] = ()


@dataclass(frozen=True, slots=True)
class Imported:
    """What came of importing a body.

    Attributes:
        body: the function.
        captured: values of the surrounding graph that it takes after its own inputs.
        results: its results, in the order of its outputs; their expressions mean nothing outside.
        sources: per result, the constant or the value of the surrounding graph that it is; None
            where the body computes it.
    """

    body: Body
    captured: list[Value]
    results: list[Value]
    sources: list[Value | None]


@dataclass(frozen=True, slots=True)
class Failed:
    """Why a body cannot be imported as a function."""

    error: ModelError
    problems: Problems


def import_body(
    op: NodeContext,
    graph: onnx.GraphProto,
    own: Sequence[tuple[str, Sequence[int], str]],
    bind: Callable[[NodeContext, list[Value]], Mapping[str, Any]],
    finish: Callable[[NodeContext, list[Any]], list[Value]],
) -> Imported | Failed:
    """Import a subgraph as a function.

    Args:
        op: The node that it belongs to.
        graph: The subgraph.
        own: Name, shape and dtype of the inputs that the region passes.
        bind: From a context inside the body and the values of `own` to the subgraph's inputs.
        finish: From the subgraph's results to tensors.

    Returns:
        The body, or why it cannot be compiled so.
    """
    scope = op.scope.body()
    captures = scope.capture
    assert captures is not None
    builder, block = scope.builder, scope.builder.block
    inner = op.inside(scope)
    results: list[Value] = []
    failure: ModelError | None = None
    with block.function("main"):
        with block.dataflow():
            fields: list[relax.Expr] = []
            try:
                params = [captures.parameter(*item) for item in own]
                scope.values.update(bind(inner, params))
                found = scope.run_graph(graph)
                scope.problems.raise_if_any()
                results = finish(inner, found)
                fields = [builder.expr(value) for value in results]
            except ModelError as error:
                failure = error  # an open Relax scope that is left complains on stderr
            result = block.emit_output(relax.Tuple(fields))
        block.emit_func_output(result, captures.params)
    if failure is not None:
        return Failed(failure, scope.problems)
    outputs = tuple(TensorSpec(f"{i}", v.shape, v.dtype) for i, v in enumerate(results))
    body = Body(block.get(), tuple(captures.specs), outputs)
    sources = [value if value.data is not None else captures.source(value) for value in results]
    return Imported(body, captures.outer, results, sources)


def emit_region(
    op: NodeContext,
    region: Region,
    arguments: Sequence[Value],
    results: Sequence[tuple[Sequence[int], str]],
) -> list[Value]:
    """Emit the call that stands for a region; results are given by shape and dtype."""
    builder = op.builder
    types = [
        (tuple(shape), STORAGE_DTYPE if is_small(dtype) else dtype) for shape, dtype in results
    ]
    exprs = [builder.expr(value) for value in arguments]
    inputs = [te.placeholder(value.shape, _stored(value.dtype)) for value in arguments]
    outputs = te.extern(
        [shape for shape, _ in types],
        inputs,
        lambda _ins, _outs: tirx.Evaluate(tirx.const(0, "int32")),
        dtype=[dtype for _, dtype in types],
        name="region",
    )
    outputs = list(outputs) if isinstance(outputs, (list, tuple)) else [outputs]
    func = te.create_prim_func([*inputs, *outputs])
    func = func.with_attr(REGION_ATTRIBUTE, len(builder.regions))
    builder.regions.append(region)
    target = builder.block.add_func(func, f"region{len(builder.regions)}")
    call = relax.call_tir(
        target, relax.Tuple(exprs), [relax.TensorType(list(shape), dtype) for shape, dtype in types]
    )
    fields = builder.emit_tuple(call, op.hint) if len(types) > 1 else [builder.emit(call, op.hint)]
    return [
        Value(field.shape, dtype, data=field.data, expr=field.expr)
        for field, (_, dtype) in zip(fields, results, strict=True)
    ]


def _stored(dtype: str) -> str:
    return STORAGE_DTYPE if is_small(dtype) else dtype
