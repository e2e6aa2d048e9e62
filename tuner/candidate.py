"""A candidate: layouts and loop decisions of one task, searched and stored together."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from tilewright.compiler.layout.primitives import Layout
from tilewright.errors import LogError


@dataclass(frozen=True, slots=True)
class Candidate:
    """One way to compute a task.

    Attributes:
        layouts: one per parameter of the task's PrimFunc.
        schedule: canonical JSON of the schedule's decisions; None leaves them to the compiler's
            analytical model.
    """

    layouts: tuple[Layout, ...]
    schedule: str | None = None

    def to_json(self) -> dict[str, Any]:
        """Return plain data that `from_json` reads back."""
        return {
            "layouts": [layout.to_json() for layout in self.layouts],
            "schedule": None if self.schedule is None else json.loads(self.schedule),
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Candidate:
        """Read a candidate back.

        Raises:
            LogError: fields are missing or unknown.
        """
        if set(data) != {"layouts", "schedule"}:
            raise LogError(f"a candidate has fields {sorted(data)}, expected layouts, schedule")
        schedule = data["schedule"]
        if not isinstance(schedule, dict | None):
            raise LogError(f"decisions of a candidate are an object or null, found {schedule!r}")
        return cls(
            tuple(Layout.from_json(layout) for layout in data["layouts"]),
            None if schedule is None else canonical_json(schedule),
        )

    @property
    def key(self) -> str:
        """Hash by value, 16 hexadecimal digits."""
        return digest(self.to_json())


def layouts_key(layouts: tuple[Layout, ...]) -> str:
    """Return the hash of layouts by value, 16 hexadecimal digits."""
    return digest([layout.to_json() for layout in layouts])


def canonical_json(data: Any) -> str:
    """Return JSON with sorted keys and no spaces: equal data, equal text."""
    return json.dumps(data, sort_keys=True, separators=(",", ":"), allow_nan=False)


def digest(data: Any) -> str:
    """Return the first 16 hexadecimal digits of the SHA-256 of canonical JSON."""
    return hashlib.sha256(canonical_json(data).encode()).hexdigest()[:16]
