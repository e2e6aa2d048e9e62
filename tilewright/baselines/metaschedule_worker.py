"""Tune the kernels of an ONNX model by MetaSchedule and write the module; run as a process.

python -m tilewright.baselines.metaschedule_worker MODEL FOLDER TRIALS THREADS MODULE
"""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

from tvm.s_tir import meta_schedule
from tvm.tirx import PrimFunc

_ROUND_TRIALS = 32
_BUILD_TIMEOUT_S = 120.0  # by default 30, which a busy machine exceeds


def main() -> None:
    """Tune, schedule, package."""
    from tilewright.compiler.package import package
    from tilewright.compiler.pipeline import fuse
    from tilewright.compiler.program import TensorSpec
    from tilewright.compiler.targets import parse_target
    from tilewright.frontends.onnx import import_onnx

    model, folder, trials, threads, module = sys.argv[1:]
    target = replace(parse_target("native"), cores=int(threads))
    imported = import_onnx(model)
    program = fuse(
        imported.module,
        [TensorSpec(s.name, s.shape, s.dtype) for s in imported.inputs],
        [TensorSpec(s.name, s.shape, s.dtype) for s in imported.outputs],
        target,
        winograd=False,
    )
    kernels = {
        name: _scheduled(func, target.tvm_target(), Path(folder) / name, int(trials))
        for name, func in program.kernels.items()
    }
    package(replace(program, kernels=kernels), target, Path(module), {})


def _scheduled(func: PrimFunc, target: object, folder: Path, trials: int) -> PrimFunc:
    """Return the best schedule of the database in `folder`, tuned up to `trials` records."""
    func = func.with_attr("global_symbol", "main")
    folder.mkdir(parents=True, exist_ok=True)
    records = folder / "database_tuning_record.json"
    known = len(records.read_text().splitlines()) if records.exists() else 0
    if known < trials:
        database = meta_schedule.tune_tir(
            func,
            target,
            work_dir=str(folder),
            builder=meta_schedule.builder.LocalBuilder(timeout_sec=_BUILD_TIMEOUT_S),
            max_trials_global=trials - known,
            num_trials_per_iter=min(_ROUND_TRIALS, trials - known),
        )
    else:
        database = meta_schedule.database.JSONDatabase(work_dir=str(folder))
    schedule = meta_schedule.tir_integration.compile_tir(database, func, target)
    if schedule is None:
        raise RuntimeError(f"no valid record for kernel {folder.name} in {folder}")
    return schedule.mod["main"]


if __name__ == "__main__":
    main()
