"""One batch of graphs in a process of its own: what fails is shrunk and written to a file."""

from __future__ import annotations

import os
import re
import sys
import traceback
from collections import Counter
from dataclasses import dataclass, field
from multiprocessing import get_context
from pathlib import Path
from queue import Empty

import onnx
from hypothesis import HealthCheck, Phase, given, seed, settings

from benchmarks.fuzz.check import VARIANTS, check
from benchmarks.fuzz.models import models

# A graph takes a second; one that takes minutes hangs.
_PATIENCE_S = 300


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
    context = get_context("spawn")
    answers = context.Queue()
    child = context.Process(target=_work, args=(number, size, variant, current, answers))
    child.start()
    batch = Batch()
    ended = False
    while not ended:
        try:
            kind, value = answers.get(timeout=1 if not child.is_alive() else _PATIENCE_S)
        except Empty:
            batch.failure = _how_it_ended(child)
            break
        if kind == "graph":
            batch.graphs += 1
            batch.operators.update(value)
        else:
            batch.failure, ended = value, True
    child.kill()
    child.join()
    if batch.failure is None:
        current.unlink(missing_ok=True)
    else:
        batch.failure = f"{variant}: {batch.failure}"
    return batch


def _how_it_ended(child: object) -> str:
    if child.is_alive():  # type: ignore[attr-defined]
        return f"hangs: nothing heard for {_PATIENCE_S} s"
    return f"crashes: the process ended with status {child.exitcode}"  # type: ignore[attr-defined]


def _work(number: int, size: int, variant: str, current: Path, answers: object) -> None:
    """Run hypothesis in the child; put ("graph", operators) for each graph, then ("end", why)."""
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    failed = False

    def report(kind: str, value: object) -> None:
        answers.put((kind, value))  # type: ignore[attr-defined]

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
        nonlocal failed
        if not failed:
            report("graph", [node.op_type for node in model.graph.node])
            current.write_bytes(model.SerializeToString())
        try:
            check(model, variant, number)
        except Exception:
            failed = True
            current.write_bytes(model.SerializeToString())
            raise

    try:
        examine()
    except Exception as error:
        report("end", _in_short(error))
    else:
        report("end", None)
    sys.stdout.flush()


def _in_short(error: Exception) -> str:
    """Return the kind, the message and the place of an error on one line."""
    frames = traceback.extract_tb(error.__traceback__)
    ours = [frame for frame in frames if "/tilewright/" in frame.filename] or frames
    place = f"{Path(ours[-1].filename).name}:{ours[-1].lineno}"
    message = re.sub(r"\s+", " ", str(error))[:300]
    return f"{type(error).__name__}: {message} ({place})"
