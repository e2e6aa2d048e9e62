"""Small hand-made programs that tests of packaging and of the runtime share."""

from __future__ import annotations

import numpy as np
from tvm import s_tir, te
from tvm.tirx import PrimFunc, const
from tvm.tirx import max as te_max

from tilewright.compiler.program import Call, Program, Tensor, TensorSpec


def unary_kernel(shape: tuple[int, ...], compute, dtype: str = "float32") -> PrimFunc:
    """Return an unscheduled kernel that applies `compute` to every element."""
    data = te.placeholder(shape, dtype, name="data")
    result = te.compute(shape, lambda *index: compute(data(*index)), name="result")
    return te.create_prim_func([data, result])


def binary_kernel(shape: tuple[int, ...], compute, dtype: str = "float32") -> PrimFunc:
    """Return an unscheduled kernel that applies `compute` to the elements of two tensors."""
    left = te.placeholder(shape, dtype, name="left")
    right = te.placeholder(shape, dtype, name="right")
    result = te.compute(shape, lambda *i: compute(left(*i), right(*i)), name="result")
    return te.create_prim_func([left, right, result])


def matmul_kernel(rows: int, inner: int, columns: int, parallel: bool = True) -> PrimFunc:
    """Return rows x inner times inner x columns; rows in parallel, a workspace for the product."""
    left = te.placeholder((rows, inner), name="left")
    right = te.placeholder((inner, columns), name="right")
    k = te.reduce_axis((0, inner), name="k")
    product = te.compute(
        (rows, columns), lambda i, j: te.sum(left[i, k] * right[k, j], axis=k), name="product"
    )
    result = te.compute((rows, columns), lambda i, j: product[i, j] + 0.0, name="result")
    schedule = s_tir.Schedule(te.create_prim_func([left, right, result]))
    i, j, reduce = schedule.get_loops(schedule.get_sblock("product"))
    schedule.reorder(i, reduce, j)
    if parallel:
        schedule.parallel(i)
    return schedule.mod["main"]


def huge_workspace_kernel(shape: tuple[int, ...]) -> PrimFunc:
    """Return a kernel that needs a workspace of 4 GiB."""
    data = te.placeholder(shape, name="data")
    huge = te.compute((1 << 30,), lambda i: data(*[0] * len(shape)) + i, name="huge")
    result = te.compute(shape, lambda *index: huge[index[0]], name="result")
    return te.create_prim_func([data, result])


def mlp_program(batch: int = 6, seed: int = 0) -> tuple[Program, tuple[np.ndarray, ...]]:
    """Return relu(x @ w1) @ w2 + x reshaped, and (w1, w2): parallel kernels with workspaces."""
    rng = np.random.default_rng(seed)
    w1 = rng.standard_normal((32, 48), dtype=np.float32)
    w2 = rng.standard_normal((48, 32), dtype=np.float32)
    kernels = {
        "up": matmul_kernel(batch, 32, 48),
        "relu": unary_kernel((batch, 48), lambda x: te_max(x, 0.0)),
        "down": matmul_kernel(batch, 48, 32),
        "add": binary_kernel((batch * 32,), lambda a, b: a + b),
    }
    tensors = (
        Tensor("x", (batch, 32), "float32", "input"),
        Tensor("w1", (32, 48), "float32", "constant", w1),
        Tensor("hidden", (batch, 48), "float32", "intermediate"),
        Tensor("active", (batch, 48), "float32", "intermediate"),
        Tensor("w2", (48, 32), "float32", "constant", w2),
        Tensor("down", (batch, 32), "float32", "intermediate"),
        Tensor("flat_down", (batch * 32,), "float32", "intermediate", alias_of=5),
        Tensor("flat_x", (batch * 32,), "float32", "input", alias_of=0),
        Tensor("y", (batch * 32,), "float32", "output"),
    )
    program = Program(
        tensors=tensors,
        calls=(
            Call("up", (0, 1, 2), "matmul_1"),
            Call("relu", (2, 3), "relu_1"),
            Call("down", (3, 4, 5), "matmul_2"),
            Call("add", (6, 7, 8), "add_1"),
        ),
        inputs=(0,),
        outputs=(8,),
        kernels=kernels,
        input_specs=(TensorSpec("x", (batch, 32), "float32"),),
        output_specs=(TensorSpec("y", (batch, 32), "float32"),),
    )
    return program, (w1, w2)


def mlp_reference(x: np.ndarray, weights: tuple[np.ndarray, ...]) -> np.ndarray:
    """Compute in float64 what `mlp_program` computes."""
    wide = x.astype(np.float64)
    return np.maximum(wide @ weights[0], 0) @ weights[1] + wide


def copy_program(shape: tuple[int, ...] = (5, 7), dtype: str = "float32") -> Program:
    """Return y = x + 1 (x | 1 for bool), the smallest program."""
    compute = (lambda x: x != 0) if dtype == "bool" else (lambda x: x + const(1, dtype))
    return Program(
        tensors=(Tensor("x", shape, dtype, "input"), Tensor("y", shape, dtype, "output")),
        calls=(Call("plus_one", (0, 1), "plus_one"),),
        inputs=(0,),
        outputs=(1,),
        kernels={"plus_one": unary_kernel(shape, compute, dtype)},
        input_specs=(TensorSpec("x", shape, dtype),),
        output_specs=(TensorSpec("y", shape, dtype),),
    )
