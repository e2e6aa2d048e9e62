"""From logs to decisions: an exact hit, else the nearest shape transferred, else nothing.

Transferred decisions are checked against the operator before a compile gets them; of measured ones
that no longer fit, the compile itself goes back to its default and says so.
"""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from math import log2
from pathlib import Path
from typing import Any, Literal

import tvm

from tilewright.compiler.algorithms import (
    Convolution,
    choose_by_estimate,
    choose_by_time,
)
from tilewright.compiler.layout.primitives import Layout
from tilewright.compiler.layout.rewrite import rewrite
from tilewright.compiler.schedule import decisions_from_json, default_decisions, schedule
from tilewright.compiler.targets import Target
from tilewright.compiler.tasks import Task, TunedDecision
from tilewright.compiler.winograd import Winograd
from tilewright.errors import TilewrightError
from tilewright.tuner.candidate import canonical_json
from tilewright.tuner.layouts import layout_choices
from tilewright.tuner.log import Contents, Log
from tilewright.tuner.records import Record, applies_to, is_outgrown, merit, same_target
from tilewright.tuner.space import LoopSpace
from tilewright.tuner.workload import describe, describe_loops

ALGORITHM = "algorithm"
"""Kind of the records that say which algorithm a convolution takes."""

Origin = Literal["tuned", "transferred", "default"]

# Distance in doublings, over all axes, up to which another shape's decisions are worth using.
_FARTHEST = 3.0
_NEAREST_RECORDS = 3
# Of the times of two records that were not measured in turns.
_NOISE = 0.02
# Older kernels may have become faster by that much, and another processor may differ by it: then
# the compiler's own decisions are as good.
_CLEAR = 0.1
# Below this, waking another thread wins little.
_WORTH_THREADS_S = 50e-6
# Each costs a rewrite and a schedule while compiling.
_MOST_LAYOUTS = 4
# What a record must say of its task to be transferred.
_COMPARED = {"blocks", "axes", "dtypes", "constants", "images", "macs"}


def default_logs() -> list[Path]:
    """Return the logs that a compile reads by itself: the shipped ones, then the user's."""
    shipped = Path(__file__).resolve().parent.parent / "tuning_logs"
    found = sorted(shipped.glob("*.jsonl")) if shipped.is_dir() else []
    user = user_log()
    return [*found, user] if user.exists() else found


def user_log() -> Path:
    """Return where tuning writes unless told otherwise."""
    base = os.environ.get("XDG_DATA_HOME") or Path.home() / ".local" / "share"
    return Path(base) / "tilewright" / "tuning.jsonl"


@dataclass(frozen=True)
class Coverage:
    """How one task was found.

    Attributes:
        name: of the task.
        origin: "tuned", "transferred" or "default".
        reason: why it is not an exact hit, or "".
        seconds: expected time of one call, or None where nothing is known.
    """

    name: str
    origin: Origin
    reason: str
    seconds: float | None


@lru_cache(maxsize=8)
def _contents(path: Path, _stamp: tuple[int, int] | None) -> Contents:
    """Read a log once while it stays as it is: that takes as long as a small compile."""
    return Log(path).read()


@dataclass
class Lookup:
    """Finds decisions for tasks in logs; callable, as `compiler.pipeline.lower` wants it.

    Args:
        logs: files of records.
        target: what is compiled for.

    Attributes:
        coverage: what was found for each task that was asked for, by key.
        warnings: about damaged lines.
    """

    logs: Sequence[Path]
    target: Target
    coverage: dict[str, Coverage] = field(default_factory=dict)
    warnings: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._by_key: dict[str, list[Record]] = {}
        self._by_blocks: dict[tuple[str, ...], list[Record]] = {}
        self._algorithms: dict[str, list[Record]] = {}
        self._foreign: set[str] = set()
        self._found: dict[str, tuple[TunedDecision, ...]] = {}
        for path in self.logs:
            stamp = path.stat() if path.exists() else None
            contents = _contents(path, (stamp.st_mtime_ns, stamp.st_size) if stamp else None)
            warning = contents.warning(path)
            if warning:
                self.warnings.append(warning)
            self.add(contents.records)

    def add(self, records: Iterable[Record]) -> None:
        """Take in further records."""
        for record in records:
            if not record.ok:
                continue
            if not applies_to(record.target, self.target):
                self._foreign.add(record.task_key)
                continue
            if record.task.get("blocks") == [ALGORITHM]:
                self._algorithms.setdefault(record.task_key, []).append(record)
                continue
            cores = self.target.cores
            if record.seconds > _WORTH_THREADS_S and record.hardware.get("tasks", cores) < cores:
                continue  # tuned for fewer threads: some would stand idle
            self._by_key.setdefault(record.task_key, []).append(record)
            if record.task.keys() >= _COMPARED:
                self._by_blocks.setdefault(tuple(record.task["blocks"]), []).append(record)

    def __call__(self, task: Task) -> tuple[TunedDecision, ...]:
        """Return the decisions for a task, one for each layouts; none where nothing fits."""
        if task.key not in self._found:
            self._found[task.key] = self._find(task)
        return self._found[task.key]

    def knows_algorithm(self, convolution: Convolution) -> bool:
        """Say whether algorithms of a convolution were measured for this target."""
        records = self._algorithms.get(convolution.key, [])
        return any(same_target(record.target, self.target) for record in records)

    def algorithm(self, convolution: Convolution, target: Target) -> Winograd | None:
        """Return the best algorithm measured for a convolution, else the one estimated so.

        As with loops, what was measured with another number of threads is better than nothing.
        """
        records = self._algorithms.get(convolution.key, [])
        times: dict[str, float] = {
            name: record.seconds
            for record in self._nearest(records)
            if (name := json.loads(record.candidate.schedule or "{}").get("name"))
            in convolution.variants
        }
        if not times:
            return choose_by_estimate(convolution, target)
        return choose_by_time(convolution, times)

    def _nearest(self, records: Sequence[Record]) -> list[Record]:
        """Return the records of this target, else of this processor, else of one other.

        Times of two processors are not compared.
        """
        here = [record for record in records if same_target(record.target, self.target)]
        if here or not records:
            return here
        counts = Counter(record.target["mcpu"] for record in records)
        known = counts.most_common(1)[0][0]
        name = self.target.mcpu if self.target.mcpu in counts else known
        return [record for record in records if record.target["mcpu"] == name]

    def _find(self, task: Task) -> tuple[TunedDecision, ...]:
        exact = self._nearest(self._by_key.get(task.key, []))
        reason = ""
        if exact:
            chosen = self._best_of_layouts(exact)
            decisions = tuple(_decision(task, record) for record in chosen)
            valid = tuple(d for d in decisions if _fits(task, d))
            if valid:
                self._cover(task, "tuned", self._origin(chosen), valid)
                return valid
            reason = "its records no longer fit the operator"
        elif task.key in self._foreign:
            reason = "measured only for processors with other instructions"
        found, why = self._transfer(task)
        if found:
            self._cover(task, "transferred", reason or why, found)
        else:
            self._cover(task, "default", reason or why, ())
        return found

    def _origin(self, chosen: Sequence[Record]) -> str:
        """Return what is to be known of records of a task that a compile takes; mostly nothing."""
        target = chosen[0].target
        if target["mcpu"] != self.target.mcpu:
            return f"measured on {target['mcpu']}"
        if any(record.candidate.schedule is None for record in chosen):
            return "loops of today: measured with older kernels; tune it again"
        return "" if same_target(target, self.target) else "measured on a similar target"

    def _cover(
        self, task: Task, origin: Origin, reason: str, found: Sequence[TunedDecision]
    ) -> None:
        seconds = min((decision.seconds for decision in found), default=None)
        self.coverage[task.key] = Coverage(task.name, origin, reason, seconds)

    def _best_of_layouts(self, records: Sequence[Record]) -> list[Record]:
        """Return the best record of each layouts; one that won a race before others.

        The compiler's own decisions stand where others win by no more than noise. Where all records
        are of older kernels or of another processor, their layouts stay, and their loops only where
        these won clearly.
        """
        groups: dict[tuple[Layout, ...], list[Record]] = {}
        timed = [record for record in records if "measure" not in record.hardware]
        for record in timed or records:  # what ran on a device comes before a model's cycles
            groups.setdefault(record.candidate.layouts, []).append(record)
        chosen = []
        for group in groups.values():
            best = min(group, key=merit)
            defaults = [record for record in group if record.hardware.get("default")]
            defaults = [r for r in defaults if is_outgrown(r) == is_outgrown(best)]
            default = min(defaults, key=lambda record: record.seconds, default=best)
            is_far = is_outgrown(best) or best.target["mcpu"] != self.target.mcpu
            near = default.seconds <= best.seconds * (1 + (_CLEAR if is_far else _NOISE))
            found = default if near else best
            if is_far and near:
                found = replace(found, candidate=replace(found.candidate, schedule=None))
            chosen.append(found)
        return chosen

    def _transfer(self, task: Task) -> tuple[tuple[TunedDecision, ...], str]:
        """Return decisions of the nearest shape with the same blocks, fitted to this one."""
        mine = describe(task)
        same = self._by_blocks.get(tuple(mine["blocks"]), [])
        if not mine["axes"]:
            return (), "no record of it; those of other shapes serve convolutions and products only"
        near = sorted(
            (distance, index)
            for index, record in enumerate(same)
            if (distance := _distance(mine, record.task)) <= _FARTHEST
        )
        if not near:
            return (), "no record of a similar shape"
        keys = dict.fromkeys(same[index].task_key for _, index in near)
        for key in list(keys)[:_NEAREST_RECORDS]:
            records = self._nearest([record for record in same if record.task_key == key])
            found = self._fit(task, mine, records)
            if found:
                return found, f"from {records[0].task['axes']}"
        return (), "decisions of similar shapes do not fit it"

    def _fit(
        self, task: Task, mine: dict[str, Any], records: Sequence[Record]
    ) -> tuple[TunedDecision, ...]:
        scale = mine["macs"] / max(1, records[0].task["macs"])
        choices = layout_choices(task.operator, self.target)
        found = []
        best = sorted(self._best_of_layouts(records), key=lambda record: record.seconds)
        for record in best[:_MOST_LAYOUTS]:
            schedule_data = record.candidate.to_json()["schedule"]
            names = [_steps(layout) for layout in record.candidate.layouts]
            for choice in choices:
                if [_steps(layout) for layout in choice.layouts] != names:
                    continue
                decisions = self._fitted(task, choice.layouts, schedule_data)
                if decisions is None:
                    continue
                decision = TunedDecision(
                    task.key, choice.layouts, decisions, record.seconds * scale, "transferred"
                )
                if self._works(task, decision):
                    found.append(decision)
        return tuple(found)

    def _fitted(
        self, task: Task, layouts: tuple[Layout, ...], decisions: dict[str, Any] | None
    ) -> str | None:
        """Return decisions moved to the nearest point of this task's space."""
        if decisions is None:
            return None
        try:
            func = _rewritten(task, layouts)
            loops = describe_loops(func, self.target)
            default = json.loads(default_decisions(func, self.target).to_json())
        except (TilewrightError, tvm.error.InternalError, ValueError):
            return None
        if loops["kind"] != decisions.get("kind"):
            return None
        fitted = LoopSpace(loops, default, self.target).fit(decisions)
        return None if fitted is None else canonical_json(fitted)

    def _works(self, task: Task, decision: TunedDecision) -> bool:
        """Say whether the decisions still schedule this operator."""
        try:
            parsed = None if decision.decisions is None else decisions_from_json(decision.decisions)
            schedule(_rewritten(task, decision.layouts), self.target, parsed)
        except (TilewrightError, tvm.error.InternalError, ValueError, KeyError, TypeError):
            return False
        return True


def _fits(task: Task, decision: TunedDecision) -> bool:
    """Say whether the layouts are for these parameters; a compile checks the rest itself."""
    return [layout.shape for layout in decision.layouts] == list(task.operator.shapes)


def _rewritten(task: Task, layouts: tuple[Layout, ...]) -> tvm.tirx.PrimFunc:
    changed = {p: layout for p, layout in enumerate(layouts) if layout.primitives}
    return rewrite(task.operator.func, changed) if changed else task.operator.func


def _decision(task: Task, record: Record) -> TunedDecision:
    candidate = record.candidate
    return TunedDecision(task.key, candidate.layouts, candidate.schedule, record.seconds)


def _distance(mine: dict[str, Any], other: Any) -> float:
    """Return how far two shapes are apart in doublings; infinite where axes differ in number."""
    axes, others = mine["axes"], other["axes"]
    if len(axes) != len(others) or mine["dtypes"] != other["dtypes"]:
        return float("inf")
    if mine["constants"] != other["constants"] or mine["images"] != other["images"]:
        return float("inf")
    return sum(abs(log2(a / b)) for a, b in zip(axes, others, strict=True))


def _steps(layout: Layout) -> str:
    """Return a layout without extents: what stays when it is bound to another shape."""
    parts = []
    for primitive in layout.primitives:
        data = json.loads(canonical_json(primitive.to_json()))
        if data.get("kind") == "pad":
            continue  # only there where extents do not divide
        if "factors" in data:
            data["factors"] = data["factors"][1:]
        parts.append(canonical_json(data))
    return ";".join(parts)
