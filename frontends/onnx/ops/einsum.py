"""Einsum: a contraction of two operands becomes one batched matrix product."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from tvm import relax

from tilewright.frontends.onnx.node import NodeContext
from tilewright.frontends.onnx.ops.reshaping import reshape_to
from tilewright.frontends.onnx.registry import register
from tilewright.frontends.onnx.values import Value, constant

R = relax.op


@register("Einsum", 12)
def einsum(op: NodeContext) -> Value:
    """https://onnx.ai/onnx/operators/onnx__Einsum.html

    Operands are contracted from left to right; each step sums what later steps do not use.
    """
    values = [op.input(index) for index in range(len(op.inputs))]
    terms, output = _parse(op.attr("equation"), [value.rank for value in values])
    extents: dict[str, int] = {}
    for index, term in enumerate(terms):
        values[index], terms[index] = _diagonal(op, values[index], term)
        for letter, extent in zip(terms[index], values[index].shape, strict=True):
            if extents.setdefault(letter, extent) not in (extent, 1) and extent != 1:
                raise ValueError(f"index {letter!r} has extents {extents[letter]} and {extent}")
            extents[letter] = max(extents[letter], extent)
    value, term = values[0], terms[0]
    for index in range(1, len(values)):
        needed = set(output).union(*terms[index + 1 :])
        value, term = _contract(op, (value, values[index]), (term, terms[index]), needed)
    return _finish(op, value, term, output)


def _parse(equation: str, ranks: Sequence[int]) -> tuple[list[str], str]:
    """Split an equation into one string of indices per operand and one for the output.

    An ellipsis becomes the characters from U+0391 on (Greek), aligned at the right.
    """
    equation = equation.replace(" ", "")
    left, arrow, right = equation.partition("->")
    terms = left.split(",")
    if len(terms) != len(ranks):
        raise ValueError(f"the equation {equation!r} does not have {len(ranks)} operands")
    widths = [rank - len(term.replace("...", "")) for term, rank in zip(terms, ranks, strict=True)]
    width = max((w for w, term in zip(widths, terms, strict=True) if "..." in term), default=0)
    dots = "".join(chr(0x391 + place) for place in range(width))
    expanded = [
        term.replace("...", dots[width - own :] if own else "")
        for term, own in zip(terms, widths, strict=True)
    ]
    if arrow:
        return expanded, right.replace("...", dots)
    letters = "".join(expanded)
    once = sorted(c for c in set(letters) if letters.count(c) == 1 and c not in dots)
    return expanded, dots + "".join(once)


def _diagonal(op: NodeContext, value: Value, term: str) -> tuple[Value, str]:
    """Take the diagonal along indices that a term repeats."""
    for letter in sorted(set(term)):
        while term.count(letter) > 1:
            first = term.index(letter)
            second = term.index(letter, first + 1)
            mask = np.eye(value.shape[first], dtype=bool)
            shape = [1] * value.rank
            shape[first] = shape[second] = value.shape[first]
            kept = op.call(R.where, constant(mask.reshape(shape)), value, op.scalar(0, value.dtype))
            value = op.call(R.sum, kept, axis=[second], keepdims=False)
            term = term[:second] + term[second + 1 :]
    return value, term


def _contract(
    op: NodeContext, values: tuple[Value, Value], terms: tuple[str, str], needed: set[str]
) -> tuple[Value, str]:
    """Multiply two operands and sum over the indices that nobody needs afterwards."""
    (left, right), (left_term, right_term) = values, terms
    left, left_term = _sum_away(op, left, left_term, needed | set(right_term))
    right, right_term = _sum_away(op, right, right_term, needed | set(left_term))
    shared = [c for c in left_term if c in right_term]
    ones = {c for c in shared if left.shape[left_term.index(c)] != right.shape[right_term.index(c)]}
    summed = [c for c in shared if c not in needed]
    if ones or not summed:
        return _outer(op, (left, right), (left_term, right_term), needed)
    batch = [c for c in shared if c in needed]
    rows = [c for c in left_term if c not in shared]
    columns = [c for c in right_term if c not in shared]
    sizes = dict(zip(left_term, left.shape, strict=True))
    sizes |= dict(zip(right_term, right.shape, strict=True))

    def extent(letters: Sequence[str]) -> int:
        return math.prod(sizes[c] for c in letters)

    lead = [sizes[c] for c in batch]
    a = _ordered(op, left, left_term, [*batch, *rows, *summed])
    a = reshape_to(op, a, (*lead, extent(rows), extent(summed)))
    b = _ordered(op, right, right_term, [*batch, *summed, *columns])
    b = reshape_to(op, b, (*lead, extent(summed), extent(columns)))
    product = op.call(R.matmul, a, b)
    order = [*batch, *rows, *columns]
    return reshape_to(op, product, [sizes[c] for c in order]), "".join(order)


def _outer(
    op: NodeContext, values: tuple[Value, Value], terms: tuple[str, str], needed: set[str]
) -> tuple[Value, str]:
    """Multiply with broadcasting, then sum; used where no index is contracted."""
    letters = "".join(dict.fromkeys(terms[0] + terms[1]))
    spread = []
    for value, term in zip(values, terms, strict=True):
        order = [c for c in letters if c in term]
        moved = _ordered(op, value, term, order)
        sizes = dict(zip(order, moved.shape, strict=True))
        spread.append(reshape_to(op, moved, [sizes.get(c, 1) for c in letters]))
    return _sum_away(op, op.call(R.multiply, *spread), letters, needed)


def _sum_away(op: NodeContext, value: Value, term: str, needed: set[str]) -> tuple[Value, str]:
    axes = [place for place, letter in enumerate(term) if letter not in needed]
    if not axes:
        return value, term
    kept = "".join(letter for letter in term if letter in needed)
    return op.call(R.sum, value, axis=axes, keepdims=False), kept


def _ordered(op: NodeContext, value: Value, term: str, order: Sequence[str]) -> Value:
    axes = [term.index(letter) for letter in order]
    return value if axes == list(range(len(axes))) else op.call(R.permute_dims, value, axes)


def _finish(op: NodeContext, value: Value, term: str, output: str) -> Value:
    value, term = _sum_away(op, value, term, set(output))
    if set(output) != set(term):
        raise ValueError(f"output indices {output!r} do not all appear in the operands")
    return _ordered(op, value, term, output)
