"""How one PrimFunc becomes loops for one target."""

from __future__ import annotations

import json
from typing import Any, TypeAlias

from tvm import tirx

from tilewright.compiler.schedule.analysis import classify, find_anchor, read_stages
from tilewright.compiler.schedule.contraction import (
    ContractionDecisions,
    schedule_contraction,
    usual_contraction,
)
from tilewright.compiler.schedule.elementwise import (
    ElementwiseDecisions,
    default_elementwise_decisions,
    schedule_elementwise,
)
from tilewright.compiler.schedule.integer import default_integer, find_dot, schedule_integer
from tilewright.compiler.schedule.phases import (
    PhaseDecisions,
    default_phases,
    find_phases,
    schedule_phases,
)
from tilewright.compiler.schedule.reduction import (
    ReductionDecisions,
    default_reduction_decisions,
    schedule_reduction,
)
from tilewright.compiler.schedule.weight_only import (
    default_weight_only,
    find_weight_only,
    schedule_weight_only,
)
from tilewright.compiler.schedule.window import (
    WindowDecisions,
    default_window,
    schedule_window,
)
from tilewright.compiler.schedule.winograd import (
    WinogradDecisions,
    find_transform,
    schedule_winograd,
)
from tilewright.compiler.targets import Target
from tilewright.errors import InvalidScheduleError

__all__ = [
    "ContractionDecisions",
    "Decisions",
    "ElementwiseDecisions",
    "PhaseDecisions",
    "ReductionDecisions",
    "WindowDecisions",
    "WinogradDecisions",
    "classify",
    "decisions_from_json",
    "default_decisions",
    "schedule",
]

Decisions: TypeAlias = (
    ContractionDecisions
    | WindowDecisions
    | WinogradDecisions
    | PhaseDecisions
    | ReductionDecisions
    | ElementwiseDecisions
)
_KINDS: dict[str, Any] = {
    "contraction": ContractionDecisions,
    "integer": ContractionDecisions,
    "weight_only": ContractionDecisions,
    "window": WindowDecisions,
    "winograd": WinogradDecisions,
    "phases": PhaseDecisions,
    "reduction": ReductionDecisions,
    "elementwise": ElementwiseDecisions,
}
_SCHEDULERS: dict[str, Any] = {
    "contraction": schedule_contraction,
    "integer": schedule_integer,
    "weight_only": schedule_weight_only,
    "window": schedule_window,
    "winograd": schedule_winograd,
    "phases": schedule_phases,
    "reduction": schedule_reduction,
    "elementwise": schedule_elementwise,
}


def schedule(
    func: tirx.PrimFunc, target: Target, decisions: Decisions | None = None
) -> tirx.PrimFunc:
    """Return the loops that compute an unscheduled function on a target.

    Args:
        func: function in normal form: blocks under perfect loop nests, static shapes.
        target: what to schedule for.
        decisions: how; None lets the analytical model of the operator's class choose.

    Raises:
        InvalidScheduleError: the decisions do not fit the function.
    """
    kind = _kind(func, target)
    if decisions is not None and not isinstance(decisions, _KINDS[kind]):
        raise InvalidScheduleError(
            f"{type(decisions).__name__} do not fit a function of class {kind!r}"
        )
    return _SCHEDULERS[kind](func, target, decisions)


def _kind(func: tirx.PrimFunc, target: Target) -> str:
    """Return the name of the scheduler that handles a function."""
    if find_transform(func):
        return "winograd"
    stages = read_stages(func)
    if stages is not None and find_phases(stages) is not None:
        return "phases"
    if stages is not None and find_dot(stages, target) is not None:
        return "integer"
    if stages is not None and find_weight_only(stages) is not None:
        return "weight_only"
    return classify(func, target.lanes("float32"))


def default_decisions(func: tirx.PrimFunc, target: Target) -> Decisions:
    """Return what the analytical model of the operator's class chooses."""
    if find_transform(func):
        return WinogradDecisions()
    stages = read_stages(func)
    phases = find_phases(stages or ())
    if phases is not None:
        return default_phases(phases, target)
    dot = None if stages is None else find_dot(stages, target)
    if dot is not None:
        return default_integer(dot, target)
    weight_only = None if stages is None else find_weight_only(stages)
    if weight_only is not None:
        return default_weight_only(weight_only, target)
    anchor = None if stages is None else find_anchor(stages, target.lanes("float32"))
    if stages is not None and anchor is not None:
        if anchor.kind == "window":
            return default_window(anchor, target)
        return usual_contraction(anchor, target)
    if classify(func, target.lanes("float32")) == "reduction":
        return default_reduction_decisions(func, target)
    return default_elementwise_decisions(func, target)


def decisions_from_json(text: str) -> Decisions:
    """Read decisions of any class back from their JSON.

    Raises:
        InvalidScheduleError: the text is not decisions of a known kind.
    """
    data = json.loads(text)
    kind = data.get("kind") if isinstance(data, dict) else data
    if not isinstance(kind, str) or kind not in _KINDS:
        raise InvalidScheduleError(
            f"unknown kind of decisions {kind!r}; known kinds: {', '.join(_KINDS)}"
        )
    return _KINDS[kind].from_json(text)
