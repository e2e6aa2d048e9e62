"""Tasks and records that the tuner's tests share."""

from __future__ import annotations

from dataclasses import replace

from tvm import te

from tilewright.compiler.layout.operator import Operator
from tilewright.compiler.layout.primitives import Layout
from tilewright.compiler.targets import Target, parse_target
from tilewright.compiler.tasks import Task, task_of
from tilewright.tuner.candidate import Candidate
from tilewright.tuner.records import Record, kernels_version, target_data


def matmul_operator(rows: int = 24, inner: int = 40, columns: int = 48, name: str = "x"):
    """Return relu(x @ w) as an operator whose weight is a constant."""
    data = te.placeholder((rows, inner), name=name)
    weight = te.placeholder((inner, columns), name="w")
    k = te.reduce_axis((0, inner), name="k")
    product = te.compute(
        (rows, columns), lambda i, j: te.sum(data[i, k] * weight[k, j], axis=k), name="product"
    )
    result = te.compute(
        (rows, columns), lambda i, j: te.max(product[i, j], te.const(0.0, "float32")), name="relu"
    )
    func = te.create_prim_func([data, weight, result])
    return Operator(func, frozenset({1}), frozenset())


def native() -> Target:
    """Return this machine with one core."""
    return replace(parse_target("native"), cores=1)


def matmul_task(rows: int = 24, inner: int = 40, columns: int = 48, name: str = "x") -> Task:
    """Return the task of `matmul_operator`."""
    return task_of(matmul_operator(rows, inner, columns, name), native(), "matmul")


def make_record(
    seconds: float = 1e-3, task_key: str = "a" * 64, status: str = "ok", **changes
) -> Record:
    """Return a record of an imagined measurement, by kernels of today."""
    candidate = changes.get("candidate", Candidate((Layout((3, 5)),), '{"kind":"contraction"}'))
    values = {
        "task_key": task_key,
        "task": {"name": "matmul"},
        "target": target_data(parse_target("x86-64-v4")),
        "candidate": candidate,
        "versions": kernels_version(candidate),
        "status": status,
        "run_times_s": (seconds, seconds * 1.1) if status == "ok" else (),
        "error": "" if status == "ok" else "it broke",
        "created_at": "2026-01-01T00:00:00Z",
        **changes,
    }
    return Record(**values)
