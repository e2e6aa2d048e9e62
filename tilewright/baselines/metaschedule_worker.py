"""Tune the kernels of an ONNX model by MetaSchedule and write the module; run as a process.

python -m tilewright.baselines.metaschedule_worker REQUEST, a JSON object: model, folder (of the
database), threads, trials and time_s (see `budget.Budget`), module (to write).
"""

from __future__ import annotations

import json
import shutil
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import tvm_ffi
from tvm.ir import IRModule
from tvm.ir.utils import derived_object
from tvm.s_tir import meta_schedule
from tvm.tirx import PrimFunc

from tilewright.baselines.budget import Budget, Meter, trial_costs
from tilewright.baselines.metaschedule import RECORDS, count, curve
from tilewright.tuner.worker.lifetime import end_with_parent

_WORKLOADS = "database_workload.json"
_ROUND_TRIALS = 32
_MANY_TRIALS = 100_000
_BUILD_TIMEOUT_S = 120.0  # by default 30, which a busy machine exceeds
# MetaSchedule's own is 100: with fewer trials its model would never be asked.
_MODEL_FROM_RECORDS = 16


def main() -> None:
    """Tune, schedule, package."""
    from tilewright.compiler.package import package
    from tilewright.compiler.pipeline import fuse
    from tilewright.compiler.program import TensorSpec
    from tilewright.compiler.targets import parse_target
    from tilewright.frontends.onnx import import_onnx

    end_with_parent()
    request = json.loads(sys.argv[1])
    target = replace(parse_target("native"), cores=request["threads"])
    imported = import_onnx(request["model"])
    program = fuse(
        imported.module,
        [TensorSpec(s.name, s.shape, s.dtype) for s in imported.inputs],
        [TensorSpec(s.name, s.shape, s.dtype) for s in imported.outputs],
        target,
        winograd=False,
    )
    folder = Path(request["folder"])
    budget = Budget(request["trials"], request["time_s"])
    if budget.spends:
        tune(program.kernels, target.tvm_target(), folder, budget)
    keep = budget.within(curve(folder))
    kernels = best(program.kernels, target.tvm_target(), folder, keep)
    package(replace(program, kernels=kernels), target, Path(request["module"]), {})


def tune(
    kernels: Mapping[str, PrimFunc], target: Any, folder: Path, budget: Budget, **how: Any
) -> None:
    """Measure until the database in `folder` holds the budget's trials of all kernels together.

    `how` goes to MetaSchedule: another builder or runner.
    """
    folder.mkdir(parents=True, exist_ok=True)
    records = folder / RECORDS

    def spent_s() -> float:
        return sum(trial_costs(records))

    left = budget.left(count(folder), spent_s(), _MANY_TRIALS)
    if left <= 0:
        return
    meter = Meter(records, lambda: count(folder))

    @derived_object
    class Note(meta_schedule.measure_callback.PyMeasureCallback):
        def apply(self, *_: Any) -> None:
            meter.note()
            if budget.time_s and spent_s() >= budget.time_s:
                raise TimeoutError("the budget is spent")  # the search has no other end

    functions = {name: f.with_attr("global_symbol", name) for name, f in kernels.items()}
    # Every kernel gets a first round, however few the trials are.
    share = max(1, left // len(functions))
    try:
        meta_schedule.tune_tir(
            IRModule(functions),
            target,
            work_dir=str(folder),
            max_trials_global=left,
            num_trials_per_iter=min(_ROUND_TRIALS, share),
            cost_model=meta_schedule.cost_model.XGBModel(num_warmup_samples=_MODEL_FROM_RECORDS),
            measure_callbacks=[*meta_schedule.MeasureCallback.create("default"), Note()],
            **{"builder": local_builder(), **how},
        )
    except Exception:  # TVM may change the class on the way through
        if not budget.time_s or spent_s() < budget.time_s:
            raise


def local_builder() -> Any:
    """Return TVM's builder of candidates, without what its processes do for GPUs only.

    TVM 0.27's own `default_build` imports the tensor intrinsics of all GPUs first, whose texts are
    parsed for 45 s, in every process of every round: longer than TVM's limit of 30 s for a build,
    and most of what MetaSchedule costs. What it builds has no use for their registry.
    """

    def build(mod: IRModule, target: Any, _params: Any) -> Any:
        from tvm.driver import build as tvm_build
        from tvm.s_tir.transform import RemoveWeightLayoutRewriteBlock

        return tvm_build(RemoveWeightLayoutRewriteBlock(skip_tensor_rewrite=True)(mod), target)

    return meta_schedule.builder.LocalBuilder(timeout_sec=_BUILD_TIMEOUT_S, f_build=build)


def best(
    kernels: Mapping[str, PrimFunc], target: Any, folder: Path, keep: int
) -> dict[str, PrimFunc]:
    """Return every kernel by the best of the first `keep` records.

    One of which all candidates failed is left as it stands, as by TVM's own
    `MetaScheduleApplyDatabase`: a gather meets random indices, outside of what it reads from.

    Raises:
        RuntimeError: there is no record of a kernel, or all candidates of all kernels failed.
    """
    found = {}
    with tempfile.TemporaryDirectory(prefix="tilewright-") as first:
        lines = (folder / RECORDS).read_text().splitlines(keepends=True)
        Path(first, RECORDS).write_text("".join(lines[:keep]))
        shutil.copy(folder / _WORKLOADS, first)
        database = meta_schedule.database.JSONDatabase(work_dir=first)
        for name, func in kernels.items():
            named = func.with_attr("global_symbol", name)  # part of what a record is found by
            schedule = meta_schedule.tir_integration.compile_tir(database, named, target)
            if schedule is not None:
                found[name] = schedule.mod["main"]
            elif _was_tried(database, named):
                found[name] = func
            else:
                raise RuntimeError(f"no record of kernel {name} among the first {keep} trials")
    if all(found[name] is func for name, func in kernels.items()):
        raise RuntimeError(f"all of the first {keep} candidates failed")
    return found


def _was_tried(database: Any, func: PrimFunc) -> bool:
    module = IRModule({"main": func})
    records = database.get_all_tuning_records()
    return any(tvm_ffi.structural_equal(record.workload.mod, module) for record in records)


if __name__ == "__main__":
    main()
