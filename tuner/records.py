"""Records of measurements: one self-describing JSON line each, appended and never lost.

A line carries its own checksum, what was measured (task, target, candidate) and what came out,
failures included. Readers skip what they cannot read, wherever it is, and count it.
"""

from __future__ import annotations

import json
import platform
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from datetime import datetime, timezone
from importlib import metadata
from pathlib import Path
from typing import Any, Literal, get_args

from tilewright.compiler.schedule.generation import FIRST, generation
from tilewright.compiler.targets import Target
from tilewright.errors import LogError, TilewrightError
from tilewright.tuner.candidate import Candidate, canonical_json, digest
from tilewright.tuner.record_fields import check_fields

SCHEMA_VERSION = 1
_KERNELS = "kernels"

Status = Literal["ok", "build_error", "rejected", "run_error", "timeout", "wrong_output"]

_FIELDS = (
    *("schema_version", "task_key", "task", "target", "hardware", "candidate", "status", "error"),
    *("run_times_s", "build_time_s", "seed", "versions", "created_at"),
)


@dataclass(frozen=True, slots=True)
class Record:
    """One measured candidate.

    Attributes:
        task_key: hash of the task's canonical text.
        task: what the task is, for people and for transfer: see `workload.describe`.
        target: plain data of the target, without its name.
        candidate: layouts and schedule.
        status: what happened; only "ok" has times.
        error: reason of a failure, or "".
        run_times_s: seconds of every repeat.
        build_time_s: seconds that building took.
        hardware: processor, threads and state of the caches.
        seed: of the random inputs.
        versions: of tilewright and TVM, and "kernels": see `schedule.generation`.
        created_at: UTC.
    """

    task_key: str
    task: Mapping[str, Any]
    target: Mapping[str, Any]
    candidate: Candidate
    status: Status
    error: str = ""
    run_times_s: tuple[float, ...] = ()
    build_time_s: float = 0.0
    hardware: Mapping[str, Any] = field(default_factory=dict)
    seed: int = 0
    versions: Mapping[str, str] = field(default_factory=dict)
    created_at: str = ""

    def __post_init__(self) -> None:
        if self.status not in get_args(Status):
            raise LogError(f"unknown status {self.status!r}, known: {', '.join(get_args(Status))}")
        if (self.status == "ok") != bool(self.run_times_s):
            raise LogError(f"status {self.status!r} with {len(self.run_times_s)} run times")
        if any(not 0 < seconds < float("inf") for seconds in self.run_times_s):
            raise LogError(f"run times {self.run_times_s} are not positive seconds")

    @property
    def ok(self) -> bool:
        """Whether the candidate ran and computed the right values."""
        return self.status == "ok"

    @property
    def seconds(self) -> float:
        """The least of the repeats: what others on the machine disturb least."""
        return min(self.run_times_s)

    def to_line(self) -> str:
        """Return the line of the log, without its end."""
        data = {
            "schema_version": SCHEMA_VERSION,
            **{name: getattr(self, name) for name in _FIELDS[1:]},
            "candidate": self.candidate.to_json(),
            "run_times_s": [float(f"{seconds:.5g}") for seconds in self.run_times_s],
            "build_time_s": round(self.build_time_s, 4),
        }
        # Through JSON once, so that tuples and numbers are what a reader will hash.
        plain = json.loads(canonical_json(data))
        return canonical_json({**plain, "checksum": digest(plain)})

    @classmethod
    def from_line(cls, line: str) -> Record:
        """Read a line back.

        Raises:
            LogError: the line is torn, damaged, or of another kind or version; says which.
        """
        try:
            data = json.loads(line)
        except (json.JSONDecodeError, RecursionError) as error:
            raise LogError("torn or not JSON") from error
        if not isinstance(data, dict) or "checksum" not in data:
            raise LogError("not a tuning record")
        checksum = data.pop("checksum")
        try:
            expected = digest(data)
        except ValueError as error:
            raise LogError("holds a number that is not finite") from error
        if checksum != expected:
            raise LogError("damaged: its checksum does not match")
        if data.get("schema_version") != SCHEMA_VERSION:
            raise LogError(
                f"schema version {data.get('schema_version')}, this release reads {SCHEMA_VERSION}"
            )
        if set(data) != set(_FIELDS):
            raise LogError(f"fields {sorted(set(data) ^ set(_FIELDS))} are missing or unknown")
        del data["schema_version"]
        check_fields(data)
        try:
            data["candidate"] = Candidate.from_json(data["candidate"])
        except (TilewrightError, TypeError, KeyError, ValueError) as error:
            raise LogError(f"holds no candidate: {error}") from error
        data["run_times_s"] = tuple(data["run_times_s"])
        return cls(**data)


def target_data(target: Target) -> dict[str, Any]:
    """Return a target as plain data without its name: "native" is what it describes."""
    data = json.loads(canonical_json(asdict(target)))
    del data["name"]
    return data


def applies_to(record_target: Mapping[str, Any], target: Target) -> bool:
    """Say whether code tuned for one target may serve another.

    It may not where the other lacks an instruction, nor where its vectors differ, because layouts
    and register tiles follow those.
    """
    return (
        record_target["triple"] == target.triple
        and set(record_target["features"]) <= set(target.features)
        and record_target["vector_bits"] == target.vector_bits
        and record_target["vector_registers"] == target.vector_registers
    )


def same_target(record_target: Mapping[str, Any], target: Target) -> bool:
    """Say whether a record was measured on this kind of processor with as many threads."""
    return (
        record_target["mcpu"] == target.mcpu
        and record_target["cores"] == target.cores
        and applies_to(record_target, target)
    )


def merit(record: Record) -> tuple[bool, bool, bool, float]:
    """Return what good records are sorted by.

    Those of today's kernels come first; of these winners of a final race, its others, then time.
    """
    facts = record.hardware
    return (
        *(is_outgrown(record), not facts.get("winner", False), not facts.get("raced", False)),
        record.seconds,
    )


def _place(record: Record) -> str:
    return digest([record.task_key, dict(record.target)])


def best_records(records: Iterable[Record], count: int = 1, within: float = 2.0) -> list[Record]:
    """Return the fastest records of each task, target and layouts, at most `count` of each.

    Layouts that take more than `within` times the best layouts of their task are left out.
    """
    best: dict[str, float] = {}
    groups: dict[str, list[Record]] = {}
    for record in records:
        if record.ok:
            layouts = record.candidate.to_json()["layouts"]
            group = digest([record.task_key, dict(record.target), layouts])
            groups.setdefault(group, []).append(record)
            place = _place(record)
            best[place] = min(best.get(place, record.seconds), record.seconds)
    kept = []
    for alike in groups.values():
        seen: set[Candidate] = set()
        for record in sorted(alike, key=merit):
            if record.seconds > within * best[_place(record)]:
                continue
            if record.candidate not in seen and len(seen) < count:
                seen.add(record.candidate)
                kept.append(record)
    return kept


def versions() -> dict[str, str]:
    """Return the versions of packages that a record depends on."""
    return {name: metadata.version(name) for name in ("tilewright", "apache-tvm")}


def kernels_version(candidate: Candidate) -> dict[str, str]:
    """Return the version of the kernels that a candidate is built with."""
    return {_KERNELS: str(generation(_kind(candidate)))}


def is_outgrown(record: Record) -> bool:
    """Say whether a record was measured with kernels older than those of today."""
    return _generation(record) < generation(_kind(record.candidate))


def _generation(record: Record) -> int:
    """Return the generation that a record names; those made before there was one name none."""
    text = str(record.versions.get(_KERNELS, FIRST))
    return int(text) if text.isdecimal() else FIRST


def _kind(candidate: Candidate) -> str:
    return "" if candidate.schedule is None else str(json.loads(candidate.schedule).get("kind"))


def processor_name() -> str:
    """Return the model name of this machine's processor."""
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        for line in cpuinfo.read_text().splitlines():
            name, _, value = line.partition(":")
            if name.strip() == "model name":
                return value.strip()
    return platform.processor() or platform.machine()


def now() -> str:
    """Return the time in UTC, to the second."""
    return datetime.now(timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ")
