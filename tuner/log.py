"""A tuning log: a file of records that several processes append to and that survives anything.

Appending takes a lock beside the file, writes whole lines and waits for the disk. Reading needs no
lock and never fails on a damaged line.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import secrets
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from tilewright.errors import LogError
from tilewright.tuner.records import Record, best_records


@dataclass(frozen=True, slots=True)
class Skipped:
    """A line that is not a record of this release: its number, counted from 1, and why."""

    line: int
    reason: str


@dataclass(frozen=True)
class Contents:
    """What a log holds."""

    records: tuple[Record, ...]
    skipped: tuple[Skipped, ...]

    def warning(self, path: Path) -> str:
        """Return one line about what was skipped, or ""."""
        if not self.skipped:
            return ""
        numbers = ", ".join(str(skip.line) for skip in self.skipped[:8])
        more = ", .." if len(self.skipped) > 8 else ""
        return (
            f"{path}: skipped {len(self.skipped)} damaged or foreign lines ({numbers}{more}); "
            f"'tilewright logs doctor {path}' explains"
        )


class Log:
    """One file of records."""

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)

    def read(self) -> Contents:
        """Return all records; a missing file has none.

        Raises:
            LogError: the file cannot be read at all.
        """
        records, skipped = [], []
        for number, line in enumerate(self._lines(), 1):
            if not line.strip():
                continue
            try:
                records.append(Record.from_line(line.decode()))
            except UnicodeDecodeError:
                skipped.append(Skipped(number, "torn or not text"))
            except LogError as error:
                skipped.append(Skipped(number, str(error)))
        return Contents(tuple(records), tuple(skipped))

    def append(self, records: Iterable[Record]) -> None:
        """Write records at the end; when this returns they are on the disk.

        Raises:
            LogError: the file cannot be written; it is left as it was.
        """
        data = "".join(record.to_line() + "\n" for record in records).encode()
        if not data:
            return
        try:
            with self._locked(), open(self.path, "a+b", buffering=0) as file:
                _append(file.fileno(), data)
        except OSError as error:
            raise LogError(f"cannot write {self.path}: {error.strerror or error}") from error

    def prune(self, keep: int = 1, within: float = 2.0) -> tuple[int, int]:
        """Keep only the fastest records of each task, target and layouts; drop all else.

        Args:
            keep: records of each task, target and layouts.
            within: layouts that take more than this many times the best of their task are dropped.

        Returns:
            Lines before and records after.
        """
        with self._locked():
            contents = self.read()
            kept = best_records(contents.records, keep, within)
            self._replace(kept)
        return len(contents.records) + len(contents.skipped), len(kept)

    def repair(self) -> Contents:
        """Drop damaged lines; they go to a file beside the log, whose name ends in ".damaged"."""
        with self._locked():
            contents = self.read()
            if contents.skipped:
                lines = list(self._lines())
                bad = b"\n".join(lines[skip.line - 1] for skip in contents.skipped)
                with open(self.path.with_name(self.path.name + ".damaged"), "ab") as file:
                    file.write(bad + b"\n")
                self._replace(contents.records)
        return contents

    def merge(self, others: Sequence[str | Path]) -> int:
        """Append the records of other logs that this one lacks; return how many."""
        known = {record.to_line() for record in self.read().records}
        added: list[Record] = []
        for other in others:
            if not Path(other).exists():
                raise LogError(f"cannot read {other}: no such file")
            for record in Log(other).read().records:
                line = record.to_line()
                if line not in known:
                    known.add(line)
                    added.append(record)
        self.append(added)
        return len(added)

    def _lines(self) -> list[bytes]:
        try:
            return self.path.read_bytes().split(b"\n")
        except FileNotFoundError:
            return []
        except OSError as error:
            raise LogError(f"cannot read {self.path}: {error.strerror or error}") from error

    def _replace(self, records: Iterable[Record]) -> None:
        """Write the whole file anew; it changes at once or not at all."""
        temporary = self.path.with_name(f".{self.path.name}.{secrets.token_hex(4)}.tmp")
        try:
            with open(temporary, "xb") as file:
                file.writelines(record.to_line().encode() + b"\n" for record in records)
                file.flush()
                os.fsync(file.fileno())
            temporary.replace(self.path)
        except OSError as error:
            raise LogError(f"cannot write {self.path}: {error.strerror or error}") from error
        finally:
            temporary.unlink(missing_ok=True)

    @contextlib.contextmanager
    def _locked(self) -> Iterator[None]:
        """Hold the lock; a file of its own, because rewriting replaces the log's inode."""
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            descriptor = os.open(self.path.with_name(f".{self.path.name}.lock"), _LOCK_FLAGS, 0o666)
        except OSError as error:
            raise LogError(f"cannot write {self.path}: {error.strerror or error}") from error
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            yield
        finally:
            os.close(descriptor)


_LOCK_FLAGS = os.O_CREAT | os.O_RDWR | os.O_CLOEXEC


def _append(descriptor: int, data: bytes) -> None:
    """Append whole lines; on failure cut the file back to where it was."""
    end = os.lseek(descriptor, 0, os.SEEK_END)
    if end and os.pread(descriptor, 1, end - 1) != b"\n":
        data = b"\n" + data  # a writer was killed inside a line
    try:
        written = 0
        while written < len(data):
            written += os.write(descriptor, data[written:])
        os.fsync(descriptor)
    except OSError:
        os.ftruncate(descriptor, end)
        raise
