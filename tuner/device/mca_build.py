"""The building process for `--measure mca`: a candidate becomes assembly, and that cycles.

    cycles = multiply-adds of the operator / those of one round of the inner loop * its cycles
             + the tuner's own model of what is outside of it (stores, caches)

Nothing is run: a candidate that computes something wrong is not found out here.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping
from math import prod
from pathlib import Path
from typing import Any

from tilewright.compiler.codegen import assembly
from tilewright.compiler.targets import Target
from tilewright.errors import MeasureError
from tilewright.tuner.device.mca import cycles, hottest_loop
from tilewright.tuner.estimate import outside_cycles
from tilewright.tuner.worker.build import KERNEL, Builder, commands
from tilewright.tuner.workload import describe_loops

_KINDS = ("contraction", "window")
_LANES = 4


def handlers(config: Mapping[str, Any]) -> dict[str, Callable[..., dict[str, Any]]]:
    """Return the commands of this process."""
    return commands(_ModelBuilder(config))


class _ModelBuilder(Builder):
    def choices(self, task: Mapping[str, Any], target: str) -> dict[str, Any]:
        """Return the task's layout choices in which there is an inner loop to model."""
        found = super().choices(task, target)["choices"]
        kept = [choice for choice in found if choice["loops"]["kind"] in _KINDS]
        if not kept:
            raise MeasureError("llvm-mca models contractions only: it has no multiply-adds")
        return {"choices": kept}

    def prepare(self, task: Mapping[str, Any], target: str, seed: int) -> dict[str, Any]:
        """Do nothing: nothing is run."""
        return {}

    def pack(
        self, task: Mapping[str, Any], target: str, layouts: list[Any], name: str
    ) -> dict[str, Any]:
        """Do nothing: nothing is run."""
        return {"folder": "", "outputs": []}

    def build(
        self,
        task: Mapping[str, Any],
        target: str,
        layouts: list[Any],
        schedule_json: Any,
        out: str,
        trusted: bool = False,
    ) -> dict[str, Any]:
        """Schedule one candidate, model its inner loop, and write the cycles to `out`."""
        start = time.perf_counter()
        description = Target.from_json(target)
        func, scheduled = self._scheduled(task, description, layouts, schedule_json)
        loop = hottest_loop(assembly({KERNEL: scheduled}, description))
        if not loop.multiply_adds:
            raise MeasureError("its inner loop has no multiply-adds")
        loops = describe_loops(func, description)
        # Of bytes, a step sums a group of products, and so does an instruction in each lane.
        rounds = loops["points"] * prod(loops["reductions"]) / (loop.multiply_adds * _LANES)
        total = rounds * cycles(loop.lines, description.mcpu)
        if schedule_json is not None:
            total += outside_cycles(loops, schedule_json, description)
        Path(out).write_text(json.dumps({"cycles": total, "spills": loop.spills}))
        rejected = (
            f"its inner loop spills: {loop.spills} accesses of the stack"
            if (loop.spills and not trusted)
            else ""
        )
        return {"library": out, "rejected": rejected, "seconds": time.perf_counter() - start}
