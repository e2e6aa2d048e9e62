"""Give tilewright bad input: `python -m benchmarks.bad_input`.

Damaged tuning logs, deployable modules (mostly one flipped bit), calibration data, and command
lines; the number of a trial is its seed. Each runs in a process with a limit of memory and time.
It must end with an error for people or with a right result, and a damaged module must be noticed;
a crash, a hang, a traceback or damage that goes unnoticed is a bug. Writes
benchmarks/results/bad_input.json and .md; exit code 1 after a bug. `--only KIND/NUMBER` runs one;
`--resume` goes on where a run of the same commit was stopped.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import ModuleType

os.environ.setdefault("TVM_NUM_THREADS", "1")
os.environ.setdefault("TILEWRIGHT_NUM_THREADS", "1")

from benchmarks.bad_input import calibration, command_lines, logs, modules
from benchmarks.forked import Lost, run_forked
from benchmarks.machine import commit
from benchmarks.mutations.trial import RAN, REFUSED, Trial
from benchmarks.report import RESULTS, markdown_table, write_text

KINDS: dict[str, ModuleType] = {
    "log": logs, "module": modules, "calibration": calibration, "command": command_lines,
}  # fmt: skip
COUNTS = {"log": 600, "module": 4000, "calibration": 600, "command": 800}
_GOOD = (REFUSED, RAN)
_MEMORY_BYTES = 6 << 30
_TIMEOUT_SECONDS = 300.0  # wall time, on a machine that may be busy
_SHOWN = 8
_JOURNAL = RESULTS.parents[1] / "build" / "bad_input.jsonl"


def is_bad(trial: Trial) -> bool:
    """Say whether a trial ended as none may."""
    return trial.status not in _GOOD


def read_journal(path: Path) -> dict[str, Trial]:
    """Return the trials of a run of this commit that was stopped."""
    lines = path.read_text().splitlines() if path.exists() else []
    rows = [json.loads(line) for line in lines if line.endswith("}")]
    here = commit()
    return {
        row["name"]: Trial(row["status"], row["reason"]) for row in rows if row["commit"] == here
    }


def run_trials(
    names: Sequence[str], journal: Path | None = None, known: Mapping[str, Trial] | None = None
) -> dict[str, Trial]:
    """Run trials "kind/number", each kind in forked processes; what is bad is printed at once.

    Args:
        names: the trials.
        journal: where each is noted as it ends.
        known: those that need not run again.
    """
    results = dict(known or {})
    names_left = [name for name in names if name not in results]
    made_by = commit()

    def show(name: str, result: Trial | Lost) -> None:
        results[name] = Trial(result.status, result.reason)
        if journal is not None:
            row = {"name": name, "status": result.status, "reason": result.reason}
            journal.parent.mkdir(exist_ok=True)
            with journal.open("a") as file:
                file.write("\n" + json.dumps({**row, "commit": made_by}))  # behind a torn line
        if is_bad(results[name]):
            print(f"{name}: {result.status}: {result.reason}", flush=True)

    for kind, module in KINDS.items():
        chosen = [name for name in names_left if name.split("/")[0] == kind]
        if chosen:
            module.prepare()
            run_forked(
                chosen,
                lambda name, run=module.run_trial: run(int(name.split("/")[1])),
                timeout_seconds=_TIMEOUT_SECONDS,
                memory_bytes=_MEMORY_BYTES,
                on_result=show,
            )
    return {name: results[name] for name in names}


def names_of(counts: dict[str, int]) -> list[str]:
    """Return the names of so many trials of each kind."""
    return [f"{kind}/{number}" for kind, count in counts.items() for number in range(1, count + 1)]


def summary(results: dict[str, Trial]) -> str:
    """Return the table of endings by kind, and the commonest messages of each."""
    rows, lists = [], []
    for kind in KINDS:
        found = [t for name, t in results.items() if name.split("/")[0] == kind]
        ends = Counter(trial.status for trial in found)
        bad = sum(map(is_bad, found))
        rows.append([kind, str(len(found)), str(ends[REFUSED]), str(ends[RAN]), str(bad)])
        reasons = Counter(_kind(t.reason, kind) for t in found if t.status == REFUSED)
        lists += [f"{kind}:", "", *(f"- {n} {text}" for text, n in reasons.most_common(_SHOWN)), ""]
    return "\n".join(
        [
            f"# {len(results)} trials with bad input",
            "",
            "Written by `python -m benchmarks.bad_input`. Each is refused by an error for people,",
            "or gives a right result (a log from which lines are skipped; a command line that is",
            "fine by chance). No module of which a bit is flipped may load; the last column must",
            "be 0.",
            "",
            markdown_table(["what", "trials", "refused", "ran", "bad"], rows),
            "The commonest messages, names and numbers left out:",
            "",
            *lists,
        ]
    )


def _kind(reason: str, kind: str) -> str:
    """Return a message without what differs from trial to trial."""
    if kind == "command":
        reason = reason.rpartition("error: ")[2] or reason
    text = re.sub(r"'[^']*'", "…", reason)
    return re.sub(r"-?\d+", "N", text)[:90].strip()


def main() -> int:
    """Run what the command line names; return the exit code."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--share", type=float, default=1.0, help="of the trials of each kind")
    parser.add_argument("--kinds", default=",".join(KINDS), help="comma separated")
    parser.add_argument("--resume", action="store_true", help="keep what this commit has run")
    parser.add_argument("--only", metavar="KIND/NUMBER", help="run one in this process")
    args = parser.parse_args()
    if args.only:
        kind, number = args.only.split("/")
        KINDS[kind].prepare()
        if kind == "command":
            print(" ".join(map(repr, command_lines.drawn(int(number)))))
        print(KINDS[kind].run_trial(int(number)))
        return 0
    kinds = args.kinds.split(",")
    counts = {kind: int(args.share * COUNTS[kind]) for kind in COUNTS if kind in kinds}
    known = read_journal(_JOURNAL) if args.resume else {}
    results = run_trials(names_of(counts), _JOURNAL, known)
    _merge(results)
    print(summary(results))
    return 1 if any(map(is_bad, results.values())) else 0


def _merge(results: dict[str, Trial]) -> None:
    """Renew the rows of the kinds that were run whole."""
    path = Path(RESULTS / "bad_input.json")
    kept = json.loads(path.read_text()) if path.exists() else {"commits": {}, "trials": {}}
    trials = {name: Trial(**fields) for name, fields in kept["trials"].items()}
    ran = Counter(name.split("/")[0] for name in results)
    whole = [kind for kind, count in ran.items() if count == COUNTS[kind]]
    if not whole:
        return
    trials |= {name: t for name, t in results.items() if name.split("/")[0] in whole}
    kept["commits"] |= {kind: commit() for kind in whole}
    lines = [f"  {json.dumps(n)}: {json.dumps(trial.to_json())}" for n, trial in trials.items()]
    head = json.dumps(kept["commits"])
    text = f'{{\n "commits": {head},\n "trials": {{\n' + ",\n".join(lines) + "\n }\n}\n"
    write_text(path, text)
    write_text(RESULTS / "bad_input.md", summary(trials))


if __name__ == "__main__":
    sys.exit(main())
