"""RNN, GRU and LSTM, unrolled over time."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from tvm import relax

from tilewright.frontends.onnx.node import NodeContext
from tilewright.frontends.onnx.ops.elementwise import cast, clip
from tilewright.frontends.onnx.ops.linear import transposed
from tilewright.frontends.onnx.ops.reshaping import cut, reshape_to
from tilewright.frontends.onnx.registry import register
from tilewright.frontends.onnx.values import Value, constant

R = relax.op

Activation = Callable[[Value], Value]
State = tuple[Value, ...]

# Every step becomes code; longer sequences would swell the deployed file.
_UNROLL_LIMIT = 1024


class _Cell:
    """One direction of a recurrent layer: parameters as matrices, and helpers.

    Attributes:
        weight: Transposed input weight [input, gates * hidden].
        recurrence: Transposed recurrence weight [hidden, gates * hidden].
        bias: Input and recurrence bias, each [gates * hidden], or None.
    """

    def __init__(self, op: NodeContext, direction: int, gates: int, hidden: int) -> None:
        self.op = op
        self.hidden = hidden
        self.weight = transposed(op, _direction(op, op.input(1), direction))
        self.recurrence = transposed(op, _direction(op, op.input(2), direction))
        bias = op.optional(3)
        self.bias: tuple[Value, Value] | None = None
        if bias is not None:
            row = _direction(op, bias, direction)
            size = gates * hidden
            self.bias = cut(op, row, 0, 0, size), cut(op, row, 0, size, 2 * size)

    def project(self, step: Value) -> Value:
        """Apply the input weight and its bias: [batch, input] -> [batch, gates * hidden]."""
        product = self.op.call(R.matmul, step, self.weight)
        return product if self.bias is None else self.op.call(R.add, product, self.bias[0])

    def recur(self, state: Value, first: int, last: int) -> Value:
        """Apply gates ``first`` to ``last`` of the recurrence weight and their bias."""
        size = self.hidden
        weight = cut(self.op, self.recurrence, 1, first * size, last * size)
        product = self.op.call(R.matmul, state, weight)
        if self.bias is None:
            return product
        return self.op.call(
            R.add, product, cut(self.op, self.bias[1], 0, first * size, last * size)
        )

    def gate(self, value: Value, index: int) -> Value:
        """Take one gate of [batch, gates * hidden]."""
        return cut(self.op, value, 1, index * self.hidden, (index + 1) * self.hidden)


def _direction(op: NodeContext, value: Value, direction: int) -> Value:
    """Take one direction of a parameter whose first dimension is the directions."""
    if value.data is not None:
        return constant(value.data[direction])
    return reshape_to(op, cut(op, value, 0, direction, direction + 1), value.shape[1:])


def _activations(
    op: NodeContext, defaults: Sequence[str], directions: int
) -> list[list[Activation]]:
    """Read the activation functions, one list per direction."""
    names = op.attr("activations", None) or tuple(defaults) * directions
    alphas, betas = list(op.attr("activation_alpha") or ()), list(op.attr("activation_beta") or ())
    functions = [_activation(op, name, alphas, betas) for name in names]
    count = len(defaults)
    return [functions[place * count : (place + 1) * count] for place in range(directions)]


def _activation(op: NodeContext, name: str, alphas: list[float], betas: list[float]) -> Activation:
    """Return an activation; those with parameters take the next of the lists."""
    plain = {"Sigmoid": R.sigmoid, "Tanh": R.tanh, "Relu": R.nn.relu, "Softplus": R.nn.softplus}
    if name in plain:
        return lambda value: op.call(plain[name], value)
    if name == "Affine":
        alpha, beta = _take(alphas, 1.0), _take(betas, 0.0)
        return lambda value: _affine(op, value, alpha, beta)
    if name == "HardSigmoid":
        alpha, beta = _take(alphas, 0.2), _take(betas, 0.5)
        return lambda value: clip(op, _affine(op, value, alpha, beta), 0.0, 1.0)
    if name == "LeakyRelu":
        alpha = _take(alphas, 0.01)
        return lambda value: op.call(R.nn.leakyrelu, value, alpha)
    op.fail(f"activation {name!r}")


def _take(numbers: list[float], default: float) -> float:
    return numbers.pop(0) if numbers else default


def _affine(op: NodeContext, value: Value, alpha: float, beta: float) -> Value:
    scaled = op.call(R.multiply, value, op.scalar(alpha, value.dtype))
    return op.call(R.add, scaled, op.scalar(beta, value.dtype))


def _recurrent(
    op: NodeContext,
    gates: int,
    defaults: Sequence[str],
    states: Sequence[int],
    make_step: Callable[[_Cell, list[Activation], int], Callable[[Value, State], State]],
) -> list[Value | None]:
    """Run a layer in its directions.

    Args:
        op: The node.
        gates: Number of gates in the weights.
        defaults: Default activation functions of one direction.
        states: Inputs that hold the initial states.
        make_step: Makes the function (projected input, states) -> states; the first state is the
            output.

    Returns:
        Output of all steps, then the last value of every state.
    """
    direction, hidden = op.attr("direction", "forward"), op.attr("hidden_size")
    batch_first = bool(op.attr("layout", 0))
    for name in ("output_sequence", "linear_before_reset", "input_forget"):
        op.attr(name, None)
    data = op.input(0)
    if batch_first:
        data = op.call(R.permute_dims, data, [1, 0, 2])
    length, batch = data.shape[:2]
    hidden = hidden or op.input(2).shape[-1]
    if length > _UNROLL_LIMIT:
        op.fail(f"a sequence of {length} steps cannot be unrolled; the limit is {_UNROLL_LIMIT}")
    directions = 2 if direction == "bidirectional" else 1
    _check_shapes(op, directions, gates * hidden, hidden)
    functions = _activations(op, defaults, directions)
    all_steps: list[Value] = []
    finals: list[State] = []
    for place in range(directions):
        backwards = direction == "reverse" or place == 1
        cell = _Cell(op, place, gates, hidden)
        step = make_step(cell, _clipped(op, functions[place]), place)
        start = tuple(_initial(op, index, place, batch, hidden, batch_first) for index in states)
        outputs, final = _run(op, cell, step, data, start, backwards)
        rows = [reshape_to(op, item, (1, 1, batch, hidden)) for item in outputs]
        all_steps.append(rows[0] if len(rows) == 1 else op.call(R.concat, rows, 0))
        finals.append(final)
    sequence = all_steps[0] if directions == 1 else op.call(R.concat, all_steps, 1)
    lasts = [_merge(op, [final[index] for final in finals]) for index in range(len(states))]
    if batch_first:
        sequence = op.call(R.permute_dims, sequence, [2, 0, 1, 3])
        lasts = [op.call(R.permute_dims, last, [1, 0, 2]) for last in lasts]
    return [sequence, *lasts]


def _check_shapes(op: NodeContext, directions: int, rows: int, hidden: int) -> None:
    """Raise ValueError for a weight that does not fit the data, `hidden_size` and directions."""
    width = op.input(0).shape[2]
    wanted = {
        1: (directions, rows, width),
        2: (directions, rows, hidden),
        3: (directions, 2 * rows),
    }
    for index, shape in wanted.items():
        value = op.optional(index)
        if value is not None and value.shape != shape:
            raise ValueError(f"input {index} has shape {value.shape}, not {shape}")


def _merge(op: NodeContext, values: Sequence[Value]) -> Value:
    """Stack the last states of the directions."""
    lifted = [reshape_to(op, value, (1, *value.shape)) for value in values]
    return lifted[0] if len(lifted) == 1 else op.call(R.concat, lifted, 0)


def _clipped(op: NodeContext, functions: Sequence[Activation]) -> list[Activation]:
    """Limit what goes into the activations, if the node has a ``clip``."""
    limit = op.attr("clip")
    if not limit:
        return list(functions)

    def limited(function: Activation) -> Activation:
        return lambda value: function(clip(op, value, -limit, limit))

    return [limited(function) for function in functions]


def _initial(
    op: NodeContext, index: int, direction: int, batch: int, hidden: int, batch_first: bool
) -> Value:
    """Return the initial state of one direction; zeros where it is absent."""
    value = op.optional(index)
    if value is None:
        return constant(np.zeros((batch, hidden), op.input(0).dtype))
    axis = 1 if batch_first else 0
    part = cut(op, value, axis, direction, direction + 1)
    return reshape_to(op, part, (batch, hidden))


def _run(
    op: NodeContext,
    cell: _Cell,
    step: Callable[[Value, State], State],
    data: Value,
    state: State,
    backwards: bool,
) -> tuple[list[Value], State]:
    """Step through time; steps beyond a row's length give zeros and keep its state."""
    length, batch, width = data.shape
    flat = reshape_to(op, data, (length * batch, width))
    projected = cell.project(flat)
    projected = reshape_to(op, projected, (length, batch, projected.shape[-1]))
    lengths = op.optional(4)
    if lengths is not None and lengths.data is not None and (lengths.data == length).all():
        lengths = None
    outputs: list[Value] = []
    for place in reversed(range(length)) if backwards else range(length):
        row = cut(op, projected, 0, place, place + 1)
        new = step(reshape_to(op, row, projected.shape[1:]), state)
        output = new[0]
        if lengths is not None:
            column = reshape_to(op, cast(op, lengths, "int32"), (batch, 1))
            active = op.call(R.greater, column, op.scalar(place, "int32"))
            output = op.call(R.where, active, output, op.scalar(0, output.dtype))
            new = tuple(
                op.call(R.where, active, now, before)
                for now, before in zip(new, state, strict=True)
            )
        outputs.append(output)
        state = new
    return outputs[::-1] if backwards else outputs, state


@register("RNN", 7)
def rnn(op: NodeContext) -> Any:
    """https://onnx.ai/onnx/operators/onnx__RNN.html"""

    def make(cell: _Cell, functions: list[Activation], _: int) -> Any:
        def step(gates: Value, state: State) -> State:
            return (functions[0](op.call(R.add, gates, cell.recur(state[0], 0, 1))),)

        return step

    return _recurrent(op, 1, ["Tanh"], [5], make)


@register("GRU", 7)
def gru(op: NodeContext) -> Any:
    """https://onnx.ai/onnx/operators/onnx__GRU.html (gates update, reset, hidden)."""
    after = bool(op.attr("linear_before_reset", 0))

    def make(cell: _Cell, functions: list[Activation], _: int) -> Any:
        def step(gates: Value, state: State) -> State:
            before = state[0]
            both = cell.recur(before, 0, 2)
            update = functions[0](op.call(R.add, cell.gate(gates, 0), cell.gate(both, 0)))
            reset = functions[0](op.call(R.add, cell.gate(gates, 1), cell.gate(both, 1)))
            if after:
                mixed = op.call(R.multiply, reset, cell.recur(before, 2, 3))
            else:
                mixed = cell.recur(op.call(R.multiply, reset, before), 2, 3)
            hidden = functions[1](op.call(R.add, cell.gate(gates, 2), mixed))
            # (1 - update) * hidden + update * before
            moved = op.call(R.multiply, update, op.call(R.subtract, before, hidden))
            return (op.call(R.add, hidden, moved),)

        return step

    return _recurrent(op, 3, ["Sigmoid", "Tanh"], [5], make)


@register("LSTM", 7)
def lstm(op: NodeContext) -> Any:
    """https://onnx.ai/onnx/operators/onnx__LSTM.html (gates input, output, forget, cell)."""
    coupled = bool(op.attr("input_forget", 0))
    peepholes = op.optional(7)

    def make(cell: _Cell, functions: list[Activation], direction: int) -> Any:
        size = cell.hidden
        row = None if peepholes is None else _direction(op, peepholes, direction)

        def peep(value: Value, state: Value, index: int) -> Value:
            if row is None:
                return value
            weight = cut(op, row, 0, index * size, (index + 1) * size)
            return op.call(R.add, value, op.call(R.multiply, weight, state))

        def step(gates: Value, state: State) -> State:
            before, memory = state
            total = op.call(R.add, gates, cell.recur(before, 0, 4))
            entry = functions[0](peep(cell.gate(total, 0), memory, 0))
            if coupled:
                forget = op.call(R.subtract, op.scalar(1, entry.dtype), entry)
            else:
                forget = functions[0](peep(cell.gate(total, 2), memory, 2))
            fresh = functions[1](cell.gate(total, 3))
            kept = op.call(R.multiply, forget, memory)
            memory = op.call(R.add, kept, op.call(R.multiply, entry, fresh))
            out = functions[0](peep(cell.gate(total, 1), memory, 1))
            return op.call(R.multiply, out, functions[2](memory)), memory

        return step

    return _recurrent(op, 4, ["Sigmoid", "Tanh", "Tanh"], [5, 6], make)
