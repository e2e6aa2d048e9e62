"""Decisions as one line of JSON with a kind tag, and back: the same for every class of them."""

from __future__ import annotations

import json
from dataclasses import asdict, fields
from typing import Any, TypeVar

from tilewright.errors import InvalidScheduleError

D = TypeVar("D")


def to_line(kind: str, decisions: Any) -> str:
    """Return one line of JSON: the kind, then the fields of the dataclass in order."""
    return json.dumps({"kind": kind, **asdict(decisions)}, separators=(",", ":"))


def from_line(cls: type[D], kind: str, text: str) -> D:
    """Read decisions of class `cls` back; lists become tuples.

    Raises:
        InvalidScheduleError: the text holds another kind or other fields.
    """
    values: dict[str, Any] = json.loads(text)
    names = {field.name for field in fields(cls)}  # type: ignore[arg-type]
    if values.pop("kind", None) != kind or set(values) != names:
        raise InvalidScheduleError(f"not {kind} decisions: {text}")
    return cls(**{k: tuple(v) if isinstance(v, list) else v for k, v in values.items()})
