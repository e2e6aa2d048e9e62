"""One batch of graphs in a process of its own: what fails is shrunk and written to a file."""

from __future__ import annotations

import re
import traceback
from collections import Counter
from dataclasses import dataclass, field, replace
from pathlib import Path

import onnx
from hypothesis import HealthCheck, Phase, given, seed, settings

from benchmarks.forked import Lost, run_forked
from benchmarks.fuzz.check import VARIANTS, check
from benchmarks.fuzz.models import models

# A batch takes a minute, and shrinking a failure of it up to five.
_PATIENCE_S = 900


@dataclass
class Batch:
    """What one batch found.

    Attributes:
        graphs: how many were compiled and compared, those of shrinking not counted.
        operators: how often each operator stood in one of them.
        failure: what went wrong with the smallest failing model, or None.
    """

    graphs: int = 0
    operators: Counter[str] = field(default_factory=Counter)
    failure: str | None = None


def run_batch(number: int, size: int, folder: Path) -> Batch:
    """Check `size` graphs drawn from seed `number`, in a child process.

    Batches take the variants in turn. A failing model is left in `folder`, shrunk where the child
    survives it; one that crashes or hangs the child is left as it was drawn.
    """
    variant = VARIANTS[number % len(VARIANTS)]
    current = folder / f"batch{number}.onnx"

    def job(_name: str) -> Batch:
        return _examine(number, size, variant, current)

    name = str(number)
    found = run_forked([name], job, timeout_seconds=_PATIENCE_S)[name]
    if isinstance(found, Lost):
        found = Batch(failure=f"{found.status}: {found.reason}")
    if found.failure is None:
        current.unlink(missing_ok=True)
        return found
    return replace(found, failure=f"{variant}: {found.failure}")


def _examine(number: int, size: int, variant: str, current: Path) -> Batch:
    """Let hypothesis draw and shrink; the model under examination is always in `current`."""
    batch = Batch()

    @seed(number)
    @settings(
        max_examples=size,
        deadline=None,
        database=None,
        suppress_health_check=list(HealthCheck),
        phases=[Phase.generate, Phase.shrink],
    )
    @given(models())
    def examine(model: onnx.ModelProto) -> None:
        if batch.failure is None:
            batch.graphs += 1
            batch.operators.update(node.op_type for node in model.graph.node)
            current.write_bytes(model.SerializeToString())
        try:
            check(model, variant, number)
        except Exception as error:  # whatever it is, it is a bug, and hypothesis shrinks it
            batch.failure = _in_short(error)
            current.write_bytes(model.SerializeToString())
            raise

    try:
        examine()
    except Exception as error:
        batch.failure = _in_short(error)
    return batch


def _in_short(error: Exception) -> str:
    """Return the kind, the message and the place of an error on one line."""
    frames = traceback.extract_tb(error.__traceback__)
    ours = [frame for frame in frames if "/tilewright/" in frame.filename] or frames
    place = f"{Path(ours[-1].filename).name}:{ours[-1].lineno}"
    message = re.sub(r"\s+", " ", str(error))[:300]
    return f"{type(error).__name__}: {message} ({place})"
