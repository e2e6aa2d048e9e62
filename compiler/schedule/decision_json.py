"""Decisions as one line of JSON with a kind tag, and back: the same for every class of them."""

from __future__ import annotations

import json
from dataclasses import MISSING, asdict, fields
from typing import Any, TypeVar, get_type_hints

from tilewright.errors import InvalidScheduleError

D = TypeVar("D")
# No extent is larger: loops count in 64 bits at most.
_LARGEST = 1 << 62


def to_line(kind: str, decisions: Any) -> str:
    """Return one line of JSON: the kind, then the fields of the dataclass in order."""
    return json.dumps({"kind": kind, **asdict(decisions)}, separators=(",", ":"))


def from_line(cls: type[D], kind: str, text: str) -> D:
    """Read decisions of class `cls` back; lists become tuples.

    Raises:
        InvalidScheduleError: the text holds another kind or other fields.
    """
    values: Any = json.loads(text)
    if not isinstance(values, dict):
        raise InvalidScheduleError(f"not {kind} decisions: {text}")
    known = fields(cls)  # type: ignore[arg-type]
    names = {field.name for field in known}
    # A record of before a field was there stands for what was done then: its default.
    needed = {field.name for field in known if field.default is MISSING}
    if values.pop("kind", None) != kind or not needed <= set(values) <= names:
        raise InvalidScheduleError(f"not {kind} decisions: {text}")
    for name, hint in get_type_hints(cls).items():
        if name in values and not _has_type(values[name], hint):
            raise InvalidScheduleError(f"not {kind} decisions: {name} is {values[name]!r}")
    return cls(**{k: tuple(v) if isinstance(v, list) else v for k, v in values.items()})


def _has_type(value: Any, hint: Any) -> bool:
    """Say whether a value of JSON is an int, a bool, or a list for a tuple[int, ...]."""
    if hint is int:
        return type(value) is int and abs(value) <= _LARGEST
    if hint is bool:
        return type(value) is bool
    return isinstance(value, list) and all(_has_type(item, int) for item in value)
