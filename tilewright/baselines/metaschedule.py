"""MetaSchedule of TVM as a peer: it schedules the very PrimFuncs that tilewright would.

It runs in a process of its own and leaves a module file, which is then timed like one of ours.
Operators stay in the layout that the model has, and LLVM is the same.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

from tilewright.baselines.engine import Contender, Feed, local
from tilewright.errors import MeasureError

_TIMEOUT_S = 4 * 3600


def start(
    model: Path,
    name: str,
    feed: Feed,
    threads: int,
    trials: int,
    logs: Path,
    progress: Callable[[str], None] = lambda _stage: None,
) -> Contender:
    """Tune the kernels of a model where their database lacks trials, and return the module.

    Args:
        model: an ONNX file.
        name: of the folder under `logs`/metaschedule that keeps the databases.
        feed: inputs by name.
        threads: of the kernels.
        trials: for each kernel; 0 takes what the databases hold.
        logs: folder of the tuning logs.
        progress: called with what is going on.

    Raises:
        MeasureError: it failed, or there is neither a database nor a trial to spend.
    """
    from tilewright.runtime import Module

    folder = logs / "metaschedule" / name
    if not trials and not folder.exists():
        raise MeasureError(f"no database of {name} in {folder.parent}, and no trials to spend")
    folder.mkdir(parents=True, exist_ok=True)
    progress(f"metaschedule: {trials} trials")
    module = model.with_suffix(".metaschedule.so")
    command = [sys.executable, "-m", "tilewright.baselines.metaschedule_worker"]
    command += [str(model), str(folder), str(trials), str(threads), str(module)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=_TIMEOUT_S, check=False)
    if done.returncode:
        lines = (done.stderr.strip() or "no output").splitlines()
        raise MeasureError(f"MetaSchedule failed on {name}: {lines[-1]}")
    return local(Module(module, threads=threads).run, feed)
