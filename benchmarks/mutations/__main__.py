"""Compile and run damaged models: `python -m benchmarks.mutations`.

Every model of `models.py` is damaged 500 times, in its bytes or in its structure; the number of a
mutation is its seed. Each is compiled, and run where that is cheap, in a process with a limit of
memory and time. It must end with an error for people or with a result: a crash, a hang or a
traceback is a bug. Writes benchmarks/results/mutations.json and .md; exit code 1 after a bug.
`--only model/number` runs one here, and shows the traceback.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import sys
import time
from collections import Counter
from collections.abc import Callable

os.environ.setdefault("TVM_NUM_THREADS", "1")
os.environ.setdefault("TILEWRIGHT_NUM_THREADS", "1")

from benchmarks.forked import Lost, run_forked
from benchmarks.mutations.models import MODELS
from benchmarks.mutations.trial import BAD, RAN, REFUSED, TOO_LARGE, Trial, damaged, run_trial
from benchmarks.report import RESULTS, markdown_table, write_text

PER_MODEL = 500
MEMORY_BYTES = 6 << 30
TIMEOUT_SECONDS = 600.0  # wall time, on a machine that may be busy
_STATUSES = (REFUSED, RAN, TOO_LARGE, *sorted(BAD))
_SHOWN_REASONS = 25
_SAVED_EVERY = 100


def run_trials(
    names: list[str],
    workers: int = 1,
    timeout_seconds: float = TIMEOUT_SECONDS,
    on_trial: Callable[[str, Trial], None] = lambda _name, _trial: None,
) -> dict[str, Trial]:
    """Run trials in forked processes; what is bad is printed as it comes."""
    import tilewright.compiler.package
    import tilewright.compiler.pipeline

    tilewright.compiler.package.prepare_runtime()

    def show(name: str, result: Trial | Lost) -> None:
        if result.status in BAD:
            print(f"{name}: {result.status}: {result.reason}", flush=True)
        on_trial(name, _trial(result))

    results = run_forked(
        names, run_trial, workers=workers, timeout_seconds=timeout_seconds,
        memory_bytes=MEMORY_BYTES, on_result=show,
    )  # fmt: skip
    return {name: _trial(result) for name, result in results.items()}


def _trial(result: Trial | Lost) -> Trial:
    return Trial(result.status, result.reason) if isinstance(result, Lost) else result


def trial_names(count: int, every: int = 1) -> list[str]:
    """Return the names of `count` mutations of each model, or of every n-th of them."""
    names = [f"{model}/{number}" for model in MODELS for number in range(1, count + 1)]
    return names[::every]


def write_results(results: dict[str, Trial], seconds: float) -> None:
    """Write one line per mutation, and a table."""
    lines = [f"  {json.dumps(n)}: {json.dumps(trial.to_json())}" for n, trial in results.items()]
    text = f'{{\n "seconds": {seconds:.0f},\n "trials": {{\n' + ",\n".join(lines) + "\n }\n}\n"
    write_text(RESULTS / "mutations.json", text)
    write_text(RESULTS / "mutations.md", summary(results))


def read_results() -> tuple[dict[str, Trial], float]:
    """Return what an interrupted run has written, and the seconds that it took."""
    path = RESULTS / "mutations.json"
    if not path.exists():
        return {}, 0.0
    content = json.loads(path.read_text())
    trials = {name: Trial(**fields) for name, fields in content["trials"].items()}
    return trials, float(content["seconds"])


def summary(results: dict[str, Trial]) -> str:
    """Return the table of endings by model, and the commonest errors."""
    rows = []
    for model in MODELS:
        found = Counter(t.status for name, t in results.items() if name.split("/")[0] == model)
        rows.append([model, *(str(found[status]) for status in _STATUSES)])
    total = Counter(trial.status for trial in results.values())
    rows.append(["**all**", *(f"**{total[status]}**" for status in _STATUSES)])
    reasons = Counter(_kind(t.reason) for t in results.values() if t.status == REFUSED)
    return "\n".join(
        [
            f"# {len(results)} damaged models",
            "",
            "Written by `python -m benchmarks.mutations`. A damaged model is compiled, and run",
            "where that is cheap, in a process of its own. It must be refused by an error for",
            "people, or run; the last three columns must be 0.",
            "",
            markdown_table(["model", *_STATUSES], rows),
            "The commonest errors, names and numbers left out:",
            "",
            *(f"- {count} {text}" for text, count in reasons.most_common(_SHOWN_REASONS)),
            "",
        ]
    )


def _kind(reason: str) -> str:
    """Return an error without what differs from model to model."""
    text = re.sub(r"'[^']*'", "…", reason)
    text = re.sub(r"-?\d+", "N", text)
    return text[:90].strip()


def main() -> int:
    """Run what the command line names; return the exit code."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--per-model", type=int, default=PER_MODEL)
    parser.add_argument("--every", type=int, default=1, help="run every n-th mutation only")
    parser.add_argument("--models", default="", help="regular expression")
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--resume", action="store_true", help="go on where a run was stopped")
    parser.add_argument("--only", metavar="MODEL/NUMBER", help="run one in this process")
    args = parser.parse_args()
    if args.only:
        return _run_one(args.only)
    names = [n for n in trial_names(args.per_model, args.every) if re.search(args.models, n)]
    start = time.perf_counter()
    is_whole = names == trial_names(PER_MODEL)
    results, spent = read_results() if args.resume else ({}, 0.0)

    def keep(name: str, trial: Trial) -> None:
        results[name] = trial
        if is_whole and len(results) % _SAVED_EVERY == 0:
            write_results(results, spent + time.perf_counter() - start)

    run_trials([name for name in names if name not in results], args.workers, on_trial=keep)
    results = {name: results[name] for name in names}
    if is_whole:
        write_results(results, spent + time.perf_counter() - start)
    print(summary(results))
    return 1 if any(trial.status in BAD for trial in results.values()) else 0


def _run_one(name: str) -> int:
    """Compile and run one mutation with nothing between it and the terminal."""
    import tempfile
    from pathlib import Path

    from benchmarks.mutations import trial

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "model.onnx")
        path.write_bytes(damaged(name))
        trial._write_weights(path)
        print(trial._compile_and_run(path, trial.random_of(name)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
