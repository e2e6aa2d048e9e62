"""Which element-wise operators one integer kernel computes between its sums and its result.

A region ends in a quantize operator (its root) and holds the element-wise operators, dequantize
operators and inner quantize operators before it that nobody else needs, and at most one
convolution or matrix product. A value that somebody else needs too is read from memory.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Collection
from dataclasses import dataclass

from tvm import relax

from tilewright.compiler.quantize.graph import Graph
from tilewright.compiler.quantize.linear import Linear
from tilewright.compiler.quantize.pooling import Average
from tilewright.compiler.relax_utils import is_constant, op_name

ELEMENTWISE = frozenset(
    "relax." + name
    for name in (
        "nn.relu", "clip", "add", "subtract", "multiply", "divide", "maximum", "minimum",
        "sigmoid", "tanh", "exp", "erf", "nn.silu", "nn.leakyrelu", "nn.gelu", "nn.gelu_tanh",
    )
)  # fmt: skip


MOVEMENTS = frozenset(
    "relax." + name
    for name in (
        "reshape", "permute_dims", "expand_dims", "squeeze", "flatten", "concat", "strided_slice",
        "nn.max_pool1d", "nn.max_pool2d", "nn.max_pool3d",
    )
)  # fmt: skip


def is_movement(graph: Graph, expr: relax.Expr) -> bool:
    """Say whether an expression moves dequantized bytes, or takes the greatest of them."""
    call = graph.made_by(expr)
    if call is None or op_name(call) not in MOVEMENTS:
        return False
    first = call.args[0]
    sources = list(first.fields) if isinstance(first, relax.Tuple) else [first]
    if op_name(call) == "relax.concat" and not isinstance(first, relax.Tuple):
        return False
    found = [graph.of_kind(source, "dequantize") for source in sources]
    return all(a is not None and a.in_bytes for a in found)


@dataclass(frozen=True, eq=False)
class Region:
    """A kernel's element-wise part.

    Attributes:
        root: variable of the quantize operator that ends it.
        members: all variables that are computed inside, the root and the anchor included.
        anchor: variable of the convolution or product whose sums the region starts from, if any.
    """

    root: relax.Var
    members: frozenset[relax.Var]
    anchor: relax.Var | None


def find_regions(
    graph: Graph,
    linears: Callable[[relax.Var], Linear | Average | None],
    alone: Collection[relax.Var] = (),
) -> dict[relax.Var, Region]:
    """Return the regions by their root; no quantize operator inside one is a root itself.

    Args:
        graph: the function.
        linears: gives the sums that a variable is, if any.
        alone: quantize operators that end a region, whoever uses them.
    """
    found: dict[relax.Var, Region] = {}
    inside: set[relax.Var] = set()
    for binding in reversed(graph.bindings):
        var = binding.var
        affine = graph.of_kind(var, "quantize")
        if affine is None or var in inside or not affine.in_bytes:
            continue
        found[var] = region = _grow(graph, linears, var, alone)
        inside |= region.members
    return found


def _grow(
    graph: Graph,
    linears: Callable[[relax.Var], Linear | Average | None],
    root: relax.Var,
    alone: Collection[relax.Var],
) -> Region:
    """Return the largest region of a root with one anchor."""
    closed = set(alone) - {root}
    while True:
        members, anchors = _members(graph, linears, root, closed)
        if len(anchors) <= 1:
            return Region(root, frozenset(members), anchors[0] if anchors else None)
        # The anchor that runs last stays; the other ones end in a kernel of their own.
        cut = _enclosing(graph, members, anchors[0], anchors[1])
        closed.add(anchors[1] if cut is None else cut)


def _members(
    graph: Graph,
    linears: Callable[[relax.Var], Linear | Average | None],
    root: relax.Var,
    closed: set[relax.Var],
) -> tuple[set[relax.Var], list[relax.Var]]:
    """Walk backwards from the root; every user of a value is visited before the value."""
    shape = graph.shape(root)
    members, anchors = {root}, []
    heap: list[tuple[int, relax.Var]] = []
    seen: set[relax.Var] = set()

    def push_operands(var: relax.Var) -> None:
        value = graph.value[var]
        affine = graph.affines.get(var)
        operands = [affine.source] if affine is not None else list(value.args)
        for operand in operands:
            if isinstance(operand, relax.Var) and operand in graph.index and operand not in seen:
                seen.add(operand)
                heapq.heappush(heap, (-graph.index[operand], operand))

    push_operands(root)
    while heap:
        _, var = heapq.heappop(heap)
        if var in closed or graph.shape(var) != shape:
            continue
        if any(user not in members for user in graph.users[var]):
            continue
        affine = graph.affines.get(var)
        if affine is not None:
            if not affine.in_bytes:
                continue
            if is_constant(affine.source):
                continue
            # What only moves bytes runs on them, and ends nothing else's kernel.
            if affine.kind == "quantize" and is_movement(graph, affine.source):
                continue
        elif linears(var) is not None:
            members.add(var)
            anchors.append(var)
            continue
        elif op_name(graph.value[var]) not in ELEMENTWISE:
            continue
        members.add(var)
        push_operands(var)
    return members, anchors


def _enclosing(
    graph: Graph, members: set[relax.Var], kept: relax.Var, other: relax.Var
) -> relax.Var | None:
    """Return the last quantize operator of the region that depends on `other` and not `kept`."""
    depends: dict[relax.Var, set[relax.Var]] = {}
    for var in sorted(members, key=graph.index.__getitem__):
        value = graph.value[var]
        affine = graph.affines.get(var)
        operands = [affine.source] if affine is not None else list(value.args)
        reached = {var} & {kept, other}
        for operand in operands:
            if isinstance(operand, relax.Var):
                reached |= depends.get(operand, set())
        depends[var] = reached
    wanted = [
        var
        for var, reached in depends.items()
        if reached == {other} and graph.of_kind(var, "quantize") is not None
    ]
    return max(wanted, key=graph.index.__getitem__, default=None)
