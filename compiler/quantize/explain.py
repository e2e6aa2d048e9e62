"""Say for every operator of a quantized graph whether it runs on integers, and if not, why."""

from __future__ import annotations

from dataclasses import dataclass

import tvm
from tvm import relax

from tilewright.compiler.quantize.affine import BITS
from tilewright.compiler.quantize.graph import Graph
from tilewright.compiler.quantize.linear import read_linear
from tilewright.compiler.quantize.movement import move_bytes
from tilewright.compiler.quantize.qdq import read_anchor
from tilewright.compiler.quantize.region import ELEMENTWISE, find_regions, is_movement
from tilewright.compiler.quantize.weight_product import decoded_weights, read_product
from tilewright.compiler.relax_utils import bindings, is_constant, op_name

_LINEAR = frozenset(("relax.nn.conv1d", "relax.nn.conv2d", "relax.nn.conv3d", "relax.matmul"))
_INTEGER_ONLY = frozenset(("relax.nn.softmax", "relax.nn.layer_norm", "relax.take"))
_TYPES = "integers of 2, 4 and 8 bits"
_INTEGER_SUMS = ("conv_int8", "matmul_int8")


@dataclass(frozen=True)
class Explained:
    """One operator of the graph.

    Attributes:
        name: of its result.
        operator: what it is, for instance "nn.conv2d".
        integer: whether it runs on integers.
        reason: why not; empty where it does.
        form: bits of its weights and data, for instance "W4A8"; empty where there are no weights.
    """

    name: str
    operator: str
    integer: bool
    reason: str = ""
    form: str = ""


def explain_quantized(mod: tvm.IRModule) -> tuple[Explained, ...]:
    """Return `explain` where the graph quantizes or dequantizes, and `explain_weights`."""
    return (*(explain(mod) if Graph(mod).affines else ()), *explain_weights(mod))


def explain_weights(mod: tvm.IRModule) -> list[Explained]:
    """Return every product of floats with integer weights, and all weights that were decoded."""
    found = []
    for binding in bindings(mod["main"]):
        product = read_product(mod, binding.value)
        if product is not None:
            bits, group = product.weights.bits, product.weights.group
            reason = (
                f"its data is in floats; weights of {bits} bits in groups of {group} stay packed"
            )
            found.append(Explained(binding.var.name, "matmul", False, reason, f"W{bits}A32"))
    return found + [
        Explained(name, "weights", False, f"decoded when compiling: {reason}")
        for name, reason in decoded_weights(mod).items()
    ]


def explain(mod: tvm.IRModule) -> list[Explained]:
    """Return what becomes of every operator on tensors that may be bytes, in their order.

    Args:
        mod: an imported module. Conversions themselves and operators on constants are left out.
    """
    graph = Graph(move_bytes(mod))
    regions = find_regions(graph, lambda var: read_anchor(graph, var))
    inside = set().union(*(region.members for region in regions.values())) if regions else set()
    found = []
    for var, call in graph.value.items():
        name = _kind(call)
        if name is None or var in graph.affines or graph.constant(var) is not None:
            continue
        if not str(getattr(var.ty, "dtype", "")).startswith(("float", "uint8", "int8", "int32")):
            continue
        reason = "" if name in _INTEGER_SUMS else _reason(graph, var, inside)
        label = name.removeprefix("relax.")
        linear = None if reason or name in _INTEGER_SUMS else read_linear(graph, var)
        form = "" if linear is None else linear.form
        found.append(Explained(var.name, label, not reason, reason, form))
    return found


def _kind(call: relax.Expr) -> str | None:
    """Return an operator's name; that of its function where it is a sum that is integer already."""
    name = op_name(call)
    if name == "relax.call_tir":
        hint = call.args[0].name_hint.rstrip("0123456789")
        # A trailing digit of the hint itself goes with the number.
        return next((kind for kind in _INTEGER_SUMS if kind.startswith(hint)), None)
    return name


def _reason(graph: Graph, var: relax.Var, inside: set[relax.Var]) -> str:
    """Return why an operator runs in floats, or nothing."""
    call = graph.value[var]
    name = str(op_name(call))
    if read_anchor(graph, var) is not None:
        return ""
    if name in _LINEAR:
        return _linear_reason(graph, call)
    if is_movement(graph, var):
        users = graph.users.get(var, [])
        if users and all(user is not None and graph.of_kind(user, "quantize") for user in users):
            return ""
        return "its result is not quantized"
    if name in ELEMENTWISE:
        return _elementwise_reason(graph, var, inside)
    if name in _INTEGER_ONLY:
        return f"{name.removeprefix('relax.')} is computed in floats, except by --integer-only"
    if _reads_bytes(graph, call):
        return f"{name.removeprefix('relax.')} has no integer form"
    return "what it reads is in floats"


def _reads_bytes(graph: Graph, call: relax.Call) -> bool:
    return any(graph.of_kind(arg, "dequantize") for arg in call.args)


def _linear_reason(graph: Graph, call: relax.Call) -> str:
    data, weight = call.args[:2]
    affine = graph.of_kind(data, "dequantize")
    if affine is None:
        return "its data is not quantized"
    if affine.dtype not in BITS:
        return f"its data is {affine.dtype}; integer sums take {_TYPES}"
    if not affine.is_uniform:
        return "its data has a scale for each channel; integer sums take one for the tensor"
    if graph.of_kind(weight, "dequantize") and not is_constant(graph.affines[weight].source):
        return "both operands are computed; only --integer-only multiplies those as integers"
    constant = graph.quantized_constant(weight)
    if constant is None:
        return "its weights are not quantized constants"
    if constant.affine.dtype not in BITS:
        return f"its weights are {constant.affine.dtype}; integer sums take {_TYPES}"
    if not constant.affine.is_uniform and op_name(call) != "relax.matmul" and constant.affine.axis:
        return "its weights have a scale for each input channel"
    return "its weights less their zero point need more than 8 bits, or its sums more than 32"


def _elementwise_reason(graph: Graph, var: relax.Var, inside: set[relax.Var]) -> str:
    if var not in inside:
        users = graph.users.get(var, [])
        if any(user is None for user in users):
            return "its result is an output of the model in floats"
        return "its result is not quantized"
    for arg in graph.value[var].args:
        known = not isinstance(arg, relax.Var) or arg in inside or graph.constant(arg) is not None
        if not known and graph.of_kind(arg, "dequantize") is None:
            return f"it reads '{arg.name}', which is in floats"
    return ""
