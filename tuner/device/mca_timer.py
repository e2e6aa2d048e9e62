"""`--measure mca`: the cycles that a model counts, in place of the times of a device."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tilewright.compiler.layout.costs import CLOCK_HZ
from tilewright.compiler.targets import Target
from tilewright.errors import TargetError
from tilewright.tuner.device.mca import cycles, mca_version
from tilewright.tuner.timing import Entry

BUILD_MODULE = "tilewright.tuner.device.mca_build"


class ModelTimer:
    """Reads the cycles that the building processes found; see `mca_build`.

    A cycle is logged as the time that it takes in the compiler's own estimates, with which it will
    be compared; `facts` say that it is none.

    Args:
        target: an aarch64 processor of which LLVM has a model.

    Raises:
        TargetError: there is no llvm-mca, or it has no model of the processor.
    """

    def __init__(self, target: Target) -> None:
        if target.architecture != "aarch64":
            raise TargetError(f"--measure mca needs an aarch64 target, not {target.name}")
        cycles(["\tfmla\tv0.4s, v1.4s, v2.4s"], target.mcpu)
        self.parallel = 1
        self.facts: dict[str, Any] = {
            "processor": f"{mca_version()}, {target.mcpu}",
            "measure": "mca",
        }
        self.warnings: list[str] = []

    def turn(self) -> contextlib.AbstractContextManager[None]:
        """Return a context that does nothing."""
        return contextlib.nullcontext()

    def reference(self, made: Mapping[str, Any]) -> dict[str, Any]:
        """Do nothing: nothing is run."""
        return {}

    def check(self, entry: Entry, tolerance: float, timeout_s: float) -> dict[str, Any]:
        """Return the cycles of a candidate."""
        found = json.loads(Path(entry["library"]).read_text())
        return {"seconds": [found["cycles"] / CLOCK_HZ]}

    def race(
        self, entries: Sequence[Entry], rounds: int, budget_s: float, timeout_s: float
    ) -> dict[str, Any]:
        """Return the cycles again: they do not vary."""
        times = [self.check(entry, 0.0, 0.0)["seconds"] for entry in entries]
        return {"seconds": times, "peaks": [0.0]}

    def close(self) -> None:
        """Do nothing: there is no device."""
