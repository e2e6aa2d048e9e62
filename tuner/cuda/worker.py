"""The process that runs candidates on the GPU: one JSON line in, one out.

After an error of the device nothing else works in a process (the error is "sticky"), so this one
ends then, and its owner starts a fresh one.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np

from tilewright.errors import ModuleError
from tilewright.runtime.module import Module


def measure(request: dict[str, Any]) -> dict[str, Any]:
    """Run a module, compare its results, and time its kernels.

    Args:
        request: "module", "arrays" (an .npz with inputs, and results that are known as
            "expected.<name>"), "tolerance" (of the largest value), "rounds".

    Returns:
        "seconds" of each round, or "error" and whether it is "wrong_output".
    """
    with np.load(Path(request["arrays"])) as arrays:
        given = dict(arrays)
    module = Module(request["module"])
    feed = {spec.name: given[spec.name] for spec in module.inputs}
    results = module.run(feed)
    for name, result in results.items():
        if f"expected.{name}" not in given:
            continue
        expected = given[f"expected.{name}"].astype(np.float64)
        scale = max(1e-6, float(np.abs(expected).max(initial=0.0)))
        error = float(np.abs(result.astype(np.float64) - expected).max(initial=0.0)) / scale
        if not error <= request["tolerance"]:
            return {"error": f"output '{name}' differs by {error:.2g}", "status": "wrong_output"}
    rounds = [
        sum(call.seconds for call in module.profile(feed, rounds=5))
        for _ in range(request["rounds"])
    ]
    return {"seconds": rounds}


def main() -> None:
    """Serve until standard input ends, or the device fails."""
    for line in sys.stdin:
        try:
            answer = measure(json.loads(line))
        except ModuleError as error:
            print(json.dumps({"error": str(error), "status": "run_error"}), flush=True)
            return
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    main()
