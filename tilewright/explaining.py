"""Why a module is as fast as it is: each operator's time, its limit, its layout, its tuning."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from tilewright.errors import ModuleError
from tilewright.profiling import OperatorProfile, Profile, byte_ratio, profile
from tilewright.runtime.library import read_description

_CONVERSION = "convert "
# Below this share of the whole time nothing is worth advice.
_WORTH = 0.005


@dataclass(frozen=True, slots=True)
class Explanation:
    """One operator call.

    Attributes:
        label: of the call.
        kernel: that it runs.
        dtypes: of its arguments.
        operations: arithmetic that it executes, padding included.
        bytes: of its arguments.
        seconds: fastest of the rounds.
        share: of the time of all calls.
        least_s: what the roofline leaves: operations at the peak, or bytes at the bandwidth of
            memory where they do not fit the second cache level.
        to_win_s: seconds - least_s.
        waits_for: what limits it.
        instructions: of its inner loop, or None where there is no objdump.
        tuning: "tuned", "transferred", "default", or "" where there is nothing to tune.
        reason: why it is not tuned, or "".
        layouts: of its arguments.
        advice: what would help.
    """

    label: str
    kernel: str
    dtypes: tuple[str, ...]
    operations: int
    bytes: int
    seconds: float
    share: float
    least_s: float
    to_win_s: float
    waits_for: str
    instructions: str | None
    tuning: str
    reason: str
    layouts: tuple[str, ...]
    advice: str


def explain(
    path: str | os.PathLike[str],
    *,
    against: str | os.PathLike[str] | None = None,
    inputs: Mapping[str, np.ndarray] | None = None,
    threads: int = 1,
    rounds: int = 20,
    progress: Callable[[str], None] = lambda _stage: None,
) -> dict[str, Any]:
    """Profile a module and say of each operator what it waits for and what would help.

    Args:
        path: a module for this machine's processor.
        against: another module; its time of each operator of the same label stands beside.
        inputs: what to run on; None draws random inputs.
        threads: threads per call.
        rounds: how often each module runs.
        progress: called before each round.

    Returns:
        "module", "seconds", "peak_gflops", "bandwidth_gbytes", "threads"; "operators": see
        `Explanation`, the most to win first; "conversions": how many layout conversions are
        executed, and their time; "tuned": share of the time by origin; "quantized": of a quantized
        model, every operator of its graph, whether it runs on integers, and why not; with `against`
        also "against": its name, its time, and "operators": label, time here and there, the
        largest difference first.

    Raises:
        ModuleError: not a module, or one for another processor.
    """
    found = profile(path, inputs, threads, rounds, progress)
    description = read_description(Path(path))
    calls = description["entries"][0]["calls"]
    target = description["target"]
    l2_bytes, features = int(target["l2_bytes"]), tuple(target["features"])
    rows = [
        _explained(found, operator, call, l2_bytes, features)
        for operator, call in zip(found.operators, calls, strict=True)
    ]
    conversions = [row for row in rows if row.label.startswith(_CONVERSION)]
    shares: dict[str, float] = {}
    for row in rows:
        if row.tuning:
            shares[row.tuning] = shares.get(row.tuning, 0.0) + row.share
    result: dict[str, Any] = {
        "module": str(path),
        "threads": threads,
        "seconds": found.seconds,
        "peak_gflops": found.peak_gflops,
        "bandwidth_gbytes": found.bandwidth_gbytes,
        "operators": [asdict(row) for row in sorted(rows, key=lambda row: -row.to_win_s)],
        "conversions": {
            "count": len(conversions),
            "seconds": sum(row.seconds for row in conversions),
        },
        "tuned": shares,
        "quantized": description.get("quantized", []),
    }
    if against is not None:
        result["against"] = _beside(found, profile(against, inputs, threads, rounds, progress))
    return result


def _explained(
    found: Profile,
    operator: OperatorProfile,
    call: Mapping[str, Any],
    l2_bytes: int,
    features: tuple[str, ...],
) -> Explanation:
    least = _least_seconds(found, call, l2_bytes, byte_ratio(operator.kernel, features))
    to_win = max(0.0, operator.seconds - least)
    tuning, reason = str(call.get("tuning", "")), str(call.get("reason", ""))
    return Explanation(
        label=operator.label,
        kernel=operator.kernel,
        dtypes=tuple(call.get("dtypes", ())),
        operations=int(call["operations"]),
        bytes=int(call["bytes"]),
        seconds=operator.seconds,
        share=operator.share,
        least_s=least,
        to_win_s=to_win,
        waits_for=operator.waits_for,
        instructions=operator.instructions,
        tuning=tuning,
        reason=reason,
        layouts=tuple(call.get("layouts", ())),
        advice=_advice(operator, tuning, reason, to_win / found.seconds),
    )


def _least_seconds(found: Profile, call: Mapping[str, Any], l2_bytes: int, ratio: int) -> float:
    operations, moved = call.get("operations"), call.get("bytes")
    if operations is None or moved is None:
        raise ModuleError(
            f"'{found.module}' was compiled by a release that does not count operations; "
            "compile the model again"
        )
    computing = operations / (found.peak_gflops * 1e9 * ratio)
    moving = moved / (found.bandwidth_gbytes * 1e9) if moved > l2_bytes else 0.0
    return max(computing, moving)


def _advice(operator: OperatorProfile, tuning: str, reason: str, share_to_win: float) -> str:
    if share_to_win < _WORTH:
        return ""
    if operator.label.startswith(_CONVERSION):
        return "a layout conversion: tune its neighbours, so that one layout suits both"
    if tuning == "default":
        return f"tune it: {reason}" if reason else "tune it"
    if tuning == "transferred":
        return "tune it: its decisions are those of another shape"
    return ""


def _beside(found: Profile, other: Profile) -> dict[str, Any]:
    here, there = _by_label(found), _by_label(other)
    labels = list(dict.fromkeys([*here, *there]))
    labels.sort(key=lambda label: -abs(here.get(label, 0.0) - there.get(label, 0.0)))
    rows = [
        {"label": label, "seconds": here.get(label), "other_seconds": there.get(label)}
        for label in labels
    ]
    return {"module": other.module, "seconds": other.seconds, "operators": rows}


def _by_label(found: Profile) -> dict[str, float]:
    times: dict[str, float] = {}
    for operator in found.operators:
        times[operator.label] = times.get(operator.label, 0.0) + operator.seconds
    return times
