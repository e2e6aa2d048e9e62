"""Logs of tuning for GPUs: one JSON line for each candidate, with a checksum."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from tilewright.compiler.cuda.layouts import cuda_choices
from tilewright.compiler.cuda.targets import CudaTarget
from tilewright.compiler.layout.operator import Choice, Operator
from tilewright.compiler.targets import Target
from tilewright.compiler.tasks import task_of
from tilewright.errors import LogError, TilewrightError
from tilewright.tuner.candidate import Candidate, canonical_json, digest

SCHEMA = "tilewright-cuda-1"


@dataclass(frozen=True, slots=True)
class CudaRecord:
    """One candidate of one operator.

    Attributes:
        task_key: of the operator; see `compiler.tasks`.
        task: what it is called, for people.
        target, precision: what it was built for.
        measure: "device", or "estimate" where no GPU was asked.
        candidate: layouts and tile.
        seconds: None where it failed.
        error: how it failed, or "".
        versions, created_at: of the compiler, and UTC.
    """

    task_key: str
    task: str
    target: str
    precision: str
    measure: str
    candidate: Candidate
    seconds: float | None
    error: str
    versions: dict[str, str]
    created_at: str

    def to_line(self) -> str:
        """Return the line of the log, without its end."""
        data = {**asdict(self), "candidate": self.candidate.to_json(), "schema": SCHEMA}
        plain = json.loads(canonical_json(data))
        return canonical_json({**plain, "checksum": digest(plain)})

    @classmethod
    def from_line(cls, line: str) -> CudaRecord:
        """Read a line back.

        Raises:
            LogError: the line is torn, damaged or of another kind.
        """
        try:
            data: dict[str, Any] = json.loads(line)
            checksum = data.pop("checksum")
            if digest(data) != checksum:
                raise LogError("damaged: its checksum does not match")
            if data.pop("schema") != SCHEMA:
                raise LogError("a record of another kind")
            data["candidate"] = Candidate.from_json(data["candidate"])
            return cls(**data)
        except (json.JSONDecodeError, KeyError, TypeError, AttributeError) as error:
            raise LogError("torn, or not a record of tuning for a GPU") from error


def user_cuda_log() -> Path:
    """Return where tuning for GPUs writes unless told otherwise."""
    base = os.environ.get("XDG_DATA_HOME") or Path.home() / ".local" / "share"
    return Path(base) / "tilewright" / "tuning_cuda.jsonl"


def append_records(path: Path, records: Iterable[CudaRecord]) -> None:
    """Write records at the end of a log.

    Raises:
        LogError: the file cannot be written.
    """
    text = "".join(record.to_line() + "\n" for record in records)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("a") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        raise LogError(f"cannot write {path}: {error.strerror or error}") from error


def read_records(path: Path) -> tuple[list[CudaRecord], list[int]]:
    """Return the records of a log, and the numbers of lines that were skipped."""
    records, skipped = [], []
    lines = path.read_text(errors="replace").splitlines() if path.exists() else []
    for number, line in enumerate(lines, 1):
        try:
            records.append(CudaRecord.from_line(line))
        except TilewrightError:
            skipped.append(number)
    return records, skipped


class CudaLookup:
    """Layouts and tiles that were measured: the choices of operators for `lower_for_cuda`.

    Estimates are no measurements: records of that kind are left out.
    """

    def __init__(self, records: Sequence[CudaRecord], target: CudaTarget, precision: str) -> None:
        self._best: dict[str, dict[tuple, CudaRecord]] = {}
        for record in records:
            fits = (record.target, record.precision) == (target.name, precision)
            if not fits or record.measure != "device" or record.seconds is None:
                continue
            layouts = self._best.setdefault(record.task_key, {})
            known = layouts.get(record.candidate.layouts)
            if known is None or record.seconds < (known.seconds or 0.0):
                layouts[record.candidate.layouts] = record

    def __call__(self, operator: Operator, host: Target) -> tuple[Choice, ...]:
        """Return an operator's layout choices, with what was measured in them."""
        choices = cuda_choices(operator, host)
        key = task_of(operator, host).key
        found = self._best.get(key, {})
        known = [c for c in choices if c.layouts in found]
        # An estimate must not beat a measurement by being optimistic.
        ratios = [(found[c.layouts].seconds or 0.0) / c.seconds for c in known]
        scale = max([1.0, *ratios])
        result = []
        for choice in choices:
            record = found.get(choice.layouts)
            if record is None:
                seconds = choice.seconds * scale
                result.append(replace(choice, seconds=seconds, task_key=key))
                continue
            assert record.seconds is not None
            result.append(
                replace(
                    choice,
                    seconds=record.seconds,
                    decisions=record.candidate.schedule,
                    origin="tuned",
                    task_key=key,
                )
            )
        return tuple(result)
