"""What there is to tune in a model, and how tuned decisions come back into a compile.

A task is one fused operator on one target, known by the hash of its canonical text: operators that
differ in names only are one task. The tuner measures tasks; a compile asks for their decisions and
chooses layouts by the seconds measured.
"""

from __future__ import annotations

import hashlib
import json
import keyword
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, TypeAlias

from tilewright.compiler.layout.choices import Choice, Operator, operator_choices
from tilewright.compiler.layout.primitives import Layout
from tilewright.compiler.layout.propagation import operators_of
from tilewright.compiler.program import Program
from tilewright.compiler.targets import Target
from tilewright.errors import LogError

_TOKEN = re.compile(r'T\.sblock\("[^"]*"\)|"[^"]*"|#.*|[.\w]*[A-Za-z_]\w*')
_KEPT = {*keyword.kwlist, "T", "range", "main"}


@dataclass(frozen=True)
class Task:
    """One operator to tune for one target.

    Attributes:
        key: hash of the canonical text, hexadecimal; the same for operators that differ in names.
        operator: what to compute, on logical shapes.
        target: what for.
        name: what it is called in the model, for people.
    """

    key: str
    operator: Operator = field(compare=False)
    target: Target
    name: str = field(compare=False)


@dataclass(frozen=True, slots=True)
class TunedDecision:
    """How one task is computed in certain layouts, and how long that takes.

    Attributes:
        task_key: which task.
        layouts: one per parameter of its PrimFunc.
        decisions: JSON of the schedule's decisions; None for a class without decisions.
        seconds: measured time, or for a transferred decision an expected one.
        origin: "tuned", or "transferred" where another shape was measured.
    """

    task_key: str
    layouts: tuple[Layout, ...]
    decisions: str | None
    seconds: float
    origin: str = "tuned"

    def to_json(self) -> dict[str, Any]:
        """Return plain data that `from_json` reads back."""
        return {
            "task_key": self.task_key,
            "layouts": [layout.to_json() for layout in self.layouts],
            "decisions": None if self.decisions is None else json.loads(self.decisions),
            "seconds": self.seconds,
            "origin": self.origin,
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> TunedDecision:
        """Read a decision back.

        Raises:
            LogError: fields are missing or unknown.
        """
        expected = {"task_key", "layouts", "decisions", "seconds", "origin"}
        if set(data) != expected:
            raise LogError(
                f"a tuned decision has fields {sorted(data)}, expected {sorted(expected)}"
            )
        decisions = data["decisions"]
        return cls(
            str(data["task_key"]),
            tuple(Layout.from_json(layout) for layout in data["layouts"]),
            None if decisions is None else json.dumps(decisions, separators=(",", ":")),
            float(data["seconds"]),
            str(data["origin"]),
        )


Lookup: TypeAlias = Callable[[Task], tuple[TunedDecision, ...]]
Tuned: TypeAlias = Mapping[str, tuple[TunedDecision, ...]] | Lookup
"""Tuned decisions: by key of the task, or a function that finds them."""


def canonical_text(operator: Operator) -> str:
    """Return the operator as text in which names are numbered by first appearance."""
    func = operator.func
    for name in list(func.attrs.keys()) if func.attrs else []:
        func = func.without_attr(name)
    names: dict[str, str] = {}

    def number(match: re.Match[str]) -> str:
        token = match.group()
        if token.startswith("#"):
            return ""
        if token.startswith("T.sblock("):
            return f'T.sblock("{names.setdefault(token, f"b{len(names)}")}")'
        head, dot, rest = token.partition(".")
        if token[0] in '".' or head in _KEPT or token[0].isdigit():
            return token
        return names.setdefault(head, f"v{len(names)}") + dot + rest

    text = _TOKEN.sub(number, func.script(show_meta=False))
    roles = f"constants {sorted(operator.constants)} images {sorted(operator.images)}"
    return f"{roles} outputs {operator.n_outputs}\n{text}"


def task_of(operator: Operator, target: Target, name: str = "") -> Task:
    """Return the task that an operator is."""
    key = hashlib.sha256(canonical_text(operator).encode()).hexdigest()
    return Task(key, operator, target, name)


def extract_tasks(
    program: Program, target: Target, without: frozenset[int] = frozenset()
) -> list[tuple[Task, int]]:
    """Return the distinct tasks of an unscheduled program, and how often each is called.

    Args:
        program: whose calls have no schedules yet.
        target: what they are for.
        without: positions of calls that are left out.
    """
    found: dict[str, tuple[Task, int]] = {}
    keys: dict[tuple, Task] = {}
    calls = zip(program.calls, operators_of(program, target), strict=True)
    for number, (call, operator) in enumerate(calls):
        if number in without:
            continue
        known = (call.kernel, operator.constants, operator.images, operator.n_outputs)
        if known not in keys:
            keys[known] = task_of(operator, target, call.kernel)
        task = keys[known]
        first, count = found.get(task.key, (task, 0))
        found[task.key] = (first, count + 1)
    return list(found.values())


def as_lookup(tuned: Tuned) -> Lookup:
    """Return a function that finds the decisions of a task."""
    if callable(tuned):
        return tuned
    return lambda task: tuned.get(task.key, ())


def tuned_choices(operator: Operator, target: Target, lookup: Lookup) -> tuple[Choice, ...]:
    """Return the operator's layout choices with measured seconds where there are any.

    Estimates of what was not measured are scaled up by the worst ratio of measured to estimated
    time, so that an optimistic estimate never beats a measurement.
    """
    choices = operator_choices(operator, target)
    task = task_of(operator, target)
    decisions = lookup(task)
    choices = tuple(replace(choice, task_key=task.key) for choice in choices)
    best: dict[tuple[Layout, ...], TunedDecision] = {}
    for decision in decisions:
        known = best.get(decision.layouts)
        if known is None or decision.seconds < known.seconds:
            best[decision.layouts] = decision
    if not best:
        return choices
    ratios = [best[c.layouts].seconds / c.seconds for c in choices if c.layouts in best]
    scale = max(ratios, default=1.0)
    result = []
    for choice in choices:
        tuned = best.pop(choice.layouts, None)
        if tuned is None:
            result.append(replace(choice, seconds=choice.seconds * max(scale, 1.0)))
        else:
            result.append(_measured(choice.name, tuned))
    result += [_measured(f"tuned {i}", decision) for i, decision in enumerate(best.values())]
    return tuple(result)


def _measured(name: str, decision: TunedDecision) -> Choice:
    return Choice(
        name,
        decision.layouts,
        decision.seconds,
        decision.decisions,
        decision.origin,
        decision.task_key,
    )
