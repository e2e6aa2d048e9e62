"""Softmax, layer normalisation, embeddings and products of activations, without floats.

Each gives integers with a real unit, which the region that reads them scales as it does its own.

    softmax        e = table[max - x], 2^30 e / sum e, rounded                   unit 2^-30
    layer norm     c = n x - sum x;  c 2^p / isqrt(sum c^2 / n + n^2 eps / s^2)  unit 2^-20
    product        sum (x - zx) (y - zy)                                         unit sx sy
    embedding      rows of a constant table in int32

The square root is Newton's integer iteration (I-BERT, arXiv 2101.01321, algorithm 4). I-BERT's
polynomials for exp and erf are not needed: what they would approximate is a function of one byte.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from tvm import relax, te, tirx

from tilewright.compiler.quantize.affine import Affine, unsigned_zero
from tilewright.compiler.quantize.graph import Graph
from tilewright.compiler.relax_utils import op_name

_SOFTMAX_PLACES = 30
_EXP_PLACES = 22  # 2^8 of them fit a positive int32; sums are taken in 64 bits
_NORM_PLACES = 20
_ROOT_PLACES = 8
_TABLE_PLACES = 30
_NEWTON_STEPS = 7

Emit = Callable[[str, Callable[..., te.Tensor], list[relax.Expr]], relax.Expr]


@dataclass(frozen=True, eq=False)
class IntegerTensor:
    """Integers in memory, and what they stand for.

    Attributes:
        expr: int32 tensor.
        scale: float64 [], or shaped to broadcast from the right: the unit.
        bound: greatest absolute integer.
        added: float constant that the value is more than the integers say; None for nothing.
    """

    expr: relax.Expr
    scale: np.ndarray | np.floating
    bound: int
    added: np.ndarray | None = None


class IntegerTensors:
    """Emits the operators of this module.

    Args:
        graph: the function.
        read_bytes: gives unsigned bytes of a quantized variable.
        emit: emits a PrimFunc by name, tensor expression and operands.
        take: emits a call of `relax.take` again, on another table.
    """

    def __init__(
        self,
        graph: Graph,
        read_bytes: Callable[[relax.Expr], relax.Expr],
        emit: Emit,
        take: Callable[[relax.Call, relax.Expr], relax.Expr],
    ) -> None:
        self.graph, self.read_bytes, self.emit, self.take = graph, read_bytes, emit, take
        self._known: dict[relax.Var, IntegerTensor] = {}

    def of(self, var: relax.Var) -> IntegerTensor | None:
        """Return a variable as integers, if an operator of this module makes it from bytes."""
        if var in self._known:
            return self._known[var]
        call = self.graph.made_by(var)
        makers = {
            "relax.nn.softmax": self._softmax,
            "relax.nn.layer_norm": self._layer_norm,
            "relax.matmul": self._product,
            "relax.take": self._rows,
        }
        maker = makers.get(str(op_name(call)))
        found = None if maker is None else maker(call)
        if found is not None:
            self._known[var] = found
        return found

    def _bytes(self, expr: relax.Expr) -> Affine | None:
        affine = self.graph.of_kind(expr, "dequantize")
        if affine is None or not affine.in_bytes:
            return None
        return affine

    def _softmax(self, call: relax.Call) -> IntegerTensor | None:
        affine = self._bytes(call.args[0])
        rank = len(self.graph.shape(call.args[0]))
        if affine is None or int(call.attrs.axis) % rank != rank - 1:
            return None
        distances = np.arange(256) * float(affine.scale)
        table = np.rint(np.exp(-distances) * 2.0**_EXP_PLACES).astype(np.int32)
        operands = [self.read_bytes(affine.source), relax.const(table)]
        result = self.emit("softmax_integer", _softmax, operands)
        return IntegerTensor(result, np.float64(2.0**-_SOFTMAX_PLACES), 2**_SOFTMAX_PLACES)

    def _layer_norm(self, call: relax.Call) -> IntegerTensor | None:
        data, gamma, beta = call.args
        affine = self._bytes(data)
        scales, shifts = self.graph.constant(gamma), self.graph.constant(beta)
        shape = self.graph.shape(data)
        axes = [int(axis) % len(shape) for axis in call.attrs.axes]
        if affine is None or scales is None or shifts is None or axes != [len(shape) - 1]:
            return None
        count = shape[-1]
        epsilon = count**2 * float(call.attrs.epsilon) / float(affine.scale) ** 2
        places = 2 * _ROOT_PLACES
        added = int(min(round(epsilon * 2.0**places), 2**61))

        def compute(x: te.Tensor) -> te.Tensor:
            return _layer_norm(x, added)

        result = self.emit("layer_norm_integer", compute, [self.read_bytes(affine.source)])
        bound = int(np.ceil(np.sqrt(count))) << _NORM_PLACES
        unit = scales.astype(np.float64) * 2.0**-_NORM_PLACES
        return IntegerTensor(result, unit, bound, shifts)

    def _product(self, call: relax.Call) -> IntegerTensor | None:
        left, right = (self._bytes(arg) for arg in call.args)
        if left is None or right is None:
            return None
        depth = self.graph.shape(call.args[0])[-1]
        bound = depth * 255 * 255
        if bound >= 2**31:
            return None
        operands = [self._centred(side) for side in (left, right)]
        result = self.emit("matmul_integer", _product, operands)
        return IntegerTensor(result, np.float64(left.scale) * np.float64(right.scale), bound)

    def _rows(self, call: relax.Call) -> IntegerTensor | None:
        """Return rows of a constant table (an embedding), rounded to 31 bits."""
        table = self.graph.constant(call.args[0])
        if table is None:
            return None
        scale = (float(np.abs(table).max(initial=0)) or 1.0) / 2**_TABLE_PLACES
        integers = np.rint(table / scale).astype(np.int32)
        result = self.take(call, relax.const(integers))
        return IntegerTensor(result, np.float64(scale), 2**_TABLE_PLACES)

    def _centred(self, affine: Affine) -> relax.Expr:
        zero = unsigned_zero(affine)

        def compute(x: te.Tensor) -> te.Tensor:
            point = tirx.const(zero, "int16")
            return te.compute(x.shape, lambda *at: x(*at).astype("int16") - point, name="centred")

        return self.emit("centre", compute, [self.read_bytes(affine.source)])


def _product(left: te.Tensor, right: te.Tensor) -> te.Tensor:
    """Return int32 products of stacks of matrices, stacks of extent 1 repeated."""
    depth = int(left.shape[-1])
    k = te.reduce_axis((0, depth), "k")
    rank = max(len(left.shape), len(right.shape))
    stacks = [
        [1] * (rank - len(side.shape)) + [int(n) for n in side.shape[:-2]] for side in (left, right)
    ]
    outer = [max(pair) for pair in zip(*stacks, strict=True)]

    def at(side: te.Tensor, stack: Sequence[int], index: Sequence[Any], *last: Any) -> Any:
        picked = [0 if n == 1 else i for n, i in zip(stack, index, strict=True)]
        return side(*picked[rank - len(side.shape) :], *last).astype("int32")

    def element(*index: Any) -> Any:
        *batch, row, column = index
        a = at(left, stacks[0], batch, row, k)
        return te.sum(a * at(right, stacks[1], batch, k, column), axis=[k])

    return te.compute((*outer, left.shape[-2], right.shape[-1]), element, name="matmul")


def _softmax(x: te.Tensor, table: te.Tensor) -> te.Tensor:
    outer, count = x.shape[:-1], x.shape[-1]
    k = te.reduce_axis((0, count), "k")
    top = te.compute(outer, lambda *at: te.max(x(*at, k).astype("int32"), axis=[k]), name="row_max")
    curve = te.compute(
        x.shape, lambda *at: table(top(*at[:-1]) - x(*at).astype("int32")), name="exponential"
    )
    j = te.reduce_axis((0, count), "j")
    total = te.compute(
        outer, lambda *at: te.sum(curve(*at, j).astype("int64"), axis=[j]), name="row_sum"
    )

    def element(*at: Any) -> Any:
        whole = total(*at[:-1])
        scaled = curve(*at).astype("int64") * tirx.const(1 << _SOFTMAX_PLACES, "int64")
        half = tirx.shift_right(whole, tirx.const(1, "int64"))
        return tirx.floordiv(scaled + half, whole).astype("int32")

    return te.compute(x.shape, element, name="softmax")


def _layer_norm(x: te.Tensor, epsilon: int) -> te.Tensor:
    """Return (x - mean) / deviation with `_NORM_PLACES` binary places.

    Args:
        x: bytes.
        epsilon: n^2 eps / s^2 with 2 * `_ROOT_PLACES` binary places.
    """
    outer, count = x.shape[:-1], int(x.shape[-1])
    k, j = te.reduce_axis((0, count), "k"), te.reduce_axis((0, count), "j")
    total = te.compute(
        outer, lambda *at: te.sum(x(*at, k).astype("int32"), axis=[k]), name="row_sum"
    )
    # n times the distance from the mean: whole.
    centred = te.compute(
        x.shape,
        lambda *at: x(*at).astype("int32") * tirx.const(count, "int32") - total(*at[:-1]),
        name="centred",
    )

    def square(value: Any) -> Any:
        wide = value.astype("int64")
        return wide * wide

    squares = te.compute(
        outer, lambda *at: te.sum(square(centred(*at, j)), axis=[j]), name="row_squares"
    )

    def under_root(*at: Any) -> Any:
        scaled = squares(*at) * tirx.const(1 << (2 * _ROOT_PLACES), "int64")
        return tirx.floordiv(scaled, tirx.const(count, "int64")) + tirx.const(epsilon, "int64")

    root = _square_root(te.compute(outer, under_root, name="under_root"))

    def element(*at: Any) -> Any:
        places = _NORM_PLACES + _ROOT_PLACES
        scaled = centred(*at).astype("int64") * tirx.const(1 << places, "int64")
        deviation = root(*at[:-1])
        half = tirx.shift_right(deviation, tirx.const(1, "int64"))
        return tirx.floordiv(scaled + half, deviation).astype("int32")

    return te.compute(x.shape, element, name="layer_norm")


def _square_root(value: te.Tensor) -> te.Tensor:
    """Return the integer square root of int64, at least 1: Newton from a power of two above it."""
    one = tirx.const(1, "int64")

    def start(*at: Any) -> Any:
        # One more than the number of powers of four that do not exceed it.
        digits = one
        for k in range(1, 31):
            digits = digits + (value(*at) >= tirx.const(1 << (2 * k), "int64")).astype("int64")
        return tirx.shift_left(one, digits)

    guess = te.compute(value.shape, start, name="first_guess")
    for _ in range(_NEWTON_STEPS):
        guess = _newton(value, guess)
    return guess


def _newton(value: te.Tensor, guess: te.Tensor) -> te.Tensor:
    def better(*at: Any) -> Any:
        old = guess(*at)
        mean = tirx.shift_right(old + tirx.floordiv(value(*at), old), tirx.const(1, "int64"))
        return tirx.max(tirx.min(mean, old), tirx.const(1, "int64"))

    return te.compute(value.shape, better, name="root")
