"""Fold per-channel scales and shifts into the constant weights before them.

    y = conv(x, W); z = y * s + t      ->      z = conv(x, W * s) + t
    y = conv(x, W) + b; z = y * s + t  ->      z = conv(x, W * s) + (b * s + t)

Preconditions: W, b, s, t are constants; s and t vary along the output channel alone; every value
between the convolution (or matmul) and z has one user. Anything else is left as it is.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import tvm
from tvm import relax

from tilewright.compiler.relax_utils import (
    bindings,
    constant_array,
    is_constant,
    op_name,
    use_counts,
)

_OUTPUT_CHANNEL = {
    # operator -> (dimension of the weight, dimension of the output counted from the right)
    "relax.nn.conv1d": (0, 2),
    "relax.nn.conv2d": (0, 3),
    "relax.nn.conv3d": (0, 4),
    "relax.matmul": (-1, 1),
}


@dataclass
class _Affine:
    """A linear operator with constant weights, followed by constant per-channel arithmetic."""

    call: relax.Call
    weight: np.ndarray
    bias: np.ndarray | None
    last: relax.Var
    folds: int = 0


@tvm.ir.transform.module_pass(opt_level=0, name="FoldBatchNorm")
class FoldBatchNorm:
    """Module pass; see the module's docstring."""

    def transform_module(self, mod: tvm.IRModule, _ctx: object) -> tvm.IRModule:
        main = mod["main"]
        groups = _collect(main)
        if not groups:
            return mod
        mod = tvm.IRModule(mod.functions, attrs=mod.attrs)
        mod["main"] = _Folder(mod, groups).visit_expr(main)
        return relax.transform.DeadCodeElimination(["main"])(mod)


def _collect(function: relax.Function) -> dict[relax.Var, _Affine]:
    """Find every value that ends a chain worth folding, with its folded constants."""
    uses = use_counts(function)
    open_chains: dict[relax.Var, _Affine] = {}
    for binding in bindings(function):
        value = binding.value
        name = op_name(value)
        if name in _OUTPUT_CHANNEL and is_constant(value.args[1]):
            weight = constant_array(value.args[1])
            if weight.dtype.kind == "f" and (name != "relax.matmul" or weight.ndim == 2):
                open_chains[binding.var] = _Affine(value, weight, None, binding.var)
        elif name in ("relax.multiply", "relax.add", "relax.subtract", "relax.divide"):
            _extend(open_chains, uses, binding.var, value, name)
    return {chain.last: chain for chain in open_chains.values() if chain.folds}


def _extend(
    chains: dict[relax.Var, _Affine],
    uses: dict[relax.Var, int],
    var: relax.Var,
    value: relax.Call,
    name: str,
) -> None:
    left, right = value.args
    if is_constant(left) and name in ("relax.multiply", "relax.add"):
        left, right = right, left
    if not (isinstance(left, relax.Var) and is_constant(right)):
        return
    if left not in chains or uses.get(left, 0) != 1:
        return
    chain = chains[left]
    operand = _per_channel(chain, constant_array(right), value)
    if operand is None:
        return
    bias, weight = chain.bias, chain.weight
    if name in ("relax.multiply", "relax.divide"):
        scale = operand if name == "relax.multiply" else 1 / operand
        weight = weight * _along_weight(chain, scale)
        bias = None if bias is None else bias * scale
        gained = 1
    else:
        shift = operand if name == "relax.add" else -operand
        # One addition is what the bias costs anyway; only a second one, or a scale, is a gain.
        gained = int(bias is not None)
        bias = shift if bias is None else bias + shift
    del chains[left]
    chains[var] = _Affine(
        chain.call, weight.astype(chain.weight.dtype), bias, var, chain.folds + gained
    )


def _per_channel(chain: _Affine, data: np.ndarray, value: relax.Call) -> np.ndarray | None:
    """The constant as a vector [channels], or None where it varies along another dimension."""
    weight_dim, from_right = _OUTPUT_CHANNEL[chain.call.op.name]
    channels = chain.weight.shape[weight_dim]
    if len(data.shape) > len(value.ty.shape):
        return None
    if data.size == 1:
        return np.full(channels, data.reshape(()), data.dtype)
    if data.size != channels or data.ndim < from_right or data.shape[-from_right] != channels:
        return None
    return data.reshape(channels)


def _along_weight(chain: _Affine, scale: np.ndarray) -> np.ndarray:
    weight_dim, _ = _OUTPUT_CHANNEL[chain.call.op.name]
    shape = [1] * chain.weight.ndim
    shape[weight_dim] = -1
    return scale.reshape(shape)


@relax.expr_functor.mutator
class _Folder(relax.expr_functor.PyExprMutator):
    def __init__(self, mod: tvm.IRModule, groups: dict[relax.Var, _Affine]) -> None:
        super().__init__(mod)
        self.groups = groups

    def visit_var_binding_(self, binding: relax.VarBinding) -> None:
        chain = self.groups.get(binding.var)
        if chain is None:
            super().visit_var_binding_(binding)
            return
        data = self.visit_expr(chain.call.args[0])
        call = chain.call
        folded = self.builder_.emit(
            relax.Call(call.op, [data, relax.const(chain.weight)], call.attrs, call.ty_args)
        )
        if chain.bias is not None:
            _, from_right = _OUTPUT_CHANNEL[call.op.name]
            bias = chain.bias.reshape([-1] + [1] * (from_right - 1))
            folded = self.builder_.emit(
                relax.op.add(folded, relax.const(bias.astype(chain.weight.dtype)))
            )
        self.set_var_remap(binding.var, folded)
