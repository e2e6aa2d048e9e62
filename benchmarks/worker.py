"""Run a step of a benchmark in a fresh process, so that crashes and memory stay its own."""

import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

_MARK = "benchmark-result:"
ROOT = Path(__file__).resolve().parents[1]


class StepError(Exception):
    """A step that ended without a result; the message says how."""


def run_step(module: str, arguments: Sequence[str], timeout_s: float = 1800) -> Any:
    """Run `python -m module arguments` and return what it passed to `give_result`.

    Raises:
        StepError: if it ran too long, was killed, or failed.
    """
    command = [sys.executable, "-m", module, *arguments]
    try:
        done = subprocess.run(
            command, cwd=ROOT, capture_output=True, text=True, timeout=timeout_s, check=False
        )
    except subprocess.TimeoutExpired as error:
        raise StepError(f"took more than {timeout_s:.0f} s") from error
    for line in done.stdout.splitlines():
        if done.returncode == 0 and line.startswith(_MARK):
            return json.loads(line[len(_MARK) :])
    if done.returncode < 0:
        raise StepError(f"killed by signal {-done.returncode}")
    lines = (done.stderr.strip() or "no output").splitlines()
    # an error message comes after the traceback, and its first line is the one that says what
    starts = [i for i, line in enumerate(lines) if line and line[0].isalpha() and "Error" in line]
    raise StepError(lines[starts[-1] if starts else -1][:300])


def give_result(value: Any) -> None:
    """Hand `value`, which JSON can hold, to the process that called `run_step`."""
    print(f"\n{_MARK}{json.dumps(value)}", flush=True)
