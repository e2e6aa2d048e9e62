"""What is to be computed and measured: one model or operator, and how."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from tilewright.baselines.budget import Budget
from tilewright.baselines.engine import Feed
from tilewright.baselines.suite import Operator


@dataclass(frozen=True)
class Case:
    """What is to be computed.

    Attributes:
        model: the ONNX file.
        feed: inputs by name.
        threads: of each engine.
        operator: where it is one of the suite; the weights are those that `build_model` gives it.
        budget: of each tuner, all operators of a model together; an empty one measures what the
            logs hold and tunes nothing.
        logs: folder of the tuning logs.
        target: what tilewright compiles for.
        progress: called with what is going on.
        name: of the tuning logs; that of the operator or file by default.
    """

    model: Path
    feed: Feed
    threads: int
    operator: Operator | None = None
    budget: Budget = field(default_factory=Budget)
    logs: Path = Path("tuning_logs")
    target: str = "native"
    progress: Callable[[str], None] = lambda _stage: None
    name: str = ""

    @property
    def log_name(self) -> str:
        """Return what its tuning logs are called."""
        return self.name or (self.operator.name if self.operator else self.model.stem)
