"""Tuning logs as tables of facts for a report."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median

from tilewright.errors import MeasureError
from tilewright.labels import short_label


@dataclass(frozen=True, slots=True)
class Facts:
    """A table, and the tuning curves behind it."""

    title: str
    header: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    curves: dict[str, Sequence[Sequence[float | None]]] = field(default_factory=dict)


def read_log(path: Path) -> Facts:
    """Return the tasks of a log of `tilewright tune`: trials, failures, best time, its curve.

    Raises:
        MeasureError: there is no such file.
    """
    from tilewright.tuner import Log

    if not path.exists():
        raise MeasureError(f"cannot read {path}: no such file")
    curves: dict[str, list[list[float | None]]] = {}
    for record in Log(path).read().records:
        times = record.run_times_s
        seconds = median(times) if record.status == "ok" and times else None
        spent = record.build_time_s + sum(times or ())
        name = f"{short_label(record.task['name'])} {record.task_key[:8]}"
        curves.setdefault(name, []).append([seconds, spent])
    rows = []
    for key, curve in curves.items():
        valid = [seconds for seconds, _ in curve if seconds is not None]
        best = f"{1e3 * min(valid):.3f}" if valid else ""
        rows.append((key, str(len(curve)), str(len(curve) - len(valid)), best))
    header = ("task", "trials", "failures", "best, ms")
    return Facts(f"Tuning log {path.name}", header, tuple(rows), dict(curves))
