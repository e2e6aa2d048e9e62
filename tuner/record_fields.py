"""The types of what a record holds: a log may come from another program, or from a text editor."""

from __future__ import annotations

from collections.abc import Mapping
from math import isfinite
from typing import Any

from tilewright.errors import LogError

# A type; [type]: a list of it; {name: type}: an object that may lack some of these and have others.
_FIELDS: dict[str, Any] = {
    "task_key": str,
    "task": {
        "name": str, "blocks": [str], "shapes": [[int]], "dtypes": [str], "constants": [int],
        "images": [int], "outputs": int, "macs": int, "axes": [int],
    },
    "target": {
        "triple": str, "mcpu": str, "features": [str], "vector_bits": int,
        "vector_registers": int, "l1_bytes": int, "l2_bytes": int, "l3_bytes": int, "cores": int,
    },
    "hardware": {"processor": str, "threads": int, "tasks": int},
    "status": str,
    "error": str,
    "run_times_s": [float],
    "build_time_s": float,
    "seed": int,
    "versions": {},
    "created_at": str,
}  # fmt: skip
_NEEDED_OF_TARGET = ("triple", "mcpu", "features", "vector_bits", "vector_registers", "cores")


def check_fields(data: Mapping[str, Any]) -> None:
    """Check the fields of a record but its candidate.

    Raises:
        LogError: one has another type than records have; says which.
    """
    for name, kind in _FIELDS.items():
        _check(data[name], kind, name)
    if "name" not in data["task"]:
        raise LogError("its task has no name")
    missing = [name for name in _NEEDED_OF_TARGET if name not in data["target"]]
    if missing:
        raise LogError(f"its target lacks {', '.join(missing)}")
    if any(extent < 1 for extent in data["task"].get("axes", ())):
        raise LogError("its task has an axis below 1")


def _check(value: Any, kind: Any, name: str) -> None:
    if isinstance(kind, list):
        if not isinstance(value, list | tuple):
            raise LogError(f"its {name} is no list")
        for item in value:
            _check(item, kind[0], name)
    elif isinstance(kind, dict):
        if not isinstance(value, Mapping):
            raise LogError(f"its {name} is no object")
        for key, part in kind.items():
            if key in value:
                _check(value[key], part, f"{name}.{key}")
    elif kind is float:
        is_number = isinstance(value, int | float) and not isinstance(value, bool)
        if not is_number or abs(value) > 1e300 or not isfinite(value):
            raise LogError(f"its {name} is no number")
    elif not isinstance(value, kind) or isinstance(value, bool):
        raise LogError(f"its {name} is no {'text' if kind is str else 'whole number'}")
