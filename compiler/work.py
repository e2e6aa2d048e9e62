"""How much each call of a program computes and moves: what a profile is measured against.

Operations are those that the kernel really executes on physical shapes, padding included: a
multiply-add is two, other arithmetic one, a call such as exp the 20 or so of its polynomial. A
Winograd convolution counts its transforms and its smaller product, not what a direct one would
take. Bytes are those of the arguments, each once: what a perfect cache would leave.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from math import prod
from typing import Any

from tvm import tirx
from tvm.ir import Call as CallExpr
from tvm.ir import TensorLoad
from tvm.tirx import PrimFunc

from tilewright.compiler.program import Call, Program
from tilewright.compiler.schedule.analysis import Stage, read_stages
from tilewright.compiler.schedule.expressions import Expr, children, loads_in
from tilewright.compiler.weight_only import PRODUCT_BLOCK
from tilewright.compiler.winograd import BY_TILE, INPUT_BLOCK, OUTPUT_BLOCK, Matrix

_ARITHMETIC = (tirx.Add, tirx.Sub, tirx.Mul, tirx.Div, tirx.Max, tirx.Min)
_CONTROL = ("if_then_else", "reinterpret")
_POLYNOMIALS = ("exp", "erf", "tanh", "sigmoid", "log", "pow", "sin", "cos", "exp2", "log2", "tan")
_POLYNOMIAL_OPERATIONS = 20


def count_operations(func: PrimFunc) -> int:
    """Return the operations of an unscheduled function; 0 where it has another form."""
    return sum(_of_stage(stage) for stage in read_stages(func) or ())


def operations_by_label(program: Program) -> dict[str, int]:
    """Return the operations of each call of a program that is not scheduled yet."""
    counts = {name: count_operations(func) for name, func in program.kernels.items()}
    return {call.label: counts[call.kernel] for call in program.calls}


def scattered_labels(program: Program) -> frozenset[str]:
    """Return the calls of an unscheduled program that read where other data says, as Gather."""
    kernels = {name for name, func in program.kernels.items() if _is_scattered(func)}
    return frozenset(call.label for call in program.calls if call.kernel in kernels)


def _is_scattered(func: PrimFunc) -> bool:
    return any(
        loads_in(index)
        for stage in read_stages(func) or ()
        for load in loads_in(stage.value)
        for index in load.indices
    )


def describe_work(
    program: Program, operations: Mapping[str, int], scattered: Collection[str] = ()
) -> list[dict[str, Any]]:
    """Return what each call computes and moves, in order, for a module's description.

    Keys: operations; bytes of all arguments, and constant_bytes of those that are weights; dtypes
    of all arguments; scattered, where it is one of those; reads and writes, numbers of the tensors
    that are no constants, so that calls can be drawn as a graph.
    """
    tensors = program.tensors

    def moving(arguments: Sequence[int]) -> list[int]:
        return [program.storage_of(t) for t in arguments if tensors[t].kind != "constant"]

    def bytes_of(call: Call, *kinds: str) -> int:
        found = (tensors[tensor] for tensor in dict.fromkeys(call.args))
        return sum(item.size_bytes for item in found if not kinds or item.kind in kinds)

    return [
        {
            "operations": operations.get(call.label, 0),
            "bytes": bytes_of(call),
            "constant_bytes": bytes_of(call, "constant"),
            **({"scattered": True} if call.label in scattered else {}),
            "dtypes": sorted({tensors[tensor].dtype for tensor in call.args}),
            "reads": moving(call.reads),
            "writes": moving(call.writes),
        }
        for call in program.calls
    ]


def _of_stage(stage: Stage) -> int:
    if stage.name.startswith((INPUT_BLOCK, OUTPUT_BLOCK)) and stage.reduction:
        return _of_transform(stage)
    if stage.name.startswith(PRODUCT_BLOCK):
        return 2 * stage.work  # what unpacks weights is left out, as it serves many rows
    return stage.work * _of_expression(stage.value)


def _of_expression(expr: Expr) -> int:
    if isinstance(expr, TensorLoad):
        return 0
    own = int(isinstance(expr, _ARITHMETIC))
    if isinstance(expr, CallExpr):
        name = str(expr.op.name)
        if name.endswith(_CONTROL):  # a condition selects; what it selects is computed
            return max(map(_of_expression, expr.args[1:]), default=0)
        own = _POLYNOMIAL_OPERATIONS if name.endswith(_POLYNOMIALS) else 1
    return own + sum(map(_of_expression, children(expr)))


def _of_transform(stage: Stage) -> int:
    """Return the operations of both passes of a transform, written out without its zeros."""
    is_input = stage.name.startswith(INPUT_BLOCK)
    rows, columns = (BY_TILE[axis.extent] for axis in stage.reduction)
    left, right = (each.data if is_input else each.result for each in (rows, columns))
    results = prod(axis.extent for axis in stage.spatial)
    vectors = results // (len(left) * len(right))
    return vectors * (columns.tile * _of_matrix(left) + len(left) * _of_matrix(right))


def _of_matrix(matrix: Matrix) -> int:
    return sum(2 * sum(1 for entry in row if entry) - 1 for row in matrix)
