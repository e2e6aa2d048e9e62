"""One loaded module under many threads for long: `python -m benchmarks.soak`.

Eight threads run one module of the digit classifier 10,000 times each, every output compared bit
by bit with the first one of the same input; the memory of the process must not grow after the first
tenth. Writes benchmarks/results/soak.json; exit code 1 where an output differs or memory grows.
"""

from __future__ import annotations

import argparse
import json
import sys
import threading
from pathlib import Path

import numpy as np

import tilewright as tw
from benchmarks.machine import commit, describe

ROOT = Path(__file__).resolve().parent.parent
MODEL = ROOT / "examples" / "digits_cnn.onnx"
RESULTS = ROOT / "benchmarks" / "results" / "soak.json"
_INPUTS = 32
# Of the interpreter's own pools; a leak of one output a run would be 3 MB.
_ALLOWED_MB = 1.0


def _resident_mb() -> float:
    """Return the memory that the process holds at the moment, in 1e6 bytes."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * 4096 / 1e6


def soak(threads: int, runs: int) -> dict[str, float | int]:
    """Run the module; return how many outputs differed and how much memory grew."""
    compiled = tw.compile(MODEL)
    module = tw.load(compiled.path, threads=1)
    rng = np.random.default_rng(0)
    inputs = rng.standard_normal((_INPUTS, 1, 1, 8, 8)).astype(np.float32)
    expected = [np.array(module(x)) for x in inputs]
    wrong = [0] * threads
    early = [0.0] * threads

    def work(number: int) -> None:
        for run in range(runs):
            at = (run + number) % _INPUTS
            wrong[number] += not np.array_equal(module(inputs[at]), expected[at])
            if run == runs // 10:
                early[number] = _resident_mb()

    workers = [threading.Thread(target=work, args=(number,)) for number in range(threads)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    return {
        "threads": threads,
        "runs": runs,
        "wrong": sum(wrong),
        "grown_mb": round(_resident_mb() - max(early), 2),
    }


def main() -> int:
    """Soak and write the result; return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--threads", type=int, default=8)
    parser.add_argument("--runs", type=int, default=10_000)
    given = parser.parse_args()
    found = soak(given.threads, given.runs)
    RESULTS.write_text(
        json.dumps({**found, "commit": commit(), "machine": describe()}, indent=1) + "\n"
    )
    print(found)
    return int(found["wrong"] > 0 or found["grown_mb"] > _ALLOWED_MB)


if __name__ == "__main__":
    sys.exit(main())
