"""Between compiler and tuner: logs in, coverage out."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tilewright.errors import CompileError

if TYPE_CHECKING:
    from tilewright.compiler.pipeline import Lowered
    from tilewright.compiler.targets import Target
    from tilewright.tuner.lookup import Lookup

Logs = Sequence[str | os.PathLike[str]]


def find_tuned(target: Target, logs: Logs | None = None) -> Lookup | None:
    """Return what finds tuned decisions for a target, or None where there are no logs.

    Args:
        target: what is compiled for.
        logs: files of records; None: those of the package and of the user.

    Raises:
        LogError: a log that was named is missing or cannot be read.
    """
    from tilewright.errors import LogError
    from tilewright.tuner.lookup import Lookup, default_logs

    paths = default_logs() if logs is None else [Path(log) for log in logs]
    for path in paths:
        if not path.exists():
            raise LogError(f"cannot read {path}: no such file")
    return Lookup(paths, target) if paths else None


def describe_tuning(lowered: Lowered, lookup: Lookup | None) -> dict[str, Any]:
    """Return, per operator, whether it is tuned, and the share of time that is.

    Keys: operators (label, origin, reason, expected_s), tuned_share and transferred_share (of the
    expected time), warnings.
    """
    calls = [c for c in lowered.program.calls if not c.label.startswith("convert ")]
    rows = []
    seconds = {"tuned": 0.0, "transferred": 0.0, "default": 0.0}
    for call, choice in zip(calls, lowered.plan.choices, strict=True):
        found = None if lookup is None else lookup.coverage.get(choice.task_key)
        origin, reason = choice.origin, "" if found is None else found.reason
        if lookup is None:
            reason = "there is no log"
        elif call.kernel in lowered.stale:
            origin, reason = "default", "its record no longer fits the operator"
        elif origin == "default" and found is not None and found.origin != "default":
            reason = "no record of it in the layouts that suit its neighbours"
        seconds[origin] += choice.seconds
        rows.append(
            {
                "label": call.label,
                "origin": origin,
                "reason": reason,
                "expected_s": choice.seconds,
            }
        )
    total = sum(seconds.values()) or 1.0
    return {
        "operators": rows,
        "tuned_share": seconds["tuned"] / total,
        "transferred_share": seconds["transferred"] / total,
        "warnings": [] if lookup is None else list(lookup.warnings),
    }


def check_required(tuning: dict[str, Any], share: float | None) -> None:
    """Fail where less of the expected time is tuned than required.

    Raises:
        CompileError: names the heaviest operators that are not tuned.
    """
    if share is None or tuning["tuned_share"] >= share:
        return
    missing = [row for row in tuning["operators"] if row["origin"] != "tuned"]
    missing.sort(key=lambda row: -row["expected_s"])
    named = "; ".join(f"{row['label']}: {row['reason'] or row['origin']}" for row in missing[:3])
    raise CompileError(
        f"{tuning['tuned_share']:.1%} of the expected time is tuned, {share:.1%} is required; "
        f"not tuned are {len(missing)} operators, the heaviest {named}; "
        "run 'tilewright tune' on this model first"
    )
