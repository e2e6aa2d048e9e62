"""Kill a tuning process at random moments: `python -m benchmarks.tuner_faults [--kills 50]`.

Each round starts `tilewright tune` on a small model and one log, kills it with SIGKILL after a
random time, and checks that the log lost nothing that it held before, that at most one line is
torn, and that no worker process is left. At the end a last run goes on from the
log and must finish.
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
from tilewright.tuner import Log
from tilewright.tuner.operators import operator_model

_SETTLE_S = 1.0


def _workers() -> set[int]:
    """Return the process ids of all timing and building processes on this machine."""
    found = set()
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            command = path.read_bytes().split(b"\0")
        except OSError:
            continue
        if b"tilewright.tuner.worker" in command:
            found.add(int(path.parent.name))
    return found


def main() -> None:
    """Kill, check, go on; then finish and report."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--longest-s", type=float, default=8.0)
    arguments = parser.parse_args()
    rng = random.Random(0)
    others = _workers()
    with tempfile.TemporaryDirectory() as folder:
        model, path = Path(folder, "model.onnx"), Path(folder, "log.jsonl")
        onnx.save(operator_model("conv2d", (1, 32, 14, 14), (32, 32, 3, 3), pad=1), model)
        command = [sys.executable, "-m", "tilewright", "tune", str(model), "--log", str(path)]
        command += ["--trials", "100000"]
        counts = [0]
        torn = 0
        for _ in range(arguments.kills):
            process = subprocess.Popen(
                command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
            )
            time.sleep(rng.uniform(0.5, arguments.longest_s))
            os.kill(process.pid, signal.SIGKILL)
            process.wait()
            contents = Log(path).read()
            assert len(contents.records) >= counts[-1], "records were lost"
            torn = len(contents.skipped)
            counts.append(len(contents.records))
        time.sleep(_SETTLE_S)
        left = _workers() - others
        assert torn <= arguments.kills, "more than one line of a run is torn"
        assert not left, f"worker processes {left} are left"
        command[-1] = str(len({r.candidate for r in Log(path).read().records}) + 16)
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
    text = (
        f"# {arguments.kills} kills at random moments\n\n"
        f"{counts[-1]} records survived, {torn} torn lines were skipped, no record was lost, no "
        f"process was left, and the last run finished: {done.stdout.strip().splitlines()[-1]}\n\n"
        "`python -m benchmarks.tuner_faults`; the other faults (crashes, hangs, endless memory, "
        "wrong results, a full disk, two writers, damaged lines) are tests in tests/tuner.\n\n"
    )
    write_text(RESULTS / "tuner_faults.md", text + markdown_machine(describe()))
    print(text, file=sys.stderr)


if __name__ == "__main__":
    main()
