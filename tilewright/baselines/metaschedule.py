"""MetaSchedule of TVM as a peer: it schedules the very PrimFuncs that tilewright would.

It runs in a process of its own and leaves a module file, which is then timed like one of ours.
Operators stay in the layout that the model has, and LLVM is the same.
"""

from __future__ import annotations

import contextlib
import importlib.util
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import median

from tilewright.baselines.budget import Curve, best_sums, priced
from tilewright.baselines.case import Case
from tilewright.baselines.engine import Contender, local
from tilewright.baselines.machine import instruction_set
from tilewright.errors import MeasureError

RECORDS = "database_tuning_record.json"
_LOOK_S = 5.0
_TIMEOUT_S = 4 * 3600
_FAILED_S = 1e9  # what MetaSchedule writes for a candidate that failed is longer


def missing() -> str | None:
    """Return why it cannot be used here, or None."""
    absent = [n for n in ("psutil", "xgboost", "tornado") if importlib.util.find_spec(n) is None]
    if absent:
        return f'needs {", ".join(absent)}; pip install "tilewright[bench]"'
    return None


def start(case: Case) -> Contender:
    """Tune the kernels of a model where their database lacks trials, and return the module.

    The database is the folder of the case's name under `logs`/metaschedule.

    Raises:
        MeasureError: it failed, or there is neither a database nor a trial to spend.
    """
    from tilewright.runtime import Module

    name, model, budget = case.log_name, case.model, case.budget
    folder = case.logs / "metaschedule" / instruction_set() / name
    if not budget.spends and not (folder / RECORDS).exists():
        raise MeasureError(f"no database of {name} in {folder.parent}, and no trials to spend")
    module = model.with_suffix(".metaschedule.so")
    request = {
        **{"model": str(model), "folder": str(folder), "module": str(module)},
        **{"threads": case.threads, "trials": budget.trials, "time_s": budget.time_s},
    }
    command = [sys.executable, "-m", "tilewright.baselines.metaschedule_worker"]
    command.append(json.dumps(request))
    failure = _watch(command, lambda: case.progress(f"metaschedule, {count(folder)} trials so far"))
    if failure is not None:
        raise MeasureError(f"MetaSchedule failed on {name}: {failure}")
    found = curve(folder)
    trials = budget.within(found)
    notes = {
        **{"trials": trials, "curves": {"": found}},
        "kernels_left_as_they_are": failed_kernels(folder, trials),
    }
    return local(Module(module, threads=case.threads).run, case.feed, notes)


def _watch(command: Sequence[str], look: Callable[[], None]) -> str | None:
    """Run a command to its end, and look every few seconds; return the last line of a failure."""
    with tempfile.TemporaryFile(mode="w+") as output:
        process = subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT)
        end = time.monotonic() + _TIMEOUT_S
        try:
            while process.poll() is None:
                look()
                if time.monotonic() > end:
                    return f"not done after {_TIMEOUT_S} s"
                with contextlib.suppress(subprocess.TimeoutExpired):
                    process.wait(_LOOK_S)
        finally:
            process.kill()
            process.wait()
        if process.returncode == 0:
            return None
        output.seek(0)
        return (output.read().strip().splitlines() or ["no output"])[-1]


def count(folder: Path) -> int:
    """Return how many trials a database holds."""
    records = folder / RECORDS
    return len(records.read_text().splitlines()) if records.exists() else 0


def curve(folder: Path) -> Curve:
    """Return the best time of all kernels together after each trial, and what the trial cost."""
    return priced([(s, 0.0) for s in best_sums(_trials(folder))], folder / RECORDS)


def failed_kernels(folder: Path, trials: int) -> int:
    """Return of how many kernels all candidates failed, of those among the first `trials`."""
    first = _trials(folder)[:trials]
    worked = {kernel for kernel, seconds in first if seconds is not None}
    return len({kernel for kernel, _ in first} - worked)


def _trials(folder: Path) -> list[tuple[int, float | None]]:
    """Return of every trial the number of its kernel and its seconds, None where it failed."""
    found = []
    for line in (folder / RECORDS).read_text().splitlines():
        kernel, (_, run_secs, *_) = json.loads(line)
        seconds = median(run_secs) if run_secs else _FAILED_S
        found.append((kernel, seconds if seconds < _FAILED_S else None))
    return found
