"""Kill a tuning process at random moments: `python -m benchmarks.tuner_faults [--kills 50]`.

Each round tunes a small model into one log in a forked process, which has all modules loaded so
that most of its life is tuning, kills it with SIGKILL after a random time, and checks that the log
lost nothing that it held before, that at most one line a run is torn, and at the end that no worker
process is left. Then `tilewright tune` goes on from the log and must finish.
Writes benchmarks/results/tuner_faults.md.
"""

import argparse
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import onnx

from benchmarks.machine import describe
from benchmarks.report import RESULTS, markdown_machine, write_text
from tilewright.tuner import Log, MeasureOptions, TuneOptions, tune
from tilewright.tuner.operators import operator_model

_SETTLE_S = 5.0
_TOKEN = "TILEWRIGHT_FAULTS"


def _left(token: str) -> set[int]:
    """Return the processes of any of the killed runs that still live: they carry its token."""
    found = set()
    for path in Path("/proc").glob("[0-9]*/environ"):
        try:
            variables = path.read_bytes().split(b"\0")
        except OSError:
            continue
        if f"{_TOKEN}={token}".encode() in variables:
            found.add(int(path.parent.name))
    return found


def _last_line(text: str) -> str:
    """Return the last line of what tuning printed, without the temporary log's name."""
    return text.strip().splitlines()[-1].partition("; log ")[0]


def main() -> None:
    """Kill, check, go on; then finish and report."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--longest-s", type=float, default=8.0)
    arguments = parser.parse_args()
    rng = random.Random(0)
    # Small batches: the log is written to as often as can be.
    options = TuneOptions(batch=2, measure=MeasureOptions(budget_s=0.002))
    os.environ[_TOKEN] = str(os.getpid())
    with tempfile.TemporaryDirectory() as folder:
        model, path = Path(folder, "model.onnx"), Path(folder, "log.jsonl")
        onnx.save(operator_model("matmul", (24, 40), (40, 48)), model)
        command = [sys.executable, "-m", "tilewright", "tune", str(model), "--log", str(path)]
        command += ["--trials", "100000"]
        counts = [0]
        torn = 0
        for _ in range(arguments.kills):
            child = os.fork()
            if child == 0:
                tune(str(model), log=path, trials=100_000, options=options)
                os._exit(0)
            time.sleep(rng.uniform(0.2, arguments.longest_s))
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
            contents = Log(path).read()
            assert len(contents.records) >= counts[-1], "records were lost"
            torn = len(contents.skipped)
            counts.append(len(contents.records))
            print(f"{len(counts) - 1} kills, {counts[-1]} records, {torn} torn", file=sys.stderr)
        time.sleep(_SETTLE_S)
        left = _left(str(os.getpid())) - {os.getpid()}
        assert torn <= arguments.kills, "more than one line of a run is torn"
        assert not left, f"worker processes {left} are left"
        command[-1] = str(len({r.candidate for r in Log(path).read().records}) + 16)
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
    text = (
        f"# {arguments.kills} kills at random moments\n\n"
        f"{counts[-1]} records survived, {torn} torn lines were skipped, no record was lost, no "
        f"process was left, and the last run finished: {_last_line(done.stdout)}\n\n"
        f"`python -m benchmarks.tuner_faults --kills {arguments.kills} "
        f"--longest-s {arguments.longest_s:g}`; the other faults (crashes, hangs, endless memory, "
        "wrong results, a full disk, two writers, damaged lines) are tests in tests/tuner.\n\n"
    )
    write_text(RESULTS / "tuner_faults.md", text + markdown_machine(describe()))
    print(text, file=sys.stderr)


if __name__ == "__main__":
    main()
