"""One batch of graphs in a process of its own: what fails is shrunk and written to a file."""

from __future__ import annotations

import re
import traceback
from collections import Counter
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path

import onnx
from hypothesis import HealthCheck, Phase, given, seed, settings, strategies

from benchmarks.forked import Lost, run_forked
from benchmarks.fuzz.check import check, merged
from benchmarks.fuzz.models import models
from benchmarks.fuzz.ways import ORDER, WAYS
from tilewright.compiler.package import prepare_runtime

# A batch takes minutes on a busy machine, and shrinking a failure of it five more.
_PATIENCE_S = 3600


@dataclass
class Batch:
    """What one batch found.

    Attributes:
        way: in which they were compiled.
        graphs: how many were compiled and compared, those of shrinking not counted.
        operators: how often each operator stood in one of them.
        failure: what went wrong with the smallest failing model, or None.
    """

    way: str
    graphs: int = 0
    operators: Counter[str] = field(default_factory=Counter)
    failure: str | None = None


def run_batch(number: int, size: int, folder: Path) -> Batch:
    """Check `size` drawings of a few graphs each, from seed `number`, in a child process.

    Batches take the ways in turn. A failing model is left in `folder`, shrunk where the child
    survives it; one that crashes or hangs the child is left as it was drawn.
    """
    _prepare()
    way = ORDER[number % len(ORDER)]
    current = folder / f"batch{number}.onnx"

    def job(_name: str) -> Batch:
        return _examine(number, size, way, current)

    name = str(number)
    found = run_forked([name], job, timeout_seconds=_PATIENCE_S)[name]
    if isinstance(found, Lost):
        found = Batch(way, failure=f"{found.status}: {found.reason}")
    if found.failure is None:
        current.unlink(missing_ok=True)
        return found
    return replace(found, failure=f"{way}: {found.failure}")


@cache
def _prepare() -> None:
    """Do once what every child would do: build the runtime, and let hypothesis read the modules.

    It looks for constants in the sources of all that is loaded, which takes seconds.
    """
    prepare_runtime()

    @settings(max_examples=100, database=None, phases=[Phase.generate])
    @given(strategies.integers(0, 1 << 20))
    def draw(_number: int) -> None:
        pass

    draw()


def _examine(number: int, size: int, way: str, current: Path) -> Batch:
    """Let hypothesis draw and shrink; the model under examination is always in `current`."""
    batch = Batch(way)
    together = WAYS[way].graphs

    @seed(number)
    @settings(
        max_examples=size,
        deadline=None,
        database=None,
        suppress_health_check=list(HealthCheck),
        report_multiple_bugs=False,
        phases=[Phase.generate, Phase.shrink],
    )
    @given(strategies.lists(models(), min_size=1, max_size=together))
    def examine(drawn: list[onnx.ModelProto]) -> None:
        model = drawn[0] if len(drawn) == 1 else merged(drawn)
        if batch.failure is None:
            batch.graphs += len(drawn)
            batch.operators.update(node.op_type for node in model.graph.node)
            current.write_bytes(model.SerializeToString())
        try:
            check(drawn, way, number)
        except Exception as error:  # whatever it is, it is a bug, and hypothesis shrinks it
            batch.failure = _in_short(error)
            current.write_bytes(_culprit(drawn, way, number).SerializeToString())
            raise

    try:
        examine()
    except Exception as error:
        batch.failure = _in_short(error)
    return batch


def _culprit(drawn: list[onnx.ModelProto], way: str, number: int) -> onnx.ModelProto:
    """Return the graph that fails alone, or all where they fail only side by side."""
    for index, model in enumerate(drawn if len(drawn) > 1 else ()):
        try:
            check([model], way, number + index)
        except Exception:
            return model
    return drawn[0] if len(drawn) == 1 else merged(drawn)


def _in_short(error: Exception) -> str:
    """Return the kind, the message and the place of an error on one line."""
    frames = traceback.extract_tb(error.__traceback__)
    ours = [frame for frame in frames if "/tilewright/" in frame.filename] or frames
    place = f"{Path(ours[-1].filename).name}:{ours[-1].lineno}"
    message = re.sub(r"\s+", " ", str(error))[:300]
    return f"{type(error).__name__}: {message} ({place})"
